"""gin command line: t5x's flag habits, and one clear line for each mistake."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import gin
import pytest

from mimo_jax import cli

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.relative_to(ROOT) for path in (ROOT / "gin" / "runs").rglob("*.gin"))


@pytest.fixture(autouse=True)
def fresh_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def test_short_bindings_are_rewritten_and_plain_words_quoted():
    arguments = cli.rewrite_gin_arguments(
        ["main", "--gin.MODEL_DIR=/tmp/x", "--gin.SEED=3", "--gin.A.b='q'", "--gin.M=@f()", "--other=1"]
        + ["--gin.C.d=(@s/f.g(), %N)", "--gin.P=(a mess"]
    )
    assert arguments == [
        "main",
        "--gin_bindings=MODEL_DIR = '/tmp/x'",
        "--gin_bindings=SEED = 3",
        "--gin_bindings=A.b = 'q'",
        "--gin_bindings=M = @f()",
        "--other=1",
        "--gin_bindings=C.d = (@s/f.g(), %N)",
        "--gin_bindings=P = '(a mess'",
    ]
    with pytest.raises(cli.UserError, match="--gin.NAME=VALUE"):
        cli.rewrite_gin_arguments(["main", "--gin.SEED"])


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text("from __gin__ import dynamic_registration\n" + text)
    return str(folder / name)


BUDGET = "from mimo_jax.training import schedule\nSTEPS = 5\nschedule.Budget.steps = %STEPS\n"


def test_a_folder_named_like_an_included_one_is_not_in_the_way(tmp_path, monkeypatch):
    """As `--out=runs/quickstart` makes one."""
    from mimo_jax.training.schedule import Budget

    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shared" / "runs" / "quickstart").mkdir(parents=True)
    write(tmp_path / "shared", "runs/quickstart/part.gin", BUDGET)
    cli.parse_gin([write(tmp_path, "a.gin", "include 'runs/quickstart/part.gin'\n")], [], [str(tmp_path / "shared")])
    assert gin.get_configurable(Budget)().steps == 5


def test_later_files_and_bindings_override(tmp_path):
    from mimo_jax.training.schedule import Budget

    files = [write(tmp_path, "a.gin", BUDGET), write(tmp_path, "b.gin", "STEPS = 6\n")]
    cli.parse_gin(files, [])
    assert gin.get_configurable(Budget)().steps == 6
    gin.clear_config()
    cli.parse_gin(files, ["STEPS = 7"])
    assert gin.get_configurable(Budget)().steps == 7


@pytest.mark.parametrize(
    ("text", "binding", "message"),
    [
        (BUDGET, "STEPZ = 1", r"no gin file of this run defines the macro STEPZ; did you mean STEPS\?$"),
        (BUDGET, "NOTHING_LIKE_IT = 1", "defines the macro NOTHING_LIKE_IT$"),
        (
            BUDGET,
            "schedule.Budget.stepz = 1",
            r"doesn't have a parameter named 'stepz' \(in: schedule.Budget.stepz = 1\); did you mean steps\?$",
        ),
        (BUDGET, "a/schedule.Budgets.steps = 1", r"matching 'schedule.Budgets' .*; did you mean schedule.Budget\?$"),
        (BUDGET, "STEPS = @schedule.Budgets()", r"'@schedule.Budgets\(\)' .*; did you mean schedule.Budget\?$"),
        (BUDGET, "STEPS = %gin.REQUIRED", "^STEPS has no value: give --gin.STEPS=VALUE$"),
        (BUDGET, "a/schedule.Budget.tokens = %gin.REQUIRED", "tokens has no value: give --gin.a/.*tokens=VALUE$"),
        (BUDGET + "schedule.Budget.tokenz = 1\n", "STEPS = 1", "tokenz.*a.gin"),
        ("from mimo_jax.training import nothing_here\nX = 1\n", "X = 1", "nothing_here"),
        ("X = \n", "X = 1", "a.gin"),
    ],
)
def test_mistakes_are_named(tmp_path, text, binding, message):
    with pytest.raises(cli.UserError, match=message):
        cli.parse_gin([write(tmp_path, "a.gin", text)], [binding])


def test_a_mistake_in_a_call_names_the_scope_alone(tmp_path, monkeypatch, capsys):
    """Not the functions on the way, which is all that gin adds to it without a scope."""
    from mimo_jax.training.schedule import Budget

    def ended(scope: str | None) -> str:
        with pytest.raises(SystemExit) as exit_of:
            cli._guarded(lambda argv: run(scope), [])
        assert exit_of.value.code == cli.EXIT_MISTAKE
        return capsys.readouterr().err

    def run(scope: str | None) -> None:
        with gin.config_scope(scope):
            gin.get_configurable(Budget)()

    cli.parse_gin([write(tmp_path, "a.gin", BUDGET + "STEPS = 'abc'\n")], [])
    monkeypatch.setattr("absl.flags.FLAGS", argparse.Namespace(traceback=False))
    assert ended(None).endswith("a number above 0; got {'steps': 'abc'}\n")
    assert ended("short").endswith("got {'steps': 'abc'} (in short/Budget)\n")


def test_missing_file_is_named():
    with pytest.raises(cli.UserError, match="--gin_file=nowhere.gin: no such file"):
        cli.parse_gin(["nowhere.gin"], [])


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mimo_jax.train", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2():
    result = run_main("--gin_file=gin/runs/quickstart/joint.gin", "--gin.PREPARED=/nowhere", "--gin.EXPORT_DIR=x")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "MODEL_DIR" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_prepared_folder_is_one_line_and_exit_code_2(tmp_path):
    """Not 1: a supervisor would try again what ends the same way."""
    folders = [f"--gin.{name}={tmp_path / name}" for name in ("PREPARED", "MODEL_DIR", "EXPORT_DIR")]
    result = run_main("--gin_file=gin/runs/quickstart/joint.gin", *folders)
    assert result.returncode == 2
    assert f"error: {tmp_path / 'PREPARED'}: no finished preparation (prepare.json is missing)" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_explains():
    result = run_main("--help")
    assert "MODEL_DIR receives checkpoints" in result.stdout
    assert "--gin_file" in result.stdout


@pytest.mark.parametrize("path", RUNS, ids=str)
def test_every_run_file_parses_and_begins_with_its_command(path):
    text = (ROOT / path).read_text()
    assert "python -m mimo_jax." in "\n".join(text.splitlines()[:6]) or path.name == "sizes.gin"
    last: dict[str, str] = {}  # what a file says itself overrides what it includes
    for line in _lines(path):
        name, _, value = line.partition("=")
        last.setdefault(name.strip(), value)
    cli.parse_gin([str(ROOT / path)], [f"{name} = 1" for name, value in last.items() if "%gin.REQUIRED" in value])


def _lines(path: Path) -> list[str]:
    """Lines of a gin file and of what it includes."""
    lines = (ROOT / path).read_text().splitlines()
    included = [line.split("'")[1] for line in lines if line.startswith("include ")]
    return [*lines, *(line for name in included for line in _lines(Path("gin") / name))]


def test_import_is_light():
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import mimo_jax, sys; assert 'jax' not in sys.modules"], check=True, cwd=ROOT
    )
    assert time.monotonic() - start < 5


def test_wrong_flags_and_no_run_file_are_mistakes_of_one_line():
    """Code 2, which a supervisor does not try again."""

    def ended(*arguments):
        command = [sys.executable, "-m", "mimo_jax.train", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    wrong = ended("--batch=3")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: Unknown command line flag 'batch'")
    assert wrong.stderr.endswith("--helpfull lists the flags\n")
    nothing = ended()
    assert nothing.returncode == 2
    assert "error: no gin file of this command line configures mimo_jax.train.train" in nothing.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 2), (errno.EDQUOT, 2), (errno.EACCES, 2), (errno.ESTALE, 76), (errno.EIO, 76)]
)
def test_a_file_that_cannot_be_written(number, code):
    """Also where a library has its own error for it."""
    error = ValueError("write failed")
    error.__cause__ = OSError(number, os.strerror(number))
    found = cli.not_written("x could not be written", error)
    assert found.exit_code == code and ("Free space" in str(found)) == (code == 2)
