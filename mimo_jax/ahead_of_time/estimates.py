"""Step time, utilisation and communication of a compiled step, estimated. Nothing here is a measurement.

The compute time of a TPU program is the sum of its compiler's own cycle estimates, plus its attention kernels by their
arithmetic; of a GPU program, its matrix products at a share of the peak. The communication time is bytes over the
bandwidth of the links that a group of devices spans.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from mimo_jax.ahead_of_time.hlo import Collective, Program
from mimo_jax.ahead_of_time.machines import Machine

KERNEL_EFFICIENCY = 0.5
"""Share of the peak that an attention kernel is taken to reach (a causal kernel at 8192, head dimension 128)."""
GPU_EFFICIENCY = 0.7
"""Share of the peak that all work on a GPU is taken to reach, attention and what is no matrix product included."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same mesh axes. Bytes and seconds are one device's, of a step."""

    kind: str
    axes: str
    count: int
    bytes: float
    seconds: float
    hideable_seconds: float


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
      compute: without communication.
      communication: of all collectives, one after another.
      hideable: of those that can run beside compute: gathers and scatters inside the loop over layers.
    """

    compute: float
    communication: float
    hideable: float

    @property
    def best(self) -> float:
        """With everything hidden that can be."""
        return max(self.compute, self.hideable) + self.communication - self.hideable

    @property
    def worst(self) -> float:
        """With nothing hidden."""
        return self.compute + self.communication


def traffic(program: Program, machine: Machine, mesh: Mesh) -> list[Traffic]:
    """Collectives by kind and mesh axes, the slowest first."""
    totals: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for collective in program.collectives():
        if collective.groups is not None and collective.devices == 1:
            continue
        seconds = collective.count * collective.sent_bytes / _bandwidth(collective, machine, mesh)
        hideable = collective.count > 1 and collective.kind in ("all-gather", "reduce-scatter", "collective-permute")
        total = totals[collective.kind, axes_of(collective, mesh)]
        total[0] += collective.count
        total[1] += collective.count * collective.bytes
        total[2] += seconds
        total[3] += seconds if hideable or collective.in_background else 0.0
    found = [Traffic(kind, axes, int(t[0]), t[1], t[2], t[3]) for (kind, axes), t in totals.items()]
    return sorted(found, key=lambda entry: -entry.seconds)


def axes_of(collective: Collective, mesh: Mesh) -> str:
    """Mesh axes along which a collective's groups lie, such as "fsdp" or "data+fsdp"."""
    if collective.groups is None:
        return "all"
    places = np.stack(np.unravel_index(collective.groups[0], mesh.devices.shape), axis=-1)
    extents = [len(set(places[:, axis])) for axis in range(places.shape[1])]
    names = [name for name, extent in zip(mesh.axis_names, extents, strict=True) if extent > 1]
    whole = int(np.prod([mesh.shape[name] for name in names])) == collective.devices
    return "+".join(names) if whole or collective.kind == "collective-permute" else f"part of {'+'.join(names)}"


def _bandwidth(collective: Collective, machine: Machine, mesh: Mesh) -> float:
    devices = mesh.devices.reshape(-1)
    return machine.bandwidth(list(devices if collective.groups is None else devices[collective.groups[0]]))


def step_time(
    program: Program, machine: Machine, found: Sequence[Traffic], kernel_flops: float, executed_flops: float
) -> StepTime:
    """Estimates a step.

    Args:
      program: compiled.
      machine: for which.
      found: its collectives.
      kernel_flops: of attention kernels on one device in a step, recomputation included; 0 if the compiler sees them.
      executed_flops: of all matrix products on one device in a step, recomputation included (for GPUs).
    """
    device = machine.device
    if device.clock is None:
        compute = executed_flops / (device.flops * GPU_EFFICIENCY)
    else:
        compute = program.compute_cycles() / device.clock + kernel_flops / (device.flops * KERNEL_EFFICIENCY)
    return StepTime(compute, sum(t.seconds for t in found), sum(t.hideable_seconds for t in found))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      kinds: of the state by kind (parameters, optimiser, ...) and of the batch.
      temporary: of what lives during a step (activations, gathered parameters, gradients).
      program: of the machine code.
      limit: what the device has.
    """

    kinds: Mapping[str, int]
    temporary: int
    program: int
    limit: int

    @property
    def peak(self) -> int:
        return sum(self.kinds.values()) + self.temporary + self.program

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit
