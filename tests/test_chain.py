"""The chain of commands: order, resume, failure, a kill in the middle, two runs in one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimo_jax.chain import STATE_FILE, Chain, Stage
from mimo_jax.cli import UserError


def note(folder: Path, text: str, code: str = "") -> list[str]:
    return ["-c", f"{code}\nopen({str(folder / 'log')!r}, 'a').write({text!r})"]


def stage(folder: Path, name: str, code: str = "") -> Stage:
    return Stage(name, lambda: note(folder, name, code))


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def test_stages_run_once_in_order_and_later_ones_again_after_a_change(tmp_path):
    Chain(tmp_path).run([stage(tmp_path, "a"), stage(tmp_path, "b"), stage(tmp_path, "c")])
    assert log(tmp_path) == "abc"
    Chain(tmp_path).run([stage(tmp_path, "a"), stage(tmp_path, "b"), stage(tmp_path, "c")])
    assert log(tmp_path) == "abc"
    Chain(tmp_path).run([stage(tmp_path, "a"), stage(tmp_path, "b", code="x = 1"), stage(tmp_path, "c")])
    assert log(tmp_path) == "abcbc"


def test_independent_stages_do_not_run_again_for_each_other(tmp_path):
    Chain(tmp_path).run([stage(tmp_path, "a"), stage(tmp_path, "b")], independent=True)
    Chain(tmp_path).run(
        [stage(tmp_path, "a", code="x = 1"), stage(tmp_path, "b"), stage(tmp_path, "c")], independent=True
    )
    assert log(tmp_path) == "abac"


def test_a_command_may_depend_on_what_earlier_stages_wrote(tmp_path):
    seen = []

    def later() -> list[str]:
        seen.append(log(tmp_path))
        return note(tmp_path, "b")

    Chain(tmp_path).run([stage(tmp_path, "a"), Stage("b", later)])
    assert seen == ["a"]


def test_failure_names_the_stage_and_keeps_what_is_done(tmp_path):
    stages = [stage(tmp_path, "a"), stage(tmp_path, "b", code="import sys, os; os.path.exists('go') or sys.exit(3)")]
    with pytest.raises(UserError, match=r"stage b failed \(exit code 3\)"):
        Chain(tmp_path).run(stages)
    state = json.loads((tmp_path / STATE_FILE).read_text())["stages"]
    assert state["a"]["done"] and not state["b"]["done"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    chain = Chain(tmp_path)
    with pytest.raises(UserError, match="another run is busy"):
        Chain(tmp_path)
    del chain


def test_killed_chain_takes_its_stage_along_and_goes_on(tmp_path):
    wait = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(30)"
    program = f"""
from mimo_jax.chain import Chain, Stage
Chain({str(tmp_path)!r}).run([
    Stage("a", lambda: {note(tmp_path, "a")!r}),
    Stage("b", lambda: {note(tmp_path, "b", wait)!r}),
])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    chain = Chain(tmp_path)
    chain.run([stage(tmp_path, "a"), stage(tmp_path, "b")])
    assert log(tmp_path) == "ab"
    assert set(chain.seconds) == {"a", "b"}
