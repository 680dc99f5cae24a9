"""Convolutions in blocks: the same as plain ones, values and gradients, at every shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.models.tokenizer.blocked_conv import conv2d
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig, Discriminators


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(9, 40),
    kernel=st.sampled_from([(3, 9), (3, 3), (1, 5)]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2, 4]),
    block=st.sampled_from([2, 4, 8, 16]),
)
def test_a_block_changes_nothing_but_the_speed(height, width, kernel, stride, dilation, block):
    rng = np.random.default_rng(height * 100 + width)
    x = jnp.asarray(rng.standard_normal((2, height, width, 3)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((*kernel, 3, 2)), jnp.float32)

    def both(block):
        def loss(x, weights):
            y = conv2d(x, weights, (1, stride), (dilation, 1), block)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)
        return y, *gradients

    for ours, plain in zip(jax.jit(both, static_argnums=0)(block), jax.jit(both, static_argnums=0)(1), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def test_what_blocks_cannot_do_is_said():
    x, kernel = jnp.zeros((1, 8, 16, 1)), jnp.zeros((3, 3, 1, 1))
    for strides, dilation, block in [((2, 1), (1, 1), 4), ((1, 1), (1, 2), 4), ((1, 2), (1, 1), 3)]:
        with pytest.raises(ValueError, match=f"blocks of {block} with strides"):
            conv2d(x, kernel, strides, dilation, block)


def test_discriminators_are_the_same_in_blocks():
    wave = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1600)), jnp.float32)
    sizes = {"periods": (), "stft_sizes": (256, 64), "stft_channels": 4}
    plain, blocked = (Discriminators(DiscriminatorConfig(**sizes, stft_block=block)) for block in (1, 8))
    variables = plain.init(jax.random.key(0), wave)
    ours, theirs = (jax.jit(judge.apply)(variables, wave) for judge in (blocked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
