"""Command line of the main files: gin files and bindings with t5x's flag habits, and one clear line per mistake.

    python -m mimo_jax.train --gin_file=gin/runs/A.gin --gin_file=B.gin --gin.MODEL_DIR="'/tmp/run'" --gin.train.seed=1

Strings may be given with or without their inner quotes (`--gin.MODEL_DIR=/tmp/run`).
"""

from __future__ import annotations

import ast
import difflib
import errno
import importlib.util  # noqa: F401  (gin uses it without importing it)
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_GIN_PREFIX = "--gin."
_GIN_REFERENCE = r"[@%][\w./]+(\(\))?"
# Exit code of a mistake in the input: starting again would end the same way.
EXIT_MISTAKE = 2
# Exit code of a run that saved its state because it was asked to stop: start it again and it goes on.
EXIT_PREEMPTED = 75


# Exit code of what may pass by itself, a step that does not end too (training.watchdog): start it again.
EXIT_TRY_AGAIN = 76


class UserError(Exception):
    """A mistake in the input: its message names the file or value and what to do; shown without a traceback."""

    exit_code = EXIT_MISTAKE


class TryAgain(UserError):
    """What may pass by itself, such as a host that is lost or a file server that does not answer."""

    exit_code = EXIT_TRY_AGAIN


_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def not_written(message: str, error: BaseException) -> UserError:
    """The error of a file that could not be written, with what to do: a `TryAgain` unless space or permission lacks.

    A full disk stays full until somebody comes; anything else (a lost host in the midst of a save, a mount that is gone
    for a moment) should not end a run that something starts again.
    """
    # Writers that are not Python's tell the system's error in their text alone; others raise their own error from it.
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said, cause = f"{said} {cause}", cause.__cause__ or cause.__context__
    if any(os.strerror(number).lower() in said.lower() for number in _LASTING):
        return UserError(f"{message}. Free space there or correct the path, then start again with the same command")
    return TryAgain(f"{message}. Start again with the same command")


