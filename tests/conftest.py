"""What all tests share: JAX on CPU with eight simulated devices, a cache of compiled programs, the golden folders.

The environment is set here, before anything imports jax, so that a single file run by plain ``pytest`` sees the same
devices as the whole suite. A value already set by the caller wins.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "mimo_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Examples come from a fixed seed (a failure repeats) and no deadline (the first one compiles).
settings.register_profile("mimo_jax", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("mimo_jax")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def lm_tiny(golden: Path) -> Path:
    """Released-layout folder of the tiny language model: weights, configuration, inputs and outputs."""
    return golden / "lm_tiny"


@pytest.fixture(scope="session")
def tokenizer_tiny(golden: Path) -> Path:
    """Released-layout folder of the tiny audio tokenizer: weights, configuration, inputs and outputs."""
    return golden / "tokenizer_tiny"
