"""seqio's view of the prepared files: registered, listed, and giving the same examples as the loader."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mimo_jax.data.all_formats import formats
from mimo_jax.data.mixtures import MIXTURES
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import from_bytes
from mimo_jax.data.sequence import expand_audio
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    make_corpus(root / "corpus", count=12)
    prepare(root / "corpus", root / "out", FakeCodec(), vocab_size=400, contexts=(128,))
    return root / "out"


def test_tensorflow_is_imported_by_tasks_alone():
    """Every other data module imports without the heavy packages of the seqio side."""
    modules = sorted(p.stem for p in (ROOT / "mimo_jax" / "data").glob("*.py") if p.stem not in ("__init__", "tasks"))
    code = f"import sys, importlib, json\nfor m in {modules!r}: importlib.import_module('mimo_jax.data.' + m)\n"
    code += "print(json.dumps([m for m in ('tensorflow', 'seqio', 'grain', 'librosa') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_registered_listed_and_equal_to_the_records(folder):
    seqio = pytest.importorskip("seqio")
    from mimo_jax.data import tasks

    tasks.set_prepared(folder)
    assert {tasks.PREFIX + name for name in formats()} <= set(seqio.TaskRegistry.names())
    assert {tasks.PREFIX + name for name in MIXTURES} <= set(seqio.MixtureRegistry.names())
    assert all(name in tasks.listing() for name in (*formats(), *MIXTURES))
    mixture = seqio.get_mixture_or_task("mimo_joint")
    rates = {t.name.removeprefix(tasks.PREFIX): mixture.get_rate(t) for t in mixture.tasks}
    assert rates == dict(MIXTURES["joint"].rates)

    prepared = Prepared(folder)
    task = seqio.get_mixture_or_task("mimo_tts")
    found = list(task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator())
    reader = prepared.reader("tts", "validation")
    assert len(found) == len(reader)
    for ours, theirs in zip(map(from_bytes, reader.read(range(len(reader)))), found, strict=True):
        np.testing.assert_array_equal(theirs["text"], ours.text)
        np.testing.assert_array_equal(theirs["loss"], ours.loss)
        np.testing.assert_array_equal(theirs["audio"], expand_audio(ours.text, ours.codes, prepared.layout))
    vocabulary = task.output_features["text"].vocabulary
    assert "<|sostm|>" in vocabulary.decode(found[0]["text"].tolist())
    assert vocabulary.decode(vocabulary.encode("turn the light on")) == "turn the light on"


def test_command_lists(folder):
    pytest.importorskip("seqio")
    environment = {**os.environ, "MIMO_JAX_PREPARED": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "mimo_jax.data.tasks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(formats()) + len(MIXTURES) and lines[-1].startswith("mixture")
