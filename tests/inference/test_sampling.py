"""Sampling against the reference's processed scores (golden/sampler) and against its own promises."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.inference.sampling import (
    Sampling,
    choice_bits,
    choose,
    draw,
    settings,
    survives_top_p,
    warm_scores,
)

CHOOSE = jax.jit(choose)


@jax.jit
def FILTER(scores, chosen):
    """Scores after all filters, from the test that the choice makes of one token."""
    warm = warm_scores(scores, chosen)
    probabilities = jax.nn.softmax(warm, axis=-1)
    tokens = jnp.broadcast_to(jnp.arange(scores.shape[1])[:, None], scores.T.shape)
    stays = jax.vmap(lambda token: survives_top_p(warm, probabilities, token, chosen.top_p))(tokens)
    return jnp.where(stays.T, warm, -jnp.inf)


def bits(seeds, position=0):
    seeds = np.asarray(seeds, np.uint32)
    return choice_bits(seeds, np.full(seeds.shape, position, np.int32), 1)[:, 0]


@pytest.fixture(scope="module")
def sampler(golden):
    folder = golden / "sampler"
    grid = json.loads((folder / "grid.json").read_text())
    return grid, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))


def check_scores(actual, expected):
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_filters_equal_the_reference(sampler):
    grid, inputs, outputs = sampler
    scores = inputs["scores"]
    rows = [Sampling(True, *options) for options in grid["grid"] for _ in scores]
    actual = FILTER(np.tile(scores, (len(grid["grid"]), 1)), settings(rows))
    check_scores(np.asarray(actual).reshape(outputs["processed"].shape), outputs["processed"])


def test_top_k_keeps_ties(sampler):
    grid, inputs, outputs = sampler
    rows = [Sampling(top_k=k) for k in grid["tie_top_k"]]
    check_scores(FILTER(np.repeat(inputs["tie_scores"], len(rows), 0), settings(rows)), outputs["tie_processed"])


@pytest.mark.parametrize(
    "name, options", [("greedy_plain", (None, None, None)), ("greedy_t06_p095", (0.6, None, 0.95))]
)
def test_greedy_equals_the_reference(sampler, name, options):
    grid, inputs, outputs = sampler
    scores = inputs["scores"]
    rows = settings([Sampling(False, *options)] * len(scores))
    for removed, expected in zip(grid["removed_tokens"], outputs[name], strict=True):
        forbidden = np.zeros((1, scores.shape[1]), bool)
        forbidden[:, removed] = True
        actual = np.asarray(CHOOSE(scores, forbidden, rows, bits(range(len(scores)))))
        # Where only forbidden tokens survive the filters, the reference falls to token 0; here the best allowed one.
        processed = FILTER(scores, settings([Sampling(True, *options)] * len(scores)))
        survives = np.isfinite(np.where(forbidden, -np.inf, processed)).any(-1)
        np.testing.assert_array_equal(actual[survives], expected[survives])
        assert (expected[~survives] == 0).all()
        best = np.where(forbidden, -np.inf, scores).argmax(-1)
        np.testing.assert_array_equal(actual[~survives], best[~survives])


def test_forbidden_tokens_are_never_drawn_even_if_nothing_else_survives():
    scores = np.array([[9.0, 1.0, 0.5, 0.0]] * 2, np.float32)
    forbidden = np.array([[True, False, False, False]])
    rows = settings([Sampling(top_k=1), Sampling(top_p=0.5)])
    drawn = np.array([CHOOSE(scores, forbidden, rows, bits([seed, seed])) for seed in range(50)])
    assert (drawn > 0).all() and all(len(np.unique(column)) > 1 for column in drawn.T)


@pytest.mark.parametrize(
    "options", [(None, None, None), (0.6, None, 0.9), (2.0, 7, 0.8), (None, 5, None), (1, None, 0.3)]
)
def test_draws_follow_the_filtered_scores(options):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1.5, (1, 23)).astype(np.float32)
    count, sampling = 40000, Sampling(True, *options)
    forbidden = np.zeros((1, 23), bool)
    forbidden[0, [scores[0].argmax(), 4]] = True
    expected = np.exp(np.asarray(FILTER(scores, settings([sampling])), np.float64))
    expected = np.where(forbidden, 0, expected)[0]
    rows = settings([sampling] * count)
    drawn = np.asarray(CHOOSE(np.repeat(scores, count, 0), forbidden, rows, bits(range(count))))
    share = np.bincount(drawn, minlength=23) / count
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.012)
    assert not share[expected == 0].any()


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(0, 2**32 - 1))
def test_draw_stays_among_the_possible(u, seed):
    weights = np.random.default_rng(seed).exponential(1, (1, 17)).astype(np.float32)
    weights[0, [0, 5, 16]] = 0
    (index,) = np.asarray(draw(jnp.asarray(weights), jnp.asarray([u], jnp.float32)))
    assert index not in (0, 5, 16) and 0 <= index < 17


def test_rounding_draws_nothing_impossible():
    """Of a large vocabulary most of which is impossible, at the points where a parallel sum grows by rounding alone."""
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(0, 3, 151_680)).reshape(-1, 32) * (rng.random((4740, 1)) < 0.3)
    weights = (weights / weights.sum()).astype(np.float32)
    sums = np.asarray(jax.jit(lambda w: jnp.cumsum(w.sum(-1)))(weights))
    grown = np.flatnonzero((np.diff(sums) > 0) & ~weights[1:].any(-1))
    points = np.concatenate([np.float32(sums[grown] / sums[-1]) + np.float32(n * 2**-24) for n in range(-3, 4)])
    chosen = [jax.jit(draw)(weights.reshape(1, -1), points[n : n + 1])[0] for n in range(0, len(points), 3)]
    assert len(grown) > 5 and (weights.reshape(-1)[np.array(chosen)] > 0).all()


def test_a_choice_depends_on_its_own_row_alone():
    rng = np.random.default_rng(1)
    scores, forbidden = rng.normal(size=(6, 31)).astype(np.float32), np.zeros((1, 31), bool)
    rows = [
        Sampling(top_p=0.4),
        Sampling(False),
        Sampling(top_k=3),
        Sampling(),
        Sampling(top_p=0.9),
        Sampling(True, 3.0),
    ]
    together = np.asarray(CHOOSE(scores, forbidden, settings(rows), bits(range(6), 9)))
    for i, row in enumerate(rows):
        assert CHOOSE(scores[i : i + 1], forbidden, settings([row]), bits([i], 9))[0] == together[i]


def test_bits_differ_by_seed_position_and_place():
    seeds, positions = np.array([3, 4, 3, 3], np.uint32), np.array([7, 7, 8, 7], np.int32)
    numbers = np.asarray(choice_bits(seeds, positions, 5))
    np.testing.assert_array_equal(numbers[0], numbers[3])
    assert len(np.unique(numbers[:3])) == 15


@pytest.mark.parametrize("temperature", [1e-37, 1e-46])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_a_tiny_temperature_takes_the_best_token(temperature, top_p):
    scores = np.array([[1.0, 3.0, 100.0, -2.0], [1.0, 2.0, 3.0, 4.0]], np.float32)
    rows = settings([Sampling(True, temperature, top_p=top_p), Sampling(top_k=2**40)])
    drawn = np.array([CHOOSE(scores, np.zeros((1, 4), bool), rows, bits([seed, seed])) for seed in range(20)])
    assert (drawn[:, 0] == 2).all() and len(np.unique(drawn[:, 1])) > 1


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": -0.1}])
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
