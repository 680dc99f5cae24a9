"""t5x's own data path over the seqio tasks and mixtures of `data.tasks`: examples to packed rows inside tf.data.

For those who train on mixtures of their own that take in ours, or use what t5x builds on seqio. It draws examples by
the mixture's rates (not positions), cuts what is longer than a row, and fills rows less well than `data`, which is the
way to train for long.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf
from t5x import utils

from mimo_jax.data import tasks

Row = dict[str, tf.Tensor]


class PackedRows(seqio.FeatureConverter):
    """text [n], audio [n, G, C], loss [n] of each example -> rows as `data.loader.PackedSource` makes them.

    With `pack`, examples are laid one behind the other while they fit a row (seqio's own way of packing); without, each
    has a row of its own. seqio's packer itself takes neither arrays of higher rank nor the id 0, which codes have.

    Args:
      pack: several examples per row.
      options: of `seqio.FeatureConverter`.
    """

    TASK_FEATURES = {
        "text": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "audio": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=3),
        "loss": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    }
    MODEL_FEATURES = {
        "text": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "audio": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=3),
        "segment_ids": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "positions": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "loss_mask": seqio.FeatureConverter.FeatureSpec(dtype=tf.bool),
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, pack: bool = True, **options: Any):
        # The base class would insist on features of rank 1.
        super().__init__(pack=False, **options)
        self._several = pack

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """All features of a row are as long as the row."""
        return dict.fromkeys(self.MODEL_FEATURES, self._length(task_feature_lengths))

    def _length(self, task_feature_lengths: Mapping[str, int]) -> int:
        lengths = {task_feature_lengths[name] for name in self.TASK_FEATURES}
        if len(lengths) != 1:
            raise ValueError(f"task_feature_lengths {dict(task_feature_lengths)}: one length for all, that of a row")
        return int(lengths.pop())

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        length, layout = self._length(task_feature_lengths), tasks.layout()
        empty = _empty_row(length, layout.empty_codes, layout.group_size)
        ds = ds.map(_as_piece, num_parallel_calls=tf.data.AUTOTUNE)
        if not self._several:
            nothing = tf.zeros([], tf.int32)
            return ds.map(lambda piece: _put(empty, empty, piece, nothing), num_parallel_calls=tf.data.AUTOTUNE)

        def step(row: Row, piece: Row) -> tuple[Row, tuple[Row, tf.Tensor]]:
            used = _used(row)
            fits = used + tf.shape(piece["text"])[0] <= length
            onto = {name: tf.where(fits, x, empty[name]) for name, x in row.items()}
            return _put(onto, empty, piece, tf.where(fits, used, 0)), (row, tf.logical_and(used > 0, ~fits))

        # The row that is being filled is given out by the first example that does not fit it: at the end of the data
        # by one that fills a row of its own.
        last = {name: x for name, x in empty.items() if name in ("text", "audio", "loss_mask")}
        ds = ds.concatenate(tf.data.Dataset.from_tensors(last))
        ds = ds.scan(empty, step).filter(lambda row, full: full)
        return ds.map(lambda row, full: row)


def _empty_row(length: int, empty_codes: tuple[int, ...], group_size: int) -> Row:
    zeros = tf.zeros([length], tf.int32)
    audio = tf.broadcast_to(tf.constant(empty_codes, tf.int32), [length, group_size, len(empty_codes)])
    return {
        "text": zeros,
        "audio": audio,
        "segment_ids": zeros,
        "positions": zeros,
        "loss_mask": tf.zeros([length], tf.bool),
    }


def _as_piece(example: Row) -> Row:
    """The first position of an example is predicted by nothing: it is no target."""
    loss = tf.logical_and(example["loss"] > 0, tf.range(tf.shape(example["loss"])[0]) > 0)
    return {"text": example["text"], "audio": example["audio"], "loss_mask": loss}


def _used(row: Row) -> tf.Tensor:
    return tf.math.count_nonzero(row["segment_ids"], dtype=tf.int32)


def _put(row: Row, empty: Row, piece: Row, start: tf.Tensor) -> Row:
    """The row with a piece written from `start` on; what is behind it is empty."""
    count = tf.shape(piece["text"])[0]
    piece = piece | {
        "positions": tf.range(count),
        "segment_ids": tf.fill([count], tf.reduce_max(row["segment_ids"]) + 1),
    }
    parts = {name: tf.concat([x[:start], piece[name], empty[name][start + count :]], axis=0) for name, x in row.items()}
    return {name: tf.ensure_shape(x, empty[name].shape) for name, x in parts.items()}


def get_dataset(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Callable[..., seqio.FeatureConverter],
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    prepared: str | os.PathLike[str],
) -> tf.data.Dataset:
    """t5x's `get_dataset_fn` with the folder that the tasks `mimo_*` read; everything else is t5x's own.

    Args:
      cfg, shard_id, num_shards, feature_converter_cls, num_epochs, continue_from_last_checkpoint: as t5x has them.
      prepared: a prepared folder.
    """
    tasks.set_prepared(prepared)
    return utils.get_dataset(
        cfg, shard_id, num_shards, feature_converter_cls, num_epochs, continue_from_last_checkpoint
    )
