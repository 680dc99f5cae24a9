"""The evaluation of audio tokenizers: quality against number of codebooks, beside baselines; resumable."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import speech_parts, tokenizer_parts
from mimo_jax.evaluation.code_statistics import entropy_kbps
from mimo_jax.evaluation.codec_baselines import Baseline
from mimo_jax.evaluation.measured_tokenizer import TokenizerSystem
from mimo_jax.evaluation.parts import Part, PartStore, write_json
from mimo_jax.evaluation.selection import SECTIONS, Item, Section, digest, load_items, select, stable_order
from mimo_jax.evaluation.systems import Wave
from mimo_jax.evaluation.tokenizer_comparison import differences
from mimo_jax.evaluation.tokenizer_parts import Referees

METRICS_FILE = "metrics.json"
ORIGINAL, RANDOM = "original", "random codebooks"
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenizerOptions:
    """What is measured.

    Attributes:
        codebooks: numbers of codebooks to decode from; none = 1..n. What a tokenizer lacks is left out for it.
        limit: utterances of every held-out section.
        usage_limit: utterances, of all sections together, over which the use of codebooks is counted.
        calibration: training utterances whose features the random codebooks are made for; 0 leaves that baseline out.
        speed_waves: utterances that are timed in one batch.
        speed_repeats: timed runs, of which the median counts.
        samples: utterances of each section that are written as WAV.
        seed: of the random codebooks.
    """

    codebooks: tuple[int, ...] = ()
    limit: int = 60
    usage_limit: int = 400
    calibration: int = 64
    speed_waves: int = 32
    speed_repeats: int = 3
    samples: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("limit", "usage_limit", "speed_waves", "speed_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give at least 1")

    def counts(self, name: str, tokenizer: TokenizerSystem) -> list[int]:
        """Numbers of codebooks that are measured of a tokenizer.

        Raises:
            ValueError: it has none of those asked for.
        """
        there = range(1, len(tokenizer.codebook_sizes) + 1)
        chosen = [n for n in there if not self.codebooks or n in self.codebooks]
        if not chosen:
            raise ValueError(f"{name}: codebooks {list(self.codebooks)} asked for, the tokenizer has 1..{there[-1]}")
        return chosen


@dataclasses.dataclass(frozen=True)
class _Contender:
    """A tokenizer with its own or with random codebooks; the latter are made when they are first needed."""

    name: str
    tokenizer: str
    kind: str  # "tokenizer" or "random"
    system: Callable[[], TokenizerSystem]


def evaluate_tokenizers(
    tokenizers: Mapping[str, TokenizerSystem],
    baselines: Sequence[Baseline],
    records: Sequence[Record],
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    options: TokenizerOptions = TokenizerOptions(),
    referees: Referees = Referees(),
    identity: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures every tokenizer and writes ``metrics.json``, ``parts/`` and ``samples/`` under ``out_dir``.

    Args:
        tokenizers: what is compared, by name; all of one sample rate.
        baselines: further rows of the same tables.
        records: the whole manifest (random codebooks are fitted to training records); ``root`` is its folder.
        out_dir: results; parts found there with the same settings are not computed again.
        options: sizes and seed.
        referees: recogniser, speaker similarity.
        identity: what else decides the figures (hashes of the weights), stored beside them.
        notes: what a reader has to know, such as baselines that are missing.

    Returns:
        The content of ``metrics.json``: ``tokenizers`` (sizes, rates, use of codebooks, speed), ``sections`` with a
        list of rows each (``system, kind, tokenizer, codebooks, kbps, kbps_entropy | kbps_measured, figures``), and
        ``differences`` (see `tokenizer_comparison.differences`).

    Raises:
        ValueError: no held-out record, none that can be read, tokenizers of several sample rates or without any of the
            numbers of codebooks asked for, two rows of one name.
    """
    rate, out_dir = common_rate(tokenizers), Path(out_dir)
    counts = {name: options.counts(name, tokenizer) for name, tokenizer in tokenizers.items()}
    contenders = _contenders(tokenizers, records, root, options)
    _check_names([ORIGINAL, *(c.name for c in contenders), *(b.name for b in baselines)])
    sections = _held_out(records, root, options.limit, rate)
    material = digest(records, itertools.chain.from_iterable(sections.values()))
    settings = dataclasses.asdict(options) | {"identity": dict(identity or {}), "material": material}
    store = PartStore(out_dir / "parts", settings)
    more = functools.cache(lambda: [i.wave for i in load_items(_spread(records, options.usage_limit), root, rate)])
    timed = [item.wave for item in next(iter(sections.values()))][: options.speed_waves]
    about = {c.name: _about(c, more, timed, options.speed_repeats, store) for c in contenders}
    rows: dict[str, list[dict[str, Any]]] = {}
    compared: dict[str, list[dict[str, Any]]] = {}
    for section, items in sections.items():
        samples = speech_parts.Samples(out_dir / "samples" / section.name, rate, options.samples)
        measured = _section(section, items, samples, contenders, counts, baselines, referees, store)
        compared[section.name] = differences(measured)
        bare = [{key: value for key, value in row.items() if key != "items"} for row in measured]
        rows[section.name] = [_with_entropy(row, about) for row in bare]
    result = {
        "settings": settings,
        "notes": list(notes),
        "baselines": {b.name: {"kbps": b.kbps, "note": b.note} for b in baselines},
        "tokenizers": about,
        "utterances": {section.name: len(items) for section, items in sections.items()},
        "sections": rows,
        "differences": compared,
    }
    write_json(out_dir / METRICS_FILE, result)
    return result


