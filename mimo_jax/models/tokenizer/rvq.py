"""Residual vector quantiser: nearest codes, straight-through training pass, EMA codebooks, k-means, dead codes.

The codebooks are a tree {"layers_i": {"embed" [K, D], "embed_avg" [K, D], "cluster_size" [K], "inited" [1]}} of
float32 arrays. Training is a pure function from tree to tree. All statistics are sums over the whole batch, so that
under `jax.jit` with a sharded batch they are global, whatever the sharding; only sums of the size of a codebook then
travel between devices, never features.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models.tokenizer import extents
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.extents import Extent, masked

Array = jax.Array
Codebooks = dict[str, dict[str, Array]]


def nearest(x: Array, embed: Array) -> Array:
    """Index of the code nearest to each x [..., D] in embed [K, D] (first minimum), int32, in float32 throughout."""
    x, embed = x.astype(jnp.float32), embed.astype(jnp.float32)
    products = jnp.matmul(x, embed.T, precision="highest")
    # |x|^2 is the same for all codes and is left out.
    return jnp.argmin(jnp.sum(jnp.square(embed), axis=-1) - 2 * products, axis=-1).astype(jnp.int32)


def encode(codebooks: Codebooks, x: Array, num_quantizers: int) -> Array:
    """x [B, T, D] -> codes [B, T, n] int32: each codebook takes what the ones before it have left over."""
    residual, codes = x.astype(jnp.float32), []
    for i in range(num_quantizers):
        embed = codebooks[f"layers_{i}"]["embed"]
        codes.append(nearest(residual, embed))
        residual = residual - embed[codes[-1]]
    return jnp.stack(codes, axis=-1)


def decode(codebooks: Codebooks, codes: Array, books: Array | None = None) -> Array:
    """codes [B, T, n] of the first n codebooks -> sum of their vectors [B, T, D] float32.

    With books [B, T] only the first so many of each frame.
    """
    total = jnp.zeros((), jnp.float32)
    for i in range(codes.shape[-1]):
        vectors = codebooks[f"layers_{i}"]["embed"][codes[..., i]]
        total = total + (vectors if books is None else jnp.where((i < books)[..., None], vectors, 0))
    return total


class Codebook(nn.Module):
    """The arrays of one codebook."""

    size: int
    dim: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The arrays."""

        def create(name: str, shape: tuple[int, ...]) -> Array:
            # Random codes until k-means replaces them (`inited`), so that an untrained tokenizer is defined too.
            init = jax.random.normal if name.startswith("embed") else (lambda _, s: jnp.zeros(s, jnp.float32))
            return self.variable("codebooks", name, lambda: init(self.make_rng("params"), shape)).value

        return {
            "embed": create("embed", (self.size, self.dim)),
            "embed_avg": create("embed_avg", (self.size, self.dim)),
            "cluster_size": create("cluster_size", (self.size,)),
            "inited": create("inited", (1,)),
        }


class Quantizer(nn.Module):
    """The codebooks of a tokenizer as variables in the collection `codebooks`."""

    config: TokenizerConfig

    def setup(self) -> None:
        """Names of the codebooks."""
        self.layers = [Codebook(size, self.config.d_model) for size in self.config.codebook_sizes]

    def _tree(self) -> Codebooks:
        return {f"layers_{i}": layer() for i, layer in enumerate(self.layers)}

    def encode(self, x: Array, extent: Extent, num_quantizers: int | None = None) -> Array:
        """Features [B, T, D], their extent -> codes [B, T, n] int32 of the first n codebooks, 0 outside it."""
        n = self.config.num_quantizers if num_quantizers is None else num_quantizers
        if not 1 <= n <= self.config.num_quantizers:
            raise ValueError(f"num_quantizers is {n}: this tokenizer has 1..{self.config.num_quantizers}")
        return masked(encode(self._tree(), x, n), extent)

    def decode(self, codes: Array, extent: Extent) -> Array:
        """codes [B, T, n], their extent -> quantised features [B, T, D] float32, zero outside it."""
        if codes.shape[-1] > self.config.num_quantizers:
            raise ValueError(f"{codes.shape[-1]} codebooks given: this tokenizer has {self.config.num_quantizers}")
        return masked(decode(self._tree(), codes), extent)


