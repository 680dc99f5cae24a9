"""The command `mimo-jax`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mimo_jax import __main__ as command

ROOT = Path(__file__).resolve().parent.parent
NAMES = [name for group in command.COMMANDS.values() for name in group]


def test_every_main_file_is_a_command():
    """Those at the top of the package; what others import only has no main part."""
    runnable = {
        path.stem
        for path in (ROOT / "mimo_jax").glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text() and path.stem != "__main__"
    }
    assert runnable == set(NAMES) and len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_the_overview_names_every_command_with_what_it_does(capsys, arguments):
    command.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    found = dict(re.fullmatch(r"  (\w+) +(\S.*)", line).groups() for line in lines if line.startswith("  "))
    assert list(found) == NAMES
    assert found["train"] == "Trains one stage from a gin file, or goes on where it was interrupted"
    assert all(len(summary) > 20 for summary in found.values())


@pytest.mark.parametrize("name", ["train_tokenizer", "train-tokenizer"])
def test_a_command_becomes_python_dash_m(monkeypatch, name):
    called = []
    monkeypatch.setattr(os, "execv", lambda path, argv: called.append((path, argv)))
    command.main([name, "--out=a b", "--help"])
    assert called == [(sys.executable, [sys.executable, "-m", "mimo_jax.train_tokenizer", "--out=a b", "--help"])]


def test_a_misspelt_command_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["trian"])
    assert ended.value.code == 2
    assert "mimo-jax trian: no such command; did you mean train?" in capsys.readouterr().err


def test_a_command_runs_and_its_exit_code_comes_back():
    run = [sys.executable, "-m", "mimo_jax"]
    listed = subprocess.run([*run, "convert", "inspect", "--weights=nowhere"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 2 and listed.stderr.startswith("error: ")
    version = subprocess.run([*run, "--version"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert re.fullmatch(r"mimo_jax \d+\.\d+\.\d+\n", version.stdout)
