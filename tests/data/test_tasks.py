"""seqio's view of the prepared files: registered, listed, and giving the same examples as the loader."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mimo_jax.data.all_formats import formats
from mimo_jax.data.loader import PackedSource
from mimo_jax.data.mixtures import MIXTURES
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import from_bytes
from mimo_jax.data.sequence import expand_audio
from tests.data.prepared_fixture import make_prepared

FEATURE_NAMES = ("text", "audio", "loss")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("tasks"), counts=(12, 5))


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
    for name, ours in MIXTURES.items():
        mixture = seqio.get_mixture_or_task(tasks.PREFIX + name)
        rates = {t.name.removeprefix(tasks.PREFIX): mixture.get_rate(t) for t in mixture.tasks}
        assert rates == dict(ours.rates)

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


def test_every_task_has_the_documented_features(folder):
    seqio = pytest.importorskip("seqio")
    from mimo_jax.data import tasks

    tasks.set_prepared(folder)
    for name in formats():
        task = seqio.get_mixture_or_task(tasks.PREFIX + name)
        assert task.output_features.keys() == tasks.FEATURES.keys()
        example = next(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
        for feature, meaning in tasks.FEATURES.items():
            rank = meaning[meaning.index("[") : meaning.index("]")].count(",") + 1
            assert task.output_features[feature].rank == example[feature].ndim == rank
            assert meaning.startswith(example[feature].dtype.name)


def test_seqio_and_the_loader_give_the_same_examples(folder):
    seqio = pytest.importorskip("seqio")
    from mimo_jax.data import tasks

    tasks.set_prepared(folder)
    for name in ("text", "asr", "sft_spoken_dialogue"):
        source = PackedSource(folder, name, 2, 512, repeat=False)
        ours = collections.Counter()
        for batch in (source.batch(step) for step in range(source.steps_per_pass())):
            for row, ids in enumerate(batch["segment_ids"]):
                for i in range(1, ids.max() + 1):
                    here = ids == i
                    ours[tuple(batch[k][row][here].tobytes() for k in ("text", "audio", "loss_mask"))] += 1
        theirs = collections.Counter()
        dataset = seqio.get_mixture_or_task(tasks.PREFIX + name).get_dataset(None, "train", shuffle=True, seed=1)
        for one in dataset.as_numpy_iterator():
            # The first position of an example predicts nothing from before: the loader masks it.
            loss = (one["loss"] > 0) & (np.arange(len(one["loss"])) > 0)
            theirs[one["text"].tobytes(), one["audio"].tobytes(), loss.tobytes()] += 1
        assert ours == theirs and len(ours) == 12


def test_command_lists(folder):
    pytest.importorskip("seqio")
    environment = {**os.environ, "MIMO_JAX_PREPARED": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "mimo_jax.data.tasks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    kinds = collections.Counter(line.split()[0] for line in lines)
    assert kinds == {"feature": len(FEATURE_NAMES), "task": len(formats()), "mixture": len(MIXTURES)}
