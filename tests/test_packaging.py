"""The package as installed: import time, version, lock files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if path.name != "compiled.txt")


def pinned(lock: Path) -> dict[str, set[str]]:
    """Package -> versions (several where they depend on the Python version)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^ \n]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_import_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import mimo_jax; took = time.perf_counter() - start;"
        "print(took, mimo_jax.__version__, *(m for m in ('jax', 'numpy', 'tensorflow', 'flax') if m in sys.modules))"
    )
    took, version, *heavy = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert float(took) < 0.5
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert heavy == []


def test_rooms_are_attributes():
    import mimo_jax

    assert mimo_jax.interop.__name__ == "mimo_jax.interop"
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        _ = mimo_jax.nowhere


def test_lock_files_name_neither_hosts_nor_paths():
    assert {path.stem for path in LOCKS} == {"base", "cuda", "dev", "quickstart", "seqio", "tpu"}
    for path in LOCKS:
        text = path.read_text()
        assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|@ |(^|\s)/", text), path.name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_lock_files_agree_with_dev(lock: Path):
    """One environment made from `dev` holds what the smaller ones hold, in the same versions."""
    dev, own = pinned(ROOT / "requirements" / "dev.txt"), pinned(lock)
    assert len(own) > 50
    for name, versions in own.items():
        assert name not in dev or versions == dev[name] or versions < dev[name], name
    if lock.stem in ("base", "seqio", "quickstart"):
        assert set(own) <= set(dev)
    assert "pesq" not in own and "torch" not in own


def test_tensorflow_is_installed_once():
    """tensorflow-text asks for the full tensorflow beside tensorflow-cpu; the locks leave it out, except on a Mac."""
    for line in (ROOT / "requirements" / "quickstart.txt").read_text().splitlines():
        if line.startswith("tensorflow=="):
            assert "sys_platform == 'darwin'" in line


def test_gin_folder_does_not_hide_the_gin_package():
    """`python -m` puts the repository first on the path: with an __init__.py, gin/ would be taken for gin-config."""
    assert not (ROOT / "gin" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("asked", "smi", "lock"),
    [("auto", "exit 9", ""), ("auto", "echo 'GPU 0: an accelerator'", "cuda"), ("tpu", "exit 9", "tpu")],
)
def test_the_environment_gets_the_plug_in_of_the_machine(tmp_path, asked, smi, lock):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{smi}\n")
    command.chmod(0o755)
    found = _accelerator(asked, f"{tmp_path}:/usr/bin:/bin")
    assert (found.returncode, found.stdout.strip()) == (0, lock)
    assert not lock or (ROOT / "requirements" / f"{lock}.txt").is_file()


def test_an_unknown_accelerator_is_named():
    found = _accelerator("abacus", "/usr/bin:/bin")
    assert found.returncode == 1
    assert "MIMO_JAX_ACCELERATOR=abacus: use cuda, tpu, none or auto" in found.stderr


def _accelerator(asked: str, path: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail; . launch/env.sh; accelerator"],
        cwd=ROOT,
        env={"PATH": path, "MIMO_JAX_ACCELERATOR": asked},
        capture_output=True,
        text=True,
    )
