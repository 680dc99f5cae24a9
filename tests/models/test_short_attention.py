"""Attention by pairs of positions equals attention head by head: values, gradients, the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.models import layers, short_attention, transformer
from mimo_jax.models.transformer import Compute, Transformer, TransformerConfig

CONFIG = TransformerConfig(
    hidden_size=48,
    intermediate_size=64,
    num_layers=2,
    num_heads=6,
    num_kv_heads=6,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    causal=True,
)


def test_halves_first_keeps_every_column():
    columns = jnp.arange(24)
    order = short_attention.halves_first(columns, 3)
    assert order.tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]


@pytest.mark.parametrize("causal", [True, False])
def test_equals_attention_head_by_head(causal):
    heads, head_dim, length = 6, 8, 11
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (5, length, heads * head_dim)) for k in keys)
    positions = jnp.arange(length)[None, :]

    def by_head(query, key, value):
        query, key, value = (x.reshape(5, length, heads, head_dim) for x in (query, key, value))
        mask = layers.attention_mask(positions, positions, causal=causal)
        rotate = lambda x: layers.apply_rope(x, positions, 1e4)  # noqa: E731
        return layers.attention(rotate(query), rotate(key), value, mask).reshape(5, length, -1)

    def by_pairs(query, key, value):
        query, key = (
            short_attention.apply_rope(short_attention.halves_first(x, heads), positions, heads, 1e4)
            for x in (query, key)
        )
        return short_attention.attention(query, key, value, heads, causal)

    np.testing.assert_allclose(by_pairs(query, key, value), by_head(query, key, value), atol=2e-6)
    gradients = [
        jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), argnums=(0, 1, 2))(query, key, value) for f in (by_head, by_pairs)
    ]
    for expected, found in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_stack_computes_the_same(remat):
    x = jax.random.normal(jax.random.key(1), (4, 11, 48))
    positions = jnp.arange(11)[None, :]
    plain = Transformer(CONFIG)
    params = plain.init(jax.random.key(0), x, positions)
    # Biases are zero at first and would hide a wrong order of theirs.
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), layers.unbox(params))
    pairs = Transformer(CONFIG, Compute(short_attention="pairs", remat=remat))

    def loss(params, module):
        return (module.apply(params, x, positions)[0] ** 2).sum()

    expected, found = (jax.value_and_grad(loss)(params, module) for module in (plain, pairs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-4), expected, found)


def test_only_where_it_can_be():
    pairs = Compute(short_attention="pairs")
    module = Transformer(CONFIG, pairs)
    x = jnp.ones((2, 11, 48))
    assert module._short_attention(x, None, None) == "pairs"
    assert module._short_attention(jnp.ones((2, 17, 48)), None, None) == "heads"
    assert module._short_attention(x, jnp.ones((2, 11)), None) == "heads"
    assert module._short_attention(x, None, transformer.init_cache(CONFIG, 2, 11)) == "heads"
    grouped = Transformer(dataclasses.replace(CONFIG, num_kv_heads=2), pairs)
    assert grouped._short_attention(x, None, None) == "heads"
    with pytest.raises(ValueError, match="unknown short_attention 'pair'"):
        Transformer(CONFIG, Compute(short_attention="pair"))._short_attention(x, None, None)
