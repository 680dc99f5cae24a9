"""The machines a step can be compiled for: their devices' figures and how jax is told of them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mimo_jax.cli import UserError

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as jax counts them.

    Attributes:
      flops: dense bf16 FLOP/s (makers' data sheets).
      hbm_bytes: memory that a program may use.
      hbm_bandwidth: bytes/s.
      link: bytes/s that a device receives over one ring of its own interconnect (TPU: a torus dimension, both ways;
        GPU: all of NVLink).
      clock: cycles/s of the compiler's estimates; None where it makes none.
      network: bytes/s a device receives from outside its node or slice.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link: float
    clock: float | None
    network: float


# TPU links: 90 % of the makers' figures, as measured by those who use them ("How to Scale Your Model", table of TPU
# specs). A device of TPU7x is half a chip, and shares its links with the other half. Clocks follow from the FLOP/s and
# the number of multipliers, and agree with the compiler's estimates for large matrix products.
DEVICES: Mapping[str, Device] = {
    "v4": Device("TPU v4", 275e12, 30.75 * GIB, 1228e9, 9.0e10, 1.05e9, 6.25e9),
    "v5e": Device("TPU v5e", 197e12, 15.75 * GIB, 819e9, 9.0e10, 1.5e9, 3.1e9),
    "v5p": Device("TPU v5p", 459e12, 95.74 * GIB, 2765e9, 1.8e11, 1.75e9, 6.25e9),
    "v6e": Device("TPU v6e", 918e12, 31.25 * GIB, 1640e9, 1.8e11, 1.75e9, 6.25e9),
    "tpu7x": Device("TPU7x, half a chip", 1153e12, 94.74 * GIB, 3690e9, 0.9e11, 2.2e9, 6.25e9),
    "h100": Device("H100 SXM", 989.4e12, 79.1 * GIB * 0.92, 3350e9, 3.6e11, None, 4.5e10),
}
GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that need not be there.

    Attributes:
      topology: what the user calls it.
      platform: what jax calls it: "tpu", "cuda" or "cpu".
      device: figures of one device.
      descriptions: jax's description of every device.
    """

    topology: str
    platform: str
    device: Device
    descriptions: Sequence[Any]

    def bandwidth(self, members: Sequence[Any]) -> float:
        """Bytes/s that each of these devices' descriptions receives in a collective among them."""
        if self.platform == "cuda":
            # Each GPU of a node has a network card of its own; together they feed NVLink's ring.
            nodes = {member.process_index for member in members}
            each = len(members) // len(nodes)
            return self.device.link if len(nodes) == 1 else min(self.device.network * each, self.device.link)
        if self.platform != "tpu":  # a CPU: there is no topology to speak of
            return self.device.link
        if len({getattr(member, "slice_index", 0) for member in members}) > 1:
            return self.device.network
        places, whole = (np.array([device.coords for device in some]) for some in (members, self.descriptions))
        total = 0.0
        for axis in range(places.shape[1]):
            extent, full = len(set(places[:, axis])), len(set(whole[:, axis]))
            if extent > 1:
                # Only a whole dimension is a ring; part of it is a line, which sends one way.
                total += self.device.link if extent == full else self.device.link / 2
        # The two halves of a TPU7x chip have a connection of their own, faster than any between chips.
        return total or 4 * self.device.link


def describe(topology: str) -> Machine:
    """The machine that `kind:shape` names: `v5p:4x8x8`, two slices as `v5e:16x16x2slices`, `h100:32x8` (nodes x GPUs).

    Raises:
      UserError: an unknown kind or shape, or the package that compiles for it is missing.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*?)(?:x(\d+)slices)?", topology)
    if found is None or found.group(1) not in DEVICES:
        raise UserError(
            f"--topology={topology}: write KIND:SHAPE with KIND one of {', '.join(DEVICES)}, such as v5p:4x8x8, "
            "v5e:16x16x2slices (two slices) or h100:32x8 (nodes x GPUs)"
        )
    kind, shape, slices = found.group(1), found.group(2), int(found.group(3) or 1)
    if kind == "h100":
        return Machine(topology, "cuda", DEVICES[kind], _gpus(topology, shape, slices))
    return Machine(topology, "tpu", DEVICES[kind], _tpus(topology, kind, shape, slices))


def prepare_environment() -> None:
    """Settings that let the TPU compiler run on a machine without TPU; before jax is used."""
    # The step is compiled for devices that are not there: everything else runs on the CPU, whatever this machine has.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")  # libtpu asks for it; no compilation depends on it
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Without a GPU at hand, the GPU compiler can try no Triton kernels to choose the fastest.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false".strip()
    jax.config.update("jax_platforms", "cpu")


def _tpus(topology: str, kind: str, shape: str, slices: int) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **({"num_slices": slices} if slices > 1 else {})
        ).devices
    except Exception as error:  # jax's own exceptions, and what libtpu raises
        raise UserError(
            f"--topology={topology}: the TPU compiler does not take it ({_short(error)}); it needs the package libtpu "
            "(./launch/compile.sh makes an environment with it)"
        ) from error


def _gpus(topology: str, shape: str, slices: int) -> Sequence[Any]:
    from jax.experimental import topologies

    sizes = [int(size) for size in shape.split("x")]
    nodes, each = sizes if len(sizes) == 2 else (1, sizes[0]) if len(sizes) == 1 else (0, 0)
    if slices != 1 or not 1 <= each <= GPUS_PER_NODE or nodes < 1:
        raise UserError(f"--topology={topology}: write h100:NODESxGPUS with at most {GPUS_PER_NODE} GPUs a node")
    _answer_for_an_h100()
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x{nodes}x{each}").devices
    except Exception as error:
        raise UserError(
            f"--topology={topology}: the GPU compiler does not take it ({_short(error)}); it needs the packages of "
            "jax[cuda13] (./launch/compile.sh makes an environment with them)"
        ) from error


def _answer_for_an_h100() -> None:
    """jax asks the GPU of this machine, which has none, what cuDNN's attention can do on it."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    cudnn.check_compute_capability = lambda capability: tuple(map(int, capability.split("."))) <= (9, 0)
    cudnn.is_cuda_compute_capability_equal = lambda capability: capability == "9.0"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# What XLA asks of a GPU that it compiles for (its message GpuTargetConfigProto). Figures: NVIDIA's H100 data
# sheet and the CUDA programming guide's table for compute capability 9.0.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
