"""Command lines of the pages, checked against the real flags, gin files and bindings without running anything.

A command's module is run as `python -m` runs it, up to where its flags are parsed (argparse, absl) and its gin files
and bindings are bound. `...` as an argument stands for what a page leaves out: then nothing is missed.
"""

import argparse
import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import gin
from absl import app, flags

from mimo_jax import cli, pretrain
from tests.docs.blocks import ROOT

_HARMLESS = {"cd", "cp", "export", "git", "ls", "mkdir", "pre-commit", "pytest", "source", "tensorboard"}
_OURS = re.compile(r"(\./)?(benchmarks|docs|gin|launch|notebooks|requirements|tests|tools)/[\w./-]+")
_VARIABLE = re.compile(r"\$\{?\w+\}?")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


class Unknown(Exception):
    """A command that this module cannot check."""


class Wrong(AssertionError):
    """A command that does not work as it is written."""


class _Parsed(BaseException):
    """Ends a command once its options are known; no `except Exception` of the command stops it."""


def split(text: str) -> list[list[str]]:
    """The commands of a shell script as lists of words: lines are joined at a backslash, comments dropped.

    What a program prints, `$(...)`, is `AAAA`.
    """
    text = re.sub(r"\$\([^()]*\)", "AAAA", text)
    commands: list[str] = [""]
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and not quote:
            commands[-1] += " " if text[at + 1 : at + 2] == "\n" else text[at : at + 2]
            at += 1
        elif quote:
            quote = "" if char == quote else quote
            commands[-1] += char
        elif char in "'\"":
            quote = char
            commands[-1] += char
        elif char == "#" and (not commands[-1] or commands[-1][-1].isspace()):
            at = text.find("\n", at) % (len(text) + 1)
            commands.append("")
        elif char in "\n;|&":
            commands.append("")
        else:
            commands[-1] += char
        at += 1
    return [words for words in map(shlex.split, commands) if words]


def check(words: Sequence[str]) -> None:
    """Checks one command.

    Raises:
      Wrong: flags, files, parameters or macros that do not exist, or what is required and missing.
      Unknown: a program that is none of ours.
    """
    words = list(words)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        del words[0]
    missing = [word for word in words if _OURS.fullmatch(word) and not (ROOT / word).exists()]
    if missing:
        raise Wrong(f"{shlex.join(words)}: no such file: {missing[0]}")
    if not words or words[0].rpartition("/")[2] in _HARMLESS:
        return
    module = next((words[n + 1] for n in range(len(words) - 1) if words[n] == "-m"), "")
    script = next((word for word in words if re.fullmatch(r"(\./)?(launch|benchmarks|tools)/\w+\.(sh|py)", word)), "")
    if module.split(".")[0] == "mimo_jax":
        _check_module(module, words[words.index(module) + 1 :])
    elif words[0] == "mimo-jax" and len(words) > 1:
        if not words[1].startswith("-"):
            _check_module(f"mimo_jax.{words[1].replace('-', '_')}", words[2:])
    elif script:
        _check_script(ROOT / script, words[words.index(script) + 1 :])
    elif "pip" in words and "install" in words:
        _check_extras(" ".join(words))
    elif words[0] == "curl":
        _check_request(words)
    else:
        raise Unknown(shlex.join(words))


def run(words: Sequence[str]) -> str:
    """Runs `python -m mimo_jax.X ...` in this process and returns what it prints. Raises Wrong where it fails."""
    with _captured() as output:
        try:
            code = _as_main(words[2], words[3:])
        except SystemExit as exit_:
            code = exit_.code
    if code not in (0, None):
        raise Wrong(f"{shlex.join(words)} ended with {code}: {output.getvalue()}")
    return output.getvalue()


def _check_extras(command: str) -> None:
    for extra in re.findall(r"\[([\w,]+)\]", command):
        missing = set(extra.split(",")) - _extras()
        if missing:
            raise Wrong(f"{command}: setup.py has no extra {', '.join(sorted(missing))}")


def _check_request(words: Sequence[str]) -> None:
    """A request to the endpoint: its path, and its body where it is JSON."""
    from mimo_jax.serving import schema
    from mimo_jax.serving.errors import ApiError
    from mimo_jax.serving.limits import Limits

    readers = {"/v1/chat/completions": schema.chat, "/v1/audio/speech": schema.speech}
    url = next((word for word in words if word.startswith("http://127.0.0.1:8000/")), "")
    path = url.removeprefix("http://127.0.0.1:8000")
    if path not in re.findall(r'Route\("([^"]+)"', (ROOT / "mimo_jax/serving/app.py").read_text(encoding="utf-8")):
        raise Wrong(f"{shlex.join(words)}: the endpoint has no {path or 'such address'}")
    if "-d" in words:
        try:
            readers[path](json.loads(words[words.index("-d") + 1]), Limits())
        except (ApiError, ValueError) as error:
            raise Wrong(f"{shlex.join(words)}: {error}") from error


def _extras() -> set[str]:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "EXTRAS"]
    return set(ast.literal_eval(values[0]))