@dataclasses.dataclass(frozen=True)
class RvqTraining:
    """How codebooks are learned.

    Attributes:
      decay: of the exponential moving averages of counts and sums.
      epsilon: Laplace smoothing of the counts.
      kmeans_iterations: Lloyd iterations on the batch that initialises a codebook.
      dead_code_threshold: a code whose EMA count falls below this is replaced by a sample of the batch.
      dead_code_share: ... or below this share of the mean count per code, if that is less: with few frames a batch and
        many codes a fixed threshold would replace codes that are in use.
      dropout: probability that a sequence uses a random number of codebooks (1..n) instead of all.
    """

    decay: float = 0.99
    epsilon: float = 1e-5
    kmeans_iterations: int = 50
    dead_code_threshold: float = 2.0
    dead_code_share: float = 0.1
    dropout: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RvqOutput:
    """Result of a training pass.

    Attributes:
      quantized: [B, T, D], gradients pass straight through to the features.
      codes: [B, T, n] int32.
      commitment: scalar, mean over codebooks of the mean squared distance of residual to code.
      metrics: per codebook i (1-based): `perplexity/i`, `usage/i` (share of codes with an EMA count above the
        threshold), `dead/i` (codes replaced in this step).
    """

    quantized: Array
    codes: Array
    commitment: Array
    metrics: dict[str, Array]


def sample_frames(rng: jax.Array, x: Array, mask: Array, count: int) -> Array:
    """`count` frames of x [B, T, D], drawn with replacement from those with mask [B, T]: [count, D].

    A frame is found by counting the frames before it, each device among its own: an index of all frames, in order to
    search it, would have to be gathered.
    """
    within = jnp.cumsum(mask.astype(jnp.int32), axis=1)
    of_row = within[:, -1]
    rank = (jnp.cumsum(of_row) - of_row)[:, None] + within
    wanted = jnp.floor(jax.random.uniform(rng, (count,)) * of_row.sum()).astype(jnp.int32) + 1
    before = (rank.reshape(1, -1) < wanted[:, None]).sum(axis=1)
    return x.reshape(-1, x.shape[-1])[jnp.minimum(before, mask.size - 1)]


