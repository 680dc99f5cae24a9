"""Flags of XLA for the tests and for the processes that they start."""


def xla_flags(devices: int) -> str:
    """Simulated devices; compilation as quick as it can be, for programs are many and small: it takes half as long."""
    settings = {
        "xla_force_host_platform_device_count": devices,
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": "false",
    }
    return " ".join(f"--{name}={value}" for name, value in settings.items())