def _check_script(path: Path, arguments: Sequence[str]) -> None:
    if path.suffix == ".py":
        _parse(str(path), arguments)
        return
    text = path.read_text(encoding="utf-8")
    branches = dict(re.findall(r"^ *([a-z]\w*)\)(.*?);;", text, re.MULTILINE | re.DOTALL))
    if arguments and arguments[0] in branches:  # `script.sh word ...`: that branch of a `case`
        text, arguments = branches[arguments[0]], arguments[1:]
    passed_on = re.search(r'-m (mimo_jax\.\w+) "\$@"', text)
    if passed_on:
        _check_module(passed_on[1], arguments)
        return
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option == "--gin_file" and not (ROOT / value).is_file():
            raise Wrong(f"{argument}: no such file")
        if re.match(r"--(?!gin)", option) and option not in path.read_text(encoding="utf-8"):
            raise Wrong(f"{path.name} knows no option {option}")


def _check_module(module: str, arguments: Sequence[str]) -> None:
    if not (ROOT / (module.replace(".", "/") + ".py")).is_file():
        raise Wrong(f"python -m {module}: there is no such module")
    if not re.search(r"\b(argparse|flags|cli\.run|Parser)\b", _source(module)):
        if arguments:
            raise Wrong(f"python -m {module} takes no options: {shlex.join(arguments)}")
        return
    _parse(module, arguments)


def _source(module: str) -> str:
    return (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def _parse(target: str, arguments: Sequence[str]) -> None:
    """Runs a module or file up to where its options are known."""
    incomplete = any(argument.endswith("...") for argument in arguments)
    given = [_VARIABLE.sub("1", argument) for argument in arguments if not argument.endswith("...")]
    seen: list[Any] = []
    with _captured() as output, _stopped_at_options(seen, incomplete):
        try:
            _as_main(target, given)
        except _Parsed:
            pass
        except SystemExit as exit_:
            if exit_.code not in (0, None) or not seen:
                raise Wrong(f"{target} {shlex.join(given)}: {output.getvalue().strip()[-600:]}") from exit_
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"{target} {shlex.join(given)}: {type(error).__name__}: {error}") from error
    if not seen:
        raise Wrong(f"{target} {shlex.join(given)}: {output.getvalue().strip()[-600:] or 'it parses no options'}")
    if target == "mimo_jax.pretrain":
        options, common = seen[-1]
        for stage in pretrain.stages(Path(options.out), options.stage, options.init_from):
            _parse("mimo_jax.train", [*stage.arguments, *common, *(["..."] if incomplete else [])])


def _as_main(target: str, arguments: Sequence[str]) -> Any:
    with mock.patch.object(sys, "argv", [target, *arguments]), _own_flags(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy: the module has been imported before
        if target.endswith(".py"):
            with mock.patch.object(sys, "path", [str(Path(target).parent), *sys.path]):
                runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    return None


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """absl's flags are global: those of our modules go for a command, and come back behind it."""
    by_module = flags.FLAGS.flags_by_module_dict()
    ours = [flag for name, group in by_module.items() if name.startswith("mimo_jax") for flag in group]
    for flag in ours:
        delattr(flags.FLAGS, flag.name)
    before = set(flags.FLAGS)
    gin.clear_config()
    try:
        yield
    finally:
        gin.clear_config()
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        for flag in ours:
            flags.FLAGS[flag.name] = flag
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _stopped_at_options(seen: list[Any], incomplete: bool) -> Iterator[None]:
    """Lets parsers of argparse and absl, and gin behind it, do their work and ends the command there."""
    parse_known, parse, cli_run = argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.parse_args, cli.run
    inner = [False]

    def outermost(original: Any) -> Any:
        def parser(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
            if inner[0]:
                return original(self, *arguments, **options)
            inner[0] = True
            try:
                if incomplete:
                    _nothing_required(self)
                found = original(self, *arguments, **options)
            finally:
                inner[0] = False
            rest = found[1] if isinstance(found, tuple) else []
            if rest and "pretrain" not in sys.argv[0]:
                raise Wrong(f"{shlex.join(sys.argv)}: unexpected argument {rest[0]}")
            seen.append(found)
            raise _Parsed

        return parser

    def absl_run(main: Any, argv: Sequence[str] | None = None, **_: Any) -> None:
        try:
            rest = flags.FLAGS(list(argv or sys.argv))
        except flags.Error as error:
            if not (incomplete and isinstance(error, flags.IllegalFlagValueError)):
                raise
            rest = [sys.argv[0]]
        if getattr(main, "__module__", "") == "mimo_jax.cli":
            main(rest)
        if rest[1:]:
            raise Wrong(f"{shlex.join(sys.argv)}: unexpected argument {rest[1]}")
        seen.append(rest)
        raise _Parsed

    def configured(function: Any) -> Any:
        def stop() -> None:
            seen.append([])
            raise _Parsed

        return stop

    def without_side_effects(*arguments: Any, **options: Any) -> None:
        cli_run(*arguments, **{**options, "before": None})

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", outermost(parse_known)),
        mock.patch.object(argparse.ArgumentParser, "parse_args", outermost(parse)),
        mock.patch.object(app, "run", absl_run),
        mock.patch.object(cli, "run", without_side_effects),
        mock.patch.object(cli, "log_to_stderr", lambda: None),
        mock.patch.object(gin, "get_configurable", configured),
        # It refuses required values that are not given.
        mock.patch.object(gin, "finalize", (lambda: None) if incomplete else gin.finalize),
    ):
        yield


def _nothing_required(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                _nothing_required(choice)
    for group in parser._mutually_exclusive_groups:
        group.required = False
