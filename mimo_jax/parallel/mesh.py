"""Device mesh and sharding rules: parallelism is configuration (`gin/hardware`), models know logical axes only."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mimo_jax.cli import UserError
from mimo_jax.models import layers, partition

logger = logging.getLogger(__name__)

MESH_AXES = ("slice", "data", "fsdp", "sequence", "tensor")
"""From the slowest network (between slices) to the one that is used most."""
ROW_AXES = ("slice", "data", "fsdp")
# Logical axis -> mesh axes. The first rule whose mesh axes are still free in an array applies.
DEFAULT_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ROW_AXES),
    ("length", "sequence"),
    ("patches", (*ROW_AXES, "sequence")),
    ("embed", "fsdp"),
    ("local_embed", None),
    ("activation_embed", None),
    ("patch", None),
    ("vocab", "tensor"),
    # The token table. Split by columns, its gradient would be reduced whole: see `models.partition.reduce_scatter`.
    ("table_rows", "fsdp"),
    ("table_columns", "tensor"),
    ("code_vocab", None),
    ("code_embed", None),
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
      data, fsdp, sequence, tensor: sizes of the mesh axes within a slice: copies, pieces of parameters and optimiser
        state, pieces of rows, pieces of layers.
      slice: slices, or other groups of devices with a slower network between them; copies, like `data`.
      rules: logical axis rules, see `DEFAULT_RULES`.
      microbatches: parts that a batch is processed in, one after the other; the rows of a device must divide.
      indivisible: what becomes of a dimension that its mesh axes do not divide: "whole" keeps it whole on every device
        (toy sizes on any mesh), "error" refuses.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    slice: int = 1
    rules: Sequence[tuple[str, Any]] = DEFAULT_RULES
    microbatches: int = 1
    indivisible: str = "whole"

    def __post_init__(self) -> None:
        if self.indivisible not in ("whole", "error"):
            raise UserError(f"Hardware.indivisible = {self.indivisible!r}: use 'whole' or 'error'")
        if self.microbatches < 1:
            raise UserError(f"Hardware.microbatches = {self.microbatches}: at least 1")

    def make_mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (all by default), in an order that suits their network.

        Args:
          devices: of this process group, or descriptions of devices (`jax.experimental.topologies`).

        Raises:
          UserError: the sizes do not multiply to the number of devices, or the slices are others.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = list(self.sizes(len(devices)).values())
        types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
        return Mesh(_arrange(devices, sizes), MESH_AXES, axis_types=types)

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of each axis of the mesh over so many devices; raises UserError if they do not multiply to them."""
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) > 1:
            raise UserError(f"Hardware: more than one mesh axis is -1: {dict(zip(MESH_AXES, sizes, strict=True))}")
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
        if math.prod(sizes) != devices:
            raise UserError(
                f"Hardware: mesh {dict(zip(MESH_AXES, sizes, strict=True))} does not fit {devices} devices; "
                "set the axes in the hardware gin so that they multiply to the number of devices"
            )
        return dict(zip(MESH_AXES, sizes, strict=True))


