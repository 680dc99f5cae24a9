"""The audio tokenizer alone, from nothing to its measurements.

    python -m mimo_jax.train_tokenizer --preset=small --out=DIR [--data=DIR] [--compare] [--seed=N]

Each stage is a command of its own (printed, so that it can be run alone) and goes on where it was interrupted; a stage
that is done is not run again. `launch/tokenizer.sh` makes the environment and calls this.

  corpus                multi-voice speech with true labels, synthesised here (left out with --data)
  curate                checks every recording, trains the text tokenizer
  recogniser            the independent judge of intelligibility
  unified               stage 1: audio-to-text, reconstruction, commitment
  adversarial           stage 2: decoder and vocoder against discriminators
  unified_longer        --compare: stage 1 goes on for as many steps as stage 2 has
  reconstruction        --compare: as many steps of decoder and vocoder on the same crops without discriminators
  unified_without_text  --compare: stage 1 without the audio-to-text loss
  evaluate              quality at every number of codebooks, beside baselines: measured/report.html, metrics.json
  probe                 --compare: what the codes know of the words with and without the audio-to-text loss
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from mimo_jax import cli
from mimo_jax.chain import Chain, Stage, compiling_environment, ends_with_a_message
from mimo_jax.preparation.sources.opening import open_source
from mimo_jax.quickstart import Preset, rows_of_recordings

TRAINED = ("unified", "adversarial", "unified_longer", "reconstruction", "unified_without_text")
STAGE_1 = ("unified", "unified_longer", "unified_without_text")
CODEBOOKS = (1, 2, 4, 8, 12, 16, 20)

_FEW = ("BUDGET_STEPS=6", "BATCH_ROWS=2", "loop.Intervals.checkpoint=2")
PRESETS = {
    # Learns nothing: shows in some minutes that every stage runs, goes on after a kill, and fits together.
    "smoke": Preset(
        corpus={
            "core_utterances": 40,
            "wide_utterances": 60,
            "core_validation": 4,
            "core_test_voices": 4,
            "wide_validation": 4,
            "wide_test_voices": 4,
            "texts": 60,
        },
        bindings={
            "recogniser": _FEW,
            **{name: (*_FEW, "UNQUANTIZED_STEPS=2") for name in STAGE_1},
            **{name: _FEW for name in ("adversarial", "reconstruction")},
            "evaluate": ("LIMIT=2", "USAGE_LIMIT=4", "CODEBOOKS=(1, 8, 20)"),
            "probe": ("STEPS=4", "TRAIN_LIMIT=16", "LIMIT=4"),
        },
    ),
    "small": Preset(
        corpus={"core_utterances": 3000, "wide_utterances": 12000},
        bindings={"evaluate": ("LIMIT=32",), "probe": ("CODEBOOKS=8",)},  # what a language model is given of the 20
    ),
}


def chain_stages(preset: Preset, out: Path, data: Path | None, compare: bool, seed: int) -> list[Stage]:
    """The commands of the chain, in order."""
    corpus = data or out / "corpus"
    prepared, export = out / "prepared", out / "export"
    curated = prepared / "curated"

    def bindings(name: str) -> list[str]:
        own = []
        if data is not None and name in ("recogniser", *TRAINED):
            samples, rows, text = rows_of_recordings(curated, seconds_of_batch=40)
            own = [f"MAX_SAMPLES={samples}", f"BATCH_ROWS={rows}", f"MAX_TEXT={text}"]
        return [f"--gin.{binding}" for binding in (*preset.bindings.get(name, ()), *own)]

    def run(name: str, module: str, file: str, *fixed: str, **macros: object) -> Stage:
        given = [f"--gin.{key}={value}" for key, value in macros.items()]
        common = ["-m", f"mimo_jax.{module}", f"--gin_file=gin/runs/{file}.gin", *given, f"--gin.SEED={seed}", *fixed]
        return Stage(name, lambda: [*common, *bindings(name)])

    def train(name: str, file: str, *fixed: str, **macros: object) -> Stage:
        places = {"MODEL_DIR": out / name, "MANIFEST": curated, "EXPORT_DIR": export / name}
        return run(name, "train", file, *fixed, **places, **macros)

    text, start = {"TEXT_TOKENIZER": prepared / "text_tokenizer"}, {"INIT_FROM": out / "unified"}
    stages = [
        Stage(
            "curate",
            lambda: [
                *("-m", "mimo_jax.prepare", "--gin_file=gin/runs/quickstart/prepare.gin", "--only=text_tokenizer"),
                *(f"--source={corpus}", f"--out={prepared}"),
            ],
        ),
        train("recogniser", "quickstart/recogniser"),
        train("unified", "tokenizer_small/unified", **text),
        train("adversarial", "tokenizer_small/adversarial", **start),
    ]
    measured = {"stage 1": export / "unified", "stage 2": export / "adversarial"}
    if compare:
        alone = (
            "--gin.tokenizer_gan.TokenizerGanObjective.discriminators=None",
            "--gin.optimizer.Optimizer.groups=(@generator/optimizer.Group(),)",
        )
        without = "--gin.tokenizer_objective.TokenizerObjective.text_weight=0.0"
        stages += [
            train("unified_longer", "tokenizer_small/unified_longer", **text, **start),
            train("reconstruction", "tokenizer_small/adversarial", *alone, **start),
            train("unified_without_text", "tokenizer_small/unified", without, **text),
        ]
        measured["stage 1, longer"] = export / "unified_longer"
        measured["no discriminators"] = export / "reconstruction"
    common = {"MANIFEST": curated, "CODEBOOKS": CODEBOOKS}
    stages.append(
        run(
            "evaluate",
            "evaluate_tokenizer",
            "evaluate_tokenizer",
            **common,
            OUT=out / "measured",
            TOKENIZERS={name: str(folder) for name, folder in measured.items()},
            RECOGNISER=export / "recogniser",
        )
    )
    if compare:
        probed = {"with text": str(export / "unified"), "without": str(export / "unified_without_text")}
        stages.append(
            run("probe", "probe_tokenizer", "probe_tokenizer", MANIFEST=curated, OUT=out / "probed", TOKENIZERS=probed)
        )
    if data is None:
        sizes = [f"--{key}={value}" for key, value in preset.corpus.items()]
        stages.insert(
            0, Stage("corpus", lambda: ["-m", "mimo_jax.corpus", f"--out={corpus}", f"--seed={seed}", *sizes])
        )
    return stages


def define_flags() -> None:
    """The command line. Not at import: other main files have flags of the same names."""
    flags.DEFINE_enum("preset", "small", sorted(PRESETS), "smoke: learns nothing; small: about an hour on two cores.")
    flags.DEFINE_string("out", "runs/tokenizer", "folder for everything this run writes.")
    flags.DEFINE_string("data", None, "recordings of your own, instead of the built-in corpus; see docs/sources.md.")
    flags.DEFINE_bool("compare", False, "also train more of stage 1, without discriminators, without text.")
    flags.DEFINE_integer("seed", 0, "everything random follows from it.")


def main(argv: Sequence[str]) -> None:
    """Runs the chain; exit code 0 only if every stage is there."""
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
        chain.run(chain_stages(PRESETS[given.preset], out, data, given.compare, given.seed))
    for name, seconds in chain.seconds.items():
        print(f"{name:24} {seconds:8.0f} s")
    print(f"report: {out / 'measured' / 'report.html'}\nmetrics: {out / 'measured' / 'metrics.json'}")
    print(f"tokenizer, released layout: {out / 'export' / 'adversarial'}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
