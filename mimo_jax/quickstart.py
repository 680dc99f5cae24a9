"""The whole chain on real speech, from nothing to a model that transcribes and speaks, with its report.

    python -m mimo_jax.quickstart --preset=quick --out=DIR [--data=DIR] [--seed=N]

Each stage is a command of its own (printed, so that it can be run alone) and goes on where it was interrupted; a stage
that is done is not run again. `launch/quickstart.sh` makes the environment and calls this.

  corpus                 multi-voice speech with true labels, synthesised here (left out with --data)
  curate                 checks every recording, trains the text tokenizer
  recogniser             the independent judge of intelligibility
  tokenizer_unified      audio tokenizer, stage 1: audio-to-text, reconstruction, commitment
  tokenizer_adversarial  audio tokenizer, stage 2: decoder and vocoder against discriminators
  prepare                audio to codes, text to ids, examples, packed rows
  understanding, joint   the two pretraining stages of the language model
  sft                    instruction tuning
  evaluate               transcribes, speaks, continues and converts held-out speech; measures
  report                 report.html and metrics.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from mimo_jax import cli
from mimo_jax.chain import Chain, Stage, compiling_environment, ends_with_a_message
from mimo_jax.data.audio import SAMPLE_RATE
from mimo_jax.data.manifest_files import read_manifest
from mimo_jax.data.waveforms import FRAME_SAMPLES
from mimo_jax.preparation.sources.opening import open_source

LANGUAGE_STAGES = ("understanding", "joint", "sft")
TRAINED = ("recogniser", "tokenizer_unified", "tokenizer_adversarial", *LANGUAGE_STAGES)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
      corpus: flags of `mimo_jax.corpus`.
      bindings: stage -> gin bindings on top of its run file.
      mixtures: gin file with other rates for the stages of the language model.
      own_seconds, own_positions: of a batch of audio, and of one of packed rows, where rows are fitted to a user's
        recordings.
    """

    corpus: Mapping[str, object]
    bindings: Mapping[str, Sequence[str]]
    mixtures: str | None = None
    own_seconds: float = 64.0
    own_positions: int = 1024


PRESETS = {
    # Learns nothing: shows in some minutes that every stage runs, goes on after a kill, and fits together.
    "smoke": Preset(
        corpus={
            "core_utterances": 240,
            "wide_utterances": 300,
            "core_validation": 24,
            "core_test_voices": 12,
            "wide_validation": 40,
            "wide_test_voices": 12,
            "texts": 60,
        },
        bindings={
            "recogniser": ["BUDGET_STEPS=12", "loop.Intervals.checkpoint=4"],
            "tokenizer_unified": [
                "BUDGET_STEPS=12",
                "loop.Intervals.checkpoint=4",
                "UNQUANTIZED_STEPS=4",
                "BATCH_ROWS=6",
            ],
            "tokenizer_adversarial": ["BUDGET_STEPS=6", "loop.Intervals.checkpoint=2", "BATCH_ROWS=2"],
            **{
                name: ["BUDGET_TOKENS=8e3", "BATCH_ROWS=4", "loop.Intervals.checkpoint=2"]
                for name in ("understanding", "joint", "sft")
            },
            "evaluate": ["LIMIT=6", "OTHER_LIMIT=3", "TASK_LIMIT=2"],
        },
        own_seconds=12.0,
        own_positions=512,
    ),
    "quick": Preset(corpus={"core_utterances": 9000, "wide_utterances": 800}, bindings={}),
    "full": Preset(
        corpus={"core_utterances": 24000, "wide_utterances": 8000},
        bindings={
            "recogniser": ["BUDGET_STEPS=2500"],
            # 4.5 s hold nearly all of the wide utterances.
            "tokenizer_unified": [
                "BUDGET_STEPS=1600",
                "SUBSETS=('core', 'wide')",
                "MAX_SAMPLES=108000",
                "BATCH_ROWS=16",
                "MAX_TEXT=48",
            ],
            "tokenizer_adversarial": ["BUDGET_STEPS=600"],
            "understanding": ["BUDGET_TOKENS=3e6"],
            "joint": ["BUDGET_TOKENS=20e6"],
            "sft": ["BUDGET_TOKENS=8e6"],
            "evaluate": ["LIMIT=192", "OTHER_LIMIT=96", "TASK_LIMIT=64"],
        },
        mixtures="gin/mixtures/quickstart_full.gin",
    ),
}


