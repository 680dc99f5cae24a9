"""A run gives the same losses on one device and on any mesh of eight."""

import functools

import numpy as np
import pytest

from mimo_jax.parallel.mesh import Hardware
from tests.parallel.runs import ONE, run

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


@pytest.mark.parametrize("name", MESHES)
def test_language_model(name):
    actual = run(MESHES[name], metrics=FIGURES)
    np.testing.assert_allclose(actual, on_one_device(), rtol=1e-4)
    assert actual[-1, 0] < actual[0, 0]
