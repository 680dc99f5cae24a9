"""Logical axes of our parameters in the form that t5x reads, and our rules for t5x's own mesh. Needs no t5x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import traverse_util
from flax.core import meta
from flax.linen import partitioning as flax_partitioning

from mimo_jax.parallel.mesh import ROW_AXES, Hardware


def params_axes(boxed: Any) -> dict[str, Any]:
    """The collection `params_axes` of parameters with logical axis names: `NAME_axes` beside every `NAME`.

    Args:
      boxed: parameters as `Objective.init` gives them, with the boxes of `nn.with_logical_partitioning`.
    """
    flat = traverse_util.flatten_dict(boxed, is_leaf=lambda path, x: isinstance(x, meta.AxisMetadata))
    return traverse_util.unflatten_dict(
        {
            (*path[:-1], f"{path[-1]}_axes"): flax_partitioning.AxisMetadata(_names(x))  # type: ignore[call-arg]
            for path, x in flat.items()
        }
    )


def _names(x: Any) -> tuple[str | None, ...]:
    if isinstance(x, meta.Partitioned):
        return tuple(x.names)  # type: ignore[arg-type]
    return (None,) * len(x.shape)


def standard_rules(hardware: Hardware = Hardware()) -> Sequence[tuple[str, str | None]]:
    """`Hardware.rules` for the mesh (data, model) of t5x's `PjitPartitioner`.

    Slices, copies and pieces of parameters (`slice`, `data`, `fsdp`) become its axis `data`, pieces of layers
    (`tensor`) its axis `model`. `sequence` has no counterpart there: rows stay whole.
    """
    return tuple((name, _t5x_axis(entry)) for name, entry in hardware.rules)


def _t5x_axis(entry: str | Sequence[str] | None) -> str | None:
    axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
    if any(axis in ROW_AXES for axis in axes):
        return "data"
    return "model" if "tensor" in axes else None
