"""Voice activity in a process that has other native libraries."""

import subprocess
import sys

import pytest

BESIDE_TENSORFLOW = """
import tensorflow
from mimo_jax.preparation.stages.voice import Silero
from tests.preparation.stages.speech_fixture import RATE, speech
print("SPANS", Silero()(speech(), RATE))
"""


def test_the_detector_works_beside_tensorflow():
    """Both bring libraries with the same symbols; a crash would end the process."""
    from mimo_jax.preparation.stages.voice import Silero
    from tests.preparation.stages.speech_fixture import RATE, speech

    pytest.importorskip("tensorflow")
    done = subprocess.run([sys.executable, "-c", BESIDE_TENSORFLOW], capture_output=True, text=True, timeout=300)
    assert f"SPANS {Silero()(speech(), RATE)}" in done.stdout, done.stderr[-2000:]
