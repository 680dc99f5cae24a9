"""Few-shot questions that a base model answers by likelihood: makes a set in the built-in voices, scores a model on it.

    python -m mimo_jax.few_shot make --tokenizer=TOKENIZER --prepared=PREPARED --out=few_shot.npz
    python -m mimo_jax.few_shot score --lm=LM --set=few_shot.npz
    python -m mimo_jax.few_shot report --model_dir=STAGE1 --model_dir=STAGE2 --set=few_shot.npz --out=emergence.html

A training run scores its set at token milestones (`gin/runs/emergence/joint.gin`), and `report` draws the scores
against tokens seen. `score` does it once, for a model in the released layout. Both show chance and 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mimo_jax.cli import UserError, require_folders, use_compilation_cache
from mimo_jax.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code (2 = a mistake in the input, named in one message)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.few_shot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="make | score | report")
    command = commands.add_parser("make", help="questions in the voices of the built-in corpus -> one file")
    command.set_defaults(run=_make)
    command.add_argument("--tokenizer", required=True, help="folder of the audio tokenizer (released layout)")
    command.add_argument("--prepared", required=True, help="prepared folder: text tokenizer and sequence layout")
    command.add_argument("--out", required=True, help="file to write (.npz)")
    command.add_argument("--tasks", default="", help="comma-separated; default: all")
    command.add_argument("--questions", type=int, default=64, help="of each task")
    command.add_argument("--shots", type=int, default=5, help="worked examples of arithmetic")
    command.add_argument("--conversion_shots", type=int, default=3, help="example pairs of a conversion")
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("score", help="a model on a set")
    command.set_defaults(run=_score)
    command.add_argument("--lm", required=True, help="folder of the language model (released layout)")
    command.add_argument("--set", required=True, help="file that `make` wrote")
    command.add_argument("--rows", type=int, default=8, help="rows of a batch")
    command.add_argument("--context", type=int, default=256, help="positions of a row")
    command.add_argument("--out", help="JSON file of the figures")
    command = commands.add_parser("report", help="scores of training stages against tokens seen, as a page")
    command.set_defaults(run=_report)
    command.add_argument("--model_dir", required=True, action="append", help="of a stage; in the order of training")
    command.add_argument("--set", required=True, help="file that `make` wrote")
    command.add_argument("--out", required=True, help="HTML file to write")
    return parser


def _make(options: argparse.Namespace) -> None:
    require_folders(options.tokenizer, options.prepared)
    use_compilation_cache()
    from mimo_jax.data.prepared import Prepared
    from mimo_jax.data.text_tokenizer import TextTokenizer
    from mimo_jax.evaluation.few_shot import builtin
    from mimo_jax.evaluation.few_shot.choices import ChoiceSet
    from mimo_jax.inference.codec import AudioCodec

    try:
        chosen = builtin.Options(
            tuple(options.tasks.split(",")) if options.tasks else builtin.TASKS,
            *(options.questions, options.shots, options.conversion_shots, options.seed),
        )
        prepared = Prepared(options.prepared)
    except ValueError as error:
        raise UserError(str(error)) from error
    layout, text = prepared.layout, TextTokenizer.load(prepared.text_tokenizer_folder)
    codec = AudioCodec.load(options.tokenizer)
    choices = builtin.build(chosen, lambda waves: codec.encode(waves, layout.channels))
    made = ChoiceSet.of(
        choices, text.encode, layout, builtin.facts(chosen), {"tokenizer": options.tokenizer, "options": vars(chosen)}
    )
    made.save(options.out)
    print(
        f"{options.out}: {len(choices)} questions, {len(made.length)} sequences of up to {made.length.max()} positions"
    )


def _score(options: argparse.Namespace) -> None:
    require_folders(options.lm)
    use_compilation_cache()
    import jax.numpy as jnp
    from jax import tree

    from mimo_jax.evaluation.few_shot.hook import FewShot
    from mimo_jax.evaluation.few_shot.intervals import wilson
    from mimo_jax.interop import hf
    from mimo_jax.objectives.language_model import LanguageModelObjective

    config, params = hf.load_lm(options.lm)
    hook = FewShot(options.set, LanguageModelObjective(config), options.rows, options.context)
    figures = hook(tree.map(jnp.asarray, params), {})
    counts = hook.questions.counts
    print(f"{'task':<16} {'right':>6} {'95 % interval':>15} {'chance':>7} {'questions':>10} {'margin, nats':>13}")
    for name, about in hook.questions.tasks.items():
        share = figures[f"few_shot/{name}"]
        low, high = wilson(share, counts[name])
        print(
            f"{name:<16} {share:>6.3f} {f'{low:.3f}..{high:.3f}':>15} {about['chance']:>7.3f} {counts[name]:>10}",
            end="",
        )
        print(f" {figures[f'few_shot/{name}_margin']:>13.2f}")
    if options.out:
        write_text(options.out, json.dumps(figures, indent=2) + "\n")


def _report(options: argparse.Namespace) -> None:
    require_folders(*options.model_dir)
    from mimo_jax.evaluation.few_shot import curves
    from mimo_jax.evaluation.few_shot.choices import ChoiceSet
    from mimo_jax.evaluation.report import read_curve
    from mimo_jax.evaluation.report_page import page

    questions = ChoiceSet.load(options.set)
    stages = {folder: read_curve(folder) for folder in options.model_dir}
    body = curves.section(stages, questions)
    if not body:
        raise UserError(f"{', '.join(options.model_dir)}: no few-shot scores; bind train.evaluation_hooks in the run")
    write_text(options.out, page("Emergence", "Scores of few-shot tasks over the run", "", body))
    for name, first, last, low, high, chance, count in curves.rows(curves.curves(stages), questions):
        print(f"{name:<16} {first:.3f} -> {last:.3f} ({low:.3f}..{high:.3f}), chance {chance:.3f}, {count} questions")
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