def require_folders(*folders: str) -> None:
    """Raises a `UserError` that names the first folder that is not there."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder; run the stage that makes it, or correct the path")


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository of the Hugging Face hub: "owner/name"."""
    return re.fullmatch(r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*", name) is not None


def use_compilation_cache(folder: str = "") -> None:
    """Programs that were compiled once are read from disk the next time.

    `folder`: where; empty = $JAX_COMPILATION_CACHE_DIR, which jax sees to itself, or ~/.cache/mimo_jax/jax.
    """
    import jax

    if folder or not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", folder or str(Path.home() / ".cache" / "mimo_jax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def default_search_paths() -> list[str]:
    """Where gin files are looked for: the repository's `gin/` or an installed copy, the working folder, the root."""
    package = Path(__file__).resolve().parent
    return [str(package.parent / "gin"), str(package / "gin"), os.getcwd(), str(package.parent), str(package)]


def rewrite_gin_arguments(argv: Sequence[str]) -> list[str]:
    """Turns `--gin.NAME=value` into `--gin_bindings=NAME = value`, quoting values that are no Python or gin literal."""
    rewritten = []
    for argument in argv:
        if not argument.startswith(_GIN_PREFIX):
            rewritten.append(argument)
            continue
        name, separator, value = argument[len(_GIN_PREFIX) :].partition("=")
        if not separator:
            raise UserError(f"{argument}: write --gin.NAME=VALUE")
        rewritten.append(f"--gin_bindings={name} = {_as_gin_value(value)}")
    return rewritten


def _as_gin_value(value: str) -> str:
    if value[:1] in "@%":
        return value
    try:
        ast.literal_eval(re.sub(_GIN_REFERENCE, "None", value) if value[:1] in "([{" else value)
    except (ValueError, SyntaxError):
        return repr(value)
    return value


def parse_gin(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    macros: Mapping[str, str] | None = None,
    complete: bool = True,
) -> None:
    """Parses gin files, then macros ({"NAME": "value"}; those that no file defines are left out), then bindings.

    `complete`: False lets required values be left open, for those who only look at a configuration.

    Raises:
      UserError: a missing file, a syntax error, an unknown parameter or macro, a required value left open.
    """
    import gin

    for path in [*search_paths, *default_search_paths()]:
        gin.add_config_file_search_path(path)
    for file in files:
        _find(file, [*search_paths, *default_search_paths()])
    # Gin would also look for `runs/quickstart/sizes.gin` in a Python package `runs.quickstart`: it reports an error
    # where there is none, and dies where the working folder has a plain folder of that name.
    readers = gin.config._FILE_READERS
    readers[:] = [reader for reader in readers if reader[0] is open]
    try:
        for file in files:
            gin.parse_config_file(file)
        known = [f"{name} = {value}" for name, value in (macros or {}).items() if _is_macro(name)]
        for binding in bindings:
            _check_macro(binding)
        gin.parse_config("\n".join([*known, *bindings]))
        if complete:
            gin.finalize()
        else:  # what `finalize` asks for, but for required values
            gin.config.validate_macros_hook(gin.config._CONFIG)
            gin.config.find_unknown_references_hook(gin.config._CONFIG)
    except (ValueError, AttributeError, ImportError, SyntaxError, OSError, NameError) as error:
        raise UserError(_explained(error)) from error


def _explained(error: BaseException) -> str:
    """What gin says of a configuration, with what to do: the flag that lacks, the name that was probably meant."""
    from gin import config

    text = f"gin: {_one_line(error)}"
    if lacking := re.match(r"gin: (\S+?)(/macro\.value)? set to `%gin\.REQUIRED`", text):
        return f"{lacking[1]} has no value: give --gin.{lacking[1]}=VALUE"
    selectors = [selector for selector, _ in config._REGISTRY.items()]
    if unknown := re.match(r"gin: No configurable matching (?:reference )?'@?(?:.*/)?([\w.]+)", text):
        # Files import modules and name them, `loop.Intervals`: the last part of a longer name is of no use there.
        return text + _meant(unknown[1], [".".join(selector.split(".")[-2:]) for selector in selectors])
    if unknown := re.match(r"gin: Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text):
        matching = config._REGISTRY.matching_selectors(unknown[1])
        names = [name for one in matching for name in inspect.signature(config._REGISTRY[one].wrapped).parameters]
        return text + _meant(unknown[2], names)
    return text


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _find(file: str, search_paths: Sequence[str]) -> None:
    candidates = [Path(file)] if Path(file).is_absolute() else [Path(path) / file for path in search_paths]
    if not any(candidate.is_file() for candidate in candidates):
        raise UserError(f"--gin_file={file}: no such file (looked in {', '.join(search_paths)})")


def _check_macro(binding: str) -> None:
    """A macro set on the command line must exist in the files: gin itself lets a misspelt one pass unused."""
    name = binding.partition("=")[0].strip()
    if "." not in name and "/" not in name and not _is_macro(name):
        from gin import config

        known = [scope for scope, selector in config._CONFIG if selector == "gin.macro"]
        raise UserError(f"--gin.{name}: no gin file of this run defines the macro {name}{_meant(name, known)}")


def _is_macro(name: str) -> bool:
    import gin

    try:
        gin.query_parameter(f"%{name}")
    except ValueError:
        return False
    return True


def _one_line(error: BaseException) -> str:
    # Gin adds the place: the file and its line, which are kept, or the number of a binding among those of the command
    # line, where the binding itself says more; and every configurable on the way to an error in a call, which says
    # something only with its scope.
    text = re.sub(r"\.?\s*In bindings string line \d+\n +(.*)(\n +\^)?", r" (in: \1)", str(error))
    called = r" In call to configurable '([^']*)' \(<.*?>\)(?: in scope '([^']*)')?"
    return re.sub(called, lambda found: f" (in {found[2]}/{found[1]})" if found[2] else "", " ".join(text.split()))


def run(
    function: Callable[..., Any],
    more_files: Callable[[], Sequence[str]] = tuple,
    macros: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    short: Mapping[str, str] | None = None,
    complete: bool = True,
) -> None:
    """Parses the command line and calls `function` with its gin bindings. Exits with code 2 on a user's mistake.

    Args:
      function: called without arguments.
      more_files: gives gin files to be read after those of the command line, once flags are parsed.
      macros: see `parse_gin`.
      before: called once flags are parsed, before anything is configured.
      short: flags that are short forms: {"flag": "MACRO"} makes --flag=value of --gin.MACRO=value.
      complete: see `parse_gin`.
    """
    from absl import app, flags

    flags.DEFINE_multi_string("gin_file", [], "gin file; may be given several times, later ones override.")
    flags.DEFINE_multi_string("gin_bindings", [], "one gin binding; --gin.NAME=VALUE is the short form.")
    flags.DEFINE_list("gin_search_paths", [], "comma-separated folders in which gin files are looked for first.")
    flags.DEFINE_bool("traceback", False, "show the traceback of a user error too.")

    def main(argv: Sequence[str]) -> None:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}; every option starts with --")
        log_to_stderr()
        if before is not None:
            before()
        import gin

        files, bindings = [*flags.FLAGS.gin_file, *more_files()], flags.FLAGS.gin_bindings
        parse_gin(files, bindings, flags.FLAGS.gin_search_paths, macros, complete)
        try:
            configured = gin.get_configurable(function)
        except ValueError:
            raise UserError(
                f"no gin file of this command line configures {function.__module__}.{function.__name__}; "
                f"name a run file, as --gin_file=gin/runs/quickstart/joint.gin (given: {', '.join(files) or 'none'})"
            ) from None
        configured()

    try:
        arguments = rewrite_gin_arguments(_in_full(sys.argv, short or {}))
        app.run(lambda argv: _guarded(main, argv), argv=arguments, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """As absl does, but a wrong flag is one line and a mistake, which no supervisor tries again."""
    from absl import app, flags

    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        if any(argument in ("--help", "-help", "--helpfull") for argument in argv):
            return app.parse_flags_with_usage(list(argv))
        raise UserError(f"{error}; {argv[0]} --helpfull lists the flags") from error


def _in_full(argv: Sequence[str], short: Mapping[str, str]) -> list[str]:
    full = {f"--{flag}": f"{_GIN_PREFIX}{macro}" for flag, macro in short.items()}
    parts = [argument.partition("=") for argument in argv]
    return [full.get(name, name) + separator + value for name, separator, value in parts]


def log_to_stderr() -> None:
    """Our own messages from level INFO, other packages' from WARNING: a save or a compilation of theirs is no news."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("mimo_jax")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    from absl import flags

    try:
        main(argv)
    except UserError as error:
        if flags.FLAGS.traceback:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
