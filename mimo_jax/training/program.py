"""A stage's functions on one mesh: what the trainer runs and `mimo_jax.compile` compiles for machines elsewhere.

Shapes come first: the state is described and placed before anything is allocated, and made in its places by one
jitted function.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mimo_jax.models import kernels, layers
from mimo_jax.objectives.base import Objective
from mimo_jax.objectives.lora import Lora
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training.microbatches import gradient_function
from mimo_jax.training.optimizer import Optimizer
from mimo_jax.training.state import TrainState, make_train_step, new_state

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """Functions and shapes of a stage. Call them inside `jax.set_mesh(mesh)` and `nn.logical_axis_rules(rules)`.

    Attributes:
      mesh: where it runs.
      state: the `TrainState` as `jax.ShapeDtypeStruct`s with shardings.
      batch: a global batch, likewise.
      init: `init(rng, batch) -> TrainState`, jitted, straight into its shardings.
      train_step: `train_step(state, batch, progress, loss_limit) -> (state, metrics)`, jitted; takes over the state's
        memory.
      evaluate: `Objective.evaluate`, jitted.
    """

    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[..., TrainState]
    train_step: jax.stages.Wrapped
    evaluate: Callable[..., dict[str, tuple[jax.Array, jax.Array]]]

    @property
    def shardings(self) -> TrainState:
        """Where each array of the state lies."""
        return jax.tree.map(lambda array: array.sharding, self.state)


def build(
    objective: Objective,
    optimizer: Optimizer,
    hardware: mesh_lib.Hardware,
    mesh: Mesh,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    seed: int = 0,
) -> Program:
    """The program of a stage; nothing is allocated or compiled yet. Call it inside the mesh and rules, too.

    Args:
      objective, optimizer: of the stage.
      hardware: rules and microbatches.
      mesh: of devices, or of a topology's descriptions of devices.
      batch: shapes and dtypes of a global batch.
      seed: of everything random in a step.

    Raises:
      UserError: rows that do not divide over the mesh, groups that do not cover the parameters.
    """
    rows = next(iter(batch.values())).shape[0]
    mesh_lib.check_batch(mesh, rows, hardware.microbatches)
    objective = with_kernels(objective, mesh)
    # The key is made inside: devices of a topology can compute nothing.
    params, mutable = jax.eval_shape(lambda batch: objective.init(jax.random.key(seed), batch), dict(batch))
    transformation = optimizer.build(layers.unbox(params))
    shapes = jax.eval_shape(functools.partial(new_state, transformation=transformation), params, mutable)
    shardings = _state_shardings(params, mutable, shapes, mesh, hardware)
    places = mesh_lib.batch_shardings(batch, mesh)

    gradients = gradient_function(objective, hardware.microbatches, shardings.params, places)
    step = make_train_step(objective, transformation, seed, gradients, optimizer.group_norms)

    def init(rng: jax.Array, example: Mapping[str, jax.Array]) -> TrainState:
        return new_state(*objective.init(rng, dict(example)), transformation)

    return Program(
        mesh=mesh,
        state=_placed(shapes, shardings),
        batch={name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name]) for name, x in batch.items()},
        init=jax.jit(init, out_shardings=shardings),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        evaluate=jax.jit(objective.evaluate),
    )


def with_kernels(objective: Objective, mesh: Mesh) -> Objective:
    """The objective with `Compute.attention = "auto"` replaced by the kernel for the mesh's devices."""
    compute = getattr(objective, "compute", None)
    if compute is None or compute.attention != "auto":
        return objective
    if isinstance(objective, Lora):
        return dataclasses.replace(objective, objective=with_kernels(objective.objective, mesh))  # type: ignore[arg-type]
    platform = mesh.devices.flat[0].platform
    attention = kernels.for_platform(platform)
    logger.info("attention on %s: %s", platform, attention)
    changed: Any = dataclasses.replace(objective, compute=dataclasses.replace(compute, attention=attention))  # type: ignore[type-var]
    return changed


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _state_shardings(
    boxed_params: Any, boxed_mutable: Any, shapes: TrainState, mesh: Mesh, hardware: mesh_lib.Hardware
) -> TrainState:
    """Parameters and frozen ones by the rules, optimiser moments like their parameter, everything else replicated."""
    by_params = mesh_lib.tree_shardings(boxed_params, mesh, hardware.rules, hardware.indivisible)
    replicated = NamedSharding(mesh, PartitionSpec())
    places = dict(_leaves(by_params))
    sizes = {path: leaf.shape for path, leaf in _leaves(layers.unbox(boxed_params))}

    def place(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        # A moment's path ends with its parameter's path inside the optimiser state.
        keys = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        for start in range(len(keys)):
            if sizes.get(keys[start:]) == leaf.shape:
                return places[keys[start:]]
        return replicated

    return shapes.replace(
        step=replicated,
        skipped=replicated,
        params=by_params,
        # What is frozen has axis names, too; codebooks and constants have none.
        mutable=mesh_lib.tree_shardings(boxed_mutable, mesh, hardware.rules, hardware.indivisible),
        opt_state=jax.tree_util.tree_map_with_path(place, shapes.opt_state),
    )


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [
        (tuple(str(getattr(key, "key", key)) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
