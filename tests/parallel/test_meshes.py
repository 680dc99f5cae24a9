"""A run gives the same losses on one device and on any mesh of eight."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from mimo_jax.cli import UserError
from mimo_jax.parallel.mesh import DEFAULT_RULES as RULES
from mimo_jax.parallel.mesh import Hardware, tree_shardings
from tests.parallel.runs import ONE, language_model, run

MESHES = {
    "data": Hardware(data=8),
    "fsdp": Hardware(data=1, fsdp=8),
    "sequence": Hardware(data=1, sequence=8),
    "sequence_4x2": Hardware(data=2, sequence=4),
    "tensor": Hardware(data=1, fsdp=4, tensor=2),
    "tensor_4": Hardware(data=2, tensor=4),
    "mixed": Hardware(data=2, fsdp=2, tensor=2),
    "mixed_sequence": Hardware(data=1, fsdp=2, sequence=2, tensor=2),
    "slices": Hardware(slice=2, data=2, fsdp=2),
}
FIGURES = ("loss", "grad_norm", "patch_overflow", "codebook_loss_8")


@functools.cache
def on_one_device():
    return run(ONE, metrics=FIGURES)


def compare(name):
    actual = run(MESHES[name], metrics=FIGURES)
    np.testing.assert_allclose(actual, on_one_device(), rtol=1e-4)
    assert actual[-1, 0] != actual[0, 0]


def test_mixed_sequence():
    compare("mixed_sequence")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MESHES.keys() - {"mixed_sequence"}))
def test_all(name):
    compare(name)


@pytest.mark.parametrize("changes", [{"vocab_chunk": 5}, {"patch_capacity": 0.5}])
def test_options(changes):
    """As much room for patches as there are, and chunks that do not divide, change nothing."""
    actual = run(Hardware(data=2, fsdp=2), language_model(**changes), steps=3)
    np.testing.assert_allclose(actual, run(ONE, steps=3), rtol=1e-4)


def test_strict_dimensions():
    with pytest.raises(UserError, match="dimension 0 of .* does not divide into 3 pieces of the mesh axis fsdp"):
        tree_shardings(boxed(("embed",), (8,)), Hardware(data=1, fsdp=3).make_mesh(jax.devices()[:3]), RULES, "error")


def test_an_axis_is_used_once():
    rules = (("embed", "fsdp"), ("heads", "fsdp"))
    mesh = Hardware(data=1, fsdp=2).make_mesh(jax.devices()[:2])
    spec = tree_shardings(boxed(("embed", "heads"), (8, 8)), mesh, rules)["x"].spec
    assert tuple(spec) == ("fsdp", None)


def test_wrong_hardware():
    with pytest.raises(UserError, match="does not fit 8 devices"):
        Hardware(data=3).make_mesh()
    with pytest.raises(UserError, match="more than one mesh axis is -1"):
        Hardware(data=-1, fsdp=-1).make_mesh()
    with pytest.raises(UserError, match="'maybe'"):
        Hardware(indivisible="maybe")


def boxed(names, shape):
    return {"x": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, np.float32), names)}
