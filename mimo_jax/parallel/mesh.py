"""Device mesh and sharding rules: parallelism is configuration (`gin/hardware`), models know logical axes only."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mimo_jax.cli import UserError
from mimo_jax.models import layers

logger = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
# Logical axis -> mesh axes. The first rule whose mesh axes are still free in an array applies.
DEFAULT_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("embed", "fsdp"),
    ("local_embed", None),
    ("activation_embed", None),
    ("patch", None),
    ("vocab", "tensor"),
    ("code_vocab", None),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("layers", None),
)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Mesh shape and rules of a run. An axis of -1 takes all devices the others leave.

    Attributes:
      data, fsdp, sequence, tensor: sizes of the mesh axes.
      rules: logical axis rules, see `DEFAULT_RULES`.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    rules: Sequence[tuple[str, Any]] = DEFAULT_RULES

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (all by default). Raises UserError if the sizes do not multiply to their number."""
        devices = list(jax.devices() if devices is None else devices)
        sizes = [self.data, self.fsdp, self.sequence, self.tensor]
        known = int(np.prod([size for size in sizes if size != -1]))
        if sizes.count(-1) > 1:
            raise UserError(f"Hardware: more than one mesh axis is -1: {dict(zip(MESH_AXES, sizes, strict=True))}")
        if -1 in sizes and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if int(np.prod(sizes)) != len(devices):
            raise UserError(
                f"Hardware: mesh {dict(zip(MESH_AXES, sizes, strict=True))} does not fit {len(devices)} devices; "
                "set the axes in the hardware gin so that they multiply to the number of devices"
            )
        return jax.make_mesh(
            tuple(sizes), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES), devices=devices
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(mesh: Mesh, rows: int) -> None:
    """Raises UserError unless `rows` divides over the mesh's data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"a batch of {rows} rows does not divide over data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']} "
            f"= {shards} shards; choose a batch that is a multiple of {shards}, or other axes in the hardware gin"
        )


def tree_shardings(boxed: Any, mesh: Mesh, rules: Sequence[tuple[str, Any]]) -> Any:
    """Sharding of every array of a tree of (boxed or plain) abstract arrays; plain ones are replicated.

    A dimension that its mesh axes do not divide is kept whole and logged, so that toy sizes run on any mesh.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), rules)
    shapes = layers.unbox(boxed)

    def place(spec: PartitionSpec | None, array: Any) -> NamedSharding:
        axes = list(spec or ())
        for dimension, axis in enumerate(axes):
            names = (axis,) if isinstance(axis, str) else tuple(axis or ())
            shards = int(np.prod([mesh.shape[name] for name in names]))
            if array.shape[dimension] % shards:
                logger.info("dimension %d of shape %s is not divided by %s: kept whole", dimension, array.shape, axis)
                axes[dimension] = None
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, specs, shapes, is_leaf=lambda x: x is None or isinstance(x, PartitionSpec))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, sharded over rows."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
