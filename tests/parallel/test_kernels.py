"""Attention kernels for long packed rows against plain attention with a mask, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mimo_jax.models import kernels, layers
from mimo_jax.parallel.mesh import Hardware

BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 4, 256, 4, 2, 128
MESHES = {
    "one": Hardware(data=1),
    "heads": Hardware(data=2, tensor=2),
    "length": Hardware(data=1, fsdp=2, sequence=2),
    "all": Hardware(data=2, sequence=2, tensor=2),
}


def inputs():
    rng = np.random.default_rng(0)
    shapes = [(BATCH, LENGTH, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    ids = np.cumsum(rng.random((BATCH, LENGTH)) < 0.03, axis=1) + 1
    ids[:, -20:] = 0
    return *arrays, ids.astype(np.int32)


def value_and_gradients(attend):
    *operands, direction, ids = inputs()
    # What becomes of padding is nobody's concern.
    direction = direction * (ids > 0)[:, :, None, None]

    def loss(query, key, value):
        out = attend(query, key, value, ids)
        return (out * direction).sum(), out * (ids > 0)[:, :, None, None]

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*operands)
    return out, *gradients


def plain(causal):
    def attend(query, key, value, ids):
        index = jnp.arange(LENGTH)[None, :]
        mask = layers.attention_mask(index, index, causal=causal, query_segments=ids, key_segments=ids)
        return layers.attention(query, key, value, mask)

    return attend


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("implementation", ["xla", "splash_interpreted"])
def test_kernels(implementation, mesh, causal, monkeypatch):
    if not causal and mesh != "one":
        pytest.skip("the meshes are tested causally")
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 96)  # a last block that is not full
    expected, hardware = value_and_gradients(plain(causal)), MESHES[mesh]
    sizes = [getattr(hardware, axis) for axis in ("data", "fsdp", "sequence", "tensor")]

    def attend(*operands):
        return kernels.packed_attention(*operands, causal=causal, implementation=implementation, max_segments=8)

    with (
        jax.set_mesh(hardware.make_mesh(jax.devices()[: int(np.prod(sizes))])),
        nn.logical_axis_rules(hardware.rules),
    ):
        actual = value_and_gradients(attend)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_segment_bounds():
    ids = jnp.array([[1, 1, 1, 2, 2, 0], [4, 4, 5, 6, 7, 7], [3, 3, 3, 3, 3, 3]])
    starts, lengths = kernels.segment_bounds(ids, 3)
    np.testing.assert_array_equal(starts, [[0, 3, 5], [0, 2, 3], [0, -1, -1]])
    np.testing.assert_array_equal(lengths, [[3, 2, 1], [2, 1, 3], [6, -1, -1]])
    assert kernels.segments_beyond(ids, 3) == 1


def test_choice():
    assert kernels.for_platform("tpu") == "splash" and kernels.for_platform("cpu") == "xla"
    assert kernels.is_plain("splash", 11) and not kernels.is_plain("splash", 8192)
    with pytest.raises(ValueError, match="unknown attention 'flash'"):
        kernels.is_plain("flash", 11)


def test_splash_names_sizes_that_do_not_fit():
    operands = jnp.zeros((1, 200, 2, 64)), *(jnp.zeros((1, 200, 1, 64)),) * 2, jnp.ones((1, 200), jnp.int32)
    with pytest.raises(ValueError, match="200 in 1 pieces.*64"):
        kernels.packed_attention(*operands, causal=True, implementation="splash", max_segments=1)


@pytest.mark.parametrize("policy", ["none", "full", "dots", "attention", "attention+qkv", "attention+mlp"])
def test_remat_policies_change_no_gradient(policy):
    from mimo_jax.models.transformer import Compute, Transformer, TransformerConfig

    config = TransformerConfig(16, 32, 2, 2, 1, 8, 1e4, 1e-6, causal=True)
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    positions = np.arange(6)[None, :]
    params = Transformer(config).init(jax.random.key(0), x, positions)

    def gradient(compute):
        model = Transformer(config, compute)
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, x, positions)[0]).sum()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        layers.unbox(gradient(Compute(remat=policy))),
        layers.unbox(gradient(Compute())),
    )


def test_unknown_remat_policy():
    with pytest.raises(ValueError, match="unknown remat policy 'atention'"):
        layers.remat_policy("atention")