def _arrange(devices: list[Any], sizes: list[int]) -> np.ndarray:
    """Devices in the shape of the mesh; slices of a TPU job go along the first axis.

    GPUs have slice indices, too, one per machine; their own order already keeps the inner axes within a machine.
    """
    slices = {getattr(device, "slice_index", None) for device in devices}
    if len(slices) > 1 and devices[0].platform == "tpu":
        if sizes[0] % len(slices):
            raise UserError(
                f"Hardware.slice = {sizes[0]}, but the devices lie in {len(slices)} slices; make it {len(slices)}"
            )
        within = [sizes[0] // len(slices), *sizes[1:]]
        across = [len(slices), *(1 for _ in sizes[1:])]
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except NotImplementedError as error:
        logger.info("devices in their own order, no better one is known: %s", error)
        return np.asarray(devices, dtype=object).reshape(sizes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over slices, data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Sharding of each array of a batch: rows, and in packed rows their length over `sequence` where it divides.

    Packed rows are batches with `segment_ids` [B, T]; then the second axis of an array is T.
    """
    rows, pieces = batch_sharding(mesh), mesh.shape["sequence"]
    length = batch["segment_ids"].shape[1] if "segment_ids" in batch else 0
    if pieces == 1 or not length or length % pieces:
        return dict.fromkeys(batch, rows)
    both = NamedSharding(mesh, PartitionSpec(ROW_AXES, "sequence"))
    return {name: both if x.ndim > 1 and x.shape[1] == length else rows for name, x in batch.items()}


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Pieces that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def check_batch(mesh: Mesh | AbstractMesh, rows: int, microbatches: int = 1) -> None:
    """Raises UserError unless `rows` divides over the mesh and the microbatches."""
    sizes = {axis: mesh.shape[axis] for axis in ROW_AXES}
    shards = row_shards(mesh)
    if rows % (shards * microbatches):
        raise UserError(
            f"a batch of {rows} rows does not divide over {' x '.join(sizes)} = {' x '.join(map(str, sizes.values()))} "
            f"= {shards} shards and {microbatches} microbatches; choose a batch that is a multiple of "
            f"{shards * microbatches}, or other axes or Hardware.microbatches in the hardware gin"
        )


def tree_shardings(boxed: Any, mesh: Mesh, rules: Sequence[tuple[str, Any]], indivisible: str = "whole") -> Any:
    """Sharding of every array of a tree of (boxed or plain) abstract arrays; plain ones are replicated.

    Args:
      boxed: parameters with logical axis names (`flax.core.meta.Partitioned`).
      mesh, rules: of the run.
      indivisible: "whole" keeps a dimension that its mesh axes do not divide whole and logs it.

    Raises:
      UserError: with "error", such a dimension; a mesh axis that the rules use twice in one array.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), rules)
    shapes = layers.unbox(boxed)

    def place(path: Any, spec: PartitionSpec | None, array: Any) -> NamedSharding:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        axes = list(spec or ())
        flat = partition.flat_axes(PartitionSpec(*axes))
        twice = sorted({axis for axis in flat if flat.count(axis) > 1})
        if twice:
            raise UserError(
                f"Hardware.rules place two dimensions of {name} {array.shape} on the mesh axis {twice[0]}: {axes}; "
                "give one of them another axis or none"
            )
        for dimension, axis in enumerate(axes):
            pieces = math.prod(mesh.shape[each] for each in partition.axes_of(axis))
            if array.shape[dimension] % pieces:
                if indivisible == "error":
                    raise UserError(
                        f"dimension {dimension} of {name} {array.shape} does not divide into {pieces} pieces of the "
                        f"mesh axis {axis}; choose another size of that axis, another rule in Hardware.rules, or "
                        "Hardware.indivisible = 'whole' to keep such dimensions whole on every device"
                    )
                logger.info("dimension %d of %s %s: not divided by %s, kept whole", dimension, name, array.shape, axis)
                axes[dimension] = None
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(
        place, specs, shapes, is_leaf=lambda x: x is None or isinstance(x, PartitionSpec)
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, see `batch_shardings`.

    Raises:
      UserError: processes share rows (`sequence` or `tensor` reaches over more than one), but each reads its own.
    """
    shards, processes = row_shards(mesh), jax.process_count()
    if processes > 1 and _processes_of_row_shards(mesh) > 1:
        raise UserError(
            f"the mesh {dict(mesh.shape)} lays one shard of rows over several of the {processes} processes, each of "
            f"which reads rows of its own; there must be at least one of the {shards} row shards per process: make "
            "sequence x tensor no larger than the devices of a process"
        )
    shardings = batch_shardings(batch, mesh)

    def place(name: str, array: np.ndarray) -> jax.Array:
        shape = (array.shape[0] * processes, *array.shape[1:])
        return jax.make_array_from_process_local_data(shardings[name], array, shape)

    return {name: place(name, array) for name, array in batch.items()}


def _processes_of_row_shards(mesh: Mesh) -> int:
    """The most processes that any one shard of rows lies on."""
    shards = mesh.devices.reshape(row_shards(mesh), -1)
    return max(len({device.process_index for device in shard}) for shard in shards)
