"""What instruction tuning does to the quickstart's base model, from a finished quickstart to a comparison.

    python -m mimo_jax.post_training --quickstart=DIR --out=DIR [--preset=small|long|smoke] [--seed=N]

Each stage is a command of its own (printed, so that it can be run alone) and goes on where it was interrupted; a stage
that is done is not run again. `launch/post_training.sh` makes the environment and calls this.

  corpus         speech of all task formats, with another seed than the quickstart's
  prepare        to codes and ids by the quickstart's audio and text tokenizers, once its held-out items are found apart
  recogniser     the independent judge, of this corpus's words
  sft            instruction tuning of the quickstart's base
  evaluate_base  the base on held-out questions, dialogues and instructions, written and spoken
  evaluate_sft   the tuned model on the same items
  compare        comparison.md and comparison.json: figures with intervals, paired differences, thinking
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from mimo_jax import cli
from mimo_jax.chain import Chain, Stage, compiling_environment, ends_with_a_message
from mimo_jax.data import stages as data_stages
from mimo_jax.data.manifest_files import read_manifest, read_texts
from mimo_jax.evaluation.parts import write_json
from mimo_jax.quickstart import Preset

logger = logging.getLogger(__name__)
# Rows of 6 s hold all of the wide utterances.
_RECOGNISER = ("BUDGET_STEPS=900", "MAX_SAMPLES=144000", "BATCH_ROWS=12", "MAX_TEXT=300")
_FEW = ("BUDGET_TOKENS=2e4", "BATCH_ROWS=8", "loop.Intervals.checkpoint=4")
PRESETS = {
    # Learns nothing: shows in some minutes that every stage runs, goes on after a kill, and fits together.
    "smoke": Preset(
        corpus={
            "core_utterances": 40,
            "wide_utterances": 160,
            "core_validation": 8,
            "core_test_voices": 0,
            "wide_validation": 80,
            "wide_test_voices": 0,
            "texts": 60,
            "instructions": 1,
        },
        bindings={
            "recogniser": ("BUDGET_STEPS=12", "loop.Intervals.checkpoint=4"),
            "sft": _FEW,
            "evaluate": ("LIMIT=2", "OTHER_LIMIT=2", "TASK_LIMIT=3"),
        },
    ),
    "small": Preset(
        # The core part keeps what the base can do; everything else is in the wide part.
        corpus={
            "core_utterances": 2000,
            "wide_utterances": 10000,
            "core_validation": 320,  # those of 2 to 8 words are more than 256
            "core_test_voices": 0,
            "wide_validation": 800,
            "wide_test_voices": 400,
            "texts": 20000,
            # Of what instruction tuning needs most: questions with replies, and styles.
            "wide_shares": "styled=0.3,noisy=0.1,stories=0,dialogue=0.4,parallel=0",
            "instructions": 1,  # each utterance of a suitable length has one about its words
        },
        bindings={"recogniser": _RECOGNISER},
    ),
}
# The same data, for four times as many steps.
PRESETS["long"] = dataclasses.replace(
    PRESETS["small"], bindings={"recogniser": _RECOGNISER, "sft": ("BUDGET_TOKENS=11.6e6",)}
)
SYSTEMS = {"base": "language_model_base", "sft": "language_model"}


def held_out_apart(base: Path, corpus: Path) -> dict[str, int]:
    """Makes sure that no held-out item was trained on: by the base, or with the new corpus.

    Args:
      base: folder of the manifest and texts that the base was trained on.
      corpus: the same of the new corpus, whose held-out splits are measured.

    Returns:
      Numbers of distinct texts and voices: ``training_texts``, ``held_out_texts``, ``training_voices``,
      ``held_out_voices``.

    Raises:
      UserError: a held-out text, or a voice of the split test_voices, that training has.
    """
    new = read_manifest(corpus)
    records = [record for record in (*read_manifest(base), *new) if record.split == "train"]
    written = [text for folder in (base, corpus) for text in read_texts(folder) if text.split == "train"]
    trained = {record.text for record in records} | {t for text in written for t in (text.text, text.reply)}
    voices = {record.speaker for record in records}
    held_out = [record for record in new if record.split != "train"]
    unseen = {record.speaker for record in held_out if record.split == "test_voices"}
    texts = {record.text for record in held_out if record.text}
    for what, shared in (("texts", texts & trained), ("voices", unseen & voices)):
        if shared:
            example = sorted(map(str, shared))[0]
            raise cli.UserError(
                f"{corpus}: {len(shared)} of its held-out {what} were trained on ({base}), such as {example!r}; "
                "make both corpora with mimo_jax.corpus, which keeps them apart whatever the seed"
            )
    counts = {
        "training_texts": len(trained - {None}),
        "held_out_texts": len(texts),
        "training_voices": len(voices),
        "held_out_voices": len(unseen),
    }
    logger.info("none of %d held-out texts is among %d training texts", len(texts), counts["training_texts"])
    return counts


def chain_stages(preset: Preset, quickstart: Path, out: Path, seed: int) -> list[Stage]:
    """The commands of the chain, in order."""
    corpus, prepared, export = out / "corpus", out / "prepared", out / "export"
    curated, tokenizer = prepared / "curated", quickstart / "export" / "tokenizer"
    models = {"base": quickstart / "export" / SYSTEMS["base"], "sft": export / SYSTEMS["sft"]}

    def bindings(name: str) -> list[str]:
        return [f"--gin.{binding}" for binding in preset.bindings.get(name, ())]

    def train(name: str, file: str, **macros: object) -> Stage:
        given = [f"--gin.{key}={value}" for key, value in macros.items()]
        fixed = [f"--gin_file=gin/runs/{file}.gin", f"--gin.MODEL_DIR={out / name}", f"--gin.SEED={seed}"]
        return Stage(name, lambda: ["-m", "mimo_jax.train", *fixed, *given, *bindings(name)])

    def prepare() -> list[str]:
        write_json(out / "held_out.json", held_out_apart(quickstart / "prepared" / "curated", corpus))
        return [
            *("-m", "mimo_jax.prepare", "--gin_file=gin/runs/quickstart/prepare.gin"),
            *(f"--source={corpus}", f"--out={prepared}", f"--codec={tokenizer}"),
            f"--text_tokenizer={quickstart / 'prepared' / 'text_tokenizer'}",
        ]

    def evaluate(name: str) -> Stage:
        def arguments() -> list[str]:
            # Figures belong to the models: trained again, they are measured again.
            measured = {"language_model": models[name], "tokenizer": tokenizer, "recogniser": export / "recogniser"}
            identity = {what: data_stages.folder_hash(folder)[:16] for what, folder in measured.items()}
            return [
                *("-m", "mimo_jax.evaluate_chain", "--gin_file=gin/runs/post_training/evaluate.gin"),
                *(f"--gin.OUT={out / 'evaluation' / name}", f"--gin.CORPUS={curated}", f"--gin.PREPARED={prepared}"),
                *(f"--gin.RECOGNISER={export / 'recogniser'}", f"--gin.TOKENIZER={tokenizer}"),
                *(f"--gin.LANGUAGE_MODEL={models[name]}", f"--gin.IDENTITY={identity}", *bindings("evaluate")),
            ]

        return Stage(f"evaluate_{name}", arguments)

    sizes = [f"--{key}={value}" for key, value in preset.corpus.items()]
    compared = [f"{name}={out / 'evaluation' / name}" for name in SYSTEMS]
    return [
        Stage("corpus", lambda: ["-m", "mimo_jax.corpus", f"--out={corpus}", f"--seed={seed}", *sizes]),
        Stage("prepare", prepare),
        train("recogniser", "quickstart/recogniser", MANIFEST=curated, EXPORT_DIR=export / "recogniser"),
        train(
            "sft",
            "post_training/sft",
            PREPARED=prepared,
            INIT_FROM=quickstart / "joint",
            EXPORT_DIR=models["sft"],
        ),
        *(evaluate(name) for name in SYSTEMS),
        Stage("compare", lambda: ["-m", "mimo_jax.compare_chain", *compared, f"--out={out}"]),
    ]


def require_quickstart(folder: Path) -> None:
    """Raises a `UserError` that names what a finished quickstart has and this folder lacks."""
    needed = ("joint", f"export/{SYSTEMS['base']}", "export/tokenizer", "prepared/text_tokenizer", "prepared/curated")
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise cli.UserError(
            f"--quickstart={folder}: no {', '.join(missing)} there; give the --out of a quickstart whose stage `joint` "
            "is done (./launch/quickstart.sh)"
        )


def define_flags() -> None:
    """The command line. Not at import: other main files have flags of the same names."""
    flags.DEFINE_enum(
        "preset", "small", sorted(PRESETS), "smoke: learns nothing; small: under an hour on two cores; long."
    )
    flags.DEFINE_string("quickstart", "runs/quickstart", "folder of a quickstart, which has the base and tokenizers.")
    flags.DEFINE_string("out", "runs/post_training", "folder for everything this run writes.")
    flags.DEFINE_integer("seed", 1, "everything random follows from it; another than the quickstart's.")


def main(argv: Sequence[str]) -> None:
    """Runs the chain; exit code 0 only if every stage is there."""
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    cli.log_to_stderr()
    given = flags.FLAGS
    quickstart, out = Path(given.quickstart).absolute(), Path(given.out).absolute()
    with ends_with_a_message():
        require_quickstart(quickstart)
        chain = Chain(out, compiling_environment())
        chain.run(chain_stages(PRESETS[given.preset], quickstart, out, given.seed))
    for name, seconds in chain.seconds.items():
        print(f"{name:16} {seconds:8.0f} s")
    print(f"comparison: {out / 'comparison.md'} and comparison.json")


if __name__ == "__main__":
    define_flags()
    app.run(main)
