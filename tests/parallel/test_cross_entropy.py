"""The vocabulary cross entropy against the plain one, whole and in chunks, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mimo_jax.objectives.cross_entropy import cross_entropy, vocabulary_cross_entropy
from mimo_jax.parallel.mesh import Hardware

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 10, 16, 24
MESHES = {
    "data": Hardware(data=8),
    "fsdp": Hardware(data=1, fsdp=8),
    "mixed": Hardware(data=2, fsdp=2, tensor=2),
    "sequence": Hardware(data=2, fsdp=2, sequence=2),
    "tensor": Hardware(data=1, fsdp=2, tensor=4),
    "slices": Hardware(slice=2, data=2, fsdp=2),
}


def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    kernel = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    weights = np.where(rng.random((BATCH, LENGTH)) < 0.3, 0.0, rng.random((BATCH, LENGTH))).astype(np.float32)
    return hidden, kernel, targets, weights


def plain(hidden, kernel, targets, weights):
    nll = cross_entropy(hidden @ kernel, targets)
    return (nll * weights).sum() / weights.sum(), nll


def ours(chunk):
    def loss(hidden, kernel, targets, weights):
        total, nll = vocabulary_cross_entropy(hidden, kernel, targets, weights, chunk)
        return total / weights.sum(), nll

    return loss


def run(loss):
    (value, nll), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs())
    return value, nll, *gradients


def check(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 1, 7, 16, 1000])
def test_one_device(chunk):
    check(run(ours(chunk)), run(plain))


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("name", MESHES)
def test_meshes(name, chunk):
    expected = run(plain)
    mesh = MESHES[name].make_mesh()
    with jax.set_mesh(mesh), nn.logical_axis_rules(MESHES[name].rules):
        check(run(ours(chunk)), expected)
        total, nll = jax.jit(vocabulary_cross_entropy, static_argnums=4)(*inputs(), chunk)
    check((total / inputs()[3].sum(), nll), expected[:2])


def test_the_kernels_gradient_is_reduced_once():
    hardware = Hardware(data=1, fsdp=8)
    mesh = hardware.make_mesh()
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        loss = jax.value_and_grad(ours(2), argnums=(0, 1), has_aux=True)
        text = jax.jit(loss).lower(*inputs()).compile().as_text()
    bodies = text.split("\n\n")
    loops = [body for body in bodies if "reduce-scatter" in body or "all-gather(" in body]
    assert len(loops) == 1 and "ENTRY" in loops[0]


def test_bfloat16_products_sum_in_float32():
    hidden, kernel, targets, weights = inputs()
    loss = jax.value_and_grad(ours(4), argnums=(0, 1), has_aux=True)
    (value, _), (by_hidden, by_kernel) = loss(jnp.asarray(hidden, jnp.bfloat16), kernel, targets, weights)
    assert by_hidden.dtype == jnp.bfloat16 and by_kernel.dtype == value.dtype == jnp.float32
    expected = run(plain)
    np.testing.assert_allclose(value, expected[0], rtol=1e-2)
    np.testing.assert_allclose(by_kernel, expected[3], atol=3e-3)
