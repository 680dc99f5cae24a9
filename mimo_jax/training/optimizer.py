"""Optimiser with parameter groups by regular expression: learning rate, weight decay, clipping or frozen per group."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    """AdamW, or Adafactor's second moment, over groups. They must cover every parameter and each match at least one.

    Attributes:
      groups: patterns with rates.
      schedule: factor of all rates over the budget.
      algorithm: "adamw"; or "adafactor" (arXiv 1804.04235): of a matrix's squared gradients only the means of rows and
        columns are kept, and no first moment, so that the state is small. Rates, decay and groups mean the same.
      b1, b2, eps: of Adam.
      first_moment_dtype: of Adam's first moment, "bfloat16" halves it; None = the parameters'.
      clip: bound of the global gradient norm over all groups that learn, before those of the groups; None = unbounded.
      average: decay of a moving average of the parameters (`averaged_params`); None keeps none.
    """

    groups: Sequence[Group] = (Group(".*", 1e-3),)
    schedule: Schedule = Schedule()
    algorithm: str = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    first_moment_dtype: str | None = None
    clip: float | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ("adamw", "adafactor"):
            raise UserError(f"Optimizer.algorithm = {self.algorithm!r}: use 'adamw' or 'adafactor'")
        if self.average is not None and not 0 < self.average < 1:
            raise UserError(f"Optimizer.average = {self.average}: a decay lies between 0 and 1, such as 0.9999")

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

    def group_norms(self, grads: Any) -> dict[str, jax.Array]:
        """ "grad_norm/PATTERN" -> global norm, before clipping, of each group that learns; {} if there is but one."""
        labels = jax.tree.leaves(self.labels(grads))
        parts: dict[str, list[jax.Array]] = {}
        for label, grad in zip(labels, jax.tree.leaves(grads), strict=True):
            parts.setdefault(label, []).append(grad)
        names = {f"group_{index}": group.pattern.rstrip("/") for index, group in enumerate(self.groups)}
        learning = {names[label]: grads for label, grads in parts.items() if label != FROZEN}
        return {f"grad_norm/{name}": global_norm(part) for name, part in learning.items()} if len(learning) > 1 else {}

    def build(self, params: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation for this parameter tree; `update(grads, state, params, progress=...)`."""
        transforms: dict[str, Any] = {FROZEN: optax.set_to_zero()}
        for index, group in enumerate(self.groups):
            if group.learning_rate:
                transforms[f"group_{index}"] = optax.chain(
                    optax.clip_by_global_norm(group.clip) if group.clip else optax.identity(),
                    self._scale(),
                    optax.add_decayed_weights(group.weight_decay, mask=decay_mask)
                    if group.weight_decay
                    else optax.identity(),
                    _scale_by_schedule(group.learning_rate, self.schedule),
                )
        labels = self.labels(params)
        by_group = optax.with_extra_args_support(optax.multi_transform(transforms, labels))
        bounded = _clipped(by_group, labels, self.clip) if self.clip else by_group
        return _averaging(bounded, self.average) if self.average else bounded

    def _scale(self) -> optax.GradientTransformation:
        if self.algorithm == "adafactor":
            return optax.chain(optax.scale_by_factored_rms(decay_rate=0.8, epsilon=1e-30), optax.clip_by_block_rms(1.0))
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.first_moment_dtype)


def _clipped(
    inner: optax.GradientTransformationExtraArgs, labels: Any, bound: float
) -> optax.GradientTransformationExtraArgs:
    """`inner` behind a bound of the norm of all gradients but those of frozen parameters."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        learning = [
            g for g, label in zip(jax.tree.leaves(updates), jax.tree.leaves(labels), strict=True) if label != FROZEN
        ]
        factor = jnp.minimum(1.0, bound / jnp.maximum(global_norm(learning), 1e-30))
        return inner.update(jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


class AverageState(NamedTuple):
    """Moving average of the parameters, beside the state of the optimiser.

    Attributes:
      average: float32 sum of decay^age * (1 - decay) * parameters: begins with zeros, so that a warm start after the
        state was made changes nothing; `averaged_params` corrects for what is missing.
      missing: float32 [], decay^updates, the weight that is still missing.
      inner: state of the optimiser.
    """

    average: Any
    missing: jax.Array
    inner: Any


def _averaging(inner: optax.GradientTransformationExtraArgs, decay: float) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> AverageState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return AverageState(zeros, jnp.ones((), jnp.float32), inner.init(params))

    def update(updates: Any, state: AverageState, params: Any = None, **extra: Any) -> tuple[Any, AverageState]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), state.average, after)
        return updates, AverageState(average, state.missing * decay, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(params: Any, opt_state: Any) -> Any:
    """The moving average in the parameters' dtypes; `params` themselves without one or before the first update."""
    if not isinstance(opt_state, AverageState):
        return params
    weight = 1 - opt_state.missing
    return jax.tree.map(
        lambda p, a: jnp.where(weight > 0, (a / jnp.maximum(weight, 1e-30)).astype(p.dtype), p),
        params,
        opt_state.average,
    )


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
