"""Flags of XLA for the tests and for the processes that they start."""

from importlib.metadata import version


def xla_flags(devices: int) -> str:
    """Simulated devices; compilation as quick as it can be, for programs are many and small: it takes half as long.

    Simulated devices are threads that wait for each other in every collective operation. On a busy machine one of them
    can be late by more than the 40 s after which XLA would end the process.
    """
    settings: dict[str, int | str] = {
        "xla_force_host_platform_device_count": devices,
        "xla_backend_optimization_level": 0,
        "xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
        "xla_cpu_collective_call_terminate_timeout_seconds": 1800,
    }
    # An unknown flag ends the process; this one is gone by jaxlib 0.12, which Python 3.12 and 3.13 get.
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        settings["xla_cpu_use_fusion_emitters"] = "false"
    return " ".join(f"--{name}={value}" for name, value in settings.items())