def rows_of_recordings(manifest: Path, seconds_of_batch: float) -> tuple[int, int, int]:
    """(samples of a row, rows of a batch, text ids of a row) that fit a user's recordings.

    Rows hold the longest, up to 20 s, and are a whole number of code frames long, as packed ones have to be.
    """
    seconds = min(max(4.0, *(record.duration or 0.0 for record in read_manifest(manifest))) + 0.1, 20.0)
    samples = math.ceil(seconds * SAMPLE_RATE / FRAME_SAMPLES) * FRAME_SAMPLES
    return samples, max(4, round(seconds_of_batch / seconds)), round(60 * seconds)


def fitted_to(manifest: Path, preset: Preset) -> dict[str, list[str]]:
    """Gin bindings per stage that fit the shapes to a user's recordings, with batches of a preset's size."""
    samples, rows, text = rows_of_recordings(manifest, preset.own_seconds)
    wave = [f"MAX_SAMPLES={samples}", f"BATCH_ROWS={rows}", f"MAX_TEXT={text}"]
    seconds = samples / SAMPLE_RATE
    context = 256 if seconds < 5 else 1024
    language = [f"CONTEXT={context}", f"BATCH_ROWS={max(2, preset.own_positions // context)}"]
    language += ["PATCH_CAPACITY=0.9", "LABELLED_CAPACITY=0.8"]  # whatever the share of audio
    return {
        **{name: wave for name in ("recogniser", "tokenizer_adversarial")},
        "tokenizer_unified": [*wave, "SUBSETS=()"],
        **{name: language for name in LANGUAGE_STAGES},
        "evaluate": [f"CONTEXT={context}", "LOSS_SPLIT=validation"],
    }


def chain_stages(preset: Preset, out: Path, data: Path | None, seed: int) -> list[Stage]:
    """The commands of the chain, in order."""
    corpus = data or out / "corpus"
    prepared, export = out / "prepared", out / "export"
    curated = prepared / "curated"

    def bindings(name: str) -> list[str]:
        own = fitted_to(curated, preset).get(name, []) if data is not None and name != "prepare" else []
        return [f"--gin.{binding}" for binding in (*preset.bindings.get(name, ()), *own)]

    def train(name: str, **macros: object) -> Stage:
        given = [f"--gin.{key}={value}" for key, value in macros.items()]
        fixed = [f"--gin_file=gin/runs/quickstart/{name}.gin", f"--gin.MODEL_DIR={out / name}", f"--gin.SEED={seed}"]
        if preset.mixtures and name in LANGUAGE_STAGES:
            fixed.insert(1, f"--gin_file={preset.mixtures}")
        return Stage(name, lambda: ["-m", "mimo_jax.train", *fixed, *given, *bindings(name)])

    def prepare(name: str, *arguments: str) -> Stage:
        common = ["-m", "mimo_jax.prepare", "--gin_file=gin/runs/quickstart/prepare.gin"]
        return Stage(
            name,
            lambda: [*common, f"--source={corpus}", f"--out={prepared}", *arguments, *bindings("prepare")],
        )

    stages = [
        prepare("curate", "--only=text_tokenizer"),
        train("recogniser", MANIFEST=curated, EXPORT_DIR=export / "recogniser"),
        train("tokenizer_unified", MANIFEST=curated, TEXT_TOKENIZER=prepared / "text_tokenizer"),
        train(
            "tokenizer_adversarial",
            MANIFEST=curated,
            INIT_FROM=out / "tokenizer_unified",
            EXPORT_DIR=export / "tokenizer",
        ),
        prepare("prepare", f"--codec={export / 'tokenizer'}"),
        train("understanding", PREPARED=prepared),
        train("joint", PREPARED=prepared, INIT_FROM=out / "understanding", EXPORT_DIR=export / "language_model_base"),
        train("sft", PREPARED=prepared, INIT_FROM=out / "joint", EXPORT_DIR=export / "language_model"),
        Stage(
            "evaluate",
            lambda: [
                *("-m", "mimo_jax.evaluate_chain", "--gin_file=gin/runs/quickstart/evaluate.gin"),
                *(f"--gin.OUT={out / 'evaluation'}", f"--gin.CORPUS={curated}", f"--gin.PREPARED={prepared}"),
                *(f"--gin.RECOGNISER={export / 'recogniser'}", f"--gin.TOKENIZER={export / 'tokenizer'}"),
                *(f"--gin.LANGUAGE_MODEL={export / 'language_model'}", f"--gin.SEED={seed}", *bindings("evaluate")),
            ],
        ),
    ]
    if data is None:
        sizes = [f"--{key}={value}" for key, value in preset.corpus.items()]
        stages.insert(
            0, Stage("corpus", lambda: ["-m", "mimo_jax.corpus", f"--out={corpus}", f"--seed={seed}", *sizes])
        )
    return stages


