"""A t5x model around the language model's objective: the same parameters, losses and evaluation as in our trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax.core import unfreeze
from t5x import metrics as t5x_metrics
from t5x import models

from mimo_jax.interop.t5x import axes
from mimo_jax.interop.t5x.optimizer import GroupedOptimizer
from mimo_jax.models import layers
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training import program
from mimo_jax.training.microbatches import gradient_function

Batch = Mapping[str, jax.Array]


class Model(models.BaseModel):
    """`LanguageModelObjective` as t5x's trainer asks for it.

    Batches are those of `data.loader.PackedSource`: text [B, T], audio [B, T, G, C], segment_ids, positions and
    loss_mask [B, T].

    Args:
      objective: the loss, with the model's shape and dtypes.
      optimizer: of the parameter groups.
      hardware: its microbatches are used, placed on its mesh, and the kernel for its devices. t5x's
        `Trainer.num_microbatches` must stay None: t5x adds up the losses of parts, and ours are means over the batch.
      seed: of the initialisation, which is then that of `mimo_jax.train` with this seed; None takes t5x's generator.
    """

    def __init__(
        self,
        objective: LanguageModelObjective,
        optimizer: GroupedOptimizer,
        hardware: Hardware = Hardware(),
        seed: int | None = 0,
    ):
        super().__init__(optimizer_def=optimizer)
        self._mesh = hardware.make_mesh()
        made: Any = program.with_kernels(objective, self._mesh)
        self.objective: LanguageModelObjective = made
        self.module = made.module
        self._seed, self._parts = seed, hardware.microbatches
        if self._parts > 1:
            boxed, _ = jax.eval_shape(lambda: made.init(jax.random.key(0), {}))
            self._places = mesh_lib.tree_shardings(boxed, self._mesh, hardware.rules, hardware.indivisible)

    @property
    def FEATURE_CONVERTER_CLS(self) -> Any:  # noqa: N802
        """Converter of t5x's own data path."""
        from mimo_jax.interop.t5x.seqio_data import PackedRows

        return PackedRows

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Fresh parameters and their axes."""
        del input_shapes, input_types
        key = rng if self._seed is None else jax.random.key(self._seed)
        boxed, _ = self.objective.init(key, {})
        return {"params": layers.unbox(boxed), "params_axes": axes.params_axes(boxed)}

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
        """(loss, metrics) of a batch; nothing here is random."""
        del dropout_rng
        loss = self._loss_in_parts if self._parts > 1 else self._loss
        value, figures = loss(unfreeze(params), dict(batch))
        rows, length = batch["text"].shape
        positions = (batch["segment_ids"] > 0).sum()
        figures = {name: figure.astype(jnp.float32) for name, figure in figures.items()} | {"loss": value}
        metrics: dict[str, Any] = {
            name: t5x_metrics.AveragePerStep.from_model_output(figure) for name, figure in figures.items()
        }
        metrics |= {
            "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
            "timing/positions_per_second": t5x_metrics.TimeRate.from_model_output(positions),
            "timing/rows_per_second": t5x_metrics.TimeRate.from_model_output(jnp.asarray(rows)),
            "fill": t5x_metrics.AveragePerStep.from_model_output(positions / (rows * length)),
        }
        return value, metrics

    def _loss(self, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, (_, figures) = self.objective.loss(params, {}, batch, *_unused())
        return value, figures

    def _loss_in_parts(self, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `_loss`, its gradient computed part by part with the whole batch's totals, as in our trainer."""
        rows = mesh_lib.batch_shardings(batch, self._mesh)
        gradients_of = gradient_function(self.objective, self._parts, self._places, rows)

        @jax.custom_vjp
        def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return self._loss(params, batch)

        def forward(params: Any) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
            (value, (_, figures)), gradients = gradients_of(params, {}, batch, *_unused())
            return (value, figures), gradients

        def backward(gradients: Any, cotangents: tuple[jax.Array, Any]) -> tuple[Any]:
            return (jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients),)

        loss.defvjp(forward, backward)
        return loss(params)

    def eval_fn(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
        """`Objective.evaluate`: t5x adds up sums and counts over the batches of an evaluation."""
        results = self.objective.evaluate(unfreeze(params), {}, dict(batch))
        metrics: dict[str, Any] = {
            name: clu_metrics.Average(total=total.astype(jnp.float32), count=count.astype(jnp.float32))
            for name, (total, count) in results.items()
        }
        total, count = results["weighted_text_loss"]
        return total / jnp.maximum(count, 1e-8), metrics

    def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> jax.Array:
        """Log-likelihood in nats of each row's targets, text and codes: float32 [B]."""
        if return_intermediates:
            raise NotImplementedError("score_batch: no intermediates are kept")
        text, audio = self.objective.position_losses(unfreeze(params), dict(batch))
        return -(text.sum(axis=1) + audio.sum(axis=(1, 2)))

    def predict_batch_with_aux(self, params: Any, batch: Batch, rng: jax.Array | None = None) -> Any:
        """Not here: t5x's decoding loop knows one token per position, not patches of codes."""
        raise NotImplementedError(
            "generation under t5x: convert the checkpoint (python -m mimo_jax.convert t5x-import) and use "
            "python -m mimo_jax.generate"
        )


def _unused() -> tuple[jax.Array, jax.Array]:
    """Key and progress, which the language model's loss does not look at."""
    return jax.random.key(0), jnp.zeros((), jnp.float32)
