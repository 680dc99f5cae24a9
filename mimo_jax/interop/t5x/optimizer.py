"""The parameter groups of `training.optimizer` as a t5x optimiser."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import core, traverse_util
from t5x import optimizers

from mimo_jax.training.optimizer import Optimizer, global_norm
from mimo_jax.training.schedule import Schedule


class GroupedOptimizer(optimizers.OptaxWrapper):
    """`Optimizer` under t5x: groups, clipping, decay, moving average, and the schedule over the share of steps done.

    t5x's own wrapper hands an optax transformation nothing but gradients and parameters; ours asks for the share of the
    budget that is spent, too. t5x knows steps only, so the share is `step / total_steps`, which is that of our trainer
    under `Budget.steps`. An update with a gradient that is not finite is skipped, as there.

    Args:
      optimizer: the groups.
      total_steps: of the run, which the schedule reaches over.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int):
        self.optimizer, self.total_steps = optimizer, total_steps
        # The transformation belongs to a tree of parameters, and is made where they are there.
        super().__init__(optax_optimizer=None)

    def init_state(self, params: Any) -> optimizers.OptimizerState:
        """State at step 0."""
        params = core.unfreeze(params)
        return optimizers.OptimizerState(
            step=jnp.zeros((), jnp.int32), param_states=self.optimizer.build(params).init(params)
        )

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        """One update. t5x's learning rate is not looked at: each group has its own."""
        del hyper_params
        plain, gradients = core.unfreeze(params), core.unfreeze(grads)
        progress = jnp.minimum(state.step.astype(jnp.float32) / self.total_steps, 1.0)
        transformation = self.optimizer.build(plain)
        updates, after = transformation.update(gradients, state.param_states, plain, progress=progress)
        good = jnp.isfinite(global_norm(gradients))

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: a if a is b else jnp.where(good, a, b), new, old)

        updated = keep(optax.apply_updates(plain, updates), plain)
        frozen = isinstance(params, core.FrozenDict)
        return core.freeze(updated) if frozen else updated, optimizers.OptimizerState(
            step=state.step + 1, param_states=keep(after, state.param_states)
        )

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """Axes of the optimiser's state: each moment's are its parameter's, everything else has none."""
        axes = traverse_util.flatten_dict(core.unfreeze(param_logical_axes))
        shapes = {path: x.shape for path, x in traverse_util.flatten_dict(core.unfreeze(optimizer.target)).items()}
        state = traverse_util.flatten_dict(self.state_dict(optimizer.target, optimizer.state)["state"])

        def of(path: tuple[str, ...], leaf: Any) -> Any:
            # A moment's path ends with its parameter's path inside the optimiser's state.
            for start in range(len(path)):
                if shapes.get(path[start:]) == jnp.shape(leaf):
                    return axes[path[start:]]
            return None

        found = traverse_util.unflatten_dict({path: of(path, leaf) for path, leaf in state.items()})
        return optimizer.restore_state({"target": core.unfreeze(param_logical_axes), "state": found})


def learning_rate(schedule: Schedule, total_steps: int, peak: float = 1.0) -> Any:
    """`Trainer.learning_rate_fn`: what t5x logs as the learning rate; the groups' own rates are what counts.

    Args:
      schedule: factor of all rates.
      total_steps: of the run.
      peak: rate that the factor is multiplied by; 1 logs the factor.
    """
    return lambda step: peak * schedule.factor(jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1.0))