def assignment_sums(x: Array, codes: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Count [K] and sum [K, D] of the frames of x [B, T, D] with each code; those without mask [B, T] are left out."""
    one_hot = jax.nn.one_hot(jnp.where(mask, codes, size), size, dtype=jnp.float32)
    return one_hot.sum(axis=(0, 1)), jnp.einsum("btk,btd->kd", one_hot, x, precision="highest")


def kmeans(rng: jax.Array, x: Array, mask: Array, size: int, iterations: int) -> tuple[Array, Array]:
    """Lloyd's algorithm from random frames of x [B, T, D] with mask [B, T]: (centres [K, D], counts [K]).

    Empty clusters keep their place.
    """

    def step(_: int, centres: Array) -> Array:
        counts, sums = assignment_sums(x, nearest(x, centres), mask, size)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

    centres = jax.lax.fori_loop(0, iterations, step, sample_frames(rng, x, mask, size))
    return centres, assignment_sums(x, nearest(x, centres), mask, size)[0]


def initialise(book: dict[str, Array], rng: jax.Array, x: Array, mask: Array, options: RvqTraining) -> dict[str, Array]:
    """The codebook, after k-means on x [B, T, D] if it is not initialised yet and there are frames to do so."""

    def fresh(_: dict[str, Array]) -> dict[str, Array]:
        size = book["embed"].shape[0]
        centres, counts = kmeans(rng, x, mask, size, options.kmeans_iterations)
        sums = centres * counts[:, None]
        return {"embed": centres, "embed_avg": sums, "cluster_size": counts, "inited": jnp.ones_like(book["inited"])}

    return jax.lax.cond((book["inited"][0] > 0) | ~mask.any(), lambda b: b, fresh, dict(book))


def ema_update(book: dict[str, Array], counts: Array, sums: Array, options: RvqTraining) -> dict[str, Array]:
    """One step of the moving averages; embed = embed_avg / Laplace-smoothed count."""
    size = jnp.float32(counts.shape[0])
    cluster_size = options.decay * book["cluster_size"] + (1 - options.decay) * counts
    embed_avg = options.decay * book["embed_avg"] + (1 - options.decay) * sums
    total = cluster_size.sum()
    smoothed = (cluster_size + options.epsilon) / (total + size * options.epsilon) * total
    embed = embed_avg / jnp.maximum(smoothed, options.epsilon)[:, None]
    return {**book, "embed": embed, "embed_avg": embed_avg, "cluster_size": cluster_size}


def replace_dead(
    book: dict[str, Array], rng: jax.Array, x: Array, mask: Array, threshold: Array
) -> tuple[dict[str, Array], Array]:
    """Codes with an EMA count below `threshold` become frames of x [B, T, D] with that count; also how many did."""
    dead = book["cluster_size"] < threshold
    samples = sample_frames(rng, x, mask, dead.shape[0])
    replaced = {
        **book,
        "embed": jnp.where(dead[:, None], samples, book["embed"]),
        "embed_avg": jnp.where(dead[:, None], samples * threshold, book["embed_avg"]),
        "cluster_size": jnp.where(dead, threshold, book["cluster_size"]),
    }
    return replaced, dead.sum()


def train_pass(
    codebooks: Codebooks, x: Array, extent: Extent, rng: jax.Array, options: RvqTraining, active: Array | bool = True
) -> tuple[Codebooks, RvqOutput]:
    """Quantises features and moves the codebooks.

    Args:
      codebooks: the tree described at the top of this file.
      x: [B, T, D] features (gradients flow to them through `quantized` and `commitment`).
      extent: of the frames; at least one.
      rng: key for k-means, replacements and dropout.
      options: how to learn.
      active: scalar bool; while False the features pass unchanged, nothing is learned and all metrics are 0.

    Returns:
      (the next codebooks, `RvqOutput` made with the codes before their EMA update).
    """

    def skip() -> tuple[Codebooks, RvqOutput]:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1])
        return codebooks, dataclasses.replace(zeros, quantized=masked(x, extent))

    if active is True:
        return _train_pass(codebooks, x, extent, rng, options)
    shapes = jax.eval_shape(lambda: _train_pass(codebooks, x, extent, rng, options))
    return jax.lax.cond(active, lambda: _train_pass(codebooks, x, extent, rng, options), skip)


def books_in_use(n: int, extent: Extent, size: int, batch: int, rng: jax.Array, dropout: float) -> Array:
    """[B, size]: of n codebooks, how many each frame's sequence uses; 0 outside the extent.

    With probability `dropout` a sequence uses a random number of 1..n, otherwise all.
    """
    drop_rng, count_rng = jax.random.split(rng)
    shape = (batch, extents.capacity(extent))
    dropped = jax.random.uniform(drop_rng, shape) < dropout
    return extents.spread(jnp.where(dropped, jax.random.randint(count_rng, shape, 1, n + 1), n), extent, size)


def _train_pass(
    codebooks: Codebooks, x: Array, extent: Extent, rng: jax.Array, options: RvqTraining
) -> tuple[Codebooks, RvqOutput]:
    batch, length, dim = x.shape
    n = len(codebooks)
    drop_rng, *layer_rngs = jax.random.split(rng, n + 1)
    books = books_in_use(n, extent, length, batch, drop_rng, options.dropout)
    residual, quantized = x.astype(jnp.float32), jnp.zeros(x.shape, jnp.float32)
    updated: Codebooks = {}
    metrics: dict[str, Array] = {}
    codes, commitment = [], jnp.zeros((), jnp.float32)
    for i in range(n):
        used, fixed = i < books, jax.lax.stop_gradient(residual)
        init_rng, dead_rng = jax.random.split(layer_rngs[i])
        book = initialise(codebooks[f"layers_{i}"], init_rng, fixed, used, options)
        code = nearest(fixed, book["embed"])
        chosen = jnp.where(used[..., None], book["embed"][code], 0)
        distance = jnp.where(used[..., None], jnp.square(residual - chosen), 0)
        frames = jnp.maximum(used.sum(), 1)
        commitment = commitment + distance.sum() / (frames * dim) / n

        counts, sums = assignment_sums(fixed, code, used, book["embed"].shape[0])
        book = ema_update(book, counts, sums, options)
        mean = book["cluster_size"].mean()
        threshold = jnp.minimum(options.dead_code_threshold, options.dead_code_share * mean)
        usage = jnp.mean((book["cluster_size"] >= threshold).astype(jnp.float32))
        updated[f"layers_{i}"], dead = replace_dead(book, dead_rng, fixed, used, threshold)

        share = counts / frames
        entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-10)))
        metrics |= {f"perplexity/{i + 1}": jnp.exp(entropy), f"usage/{i + 1}": usage}
        metrics[f"dead/{i + 1}"] = dead.astype(jnp.float32)
        residual, quantized = residual - chosen, quantized + chosen
        codes.append(code)
    # Straight-through: the value of the codes, the gradient of the features.
    quantized = x + jax.lax.stop_gradient(quantized.astype(x.dtype) - x)
    quantized = masked(quantized, extent)
    return updated, RvqOutput(quantized, jnp.stack(codes, axis=-1), commitment, metrics)
