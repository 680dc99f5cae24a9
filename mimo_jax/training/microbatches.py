"""Loss and gradient of a batch, at once or in parts one after the other (gradient accumulation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mimo_jax.cli import UserError
from mimo_jax.objectives.base import Batch, DivisibleObjective, Metrics, Mutable, Objective, Params

Result = tuple[tuple[jax.Array, tuple[Mutable, Metrics]], Params]
GradientFunction = Callable[[Params, Mutable, Batch, jax.Array, jax.Array], Result]


def gradient_function(
    objective: Objective,
    count: int = 1,
    param_shardings: Any = None,
    batch_shardings: Mapping[str, NamedSharding] | None = None,
) -> GradientFunction:
    """`f(params, mutable, batch, rng, progress) -> ((loss, (mutable, metrics)), gradients)`.

    With `count` > 1 a batch is cut into so many parts, each with rows of every device. Losses are divided by the totals
    of the whole batch, so the result does not depend on `count`; activations exist for one part at a time. Gradients
    are added up in float32, in pieces like the parameters.

    Args:
      objective: of the stage.
      count: parts.
      param_shardings: tree of the parameters' shardings; None leaves the placement of gradients to the compiler.
      batch_shardings: sharding of each array of a batch, likewise.

    Raises:
      UserError: `count` > 1 for an objective that is no sum over parts.
    """
    if count == 1:
        return jax.value_and_grad(objective.loss, has_aux=True)
    if not isinstance(objective, DivisibleObjective):
        raise UserError(
            f"Hardware.microbatches = {count}: the loss of {type(objective).__name__} is no sum over parts of a batch "
            "(its codebooks or its discriminators see the whole batch); set it to 1 and use more devices or a smaller "
            "batch"
        )
    share, totals_of = jax.value_and_grad(objective.share, has_aux=True), objective.totals

    def gradients(params: Params, mutable: Mutable, batch: Batch, rng: jax.Array, progress: jax.Array) -> Result:
        parts = {name: _split(x, count, (batch_shardings or {}).get(name)) for name, x in batch.items()}
        totals = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(totals_of, parts))

        def one(part: Batch, index: jax.Array) -> tuple[jax.Array, Metrics, Params]:
            key = jax.random.fold_in(rng, index)
            (loss, (_, metrics)), grads = share(params, mutable, part, key, progress, totals)
            return loss, metrics, _place(jax.tree.map(lambda g: g.astype(jnp.float32), grads), param_shardings)

        def step(summed: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            summed = jax.tree.map(jnp.add, summed, one(*item))
            return (*summed[:2], _place(summed[2], param_shardings)), None

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), jnp.int32(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = (*zeros[:2], _place(zeros[2], param_shardings))
        (loss, metrics, grads), _ = jax.lax.scan(step, start, (parts, jnp.arange(count)))
        return (loss, (mutable, metrics)), grads

    return gradients


def _split(x: jax.Array, count: int, sharding: NamedSharding | None) -> jax.Array:
    """[B, ...] -> [count, B / count, ...]: every `count`th row, so that no row leaves its device."""
    x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec)))


def _place(tree: Any, shardings: Any) -> Any:
    return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)
