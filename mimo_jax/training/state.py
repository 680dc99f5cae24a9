"""Training state and the one train step that all stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mimo_jax.models import layers
from mimo_jax.objectives.base import Batch, Objective
from mimo_jax.training.microbatches import GradientFunction, gradient_function
from mimo_jax.training.optimizer import averaged_params, global_norm


class TrainState(struct.PyTreeNode):
    """Everything a step changes. Counters that outgrow 32 bits (tokens) are Python integers in the checkpoint's meta.

    Attributes:
      step: int32 [], steps done.
      params: trainable (or frozen) parameters, unboxed.
      mutable: the objective's non-gradient state.
      opt_state: optax state.
      skipped: int32 [], updates skipped because loss or gradient was not finite, or the loss above the guard's bound.
    """

    step: jax.Array
    params: Any
    mutable: Any
    opt_state: Any
    skipped: jax.Array

    @property
    def evaluated_params(self) -> Any:
        """What to evaluate and export: the moving average of the parameters if the optimiser keeps one."""
        return averaged_params(self.params, self.opt_state)


def new_state(params: Any, mutable: Any, transformation: optax.GradientTransformation) -> TrainState:
    """State at step 0 for given parameters."""
    params = layers.unbox(params)
    return TrainState(
        jnp.zeros((), jnp.int32), params, layers.unbox(mutable), transformation.init(params), jnp.zeros((), jnp.int32)
    )


def make_train_step(
    objective: Objective,
    transformation: optax.GradientTransformationExtraArgs,
    seed: int,
    gradients: GradientFunction | None = None,
    group_norms: Callable[[Any], dict[str, jax.Array]] = lambda grads: {},
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch, progress, loss_limit) -> (state, metrics)`.

    A loss or gradient that is not finite, or a loss above `loss_limit` (float32 [], infinite = no limit), skips the
    update: only `step` and `skipped` change.

    Args:
      objective, transformation: of the stage.
      seed: of everything random in a step.
      gradients: see `microbatches.gradient_function`, by default that of whole batches.
      group_norms: further metrics of the gradients.
    """
    gradients = gradients or gradient_function(objective)

    def step(
        state: TrainState, batch: Batch, progress: jax.Array, loss_limit: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # The key is a function of (seed, step): nothing random needs to be saved.
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (mutable, metrics)), grads = gradients(state.params, state.mutable, batch, rng, progress)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params, progress=progress)
        grad_norm = global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= loss_limit)

        def keep(new: Any, old: Any) -> Any:
            # What a step does not touch (frozen parameters) is handed on: no compiler need find out.
            return jax.tree.map(lambda a, b: a if a is b else jnp.where(good, a, b), new, old)

        state = state.replace(
            step=state.step + 1,
            params=keep(optax.apply_updates(state.params, updates), state.params),
            mutable=keep(mutable, state.mutable),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + jnp.where(good, 0, 1),
        )
        metrics = metrics | group_norms(grads)
        return state, metrics | {"loss": loss, "grad_norm": grad_norm, "skipped": state.skipped}

    return step