def finish(chain: Chain, out: Path, corpus: Path) -> dict[str, Any]:
    """Writes metrics.json (the evaluation's figures and the seconds of each stage) and report.html."""
    from mimo_jax.evaluation.parts import write_json
    from mimo_jax.report import report

    metrics = json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    metrics["stage_seconds"] = chain.seconds
    metrics["wall_seconds"] = round(sum(chain.seconds.values()), 1)
    write_json(out / "metrics.json", metrics)
    facts = corpus / "corpus.json"
    report(
        out=str(out / "report.html"),
        evaluation_dir=str(out / "evaluation"),
        metrics_file=str(out / "metrics.json"),
        model_dirs={name: str(out / name) for name in TRAINED},
        quarantine=[str(out / "prepared" / "quarantine.jsonl")],
        corpus=json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {"folder": str(corpus)},
        title="mimo_jax quickstart",
        lead="From a blank machine to a model that transcribes and speaks.",
        command=shlex.join(["./launch/quickstart.sh", *sys.argv[1:]]),
    )
    return metrics


def define_flags() -> None:
    """The command line. Not at import: other main files have flags of the same names."""
    flags.DEFINE_enum("preset", "quick", sorted(PRESETS), "smoke: learns nothing; quick: minutes; full: up to 3 hours.")
    flags.DEFINE_string("out", "runs/quickstart", "folder for everything this run writes.")
    flags.DEFINE_string("data", None, "recordings of your own, instead of the built-in corpus; see docs/sources.md.")
    flags.DEFINE_integer("seed", 0, "everything random follows from it.")


def main(argv: Sequence[str]) -> None:
    """Runs the chain; exit code 0 only if every stage and the report are there."""
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    cli.log_to_stderr()
    given = flags.FLAGS
    out = Path(given.out).absolute()
    data = Path(given.data).absolute() if given.data else None
    with ends_with_a_message():
        if data is not None:
            open_source(str(data))  # what cannot be read is said at once
        chain = Chain(out, compiling_environment())
        chain.run(chain_stages(PRESETS[given.preset], out, data, given.seed))
        metrics = finish(chain, out, data or out / "corpus")
    for name in ("asr_wer_heldout", "recogniser_wer_original", "recogniser_wer_reconstruction", "recogniser_wer_tts"):
        print(f"{name:32} {metrics.get(name)}")
    print(f"wall_seconds {metrics['wall_seconds']}\nreport: {out / 'report.html'}\nmetrics: {out / 'metrics.json'}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
