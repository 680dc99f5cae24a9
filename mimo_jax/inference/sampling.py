"""From scores to tokens: temperature, top-k, top-p, forbidden tokens, greedy or random choice.

Everything is batched over rows that have settings of their own, so that one compiled program serves any mix of
requests. The order is that of the released code: temperature, top-k, top-p, then forbidden tokens are removed.

Top-p needs no sorting here (on a CPU, sorting would cost more than the model): a token is drawn from all that are left,
one masked sum tells whether it survives top-p, and if it does not, the draw is repeated among the better tokens. What
comes out is distributed exactly as a draw from the filtered scores, after little more than one pass on average.

Randomness: 32 random bits per choice, derived from the request's seed, the position and the place in the patch. A
request's tokens therefore depend neither on its neighbours in the batch nor on its row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one request chooses its tokens.

    Attributes:
      do_sample: draw at random; False = take the best token.
      temperature: the scores are divided by it; None = 1.
      top_k: keep the k best tokens (and those equal to the k-th); None or 0 = all.
      top_p: keep the best tokens that hold this share of the probability; None, 0 or more than 1 = all.
    """

    do_sample: bool = True
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature}: must be above 0 (use do_sample=False for greedy)")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: must be at least 0 (0 = all tokens)")
        if self.top_p is not None and self.top_p < 0:
            raise ValueError(f"top_p = {self.top_p}: must be at least 0 (0 = all tokens)")


GREEDY = Sampling(do_sample=False)

_BLOCK = 32
_MOST = np.iinfo(np.int32).max


class Settings(NamedTuple):
    """`Sampling` of N rows as arrays [N]; "all tokens" is top_k = 0 and top_p = 0."""

    do_sample: Array
    temperature: Array
    top_k: Array
    top_p: Array


def settings(rows: Sequence[Sampling]) -> Settings:
    """Settings of a batch of rows."""
    columns = (
        np.array([r.do_sample for r in rows], np.bool_),
        np.array([1.0 if r.temperature is None else r.temperature for r in rows], np.float32),
        np.array([min(r.top_k or 0, _MOST) for r in rows], np.int32),
        np.array([0.0 if not r.top_p or r.top_p > 1 else r.top_p for r in rows], np.float32),
    )
    return Settings(*jax.device_put(columns))


def warm_scores(scores: Array, chosen: Settings) -> Array:
    """Scores [N, V] after temperature and top-k, removed tokens -inf; tokens that equal the k-th best stay."""
    scores = scores.astype(jnp.float32) / chosen.temperature[:, None]
    size = scores.shape[-1]

    def top_k() -> Array:
        kept = jnp.where(chosen.top_k > 0, jnp.minimum(chosen.top_k, size), size)
        kth_best = jnp.take_along_axis(jnp.sort(scores, axis=-1), (size - kept)[:, None], axis=-1)
        return jnp.where(scores < kth_best, -jnp.inf, scores)

    return jax.lax.cond((chosen.top_k > 0).any(), top_k, lambda: scores)


def survives_top_p(scores: Array, probabilities: Array, token: Array, top_p: Array) -> Array:
    """Whether `token` [N] stays when top-p filters `scores` [N, V] (probabilities [N, V] = their softmax): bool [N].

    From the worst token up, tokens go as long as the probability of what has gone stays within 1 - p; equals share
    their fate, the best stays always.
    """
    score = jnp.take_along_axis(scores, token[:, None], axis=-1)
    not_better = jnp.where(scores <= score, probabilities, 0.0).sum(-1)
    return (not_better > 1.0 - top_p) | (score[:, 0] >= scores.max(-1)) | (top_p == 0)


def draw(probabilities: Array, uniform: Array) -> Array:
    """Index [N] drawn in proportion to probabilities [N, V], from one number in [0, 1) per row (inverse CDF).

    First a block of tokens, then one of the block: on a CPU, adding up a vocabulary one by one takes thrice as long.
    """
    rows, size = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = blocks.sum(-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    point = uniform * cumulative[:, -1]
    chosen = _first_beyond(cumulative, sums, point)
    before = jnp.take_along_axis(cumulative, jnp.maximum(chosen - 1, 0)[:, None], axis=1)[:, 0]
    block = jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]
    rest = point - jnp.where(chosen > 0, before, 0.0)
    return chosen * _BLOCK + _first_beyond(jnp.cumsum(block, axis=-1), block, rest)


