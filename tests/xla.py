"""Flags of XLA for the tests and for the processes that they start."""


def xla_flags(devices: int) -> str:
    """Simulated devices; no optimisation by LLVM, which for many small programs is a third of the time."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
