"""The evaluation of a trained chain: every figure of ``metrics.json``, part by part, resumable."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.data.corpus.instructions import kind_of
from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import instructed_speech, question_parts, speech_parts
from mimo_jax.evaluation.losses import Batch, PackedRows, held_out_losses
from mimo_jax.evaluation.parts import Part, PartStore, write_json
from mimo_jax.evaluation.selection import SECTIONS, Item, Section, conversions, digest, load_items, select
from mimo_jax.evaluation.systems import Systems
from mimo_jax.evaluation.written_instructions import written_instructions

METRICS_FILE = "metrics.json"
# Measured unless a run chooses, in this order; and what is measured on request.
PARTS = (
    *("original", "reconstruction", "transcription", "speech", "continuation"),
    *("audio_questions", "spoken_questions", "conversion"),
)
FURTHER_PARTS = ("audio_questions_thinking", "written_answers", "written_instructions", "instructed_speech")
# What decides no figure: a resume on another machine, or one that measures more, keeps the parts that are there.
_INDIFFERENT = ("workers", "parts")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SuiteOptions:
    """What is measured.

    Attributes:
        limit: items of the first section (core/validation, or user/validation for own data).
        other_limit: items of every other section.
        task_limit: items of each generative task beside transcription and speech (answers, conversion, continuation).
        samples: WAV files written per task and section.
        shots: example pairs of a conversion.
        loss_batches: upper limit of held-out batches for the losses.
        seed: of sampling and of the shuffled texts.
        workers: processes for PESQ; None takes one per core.
        parts: names of what is measured, of `PARTS` and `FURTHER_PARTS`; None takes `PARTS`.

    Raises:
        UserError: names of parts that there are not, or none.
    """

    limit: int = 200
    other_limit: int = 60
    task_limit: int = 40
    samples: int = 6
    shots: int = 3
    loss_batches: int = 50
    seed: int = 0
    workers: int | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.parts is None:
            return
        unknown = [name for name in self.parts if name not in (*PARTS, *FURTHER_PARTS)]
        if unknown or not self.parts:
            named = f"no part {', '.join(map(repr, unknown))}" if unknown else "no part is named"
            raise UserError(f"SuiteOptions.parts: {named}; there are {', '.join((*PARTS, *FURTHER_PARTS))}")

    def measures(self, part: str) -> bool:
        """Whether a part is measured."""
        return part in (PARTS if self.parts is None else self.parts)


@dataclasses.dataclass(frozen=True)
class HeldOutLosses:
    """Named held-out mixtures for the losses; the first gives the top-level figures."""

    evaluate: Callable[[Batch], Mapping[str, tuple[Any, Any]]]
    sources: Mapping[str, PackedRows]
    empty_token_id: int


def evaluate_chain(
    systems: Systems,
    records: Sequence[Record],
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    options: SuiteOptions = SuiteOptions(),
    losses: HeldOutLosses | None = None,
    identity: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measures everything the data allows and writes ``metrics.json``, ``parts/`` and ``samples/`` under ``out_dir``.

    Args:
        systems: codec, language model, recogniser.
        records: the whole manifest (training records serve as shots); ``root`` is its folder.
        out_dir: results; parts found there with the same settings are not computed again.
        options: sizes and seed.
        losses: held-out rows, if a language model is measured.
        identity: what else decides the figures (checkpoints measured, corpus), stored beside them.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError: no held-out record with a text.
    """
    out_dir = Path(out_dir)
    decisive = {k: v for k, v in dataclasses.asdict(options).items() if k not in _INDIFFERENT}
    material = digest(sorted(records, key=lambda record: record.id), ())
    settings = decisive | {"identity": dict(identity or {}), "material": material}
    store = PartStore(out_dir / "parts", settings)
    present = [section for section in SECTIONS if select(records, section, 1)]
    if not present:
        raise ValueError(
            f"{root}: no held-out record with a text; give some records of the manifest the split `validation`"
        )
    result: dict[str, Any] = {"settings": settings, "sections": {}}
    for number, section in enumerate(present):
        limit = options.limit if number == 0 else options.other_limit
        parts = _measure_section(systems, records, root, section, limit, out_dir, options, store)
        result["sections"][section.name] = {k: v for part in parts.values() for k, v in part["figures"].items()}
    if losses is not None:
        result["losses"] = {name: _losses(losses, name, options, store)["figures"] for name in losses.sources}
    result = _top_level(result, present[0]) | result
    write_json(out_dir / METRICS_FILE, result)
    return result


def _losses(losses: HeldOutLosses, name: str, options: SuiteOptions, store: PartStore) -> Part:
    def compute() -> Part:
        return held_out_losses(losses.evaluate, losses.sources[name], losses.empty_token_id, options.loss_batches)

    return store.get(f"losses/{name}", compute)


