"""Where the parameters of a fresh start come from: another run, another mesh and dtype, the released layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.interop import hf
from mimo_jax.models import layers
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import program, warm_start
from mimo_jax.training.checkpoints import Checkpoints, stored_params
from mimo_jax.training.meta import Meta
from mimo_jax.training.optimizer import Optimizer
from tests.training.job import FirstDevices
from tests.training.synthetic import SyntheticSource, tiny_model

ONE = FirstDevices(data=1)


def start(source: Path, model=None, mesh=ONE, kind=LanguageModelObjective, **changes):
    """A fresh state with the parameters of `source`, and one as it was initialised."""
    objective = kind(model=model or tiny_model(), **changes)
    hardware, batch = mesh, SyntheticSource().batch(0)
    mesh = hardware.make_mesh()
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        stage = program.build(objective, Optimizer(), hardware, mesh, jax.tree.map(like, batch))
        state = stage.init(jax.random.key(0), mesh_lib.put_batch(batch, mesh))
        return warm_start.apply(objective, state, str(source), stage.state), stage.state


def like(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def flat(tree) -> dict:
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    params, _ = LanguageModelObjective(model=tiny_model()).init(jax.random.key(5), {})
    checkpoints = Checkpoints(folder, asynchronous=False)
    checkpoints.save({"params": layers.unbox(params), "opt_state": {"big": np.zeros(9)}}, Meta(step=3))
    checkpoints.close()
    return folder


def test_another_run_on_another_mesh_and_dtype(run):
    state, abstract = start(run, mesh=FirstDevices(data=1, fsdp=2, tensor=2), compute=Compute(param_dtype="bfloat16"))
    ours, theirs, places = flat(state.params), flat(stored_params(run)[0]), flat(abstract.params)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == np.dtype("bfloat16") and ours[name].sharding == places[name].sharding, name
        np.testing.assert_array_equal(ours[name], np.asarray(array).astype("bfloat16"), err_msg=name)
    assert any(len(place.sharding.device_set) == 4 and any(place.sharding.spec) for place in places.values())
    assert int(state.step) == 0 and not any(np.any(moment) for moment in jax.tree.leaves(state.opt_state))


def test_the_moving_average_where_an_objective_asks_for_it(tmp_path):
    params, _ = LanguageModelObjective(model=tiny_model()).init(jax.random.key(5), {})
    params = layers.unbox(params)
    optimizer = Optimizer(average=0.5)
    transformation = optimizer.build(params)
    gradients = jax.tree.map(np.ones_like, params)
    updates, opt_state = transformation.update(gradients, transformation.init(params), params, progress=np.float32(0.5))
    later = jax.tree.map(lambda p, u: p + u + 1.0, params, updates)  # the average knows nothing of the 1
    checkpoints = Checkpoints(tmp_path, asynchronous=False)
    checkpoints.save({"params": later, "opt_state": opt_state}, Meta(step=1))
    checkpoints.close()

    class Averaged(LanguageModelObjective):
        starts_from_average = True

    for kind, expected in ((LanguageModelObjective, later), (Averaged, stored_params(tmp_path, averaged=True)[0])):
        state, _ = start(tmp_path, kind=kind)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)), state.params, expected)
    assert np.abs(np.asarray(state.params["embed_tokens"]) - np.asarray(later["embed_tokens"])).min() > 0.5


def test_a_folder_in_the_released_layout(run, tmp_path):
    params, _, _ = stored_params(run)
    hf.save_lm(tmp_path, tiny_model(), params)
    state, _ = start(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)), state.params, params)
    other = dataclasses.replace(tiny_model(), rope_theta=1e4)
    with pytest.raises(UserError, match=r"another model than this run's: rope_theta = .* \(this run: 10000.0\)"):
        start(tmp_path, model=other)


def test_what_does_not_fit_is_named(run, tmp_path):
    with pytest.raises(UserError, match="embed_tokens has shape"):
        start(run, model=dataclasses.replace(tiny_model(), vocab_size=40))
    with pytest.raises(UserError, match="no checkpoint"):
        start(tmp_path)
