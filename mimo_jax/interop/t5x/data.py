"""The loader's batches under t5x: the same rows at the same steps as in our trainer, wherever a run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from clu.data import dataset_iterator
from t5x import checkpoints_utils

from mimo_jax.cli import UserError
from mimo_jax.data.iterate import prefetch
from mimo_jax.data.loader import Batch, PackedSource
from mimo_jax.parallel.mesh import Hardware, row_shards
from mimo_jax.training.schedule import PATCH_SECONDS, Budget

MakeSource = Callable[..., PackedSource]


class StepIterator(dataset_iterator.DatasetIterator):
    """Batches of a source from a step on. There is no state to save: the step says everything.

    Args:
      source: batches as a function of the step.
      first_step: of the first batch.
      ahead: batches that are made ahead in a thread.
    """

    def __init__(self, source: PackedSource, first_step: int = 0, ahead: int = 3):
        self._source, self._first_step, self._ahead = source, first_step, ahead
        self._spec = _element_spec(source)
        self._batches: Any = None

    def __next__(self) -> Batch:
        """The batch of the next step."""
        if self._batches is None:
            self._batches = prefetch(self._source.batch, self._first_step, self._ahead)
        _, batch = next(self._batches)
        return batch

    def reset(self) -> None:
        """Begins with the first step again."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    @property
    def element_spec(self) -> Mapping[str, dataset_iterator.ArraySpec]:
        """Shapes and dtypes of this host's rows."""
        return self._spec

    def save(self, filename: Any) -> None:
        """Nothing: see `get_dataset`."""

    def restore(self, filename: Any) -> None:
        """Nothing: see `get_dataset`."""


def get_dataset(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any = None,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    source: MakeSource,
    model_dir: str,
    hardware: Hardware = Hardware(),
) -> StepIterator:
    """t5x's `get_dataset_fn`: this host's training batches, beginning with the step that t5x goes on from.

    Args:
      cfg: its batch size is used; mixture, split, seed and lengths are those of `source`.
      shard_id, num_shards: this host and the number of hosts, as t5x lays out the data.
      feature_converter_cls, num_epochs, continue_from_last_checkpoint: not used.
      source: makes the `PackedSource` (in gin `@loader.PackedSource`, without brackets).
      model_dir: of the run. t5x goes on from the newest checkpoint in it; so do the batches.
      hardware: rows are dealt evenly to its devices and microbatches, as in our trainer.
    """
    del feature_converter_cls, num_epochs, continue_from_last_checkpoint
    made = source(batch_size=cfg.batch_size, host_index=shard_id, host_count=num_shards)
    shards = row_shards(hardware.make_mesh())
    if shards * hardware.microbatches > 1:
        made = made.dealt(shards, hardware.microbatches)
    return StepIterator(made, checkpoints_utils.latest_step(model_dir) or 0)


class HeldOut:
    """The same few batches at every evaluation.

    Args:
      source: of held-out rows.
      steps: batches of an evaluation.
    """

    def __init__(self, source: PackedSource, steps: int):
        self._source, self._steps = source, steps
        self.element_spec = _element_spec(source)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from step 0."""
        return (self._source.batch(step) for step in range(self._steps))


def get_eval_datasets(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    eval_steps: int,
    feature_converter_cls: Any = None,
    get_dataset_fn: Any = None,
    *,
    sources: Mapping[str, PackedSource],
) -> dict[str, HeldOut]:
    """t5x's `train_eval_get_dataset_fn`: the held-out batches of our trainer, by the names of `sources`.

    Args:
      cfg, feature_converter_cls, get_dataset_fn: not used.
      shard_id, num_shards: t5x's layout of the data.
      eval_steps: batches of an evaluation.
      sources: see `data.loader.held_out_sources`.

    Raises:
      UserError: more than one host: these sources hold whole batches.
    """
    del cfg, shard_id, feature_converter_cls, get_dataset_fn
    if num_shards != 1:
        raise UserError(
            "held-out losses under t5x are for one process; set HELD_OUT = None and measure converted checkpoints "
            "(python -m mimo_jax.convert t5x-import, python -m mimo_jax.evaluate)"
        )
    return {name: HeldOut(source, eval_steps) for name, source in sources.items()}


def steps_of(budget: Budget, source: MakeSource) -> int:
    """Steps that a budget lasts, for t5x, which counts steps: by the mean positions of a row in the packing plans.

    Raises:
      UserError: a budget of positions that the source has none of.
    """
    if budget.steps is not None:
        return budget.steps
    made = source()
    text, audio = (float(mean) * made.batch_size for mean in made.mean_positions)
    wanted, per_step, what = next(
        (limit, per_step, what)
        for limit, per_step, what in (
            (budget.tokens, text + audio, "positions"),
            (budget.text_tokens, text, "text positions"),
            (budget.audio_tokens, audio, "audio patches"),
            (budget.audio_hours, audio * PATCH_SECONDS / 3600, "audio"),
        )
        if limit is not None
    )
    if not per_step:
        raise UserError(f"Budget: the mixture has no {what}; set Budget.steps or TRAIN_STEPS")
    return math.ceil(wanted / per_step)


def _element_spec(source: PackedSource) -> dict[str, dataset_iterator.ArraySpec]:
    return {
        name: dataset_iterator.ArraySpec(dtype=np.dtype(x.dtype), shape=x.shape) for name, x in source.batch(0).items()
    }
