"""A batch in parts gives what it gives at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training.microbatches import gradient_function
from tests.parallel.runs import ONE, language_model, run
from tests.training.synthetic import SyntheticSource

FIGURES = ("loss", "grad_norm", "text_loss", "codebook_loss_3", "patch_overflow")


def uneven(batch):
    """Rows with unequal numbers of targets: a mean of the parts' means would be another number."""
    batch = {name: np.array(x) for name, x in batch.items()}
    batch["loss_mask"][::2, 4:] = False
    batch["loss_mask"][1, :] = False
    return batch


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("capacity", [1.0, 0.25])
def test_gradients(count, capacity):
    """With capacity 0.25 patches overflow, in every part as in the whole."""
    objective, batch = language_model(patch_capacity=capacity), uneven(SyntheticSource(rows=8).batch(0))
    params, _ = objective.init(jax.random.key(0), batch)
    key, progress = jax.random.key(1), jnp.float32(0)

    def result(count):
        (loss, (_, metrics)), gradients = jax.jit(gradient_function(objective, count))(params, {}, batch, key, progress)
        return {"loss": loss, **metrics}, gradients

    actual, expected = result(count), result(1)
    if capacity < 1:
        assert actual[0]["patch_overflow"] > 0 and np.isfinite(actual[0]["loss"])
        return
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), actual, expected)


def test_on_a_mesh():
    hardware = Hardware(data=2, fsdp=2)
    whole, parts = (run(h, metrics=FIGURES, steps=8) for h in (ONE, dataclasses.replace(hardware, microbatches=2)))
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_rows_must_divide():
    with pytest.raises(UserError, match="multiple of 16"):
        run(Hardware(data=4, microbatches=4), steps=1)


def test_other_objectives_refuse():
    class Other:
        pass

    with pytest.raises(UserError, match="Other is no sum"):
        gradient_function(Other(), 2)
