"""What is released: the wheel holds what a checkout holds, and trains in an empty environment."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, as `tools/release.sh` does, from a copy: building writes beside the sources."""
    folder = tmp_path_factory.mktemp("release")
    copy = folder / "copy"
    for name in ("mimo_jax", "gin"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder / 'dist'}", str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    assert len(list((folder / "dist").glob("mimo_jax-*.tar.gz"))) == 1
    (found,) = (folder / "dist").glob("mimo_jax-*-py3-none-any.whl")
    return found


def test_the_wheel_holds_every_module_and_gin_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entries = archive.read(next(name for name in held if name.endswith("entry_points.txt"))).decode()
        metadata = archive.read(next(name for name in held if name.endswith("METADATA"))).decode()
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "mimo_jax").rglob("*.py")}
    wanted |= {f"mimo_jax/{path.relative_to(ROOT)}" for path in (ROOT / "gin").rglob("*.gin")}
    assert not (wanted | {"mimo_jax/py.typed"}) - held
    assert not [name for name in held if name.startswith(("tests/", "tools/", "benchmarks/", "gin/"))]
    assert "mimo-jax = mimo_jax.__main__:main" in entries
    assert "Requires-Python: >=3.11,<3.14" in metadata and "Provides-Extra: seqio" in metadata


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_environment(wheel, tmp_path):
    tried = subprocess.run(
        [sys.executable, "tools/try_wheel.py", str(wheel), f"--folder={tmp_path}", "--run=recogniser"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "at step 1" in tried.stdout


def test_a_missing_wheel_is_named():
    tried = subprocess.run(
        [sys.executable, "tools/try_wheel.py", "nowhere.whl"], capture_output=True, text=True, cwd=ROOT
    )
    assert tried.returncode == 2 and "nowhere.whl: no such file" in tried.stderr