def part_name(section: str, system: str) -> str:
    """Where the items of a row are stored under ``parts/``."""
    return f"sections/{section}/{system}"


def _section(
    section: Section,
    items: Sequence[Item],
    samples: speech_parts.Samples,
    contenders: Sequence[_Contender],
    counts: Mapping[str, Sequence[int]],
    baselines: Sequence[Baseline],
    referees: Referees,
    store: PartStore,
) -> list[dict[str, Any]]:
    """All rows of a section, with their items."""
    rows: list[dict[str, Any]] = []

    def add(name: str, compute: Callable[[], Part], **facts: Any) -> None:
        logger.info("evaluating %s, %s", section.name, name)
        for row in store.get(part_name(section.name, name), compute)["rows"]:
            rows.append({"system": name, **facts, **row})

    add(ORIGINAL, lambda: {"rows": [speech_parts.original(referees.recogniser, items, samples)]}, kind="original")
    for c in contenders:
        compute = functools.partial(_reconstructions, c, counts[c.tokenizer], items, samples, referees)
        add(c.name, compute, kind=c.kind, tokenizer=c.tokenizer)
    for b in baselines:
        rate = samples.sample_rate
        compute = functools.partial(tokenizer_parts.baseline_row, b, rate, items, samples, referees)
        add(b.name, compute, kind="baseline")
    return rows


def _about(
    contender: _Contender, waves: Callable[[], list[Wave]], timed: Sequence[Wave], repeats: int, store: PartStore
) -> dict[str, Any]:
    """Use of the codebooks over `waves`; of a tokenizer as it is its sizes, its rates and its speed on `timed`, too."""
    logger.info("use of codebooks and speed: %s", contender.name)
    use = store.get(f"use/{contender.name}", lambda: tokenizer_parts.code_use(contender.system(), waves()))
    if contender.kind != "tokenizer":
        return {"use": use}
    tokenizer = contender.system()
    return {
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "frame_rate": tokenizer.frame_rate,
        "sample_rate": tokenizer.sample_rate,
        "use": use,
        "speed": store.get(f"speed/{contender.name}", lambda: tokenizer_parts.speed(tokenizer, timed, repeats)),
    }


def _reconstructions(
    contender: _Contender,
    counts: Sequence[int],
    items: Sequence[Item],
    samples: speech_parts.Samples,
    referees: Referees,
) -> Part:
    return tokenizer_parts.reconstructions(contender.name, contender.system(), counts, items, samples, referees)


def _with_entropy(row: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with the bit rate that the entropies of its codebooks allow."""
    if "tokenizer" not in row:
        return row
    bits = [codebook["entropy_bits"] for codebook in about[row["system"]]["use"]["codebooks"]]
    return row | {"kbps_entropy": entropy_kbps(bits[: row["codebooks"]], about[row["tokenizer"]]["frame_rate"])}


def _contenders(
    tokenizers: Mapping[str, TokenizerSystem],
    records: Sequence[Record],
    root: str | os.PathLike[str],
    options: TokenizerOptions,
) -> list[_Contender]:
    def randomised(tokenizer: TokenizerSystem) -> TokenizerSystem:
        return tokenizer.with_random_codebooks(calibration(), options.seed)

    rate = common_rate(tokenizers)
    train = sorted((r for r in records if r.split == "train"), key=lambda r: stable_order(r.id))
    calibration = functools.cache(lambda: [i.wave for i in load_items(train[: options.calibration], root, rate)])
    contenders = []
    for name, tokenizer in tokenizers.items():
        contenders.append(_Contender(name, name, "tokenizer", functools.partial(tokenizers.__getitem__, name)))
        if train and options.calibration:
            system = functools.cache(functools.partial(randomised, tokenizer))
            contenders.append(_Contender(f"{name}, {RANDOM}", name, "random", system))
    return contenders


def _held_out(
    records: Sequence[Record], root: str | os.PathLike[str], limit: int, rate: int
) -> dict[Section, list[Item]]:
    chosen = {section: select(records, section, limit, need_text=False) for section in SECTIONS}
    if not any(chosen.values()):
        raise ValueError(f"{root}: no held-out record; give some records of the manifest the split `validation`")
    sections = {section: load_items(mine, root, rate) for section, mine in chosen.items() if mine}
    sections = {section: items for section, items in sections.items() if items}
    if not sections:
        raise ValueError(f"{root}: none of the held-out recordings can be read")
    return sections


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    """Held-out records of all sections, mixed."""
    return sorted((r for r in records if r.split != "train"), key=lambda r: stable_order(r.id))[:limit]


def _check_names(names: Sequence[str]) -> None:
    """Rows and their parts are told apart by name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two rows would be named {name!r}: give the tokenizer another name")


def common_rate(tokenizers: Mapping[str, TokenizerSystem]) -> int:
    """The sample rate (Hz) that all of them have.

    Raises:
        ValueError: they have several.
    """
    rates = {name: tokenizer.sample_rate for name, tokenizer in tokenizers.items()}
    if len(set(rates.values())) != 1:
        raise ValueError(f"tokenizers to compare need one sample rate, these have {rates or 'none'}")
    return next(iter(rates.values()))