def _first_beyond(cumulative: Array, parts: Array, point: Array) -> Array:
    """First index [N] of a positive part [N, M] whose cumulative sum is above the point [N]; else the last positive.

    A parallel sum rounds: it may grow by a bit where nothing was added, and end below the total.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, parts.shape, 1)
    beyond = jnp.where((parts > 0) & (cumulative > point[:, None]), index, parts.shape[1]).min(-1)
    return jnp.clip(beyond, 0, jnp.where(parts > 0, index, 0).max(-1))


def first_best(scores: Array) -> Array:
    """argmax over the last axis, int32; XLA's own is a scalar loop on a CPU."""
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jnp.where(scores == scores.max(-1, keepdims=True), index, scores.shape[-1] - 1).min(-1)


def choose(scores: Array, forbidden: Array, chosen: Settings, bits: Array) -> Array:
    """One token per row.

    Args:
      scores: [N, V] logits.
      forbidden: [N, V] or [1, V] bool, tokens that must not be chosen; removed after the filters. Where the filters
        leave nothing else, the choice is made among all tokens that are allowed.
      chosen: settings of the N rows.
      bits: [N] uint32 random bits, see `choice_bits`.

    Returns:
      int32 [N]. Drawing is skipped at run time when no row asks for it.
    """
    scores = scores.astype(jnp.float32)
    allowed = jnp.where(forbidden, -jnp.inf, scores)
    # The filters keep the best tokens, so they cannot change which allowed token is best.
    best = first_best(allowed)

    def sampled() -> Array:
        warm = warm_scores(scores, chosen)
        best_left = jnp.take_along_axis(warm, best[:, None], axis=-1)
        probabilities = jax.nn.softmax(warm, axis=-1)
        # Nothing allowed survives the filters: the choice is among all that is allowed.
        unfiltered = jnp.isneginf(best_left[:, 0]) | ~survives_top_p(warm, probabilities, best, chosen.top_p)
        pool = jnp.where(
            unfiltered[:, None], allowed / chosen.temperature[:, None], jnp.where(forbidden, -jnp.inf, warm)
        )
        weights = jax.nn.softmax(pool, axis=-1)
        top_p = jnp.where(unfiltered, 0.0, chosen.top_p)

        def attempt(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            count, token, floor, done = state
            uniform = uniform_of_attempt(bits, count)
            # At least the best allowed token is above the floor, so every attempt has something to draw from.
            new = draw(jnp.where(pool > floor[:, None], weights, 0.0), uniform)
            token = jnp.where(done, token, new)
            survives = survives_top_p(warm, probabilities, token, top_p)
            floor = jnp.take_along_axis(pool, token[:, None], axis=-1)[:, 0]
            return count + 1, token, floor, done | survives

        # Scores beyond float32, as a tiny temperature makes them, have no probabilities: the best token, not a search
        # that never ends.
        done = ~chosen.do_sample | jnp.isnan(weights[:, 0])
        start = (jnp.int32(0), best, jnp.full(best.shape, -jnp.inf), done)
        return jax.lax.while_loop(lambda state: ~state[3].all(), attempt, start)[1]

    return jax.lax.cond(chosen.do_sample.any(), sampled, lambda: best)


def uniform_of_attempt(bits: Array, count: Array) -> Array:
    """Numbers in [0, 1), float32 [N], of the attempt `count` to draw, from the choice's bits (uint32 [N]).

    The bits and a multiple of the golden ratio go through MurmurHash3's finaliser: a dozen operations, where folding
    the attempt into a key would cost more than the draw, at run time and in compilation.
    """
    x = bits + count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    x = x ^ (x >> 16)
    return (x >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def choice_bits(seeds: Array, positions: Array, places: int) -> Array:
    """Random bits uint32 [N, places] for the choices of one position each: seeds [N] uint32, positions [N].

    Place 0 is the text token, the others are the codes of the patch in the order the caller numbers them.
    """

    def one(seed: Array, position: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.key(seed), position), (places,))

    return jax.vmap(one)(seeds, positions)
