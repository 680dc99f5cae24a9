"""The audio tokenizer's stages give the same losses on one device and with data and parameters split."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training import program
from mimo_jax.training.optimizer import Group, Optimizer
from tests.objectives.test_tokenizer import GAN, OBJECTIVE, batch
from tests.parallel.runs import ONE, STEPS, run

STAGES = {"unified": OBJECTIVE, "adversarial": GAN}
MESHES = {"data": Hardware(data=8), "mixed": Hardware(data=2, fsdp=4)}
OPTIMIZER = Optimizer((Group(".*", 1e-3),))


class Tones:
    def batch(self, step):
        halves = batch(2 * step), batch(2 * step + 1)
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


@functools.cache
def on_one_device(stage, steps):
    return run(ONE, STAGES[stage], Tones(), OPTIMIZER, steps)


def compare(stage, mesh, steps):
    actual, expected = run(MESHES[mesh], STAGES[stage], Tones(), OPTIMIZER, steps), on_one_device(stage, steps)
    np.testing.assert_allclose(actual, expected, rtol=2e-3)
    np.testing.assert_allclose(actual[:2], expected[:2], rtol=1e-4)


def test_what_is_frozen_is_split_like_what_learns():
    hardware = MESHES["mixed"]
    mesh = hardware.make_mesh()
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, Tones().batch(0)))
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        learns, freezes = (
            program.build(objective, OPTIMIZER, hardware, mesh, shapes).shardings for objective in (OBJECTIVE, GAN)
        )
    encoder = jax.tree.map(lambda sharding: sharding.spec, freezes.mutable["encoder"])
    assert encoder == jax.tree.map(lambda sharding: sharding.spec, learns.params["tokenizer"]["encoder"])
    assert any("fsdp" in spec for spec in jax.tree.leaves(encoder, is_leaf=lambda x: isinstance(x, PartitionSpec)))
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(freezes.mutable["codebooks"]))


def test_unified_stage_mixed():
    compare("unified", "mixed", 6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("stage", STAGES)
def test_stages(stage, mesh):
    compare(stage, mesh, STEPS)
