"""The semantic comparison of tokenizers: probes on their quantised features, and on the mel as a yardstick."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.measured_tokenizer import MeasuredTokenizer
from mimo_jax.evaluation.parts import Part, PartStore, write_json
from mimo_jax.evaluation.probe import ProbeTraining, train_probe
from mimo_jax.evaluation.selection import SECTIONS, Item, Section, digest, load_items, select, stable_order
from mimo_jax.evaluation.systems import Wave
from mimo_jax.evaluation.tokenizer_tables import text_table
from mimo_jax.objectives.transcripts import normalise_text

MEL = "mel spectrogram"
RESULT_FILE = "probe.json"
_SHOWN = 10  # utterances of each section whose texts stand beside the figures
logger = logging.getLogger(__name__)
FeaturesOf = Callable[[Sequence[Wave]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """What is probed.

    Attributes:
        subsets: of the manifest; none = all.
        train_limit: training utterances.
        limit: utterances of each held-out section.
        max_seconds: longer utterances are left out: by the manifest's duration, or by the wave where it has none.
        codebooks: first n of each tokenizer; 0 = all.
        seed: of the shuffled texts that tell the chance level.
    """

    subsets: tuple[str, ...] = ()
    train_limit: int = 4000
    limit: int = 200
    max_seconds: float = 6.0
    codebooks: int = 0
    seed: int = 0


class QuantizedFeatures(Sequence[np.ndarray]):
    """Sums of the code vectors float32 [frames, D] of each utterance, looked up when they are asked for."""

    def __init__(self, codes: Sequence[np.ndarray], books: Sequence[np.ndarray]):
        self._codes, self._books = codes, books

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: Any) -> Any:
        codes = self._codes[index]
        return np.sum([book[codes[:, i]] for i, book in enumerate(self._books)], axis=0, dtype=np.float32)


def quantized_features(name: str, tokenizer: MeasuredTokenizer, codebooks: int = 0) -> FeaturesOf:
    """Waves -> quantised features of the first n codebooks (0 = all).

    Raises:
        ValueError: the tokenizer, which is called ``name``, has fewer.
    """
    there = len(tokenizer.codebook_sizes)
    if not 0 <= codebooks <= there:
        raise ValueError(f"{name}: {codebooks} codebooks asked for, the tokenizer has 1..{there}")
    books = [tokenizer.codebook(i) for i in range(codebooks or there)]
    return lambda waves: QuantizedFeatures(tokenizer.encode(waves), books)


def mel_features(sample_rate: int, frame_rate: float) -> FeaturesOf:
    """Waves -> log-mel of 100 Hz (80 bins), as many frames side by side as make `frame_rate`."""
    stack = max(1, round(100 / frame_rate))

    def features(wave: Wave) -> np.ndarray:
        mel = metrics.log_mel_frames(wave, sample_rate).astype(np.float32)
        mel = np.pad(mel, ((0, -len(mel) % stack), (0, 0)), mode="edge")
        return mel.reshape(-1, stack * mel.shape[1])

    return lambda waves: [features(wave) for wave in waves]


def probe_all(
    sources: Mapping[str, FeaturesOf],
    probes: Mapping[str, ProbeTraining],
    records: Sequence[Record],
    root: str | os.PathLike[str],
    sample_rate: int,
    out_dir: str | os.PathLike[str],
    options: ProbeOptions = ProbeOptions(),
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains each probe on each source's features and writes ``probe.json`` and ``parts/`` under ``out_dir``.

    Args:
        sources: name -> features of waves.
        probes: name -> how it learns; the same for every source.
        records: the whole manifest; ``root`` is its folder.
        sample_rate: of the waves, Hz.
        out_dir: results; parts found there with the same settings are not computed again.
        options: how much.
        identity: what else decides the figures.

    Returns:
        The content of ``probe.json``: ``rows`` of source, probe, training loss, training utterances that could not be
        used (`TrainedProbe.unused`) and, per section, character and word error rate and the character error rate
        against other utterances' texts (chance; None of a single one).

    Raises:
        ValueError: no training or no held-out utterance with a text.
    """
    train = _load(_usable(records, options)[: options.train_limit], root, sample_rate, options)
    held_out = _held_out(records, root, sample_rate, options)
    if not train or not held_out:
        raise ValueError(
            f"{root}: {len(train)} training utterances with a text of at most {options.max_seconds:g} s and "
            f"{len(held_out)} held-out groups of such; a probe needs both"
        )
    material = digest(records, [*train, *itertools.chain.from_iterable(held_out.values())])
    settings = dataclasses.asdict(options) | {"identity": dict(identity or {}), "material": material}
    settings["probes"] = {name: dataclasses.asdict(training) for name, training in probes.items()}
    store = PartStore(Path(out_dir) / "parts", settings)
    rows = []
    for source, features_of in sources.items():
        # One source's features are held at a time.
        features = functools.cache(functools.partial(_features, features_of, train, held_out))
        for name, training in probes.items():
            logger.info("probe %s on %s: %d utterances, %d steps", name, source, len(train), training.steps)
            compute = functools.partial(_probe, training, features, train, held_out, options.seed)
            rows.append({"source": source, "probe": name} | store.get(f"{source}/{name}", compute))
    result = {"settings": settings, "train_utterances": len(train), "rows": rows}
    write_json(Path(out_dir) / RESULT_FILE, result)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The rows for a terminal."""
    sections = list(result["rows"][0]["sections"])
    head = [
        "features",
        "probe",
        "train loss",
        "unused",
        *(f"{s} {m}" for s in sections for m in ("CER", "WER", "chance CER")),
    ]
    lines = []
    for row in result["rows"]:
        cells = [_cell(row["sections"][s][m]) for s in sections for m in ("cer", "wer", "cer_chance")]
        lines.append([row["source"], row["probe"], f"{row['train_loss']:.2f}", str(row["unused"]), *cells])
    return text_table([head, *lines])


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    low, high = estimate["interval_95"]
    return f"{estimate['value']:.3f} ±{(high - low) / 2:.3f}"


def _features(
    features_of: FeaturesOf, train: Sequence[Item], held_out: Mapping[Section, Sequence[Item]]
) -> tuple[Sequence[np.ndarray], dict[Section, Sequence[np.ndarray]]]:
    return (
        features_of([item.wave for item in train]),
        {section: features_of([item.wave for item in items]) for section, items in held_out.items()},
    )


def _probe(
    training: ProbeTraining,
    features: Callable[[], tuple[Sequence[np.ndarray], dict[Section, Sequence[np.ndarray]]]],
    train: Sequence[Item],
    held_out: Mapping[Section, Sequence[Item]],
    seed: int,
) -> Part:
    seen, unseen = features()
    probe = train_probe(seen, [item.text for item in train], training)
    sections = {}
    for section, items in held_out.items():
        texts, read = [item.text for item in items], probe.transcribe(unseen[section])
        others = metrics.permutation_texts(texts, seed) if len(texts) > 1 else None
        shown = itertools.islice(zip(items, read, strict=True), _SHOWN)
        sections[section.name] = {
            "cer": metrics.character_error_rate(texts, read).as_dict(),
            "wer": metrics.word_error_rate(texts, read).as_dict(),
            "cer_chance": metrics.character_error_rate(others, read).as_dict() if others else None,
            "items": [{"id": item.record.id, "reference": item.text, "read": text} for item, text in shown],
        }
    return {"train_loss": probe.loss, "unused": probe.unused, "sections": sections}


def _usable(records: Sequence[Record], options: ProbeOptions) -> list[Record]:
    mine = [r for r in records if r.split == "train" and normalise_text(r.text or "")]
    return sorted((r for r in mine if _fits(r, options)), key=lambda r: stable_order(r.id))


def _held_out(
    records: Sequence[Record], root: str | os.PathLike[str], sample_rate: int, options: ProbeOptions
) -> dict[Section, list[Item]]:
    fitting = [r for r in records if _fits(r, options)]
    found = {s: _load(select(fitting, s, options.limit), root, sample_rate, options) for s in SECTIONS}
    return {section: items for section, items in found.items() if items}


def _load(
    records: Sequence[Record], root: str | os.PathLike[str], sample_rate: int, options: ProbeOptions
) -> list[Item]:
    items = load_items(records, root, sample_rate)
    return [item for item in items if len(item.wave) <= options.max_seconds * sample_rate + 1]


def _fits(record: Record, options: ProbeOptions) -> bool:
    right_subset = not options.subsets or record.subset in options.subsets
    return right_subset and (record.duration or 0.0) <= options.max_seconds  # without one, the wave tells
