"""Post-training data from recordings: thoughts and instructions by a text LLM or rules (docs/post_training_data.md).

    python -m mimo_jax.synthesise --recipe=thinking --source=CORPUS --out=THINKING --llm=rules
    python -m mimo_jax.synthesise --recipe=instruct_tts --source=CORPUS --out=STYLED --llm=openai:http://HOST:8000/v1#MODEL
    python -m mimo_jax.prepare --source=THINKING --codec=TOKENIZER_DIR --out=PREPARED

The folder written is a source of `mimo_jax.prepare`, which makes examples of the task ``sft_conversation`` of it.
Replies are kept: interrupted and started again, a run asks what is not answered and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mimo_jax.cli import UserError

if TYPE_CHECKING:
    from mimo_jax.preparation.recipes.base import Recipe

RECIPES = ("thinking", "instruct_tts")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a recipe; returns the exit code (2 = a mistake in the input, named in one message)."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.synthesise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, choices=RECIPES, help="what is written")
    parser.add_argument("--source", required=True, help="folder or file, as mimo_jax.prepare takes it")
    parser.add_argument("--kind", help="of the source, where it cannot be told from what lies there")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--llm",
        default="rules",
        help="rules (offline, English, from attributes like the built-in corpus has), or "
        "openai:BASE_URL#MODEL?option=value (options: mimo_jax.endpoints; key: $OPENAI_API_KEY, or $NAME by ?key=NAME)",
    )
    parser.add_argument("--replies", help="file that keeps the LLM's replies; default: OUT/replies.sqlite")
    parser.add_argument("--whole", action="store_true", help="carry over all that the source has, for one preparation")
    parser.add_argument("--subsets", help="parts of the source to write about, comma-separated; default: all")
    parser.add_argument("--modes", help="thinking: comma-separated of thinking, plain (empty thought), bare (no block)")
    parser.add_argument("--natural_share", type=float, help="instruct_tts: requests that name the words too (0.5)")
    parser.add_argument("--voice_share", type=float, help="instruct_tts: conversations with a voice prompt (0.5)")
    parser.add_argument("--characters", type=int, help="of a thought at most (1200)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices")
    parser.add_argument("--workers", type=int, help="processes; default: one for an endpoint, else one per core")
    parser.add_argument("--items_per_shard", type=int, default=256, help="records that are finished together")
    parser.add_argument("--bad_share", type=float, default=0.2, help="of unusable replies above which a run stops")
    return parser


def _run(options: argparse.Namespace) -> None:
    from mimo_jax.preparation.accounts import Limits, TooManyBadRecords
    from mimo_jax.preparation.elements import StageFault
    from mimo_jax.preparation.recipes.run import run_recipe
    from mimo_jax.preparation.runner import WorkerDied

    for name in ("workers", "items_per_shard"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    if not 0 <= options.bad_share <= 1:
        raise UserError(f"--bad_share={options.bad_share} must lie within 0 and 1")
    try:
        result = run_recipe(
            options.source,
            options.out,
            _recipe(options),
            options.llm,
            kind=options.kind,
            whole=options.whole,
            subsets=tuple(filter(None, (options.subsets or "").split(","))),
            replies=options.replies,
            limits=Limits(bad_share=options.bad_share),
            items_per_shard=options.items_per_shard,
            workers=options.workers,
        )
    except (OSError, ValueError, StageFault, TooManyBadRecords, WorkerDied) as error:
        raise UserError(str(error)) from error
    print(f"{options.out}: {', '.join(f'{count} {kind}' for kind, count in result['written'].items())}")


def _recipe(options: argparse.Namespace) -> Recipe:
    from mimo_jax.preparation.recipes.instruct_tts import InstructTts
    from mimo_jax.preparation.recipes.thinking import Thinking

    own = {"thinking": ("modes",), "instruct_tts": ("natural_share", "voice_share")}
    for recipe, names in own.items():
        for name in names:
            if recipe != options.recipe and getattr(options, name) is not None:
                raise UserError(f"--{name}: goes with --recipe={recipe}")
    names = (*own[options.recipe], "characters")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "modes" in given:
        given["modes"] = tuple(given["modes"].split(","))
    return {"thinking": Thinking, "instruct_tts": InstructTts}[options.recipe](seed=options.seed, **given)


if __name__ == "__main__":
    sys.exit(main())
