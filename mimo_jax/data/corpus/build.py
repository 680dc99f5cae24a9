"""Synthesis of the planned corpus on all cores: FLAC files, ``manifest.jsonl``, ``texts.jsonl``, ``corpus.json``.

Utterances are made in chunks. A finished chunk leaves a part of the manifest, written after its audio, so a build
that was killed goes on with the chunks that have none, and ends with the same bytes. ``corpus.json`` is written last:
where it is, the corpus is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data import audio, manifest, manifest_files
from mimo_jax.data.corpus import espeak, noise
from mimo_jax.data.corpus.plan import CorpusConfig, Utterance, generator, plan_corpus
from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.files import write_text
from mimo_jax.processes import exit_with_parent

SUMMARY_NAME = "corpus.json"
_FORMAT = 2  # raise it when the same plan gives other samples
_CHUNK = 100
_ESPEAK_VOLUME = 60  # leaves headroom: at 100 some voices clip inside espeak-ng


class CorpusError(ValueError):
    """The folder holds something else than the corpus that is asked for."""


def build_corpus(
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    core_utterances: int = 9000,
    wide_utterances: int = 3000,
    core_validation: int = 240,
    core_test_voices: int = 200,
    wide_validation: int = 240,
    wide_test_voices: int = 200,
    texts: int = 6000,
    *,
    wide_shares: Mapping[str, float] | None = None,
    instructions: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Builds the corpus, or finishes one that was interrupted; a complete one is left as it is.

    The bytes of every file are a function of the arguments but ``workers`` (and of the synthesiser's version).

    Args:
      out_dir: folder to write to.
      seed: of everything random.
      core_utterances, wide_utterances: training utterances of the two subsets; ``*_validation`` (unseen texts) and
        ``*_test_voices`` (unseen texts and voices) come on top.
      texts: text-only training records.
      wide_shares, instructions: see `CorpusConfig`.
      workers: processes (default: one per core).
      progress: whether to show a progress bar.

    Returns:
      The path of ``manifest.jsonl``.

    Raises:
      CorpusError: the folder holds a corpus made with other settings.
      EspeakError: the synthesiser is not installed or does not work.
    """
    config = CorpusConfig(
        seed=seed,
        core_utterances=core_utterances,
        core_validation=core_validation,
        core_test_voices=core_test_voices,
        wide_utterances=wide_utterances,
        wide_validation=wide_validation,
        wide_test_voices=wide_test_voices,
        texts=texts,
        wide_shares=wide_shares or {},
        instructions=instructions,
    )
    out = Path(out_dir)
    utterances, written = plan_corpus(config)
    fingerprint = _fingerprint(utterances, written)
    parts = out / f"parts-{fingerprint[:16]}"
    if not _is_complete(out, parts, fingerprint):
        parts.mkdir(parents=True, exist_ok=True)
        chunks = [utterances[i : i + _CHUNK] for i in range(0, len(utterances), _CHUNK)]
        _synthesise_missing(out, parts, chunks, workers, progress)
        records = [manifest.from_json(line) for i in range(len(chunks)) for line in _lines(_part(parts, i))]
        manifest_files.write_manifest(out / manifest_files.MANIFEST_NAME, records)
        manifest_files.write_texts(out / manifest_files.TEXTS_NAME, written)
        summary = json.dumps(_summary(config, fingerprint, records, written), indent=1) + "\n"
        write_text(out / SUMMARY_NAME, summary)
    shutil.rmtree(parts, ignore_errors=True)
    return out / manifest_files.MANIFEST_NAME


def synthesise(utterance: Utterance) -> np.ndarray:
    """The samples of one planned utterance: float32 ``[samples]`` at 24 kHz."""
    assert utterance.record.text is not None
    wave = espeak.synthesize(
        utterance.record.text,
        utterance.voice,
        utterance.rate,
        utterance.pitch,
        utterance.pitch_range,
        _ESPEAK_VOLUME,
    )
    wave = audio.resample(wave, espeak.SAMPLE_RATE, audio.SAMPLE_RATE)
    wave = noise.set_level(noise.trim(wave, audio.SAMPLE_RATE, utterance.before, utterance.after), utterance.level_db)
    if utterance.noise is None:
        return wave
    return noise.mix(wave, _background(utterance, len(wave)), utterance.noise.snr_db)


