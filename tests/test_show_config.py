"""The whole configuration of a run, and that of every published run as it is kept in tests/golden/configs."""

import difflib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import gin
import pytest

from mimo_jax import cli, show_config
from mimo_jax.show_config import Call, Required

ROOT = Path(__file__).parents[1]
GIN = ROOT / "gin"
GOLDEN = Path(__file__).parent / "golden" / "configs"
PARTS = {"runs/quickstart/sizes.gin"}  # included by runs, no run itself
RUNS = sorted(
    str(path.relative_to(GIN))
    for folder in ("runs", "preparation")
    for path in (GIN / folder).rglob("*.gin")
    if str(path.relative_to(GIN)) not in PARTS
)
HARDWARE = sorted(str(path.relative_to(GIN)) for path in (GIN / "hardware").glob("*_*.gin"))


@pytest.fixture(autouse=True)
def clean_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def configuration(*files: str) -> Call:
    gin.clear_config()
    cli.parse_gin(files, [], complete=False)
    run = show_config.resolve_run()
    assert run is not None, files
    return run


def check(name: str, text: str, update: bool) -> None:
    golden = GOLDEN / f"{name}.txt"
    if update:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    kept = golden.read_text() if golden.exists() else ""
    changed = "\n".join(difflib.unified_diff(kept.splitlines(), text.splitlines(), "kept", "now", lineterm="", n=0))
    assert text == kept, (
        f"the configuration of {name} is another than in {golden.relative_to(ROOT)}:\n{changed}\n"
        "If that is meant: pytest tests/test_show_config.py --update-golden, and say so in CHANGELOG.md."
    )


@pytest.mark.parametrize("run", RUNS)
def test_published_runs_are_configured_as_they_were(run, update_golden):
    check(run.removesuffix(".gin"), "\n".join(show_config.lines(configuration(run))) + "\n", update_golden)


@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_changes_what_it_did(hardware, update_golden):
    """Kept are the lines that a hardware file sets otherwise than the run file alone."""
    run = "tokenizer_1b_unified" if "tokenizer" in hardware else "pretrain_7b_joint"
    plain = set(show_config.lines(configuration(f"runs/{run}.gin")))
    changed = [line for line in show_config.lines(configuration(f"runs/{run}.gin", hardware)) if line not in plain]
    check(hardware.removesuffix(".gin"), "\n".join(changed) + "\n", update_golden)


def test_nothing_else_is_kept():
    kept = {str(path.relative_to(GOLDEN).with_suffix(".gin")) for path in GOLDEN.rglob("*.txt")}
    assert kept == {*RUNS, *HARDWARE}


@pytest.mark.parametrize("run", RUNS)
def test_what_is_still_to_be_given_stands_in_the_run_file(run):
    """Each open value is a macro that the command at the top of the file gives, or a flag of that command."""
    text = (GIN / run).read_text()
    head = text[: text.index("from __gin__")]
    for path, value in show_config.open_values(configuration(run)):
        given = f"--gin.{value.macro}=" if value.macro else f"--{path.rpartition('.')[2]}="
        assert given in head, f"{run} leaves {path} open, and its first lines do not say {given}"


# Calls that read a run's data, and what stands for their result here.
STAND_INS: Mapping[str, Callable[..., object]] = {
    "data.vocabulary.fit_model": lambda model, prepared: model,
    "data.vocabulary.text_vocab_size": lambda folder: 1024,
}


def build(value):
    """What gin would make of a value; `Required` where something that is not known here goes in."""
    if isinstance(value, Call):
        if not value.evaluated:
            return value.function
        arguments = {name: build(argument) for name, argument in value.arguments.items()}
        stand_in = STAND_INS.get(value.name)
        if stand_in is not None:
            return stand_in(**arguments)
        if any(isinstance(leaf, Required) for leaf in _leaves(list(arguments.values()))):
            return Required()
        return value.function(**arguments)
    if isinstance(value, dict):
        return {key: build(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(build(item) for item in value)
    return value


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@pytest.mark.parametrize("run", RUNS)
def test_parts_of_every_run_can_be_built(run):
    """Types check their values when they are made."""
    call = configuration(run)
    if run == "runs/ladder/joint.gin":
        gin.bind_parameter("BUDGET_TOKENS/gin.macro.value", 4e5)  # the ladder gives it
        call = show_config.resolve_run()
    if call.name != "train.train":
        for argument in call.arguments.values():
            build(argument)
        return
    for part in ("objective", "optimizer", "budget", "hardware", "intervals", "keep", "guards"):
        assert not isinstance(build(call.arguments[part]), Required), part


def test_defaults_scopes_macros_and_references(tmp_path):
    (tmp_path / "run.gin").write_text(
        """
from __gin__ import dynamic_registration
from mimo_jax import train as train_script
from mimo_jax.training import optimizer
from mimo_jax.training import schedule
DIR = %gin.REQUIRED
RATE = 0.5
train_script.train.model_dir = %DIR
train_script.train.optimizer = @optimizer.Optimizer()
optimizer.Optimizer.groups = (@a/optimizer.Group(), @b/optimizer.Group())
optimizer.Group.pattern = 'x'
a/optimizer.Group.learning_rate = %RATE
train_script.train.export = @schedule.Schedule
"""
    )
    lines = list(show_config.lines(configuration(str(tmp_path / "run.gin"))))
    for wanted in (
        "train.model_dir = <required DIR>",
        "train.name = <required>",
        "train.optimizer.groups[0].learning_rate = 0.5",
        "train.optimizer.groups[0].pattern = 'x'",
        "train.optimizer.groups[1].learning_rate = <required>",
        "train.optimizer.b1 = 0.9",
        "train.export = @training.schedule.Schedule",
        "train.guards = @training.guards.Guards()",
        "train.guards.max_in_row = 20",
    ):
        assert wanted in lines


def test_command():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mimo_jax.show_config", *arguments], capture_output=True, text=True, cwd=ROOT
        )

    shown = run("--gin_file=runs/pretrain_7b_joint.gin", "--gin.MODEL_DIR=here", "--gin.BATCH_ROWS=12")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^train\.model_dir = 'here'$", shown.stdout, re.MULTILINE)
    assert re.search(r"^train\.source\.batch_size = 12$", shown.stdout, re.MULTILINE)
    without = run("--gin_file=hardware/local.gin")
    assert without.returncode == 2 and "give a file of gin/runs" in without.stderr
    misspelt = run("--gin_file=runs/pretrain_7b_joint.gin", "--gin.BATCH_ROW=12")
    assert misspelt.returncode == 2 and "BATCH_ROW" in misspelt.stderr
