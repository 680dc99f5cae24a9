"""Killed at random moments, worker processes and all, and started again: the same bytes."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus
from tests.test_prepare import SETTINGS, tree

ROOT = pathlib.Path(__file__).parents[2]
CHILD = """
import sys
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec
from tests.test_prepare import SETTINGS

if __name__ == "__main__":
    print("begun", flush=True)
    prepare(sys.argv[1], sys.argv[2], FakeCodec(), **{**SETTINGS, "workers": 2})
    print("done", flush=True)
"""


def environment() -> dict[str, str]:
    """Workers find the tests' codec wherever they are started."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def files(folder: pathlib.Path) -> int:
    """Files that are there while others come and go."""
    return sum(len(names) for _, _, names in os.walk(folder))


def test_ten_kills_leave_no_trace(tmp_path):
    corpus = tmp_path / "corpus"
    make_corpus(corpus, count=40)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    prepare(corpus, tmp_path / "whole", FakeCodec(), **SETTINGS)

    def start(out: pathlib.Path) -> subprocess.Popen:
        command = [sys.executable, str(script), str(corpus), str(out)]
        child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "begun\n"
        return child

    child = start(tmp_path / "unkilled")
    assert child.wait() == 0
    count = len(tree(tmp_path / "unkilled"))
    draw = random.Random(0)
    for moment in sorted(draw.sample(range(1, count), 10)):
        child = start(tmp_path / "killed")
        while child.poll() is None and files(tmp_path / "killed") < moment:
            time.sleep(0.003)
        time.sleep(draw.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    child = start(tmp_path / "killed")
    assert child.wait() == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "unkilled") == tree(tmp_path / "whole")