def _background(utterance: Utterance, samples: int) -> np.ndarray:
    assert utterance.noise is not None
    rng = generator(*utterance.noise_key)
    kind = utterance.noise.kind
    if kind == "white":
        return noise.white(rng, samples)
    if kind == "pink":
        return noise.pink(rng, samples, audio.SAMPLE_RATE)
    if kind == "hum":
        return noise.hum(rng, samples, audio.SAMPLE_RATE)
    talkers = [
        audio.resample(espeak.synthesize(text, voice), espeak.SAMPLE_RATE, audio.SAMPLE_RATE)
        for voice, text in utterance.noise.talkers
    ]
    return noise.babble(rng, samples, talkers)


def _synthesise_missing(
    out: Path, parts: Path, chunks: Sequence[Sequence[Utterance]], workers: int | None, progress: bool
) -> None:
    from tqdm import tqdm

    missing = [i for i in range(len(chunks)) if not _part(parts, i).exists()]
    total = sum(len(chunk) for chunk in chunks)
    finished = total - sum(len(chunks[i]) for i in missing)
    with tqdm(total=total, initial=finished, desc="speech corpus", unit="utt", disable=not progress) as bar:
        for count in _run(out, parts, [(i, chunks[i]) for i in missing], workers or os.cpu_count() or 1):
            bar.update(count)


def _run(out: Path, parts: Path, tasks: list[tuple[int, Sequence[Utterance]]], workers: int) -> Iterator[int]:
    """Makes the chunks, here or in ``workers`` processes; yields the number of utterances of each when it is done."""
    if workers == 1 or len(tasks) <= 1:
        for index, chunk in tasks:
            yield _make_chunk(out, _part(parts, index), chunk)
        return
    # Fresh interpreters: forking a process that runs jax or TensorFlow threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=exit_with_parent) as pool:
        futures = [pool.submit(_make_chunk, out, _part(parts, index), chunk) for index, chunk in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_chunk(out: Path, part: Path, chunk: Sequence[Utterance]) -> int:
    """Writes the audio of a chunk, then its part of the manifest."""
    lines = []
    for utterance in chunk:
        wave = synthesise(utterance)
        path = out / utterance.record.audio
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write_flac(path, wave)
        duration = round(len(wave) / audio.SAMPLE_RATE, 6)
        record = dataclasses.replace(utterance.record, duration=duration, sample_rate=audio.SAMPLE_RATE)
        lines.append(manifest.to_json(record) + "\n")
    write_text(part, "".join(lines))
    return len(chunk)


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.jsonl"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _fingerprint(utterances: Sequence[Utterance], written: Sequence[TextRecord]) -> str:
    digest = hashlib.sha256(f"format {_FORMAT}\n".encode())
    for item in (*utterances, *written):
        digest.update(f"{item!r}\n".encode())
    return digest.hexdigest()


def _is_complete(out: Path, parts: Path, fingerprint: str) -> bool:
    """Whether the corpus is there already.

    Raises:
      CorpusError: another one is, finished or not.
    """
    others = sorted(path.name for path in out.glob("parts-*") if path != parts)
    if (out / SUMMARY_NAME).exists():
        summary = json.loads((out / SUMMARY_NAME).read_text(encoding="utf-8"))
        if summary.get("fingerprint") == fingerprint:
            return True
        others = [f"a corpus made with {summary.get('config')}"]
    elif not parts.exists() and not others and (out / manifest_files.MANIFEST_NAME).exists():
        others = ["a manifest that is not of the built-in corpus"]
    if others:
        raise CorpusError(
            f"{out} already holds {', '.join(others)}: give another folder, or delete this one to build it anew"
        )
    return False


def _summary(
    config: CorpusConfig, fingerprint: str, records: Sequence[Record], written: Sequence[TextRecord]
) -> dict[str, Any]:
    durations = np.array([record.duration for record in records] or [0.0])
    said = [record.text or "" for record in records]
    groups: dict[str, dict[str, float]] = {}
    for record in records:
        group = groups.setdefault(f"{record.subset}-{record.split}", {"utterances": 0, "hours": 0.0})
        group["utterances"] += 1
        group["hours"] += (record.duration or 0.0) / 3600
    settings = dataclasses.asdict(config)
    if not config.instructions:  # a corpus without is, byte for byte, what it was before there were any
        del settings["instructions"]
    return {
        "config": settings,
        "fingerprint": fingerprint,
        "hours": round(float(durations.sum()) / 3600, 3),
        "groups": {name: {k: round(v, 3) for k, v in group.items()} for name, group in groups.items()},
        "seconds": {
            "mean": round(float(durations.mean()), 3),
            "percentile_95": round(float(np.percentile(durations, 95)), 3),
            "max": round(float(durations.max()), 3),
        },
        "distinct_texts": len(set(said)),
        "distinct_words": len({word for text in said for word in text.split()}),
        "text_records": len(written),
    }
