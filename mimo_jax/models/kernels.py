"""Attention over long packed rows: one function, several implementations.

All of them compute softmax(q k^T / sqrt(head_dim)) v in which a query sees the keys of its own segment, causally or
not, without holding the scores [B, heads, T, T]. Where heads, rows or queries are split over devices, each device works
on its own queries and sees all keys of its rows (context parallelism by gathering keys and values).

* "xla": blocks of queries one after the other; any device.
* "splash": the TPU kernel of `jax.experimental.pallas.ops.tpu.splash_attention`; "splash_interpreted" runs it, slowly,
  anywhere.
* "cudnn": NVIDIA's fused attention with packed rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mimo_jax.models import layers, partition

logger = logging.getLogger(__name__)

Array = jax.Array

IMPLEMENTATIONS = ("xla", "splash", "splash_interpreted", "cudnn")
# Up to these lengths all scores at once are cheap; the kernels need whole tiles of 128.
PLAIN_LENGTH = {"xla": 2048, "splash": 127, "splash_interpreted": 127, "cudnn": 127}
QUERY_BLOCK = 512
SPLASH_BLOCKS = (1024, 512, 256, 128)
OUTPUT = "attention"
"""Name of the output (and of what the backward pass needs of it) for rematerialisation policies."""


def is_plain(implementation: str, length: int) -> bool:
    """Whether rows of this length go through `layers.attention` with a mask instead of `packed_attention`.

    "auto" that nobody has replaced by an implementation for the devices in use means "xla".
    """
    implementation = "xla" if implementation == "auto" else implementation
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {implementation!r}: use {', '.join(map(repr, IMPLEMENTATIONS))} or 'auto'")
    return length <= PLAIN_LENGTH[implementation]


def for_platform(platform: str) -> str:
    """The implementation that "auto" stands for on a platform of JAX."""
    return {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "xla")


def packed_attention(
    query: Array, key: Array, value: Array, segment_ids: Array, *, causal: bool, implementation: str, max_segments: int
) -> Array:
    """Attention of packed rows.

    Args:
      query: [B, T, heads, head_dim].
      key, value: [B, T, kv_heads, head_dim]; query head h reads kv head h // (heads / kv_heads).
      segment_ids: [B, T]; the positions of a segment are adjacent. Padding (0) is a segment that nothing else sees.
      causal: whether queries see only keys up to their own position.
      implementation: see the module.
      max_segments: segments of a row that "cudnn" has room for, padding included.

    Returns:
      [B, T, heads, head_dim].

    Raises:
      ValueError: shapes, dtypes or meshes that the implementation cannot do.
    """
    rows = partition.spec(("batch", "length"), segment_ids.shape)
    heads = partition.spec(("heads",), (query.shape[2],))[0]
    # Heads go with their keys: split both or none.
    heads = heads if partition.spec(("kv_heads",), (key.shape[2],))[0] == heads else None
    batch, length = rows
    specs = (
        PartitionSpec(batch, length, heads, None),
        PartitionSpec(batch, None, heads, None),
        PartitionSpec(batch, None, heads, None),
        rows,
        PartitionSpec(batch, None),
    )
    operands = (query, key, value, segment_ids, segment_ids)
    if implementation.startswith("splash"):
        interpret = implementation == "splash_interpreted"
        return _splash(operands, specs, causal=causal, interpret=interpret)
    if implementation == "cudnn":
        if length:
            raise ValueError("attention 'cudnn' does not split rows over `sequence`: set that axis to 1 or use 'xla'")
        local: Callable[..., Array] = functools.partial(_cudnn, causal=causal, max_segments=max_segments)
    else:
        axes = partition.axes_of(length)
        local = functools.partial(_blocked, causal=causal, length_axes=axes)
    return partition.shard_map(local, specs, specs[0])(*operands)


def _blocked(
    query: Array,
    key: Array,
    value: Array,
    query_segments: Array,
    key_segments: Array,
    *,
    causal: bool,
    length_axes: tuple[str, ...],
) -> Array:
    """One block of queries after the other against all keys; the backward pass computes the scores again."""
    batch, length, heads, head_dim = query.shape
    first = jax.lax.axis_index(length_axes) * length if length_axes else 0
    padding = -length % QUERY_BLOCK
    blocks = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    blocks = blocks.reshape(batch, -1, QUERY_BLOCK, heads, head_dim).swapaxes(0, 1)
    segments = jnp.pad(query_segments, ((0, 0), (0, padding)), constant_values=-1)
    segments = segments.reshape(batch, -1, QUERY_BLOCK).swapaxes(0, 1)
    starts = first + QUERY_BLOCK * jnp.arange(blocks.shape[0])
    keys = jnp.arange(key.shape[1])[None, :]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(carry: None, block: tuple[Array, Array, Array]) -> tuple[None, Array]:
        query, segments, start = block
        positions = start + jnp.arange(QUERY_BLOCK)[None, :]
        mask = layers.attention_mask(positions, keys, causal=causal, query_segments=segments, key_segments=key_segments)
        return carry, layers.attention(query, key, value, mask)

    _, out = jax.lax.scan(one, None, (blocks, segments, starts))
    return out.swapaxes(0, 1).reshape(batch, -1, heads, head_dim)[:, :length]


def _splash(operands: tuple[Array, ...], specs: tuple[PartitionSpec, ...], *, causal: bool, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query, key = operands[:2]
    _, length, heads, head_dim = query.shape
    mesh, (_, length_axes, head_axes, _) = jax.sharding.get_abstract_mesh(), specs[0]
    pieces, head_pieces = (_size(axes) for axes in (length_axes, head_axes))
    block = next((size for size in SPLASH_BLOCKS if length // pieces % size == 0), None)
    if block is None or head_dim % 128:
        raise ValueError(
            f"attention 'splash' needs rows (here {length} in {pieces} pieces) in multiples of {SPLASH_BLOCKS[-1]} per "
            f"piece and a head dimension (here {head_dim}) in multiples of 128; choose such sizes or attention = 'xla'"
        )
    inner = min(block, 512)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=inner,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=inner,
        block_q_dq=block,
        block_kv_dq=block,
    )
    shape = (length, length)
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=head_pieces,
        q_seq_shards=pieces,
        residual_checkpoint_name=OUTPUT,
        interpret=interpret,
    )

    def local(kernel: Callable[..., Array], query: Array, key: Array, value: Array, *segments: Array) -> Array:
        ids = splash.SegmentIds(*segments)
        # The kernel leaves the scale to its caller and wants heads before positions.
        query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
        return jax.vmap(kernel)(query, key, value, ids).swapaxes(1, 2)

    if not any(partition.flat_axes(spec) for spec in specs):
        return local(kernel, *operands)
    kernel_specs = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(head_axes, length_axes)))
    return partition.shard_map(local, (kernel_specs, *specs), specs[0])(kernel, *operands)


def _size(entry: object) -> int:
    mesh = dict(jax.sharding.get_abstract_mesh().shape)
    return int(np.prod([mesh[axis] for axis in partition.axes_of(entry)]))


def segment_bounds(segment_ids: Array, count: int) -> tuple[Array, Array]:
    """First position and length of each run of equal ids, [B, count] each, -1 where a row has fewer.

    In a row with more runs the last one reaches to the end of the row (`segments_beyond` counts such rows).
    """
    length = segment_ids.shape[1]
    is_start = jnp.diff(segment_ids, axis=1, prepend=-1) != 0

    def of_row(is_start: Array) -> tuple[Array, Array]:
        (starts,) = jnp.nonzero(is_start, size=count, fill_value=length)
        ends = jnp.append(starts[1:], length)
        exists = starts < length
        return jnp.where(exists, starts, -1), jnp.where(exists, ends - starts, -1)

    starts, lengths = jax.vmap(of_row)(is_start)
    return starts.astype(jnp.int32), lengths.astype(jnp.int32)


def segments_beyond(segment_ids: Array, count: int) -> Array:
    """Rows with more than `count` runs of equal ids, int32 []."""
    runs = (jnp.diff(segment_ids, axis=1, prepend=-1) != 0).sum(axis=1)
    return (runs > count).sum()


def _cudnn(
    query: Array, key: Array, value: Array, segments: Array, _: Array, *, causal: bool, max_segments: int
) -> Array:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention 'cudnn' computes in bfloat16 or float16, not {query.dtype}: set Compute.dtype")
    scale = query.shape[-1] ** -0.5
    starts, lengths = segment_bounds(segments, max_segments)
    # The offsets' last column stays free: it tells cuDNN's wrapper how many segments there may be.
    offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    kind = cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING
    try:
        return cudnn.dot_product_attention(
            query,
            key,
            value,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=offsets,
            kv_offsets=offsets,
            scale=scale,
            mask_type=kind,
        )
    except NotImplementedError as error:
        logger.warning("cuDNN attention of packed rows is not available (%s): a mask of [T, T] is used", error)
    index = jnp.arange(query.shape[1])[None, :]
    mask = layers.attention_mask(index, index, causal=causal, query_segments=segments, key_segments=segments)
    return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="cudnn")
