"""Preparation: recordings and texts -> text tokenizer, codes, tokenized examples, packed rows.

Each stage is a pure function of its input folder and options; see `stages` for how it survives interruption. Every
record is accounted for: ``in = written + filtered + quarantined``.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from mimo_jax.data import audio as audio_lib
from mimo_jax.data import formats as formats_lib
from mimo_jax.data import formats_chat, prepared, prompts, records
from mimo_jax.data.manifest import ManifestError, Record, TextRecord, from_json, scan_records, to_json
from mimo_jax.data.sequence import Layout, render
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.files import replacing, write_text

Progress = Callable[..., Any]


class Codec(Protocol):
    """What turns recordings into codes."""

    def encode(self, waves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Float32 waves at 24 kHz -> int codes [frames, quantizers] each."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a recording or a run is refused.

    Attributes:
        min_seconds, max_seconds: of a recording.
        bad_share: of quarantined records above which the run stops ...
        bad_records: ... once there are more than this many.
    """

    min_seconds: float = 0.1
    max_seconds: float = 1800.0
    bad_share: float = 0.2
    bad_records: int = 100


class TooManyBadRecords(Exception):
    """More records were quarantined than the limits allow; the message says how many, for what reasons."""


def chunks(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """(number, part) of consecutive parts of at most ``size`` items."""
    for number, start in enumerate(range(0, len(items), size)):
        yield number, items[start : start + size]


# --- scan ------------------------------------------------------------------------------------------------------------


def _quarantined(record_id: str, reason: str, detail: str) -> dict[str, str]:
    return {"id": record_id, "reason": reason, "detail": detail}


def parse_manifest(manifest: pathlib.Path) -> tuple[list[Record], list[dict[str, str]], int]:
    """(records, quarantined lines, lines in); the first of several records with one id is kept."""
    good: dict[str, Record] = {}
    bad: list[dict[str, str]] = []
    total = 0
    with open(manifest, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            total += 1
            try:
                record = from_json(line)
            except ManifestError as error:
                bad.append(_quarantined(f"{manifest.name}:{number}", "invalid_line", str(error)))
                continue
            if record.id in good:
                bad.append(_quarantined(record.id, "duplicate_id", f"line {number}: an earlier record has this id"))
            else:
                good[record.id] = record
    return list(good.values()), bad, total


def scan(
    manifest: pathlib.Path,
    out: pathlib.Path,
    *,
    subsets: Sequence[str] = (),
    limits: Limits,
    chunk: int = 1024,
    workers: int | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Check every record; write ``manifest.jsonl`` (the good ones) and ``quarantine.jsonl`` to ``out``.

    Args:
        manifest: a ``manifest.jsonl``.
        out: folder of the stage.
        subsets: keep only these subsets; none keeps all.
        limits: when to refuse.
        chunk: records per resumable part.
        workers: decoding threads.
        progress: a tqdm-like wrapper of an iterable.

    Returns:
        counts: in, written, filtered, quarantined, reasons.

    Raises:
        TooManyBadRecords: see `Limits`.
    """
    found, bad, total = parse_manifest(manifest)
    wanted = [r for r in found if not subsets or r.subset in subsets]
    good: list[Record] = []
    parts = list(chunks(wanted, chunk))
    for number, part in progress(parts, desc="scan", unit="chunk"):
        path = out / f"chunk-{number:05d}.json"
        if not path.is_file():
            usable, rejected = scan_records(
                part,
                manifest.parent,
                min_seconds=limits.min_seconds,
                max_seconds=limits.max_seconds,
                workers=workers,
            )
            lines = [to_json(r) for r in usable]
            refused = [_quarantined(r.record.id, r.reason, r.detail) for r in rejected]
            write_text(path, json.dumps({"good": lines, "bad": refused}, ensure_ascii=False))
        result = json.loads(path.read_text(encoding="utf-8"))
        good += [from_json(line) for line in result["good"]]
        bad += result["bad"]
    counts = {
        "in": total,
        "written": len(good),
        "filtered": len(found) - len(wanted),
        "quarantined": len(bad),
        "reasons": dict(sorted(Counter(b["reason"] for b in bad).items())),
    }
    write_text(out / "quarantine.jsonl", "".join(json.dumps(b, ensure_ascii=False) + "\n" for b in bad))
    if len(bad) > limits.bad_records and len(bad) > limits.bad_share * total:
        raise TooManyBadRecords(
            f"{manifest}: {len(bad)} of {total} records are bad ({counts['reasons']}), more than the limit of "
            f"{limits.bad_share:.0%}; see {out / 'quarantine.jsonl'}, then mend the data or raise Limits.bad_share"
        )
    placed = [dataclasses.replace(r, audio=_relative(manifest.parent, r.audio, out)) for r in with_held_out(good)]
    write_text(out / "manifest.jsonl", "".join(to_json(r) + "\n" for r in placed))
    return counts


def with_held_out(records: Sequence[Record]) -> list[Record]:
    """The records, one of them moved to "validation" if none is there: every figure needs held-out speech.

    A small folder may well have none, as splits that are not given go by hash and 2 % share. A single record stays in
    training; nothing can be held out then.
    """
    if len(records) < 2 or any(r.split == "validation" for r in records):
        return list(records)
    chosen = min((r for r in records), key=lambda r: (not r.text, hashlib.sha256(r.id.encode()).digest()))
    return [dataclasses.replace(r, split="validation") if r is chosen else r for r in records]


def _relative(root: pathlib.Path, audio: str, out: pathlib.Path) -> str:
    """The audio's path seen from the stage's folder; an absolute path stays as it is."""
    return audio if os.path.isabs(audio) else os.path.relpath(root.absolute() / audio, out.absolute())


# --- text ------------------------------------------------------------------------------------------------------------


def tokenizer_texts(material: formats_lib.Material) -> Iterator[str]:
    """Every kind of text that examples hold, about as often as they hold it, to train the text tokenizer on."""
    pools = [
        [w for group in pool.values() for w in group] for pool in (prompts.ASR_INSTRUCTIONS, prompts.TTS_INSTRUCTIONS)
    ]
    for number, record in enumerate(material.records):
        if record.text:
            # In both cases of its beginning; after a colon too, as a request has it.
            yield from (record.text, f": {prompts.normalize_case(record.text)}")
            yield from (pool[number % len(pool)] for pool in pools)
            # Role markers open every turn: spelled in pieces they would lengthen each example.
            yield from ("user\n", "assistant\n")
        if record.instruction:
            yield from (record.instruction, formats_chat.style_thought(record, record.instruction))
            yield (prompts.STYLE_LINE, prompts.STYLE_VOICE_LINE)[number % 2]
        if record.reply:
            yield prompts.VOICE_LINE
        if record.caption:
            yield from (prompts.CAPTION_LEAD, record.caption)
        for qa in record.qa:
            thought = formats_chat.listening_thought(record, qa["question"], qa["answer"])
            yield from (qa["question"], qa["answer"], thought)
    for text in material.texts:
        yield from (t for t in (text.text, text.reply) if t)


# --- codes -----------------------------------------------------------------------------------------------------------


def _waves(part: Sequence[Record], root: pathlib.Path, workers: int | None) -> list[np.ndarray | str]:
    """The waves of the records, or the reason why there is none any more."""

    def load(record: Record) -> np.ndarray | str:
        try:
            return audio_lib.load_audio(root / record.audio, start=record.start, end=record.end)
        except audio_lib.AudioError as error:
            return error.reason

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(load, part))


def _encode(codec: Codec, waves: list[np.ndarray | str], layout: Layout) -> tuple[list[np.ndarray], list[str]]:
    """(codes uint16 [frames, C], empty where there is a reason; reason or "") for each wave."""
    codes = [np.zeros((0, layout.channels), np.uint16) for _ in waves]
    reasons = [wave if isinstance(wave, str) else "" for wave in waves]
    good = [i for i, wave in enumerate(waves) if isinstance(wave, np.ndarray)]
    encoded = codec.encode([w for w in waves if isinstance(w, np.ndarray)]) if good else []
    for i, made in zip(good, encoded, strict=True):
        made = np.asarray(made)
        if made.ndim != 2 or made.shape[1] < layout.channels:
            raise ValueError(f"the codec gave codes of shape {made.shape}; [frames, >= {layout.channels}] is needed")
        kept = made[:, : layout.channels]
        if len(kept) == 0:
            reasons[i] = "no_frames"
        elif (kept < 0).any() or (kept >= np.asarray(layout.empty_codes)).any():
            raise ValueError(f"the codec gave codes outside 0..{[n - 1 for n in layout.empty_codes]}")
        else:
            codes[i] = kept.astype(np.uint16)
    return codes, reasons


def encode_audio(
    scanned: Sequence[Record],
    root: pathlib.Path,
    codec: Callable[[], Codec],
    layout: Layout,
    out: pathlib.Path,
    *,
    chunk: int = 256,
    workers: int | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Audio -> codes, in parts of ``chunk`` recordings.

    A part is ``codes-00000.npz`` with codes uint16 [sum frames, C], the recordings' ends, and the reasons of those
    without codes. ``codec`` is called only if a part is missing.
    """
    ready: Codec | None = None
    frames = 0
    bad: list[dict[str, str]] = []
    for number, part in progress(list(chunks(scanned, chunk)), desc="audio to codes", unit="chunk"):
        path = out / f"codes-{number:05d}.npz"
        if not path.is_file():
            ready = ready or codec()
            codes, reasons = _encode(ready, _waves(part, root, workers), layout)
            ends = np.cumsum([len(c) for c in codes], dtype=np.int64)
            with replacing(path) as partial, partial.open("wb") as file:
                np.savez(file, codes=np.concatenate(codes), ends=ends, reasons=np.asarray(reasons))
        with np.load(path) as data:
            frames += int(data["ends"][-1])
            reasons = data["reasons"].tolist()
        bad += [_quarantined(r.id, why, "while encoding") for r, why in zip(part, reasons, strict=True) if why]
    write_text(out / "quarantine.jsonl", "".join(json.dumps(b, ensure_ascii=False) + "\n" for b in bad))
    return {"in": len(scanned), "written": len(scanned) - len(bad), "quarantined": len(bad), "frames": frames}


class CodesStore:
    """Codes by record id, from the parts that `encode_audio` wrote; the parts last used stay in memory."""

    def __init__(self, folder: pathlib.Path, scanned: Sequence[Record], chunk: int = 256, kept: int = 256):
        self._folder, self._chunk, self._kept = folder, chunk, kept
        self._place = {record.id: i for i, record in enumerate(scanned)}
        self._parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, record_id: str) -> np.ndarray:
        """Codes uint16 [frames, C]; no frames where the recording could not be encoded."""
        number, place = divmod(self._place[record_id], self._chunk)
        if number not in self._parts:
            if len(self._parts) >= self._kept:
                self._parts.pop(next(iter(self._parts)))
            with np.load(self._folder / f"codes-{number:05d}.npz") as data:
                self._parts[number] = data["codes"], data["ends"]
        codes, ends = self._parts[number]
        return codes[ends[place - 1] if place else 0 : ends[place]]


# --- examples --------------------------------------------------------------------------------------------------------


def _example_bytes(
    task: formats_lib.TaskFormat,
    item: formats_lib.Item,
    codes: formats_lib.Codes,
    options: formats_lib.FormatOptions,
    tokenizer: TextTokenizer,
    layout: Layout,
) -> tuple[bytes, tuple[int, int]]:
    arrays = render(task.build(item, codes, options), tokenizer.encode, layout)
    audio = arrays.audio_positions
    return records.to_bytes(records.Example.of(item.id, task.name, arrays)), (len(arrays.text) - audio, audio)


def write_examples(
    task: formats_lib.TaskFormat,
    material: formats_lib.Material,
    split: str,
    codes: formats_lib.Codes,
    options: formats_lib.FormatOptions,
    tokenizer: TextTokenizer,
    layout: Layout,
    out: pathlib.Path,
    *,
    per_shard: int = 8192,
    progress: Progress,
) -> dict[str, Any]:
    """All examples of one task and split: shards, and ``<split>-lengths.npy`` int32 [N, 2] (text, audio positions)."""
    items = task.plan(material, options)
    bad: list[dict[str, str]] = []
    lengths: list[tuple[int, int]] = []
    parts = list(chunks(items, per_shard))
    for number, part in progress(parts, desc=f"{task.name} {split}", unit="shard"):
        name = f"{split}-{number:05d}-of-{len(parts):05d}"
        shard, side = out / f"{name}.array_record", out / f".{name}.json"
        # The side file comes first: a shard that is there has its counts.
        if not (shard.is_file() and side.is_file()):
            made, made_lengths, refused = [], [], []
            for item in part:
                try:
                    data, counts = _example_bytes(task, item, codes, options, tokenizer, layout)
                except ValueError as error:
                    refused.append(_quarantined(item.id, "bad_example", f"{task.name}: {error}"))
                    continue
                made.append(data)
                made_lengths.append(counts)
            write_text(side, json.dumps({"lengths": made_lengths, "bad": refused}, ensure_ascii=False))
            records.write_records(shard, made)
        result = json.loads(side.read_text(encoding="utf-8"))
        lengths += result["lengths"]
        bad += result["bad"]
    table = np.asarray(lengths, np.int32).reshape(-1, 2)
    with replacing(out / f"{split}-lengths.npy") as partial, partial.open("wb") as file:
        np.save(file, table)
    text, audio = table.sum(axis=0, dtype=np.int64).tolist()
    total = {"in": len(items), "written": len(table), "quarantined": len(bad), "text": text, "audio": audio}
    return {**total, "bad": bad} if bad else total


def splits_of(items: Iterable[Record | TextRecord]) -> list[str]:
    """Splits that occur, in order of their first appearance in the fixed order of splits."""
    there = {item.split for item in items}
    return [split for split in ("train", "validation", "test_voices") if split in there]


def write_all_rows(
    folder: pathlib.Path, tasks: dict[str, dict[str, int]], contexts: Sequence[int], empty: int, progress: Progress
) -> dict[str, Any]:
    """Packing plans of every task, split and context length; returns {context: {task-split: rows, fill, dropped}}."""
    jobs = [(c, t, s) for c in contexts for t, splits in tasks.items() for s, n in splits.items() if n]
    out: dict[str, Any] = {str(context): {} for context in contexts}
    for context, task, split in progress(jobs, desc="packing", unit="plan"):
        rows = prepared.planned_rows(folder, task, split, context, empty)
        report = {"rows": rows.num_rows, "fill": round(rows.fill, 6), "dropped": len(rows.dropped)}
        out[str(context)][f"{task}-{split}"] = report
    return out
