"""What all tests share: JAX on CPU with eight simulated devices, a cache of compiled programs, the golden folders.

The environment is set here, before anything imports jax, so that a single file run by plain ``pytest`` sees the same
devices as the whole suite. A value already set by the caller wins.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.xla import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_given = os.environ.get("XLA_FLAGS", "")
_missing = [flag for flag in xla_flags(8).split() if flag.split("=")[0] not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_missing]).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "mimo_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import gc  # noqa: E402
import resource  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Examples come from a fixed seed (a failure repeats) and no deadline (the first one compiles).
settings.register_profile("mimo_jax", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("mimo_jax")


# Files that take longest begin first: the last file of a run should be a short one.
_LONGEST = ("test_end_to_end", "test_tokenizer_meshes", "test_processes", "test_trained_tokenizer", "test_verify")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/configs anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether kept configurations are to be written instead of compared."""
    return request.config.getoption("--update-golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files, not the tests within one; `launch/test.sh` tells xdist to keep the order."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


@pytest.fixture(scope="module", autouse=True)
def bounded_process() -> Iterator[None]:
    """What a file leaves behind in its process, which runs many others, is bounded.

    Programs of earlier files are dropped once a process holds many: a worker would keep them all. Each takes some 30
    memory mappings, of which Linux grants a process 65,530. A test file that leaves many files open fails: what it made
    lives on, with threads and memory.
    """
    before = _open_files()
    yield
    if _open_files() - before > 100:
        gc.collect()
        assert _open_files() - before <= 100, f"{_open_files() - before} files are still open"
    jax = sys.modules.get("jax")
    if jax is not None and (_resident_bytes() > 3e9 or _mappings() > 20_000):
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    """What the process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux
        return 0


def _open_files() -> int:
    """Of the process."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return 0


def _mappings() -> int:
    """Of the process's memory."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # no Linux
        return 0


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
