"""Optimiser with parameter groups by regular expression: learning rate, weight decay, clipping or frozen per group."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.training.schedule import Schedule

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose full name ("llm/layers/attention/q_proj/kernel") matches `pattern` from its beginning.

    Attributes:
      pattern: regular expression; the first group that matches takes the parameter.
      learning_rate: peak learning rate; 0 freezes (no update, no optimiser state).
      weight_decay: decoupled, on arrays of two or more dimensions that are no norm.
      clip: bound of the group's global gradient norm; None = unbounded.
    """

    pattern: str
    learning_rate: float
    weight_decay: float = 0.0
    clip: float | None = 1.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW over groups. The groups must cover every parameter and each must match at least one."""

    groups: Sequence[Group] = (Group(".*", 1e-3),)
    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def labels(self, params: Any) -> Any:
        """Tree of group labels. Raises UserError for an uncovered parameter or a group that matches nothing."""
        flat = traverse_util.flatten_dict(params, sep="/")
        labels, used = {}, set()
        for name in flat:
            index = next((i for i, group in enumerate(self.groups) if re.match(group.pattern, name)), None)
            if index is None:
                raise UserError(f"Optimizer.groups: no pattern matches the parameter {name}; add a group for it")
            used.add(index)
            labels[name] = FROZEN if self.groups[index].learning_rate == 0 else f"group_{index}"
        for index, group in enumerate(self.groups):
            if index not in used:
                raise UserError(f"Optimizer.groups: pattern {group.pattern!r} matches no parameter")
        return traverse_util.unflatten_dict(labels, sep="/")

    def build(self, params: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation for this parameter tree; `update(grads, state, params, progress=...)`."""
        transforms: dict[str, Any] = {FROZEN: optax.set_to_zero()}
        for index, group in enumerate(self.groups):
            if group.learning_rate:
                transforms[f"group_{index}"] = optax.chain(
                    optax.clip_by_global_norm(group.clip) if group.clip else optax.identity(),
                    optax.scale_by_adam(self.b1, self.b2, self.eps),
                    optax.add_decayed_weights(group.weight_decay, mask=decay_mask)
                    if group.weight_decay
                    else optax.identity(),
                    _scale_by_schedule(group.learning_rate, self.schedule),
                )
        return optax.with_extra_args_support(optax.multi_transform(transforms, self.labels(params)))


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: matrices, not norms, biases or scalars (a scanned stack adds one dimension)."""
    flat = traverse_util.flatten_dict(params, sep="/")
    mask = {
        # A masked-out subtree (another group's) is an optax.MaskedNode, not an array.
        name: isinstance(x, optax.MaskedNode) is False and name.rsplit("/", 1)[-1] not in ("bias", "scale")
        for name, x in flat.items()
    }
    return traverse_util.unflatten_dict(mask, sep="/")


def _scale_by_schedule(peak: float, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, progress: jax.Array, **_: Any) -> tuple[Any, Any]:
        rate = -peak * schedule.factor(progress)
        return jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def global_norm(tree: Any) -> jax.Array:
    """L2 norm over all arrays, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
