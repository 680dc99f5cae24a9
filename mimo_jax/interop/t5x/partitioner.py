"""The mesh and the rules of `parallel.mesh.Hardware` as a t5x partitioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from t5x import partitioning

from mimo_jax.parallel import mesh as mesh_lib


class HardwarePartitioner(partitioning.PjitPartitioner):
    """Our five mesh axes and rules, so that a run is placed under t5x as it is under our trainer.

    t5x's `PjitPartitioner` works with the models, too (`axes.standard_rules`), but has two mesh axes and calls
    functions under `with Mesh(...)`, where the placements inside our models have no effect: they are resolved against
    `jax.set_mesh`. All that is left to the compiler then, and patches are gathered over the whole batch.

    Args:
      hardware: mesh axes and rules.
    """

    def __init__(self, hardware: mesh_lib.Hardware = mesh_lib.Hardware()):
        self.hardware = hardware
        self._hardware_mesh = hardware.make_mesh()
        super().__init__(num_partitions=1, logical_axis_rules=tuple(hardware.rules))

    @property
    def mesh(self) -> Mesh:
        """Of `Hardware`."""
        return self._hardware_mesh

    def get_mesh_axes(self, train_state: Any) -> Any:
        """The train state with a `PartitionSpec` for each array; see `Hardware.indivisible`."""
        logical = self.get_logical_axes(train_state)
        names = traverse_util.flatten_dict(logical.state_dict(), keep_empty_nodes=True)
        shapes = traverse_util.flatten_dict(train_state.state_dict(), keep_empty_nodes=True)
        boxed = {
            "/".join(path): meta.Partitioned(shapes[path], names=tuple(axes))
            for path, axes in names.items()
            if isinstance(axes, PartitionSpec)
        }
        placed = mesh_lib.tree_shardings(boxed, self.mesh, self.hardware.rules, self.hardware.indivisible)
        specs = {path: placed[name].spec if (name := "/".join(path)) in placed else x for path, x in names.items()}
        return logical.restore_state(traverse_util.unflatten_dict(specs))

    def partition(
        self,
        fn: Callable[..., Any],
        in_axis_resources: Any,
        out_axis_resources: Any,
        static_argnums: int | Sequence[int] = (),
        donate_argnums: int | Sequence[int] = (),
    ) -> Any:
        """`fn` jitted with these placements; None means whole on every device."""
        jitted = jax.jit(
            fn,
            in_shardings=self._shardings(in_axis_resources),
            out_shardings=self._shardings(out_axis_resources),
            static_argnums=static_argnums,
            donate_argnums=donate_argnums,
        )
        return _InMesh(jitted, self.mesh, self.hardware.rules)

    def _shardings(self, specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, PartitionSpec() if spec is None else spec),
            specs,
            is_leaf=lambda x: x is None or isinstance(x, PartitionSpec),
        )


class _InMesh:
    """A jitted function that is traced inside a mesh and rules."""

    def __init__(self, jitted: Any, mesh: Mesh, rules: Any):
        self._jitted, self._mesh, self._rules = jitted, mesh, rules

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(self._mesh), nn.logical_axis_rules(self._rules):
            return self._jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.stages.Wrapped.lower`."""
        with jax.set_mesh(self._mesh), nn.logical_axis_rules(self._rules):
            return self._jitted.lower(*args, **kwargs)
