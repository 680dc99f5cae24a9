"""The audio tokenizer's stages give the same losses on one device and with data and parameters split."""

import functools

import numpy as np
import pytest

from mimo_jax.parallel.mesh import Hardware
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


def test_unified_stage_mixed():
    compare("unified", "mixed", 6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("stage", STAGES)
def test_stages(stage, mesh):
    compare(stage, mesh, STEPS)
