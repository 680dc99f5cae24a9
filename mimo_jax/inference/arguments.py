"""What the commands that use a model share: their parser, and --lm, --tokenizer, --text_tokenizer, --dtype."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mimo_jax.cli import UserError, is_repository, use_compilation_cache

if TYPE_CHECKING:
    from mimo_jax.inference.tasks import MimoAudio


class Parser(argparse.ArgumentParser):
    """Of a command `python -m module`, explained by its docstring; has the arguments that name the model.

    Raises `UserError` instead of exiting; options must be written in full.
    """

    def __init__(self, module: str, description: str | None):
        super().__init__(prog=f"python -m {module}", description=description, formatter_class=_Help, allow_abbrev=False)
        takes = "a folder in the released layout, a training run's MODEL_DIR, or owner/name of the Hugging Face hub"
        self.add_argument("--lm", default="", help=f"language model: {takes}")
        self.add_argument("--tokenizer", default="", help=f"audio tokenizer: {takes}")
        self.add_argument(
            "--text_tokenizer",
            default="",
            help="text tokenizer, where it is not beside the language model: a folder (a training run's is "
            "PREPARED/text_tokenizer) or owner/name",
        )
        self.add_argument(
            "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the language model's computation"
        )

    def add_switch(self, name: str, default: bool, text: str) -> None:
        """Adds `--name` and `--no-name`."""
        self.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=text)

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError`."""
        raise UserError(message)

    def run(self, command: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None) -> int:
        """Calls `command` with the parsed options; returns the exit code (2 = a mistake, named in one line)."""
        try:
            options, rest = self.parse_known_args(arguments)
            if rest:
                raise UserError(f"unexpected argument {rest[0]!r}; `{self.prog} --help` explains")
            self._check(options)
            command(options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    def _check(self, options: argparse.Namespace) -> None:
        """Before anything is imported that takes seconds."""
        for name in ("lm", "tokenizer"):
            if not getattr(options, name):
                raise UserError(f"--{name} is missing; `{self.prog} --help` explains")
        for name in ("lm", "tokenizer", "text_tokenizer"):
            value = getattr(options, name)
            if value and not Path(value).is_dir() and not is_repository(value):
                raise UserError(f"--{name}={value}: no such folder, and no repository name (owner/name)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Tells defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        known = action.default in (None, "", [], argparse.SUPPRESS) or "%(default)" in text
        return text if known else f"{text} (default: %(default)s)"


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """The `type` of an argument that is an integer within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
            if value >= least and (most is None or value <= most):
                return value
        except ValueError:
            pass
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is no integer {bounds}")

    return parse


def require(module: str, extra: str) -> None:
    """Raises UserError where a module is not installed, which comes with an extra of this package."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed; it comes with: pip install 'mimo_jax[{extra}]'")


def load(options: argparse.Namespace, compilation_cache: str = "", **engine: Any) -> MimoAudio:
    """The model that the options name; `compilation_cache` as of `use_compilation_cache`, `engine` as of `Engine`."""
    use_compilation_cache(compilation_cache)
    from mimo_jax.inference.tasks import MimoAudio

    text_tokenizer = options.text_tokenizer or None
    return MimoAudio.load(options.lm, options.tokenizer, text_tokenizer=text_tokenizer, dtype=options.dtype, **engine)