def _top_level(result: dict[str, Any], first: Section) -> dict[str, Any]:
    """The named figures as plain numbers, and where they come from."""
    figures = {name: estimate["value"] for name, estimate in result["sections"][first.name].items()}
    for held_out in list(result.get("losses", {}).values())[:1]:
        figures |= held_out
    return {"section": first.name} | figures


def _measure_section(
    systems: Systems,
    records: Sequence[Record],
    root: str | os.PathLike[str],
    section: Section,
    limit: int,
    out_dir: Path,
    options: SuiteOptions,
    store: PartStore,
) -> dict[str, Part]:
    """All parts of one section; a part whose material the section lacks is left out."""
    items = load_items(select(records, section, limit), root, systems.sample_rate)
    if not items:
        logger.warning("%s: none of its recordings can be read; no figures", section.name)
        return {}
    samples = speech_parts.Samples(out_dir / "samples" / section.name, systems.sample_rate, options.samples)
    parts: dict[str, Part] = {}

    def part(name: str, compute: Callable[[], Part]) -> None:
        if not options.measures(name):
            return
        logger.info("evaluating %s, %s", section.name, name)
        parts[name] = store.get(f"{section.name}/{name}", compute)

    part("original", lambda: speech_parts.original(systems.judge, items, samples))
    part("reconstruction", lambda: speech_parts.reconstruction(systems, items, samples, options.workers))
    if systems.model is not None:
        for name, compute in _model_parts(systems, records, root, section, items, samples, options).items():
            part(name, compute)
    return parts


def _model_parts(
    systems: Systems,
    records: Sequence[Record],
    root: str | os.PathLike[str],
    section: Section,
    items: Sequence[Item],
    samples: speech_parts.Samples,
    options: SuiteOptions,
) -> dict[str, Callable[[], Part]]:
    model, seed, few = systems.model, options.seed, options.task_limit
    assert model is not None
    parts: dict[str, Callable[[], Part]] = {
        "transcription": lambda: speech_parts.transcription(model, items, seed),
        "speech": lambda: speech_parts.speech(systems, model, items, samples, seed),
        "continuation": lambda: speech_parts.continuation(systems, model, items[: options.samples], samples, seed),
    }
    everything = select(records, section, len(records))
    asked = [record for record in everything if any(kind_of(qa) is None for qa in record.qa)][:few]
    if asked:
        parts["audio_questions"] = lambda: question_parts.audio_questions(
            model, load_items(asked, root, systems.sample_rate), few, seed
        )
        parts["audio_questions_thinking"] = lambda: question_parts.audio_questions_thinking(
            model, load_items(asked, root, systems.sample_rate), few, seed
        )
    told = [record for record in everything if any(kind_of(qa) for qa in record.qa)][:few]
    if told:
        parts["written_instructions"] = lambda: written_instructions(
            model, load_items(told, root, systems.sample_rate), few, seed
        )
    texts = {record.id: record.text for record in records}
    answered = [record for record in everything if record.reply and texts.get(record.reply)][:few]
    if answered:
        replies = {record.id: texts[record.reply or ""] or "" for record in answered}
        parts["spoken_questions"] = lambda: _spoken_questions(systems, answered, replies, root, samples, seed)
        parts["written_answers"] = lambda: _written_answers(systems, answered, replies, root, seed)
    instructed = [record for record in everything if record.instruction][:few]
    if instructed:
        parts["instructed_speech"] = lambda: _instructed_speech(systems, records, instructed, root, samples, seed)
    wanted = conversions(records, section, options.shots, few)
    if wanted:
        parts["conversion"] = lambda: speech_parts.conversion(systems, model, wanted, root, samples, seed)
    return parts


def _spoken_questions(
    systems: Systems,
    answered: Sequence[Record],
    replies: Mapping[str, str],
    root: str | os.PathLike[str],
    samples: speech_parts.Samples,
    seed: int,
) -> Part:
    assert systems.model is not None
    items = load_items(answered, root, systems.sample_rate)
    references = [replies[item.record.id] for item in items]
    return question_parts.spoken_questions(systems, systems.model, items, references, samples, seed)


def _written_answers(
    systems: Systems, answered: Sequence[Record], replies: Mapping[str, str], root: str | os.PathLike[str], seed: int
) -> Part:
    assert systems.model is not None
    items = load_items(answered, root, systems.sample_rate)
    return question_parts.written_answers(systems.model, items, [replies[item.record.id] for item in items], seed)


def _instructed_speech(
    systems: Systems,
    records: Sequence[Record],
    instructed: Sequence[Record],
    root: str | os.PathLike[str],
    samples: speech_parts.Samples,
    seed: int,
) -> Part:
    assert systems.model is not None
    shown = load_items(instructed_speech.examples(records), root, systems.sample_rate)
    levels = instructed_speech.Levels.learn(systems.judge, shown, systems.sample_rate)
    items = load_items(instructed, root, systems.sample_rate)
    return instructed_speech.instructed_speech(systems, systems.model, items, levels, samples, seed)
