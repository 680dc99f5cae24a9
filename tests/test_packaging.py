"""The package as installed: import time, version, lock files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    names = {"base", "beam", "compile", "cuda", "dev", "quickstart", "seqio", "torch", "tpu"}
    assert {path.stem for path in LOCKS} == names
    for path in LOCKS:
        text = path.read_text()
        assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|@ |(^|\s)/", text), path.name


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.stem != "beam"], ids=lambda path: path.stem)
def test_lock_files_agree_with_dev(lock: Path):
    """One environment made from `dev` holds what the smaller ones hold, in the same versions."""
    dev, own = pinned(ROOT / "requirements" / "dev.txt"), pinned(lock)
    assert len(own) > 50 or lock.stem == "torch"
    for name, versions in own.items():
        assert name not in dev or versions == dev[name] or versions < dev[name], name
    if lock.stem in ("base", "seqio", "quickstart"):
        assert set(own) <= set(dev)
    assert "pesq" not in own and ("torch" in own) == (lock.stem == "torch")


def test_torch_is_locked_apart():
    """What only it needs stands beside it, and nothing of CUDA: the locks are installed without dependencies."""
    dev, own = pinned(ROOT / "requirements" / "dev.txt"), pinned(ROOT / "requirements" / "torch.txt")
    assert not set(own) & set(dev)
    assert {"sympy", "mpmath", "networkx"} <= set(own)
    assert {"filelock", "fsspec", "jinja2", "markupsafe", "setuptools", "typing-extensions"} <= set(dev)
    assert not [name for name in own if re.match("nvidia|cuda|triton", name)]


def test_beam_has_an_environment_of_its_own():
    """With an older protobuf than TensorFlow's; preparation needs neither TensorFlow nor seqio."""
    dev, own = pinned(ROOT / "requirements" / "dev.txt"), pinned(ROOT / "requirements" / "beam.txt")
    assert {"apache-beam", "array-record", "jax", "pytest", "pyarrow"} <= set(own)
    assert not {"tensorflow-cpu", "tensorflow-text", "seqio"} & set(own) and "apache-beam" not in dev
    assert all(int(version.split(".")[0]) < 7 for version in own["protobuf"])


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


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        ("Linux", "torch==VERSION+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 10"),
        ("Darwin", "torch==VERSION"),
    ],
)
def test_torch_is_the_build_for_cpus(tmp_path, system, wanted):
    found = _install_torch(tmp_path, system, "exit 0")
    assert found.returncode == 0, found.stderr
    rest, torch, check = [line for line in found.stdout.splitlines() if line.startswith("python")]
    assert rest.startswith("python -m pip install") and rest.endswith(f"--no-deps -r {tmp_path}/.mimo_jax-torch.txt")
    only_it_needs = pinned(ROOT / "requirements" / "torch.txt")
    (version,) = only_it_needs.pop("torch")
    assert pinned(tmp_path / ".mimo_jax-torch.txt") == only_it_needs
    assert torch.endswith(f"--no-deps {wanted.replace('VERSION', version)}")
    assert check == "python -c import torch"
    assert (tmp_path / ".mimo_jax-dev.stamp").exists()


@pytest.mark.parametrize("broken", ["torch==", "import torch"])
def test_without_torch_there_is_a_way_out(tmp_path, broken):
    found = _install_torch(tmp_path, "Linux", f'case "$*" in *"{broken}"*) exit 1 ;; esac')
    assert found.returncode == 1
    assert "error: PyTorch, with which tests load exported models, could not be installed" in found.stderr
    assert "MIMO_JAX_TORCH=none" in found.stderr
    assert not list(tmp_path.glob(".mimo_jax-*.stamp*"))
    assert not (tmp_path / ".mimo_jax-building").exists()  # else the whole environment would be made again
    found = _install_torch(tmp_path, "Linux", f'case "$*" in *"{broken}"*) exit 1 ;; esac', MIMO_JAX_TORCH="none")
    assert found.returncode == 0, found.stderr
    assert "torch" not in found.stdout
    assert (tmp_path / ".mimo_jax-dev.stamp").exists()


def test_the_stamp_covers_torch(tmp_path):
    code = "ACCELERATOR=; TORCH=torch; fingerprint {0}; TORCH=; fingerprint {0}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with_torch, without = _env(code.format("dev"), MIMO_JAX_VENV=str(tmp_path)).stdout.split()
    assert with_torch != without
    with_torch, without = _env(code.format("quickstart"), MIMO_JAX_VENV=str(tmp_path)).stdout.split()
    assert with_torch == without


def test_an_unknown_torch_is_named():
    found = _env("torch_lock", MIMO_JAX_TORCH="rocm")
    assert found.returncode == 1
    assert "MIMO_JAX_TORCH=rocm: use cpu or none" in found.stderr


def _install_torch(venv: Path, system: str, python: str, **environment: str) -> subprocess.CompletedProcess:
    """install_environment dev in a folder whose python prints its arguments and does `python`."""
    (venv / "bin").mkdir(exist_ok=True)
    for name, lines in (("python", f'echo "python $*"\n{python}'), ("uname", f"echo {system}"), ("uv", "exit 1")):
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
        (venv / "bin" / name).chmod(0o755)
    # The rest of the environment is taken to be there already.
    code = """
        ACCELERATOR=; TORCH=$(torch_lock)
        install() { case "$*" in *torch*) pip_install "$@" ;; esac; }
        install_environment dev
    """
    path = f"{venv / 'bin'}:/usr/bin:/bin"
    return _env(code, PATH=path, MIMO_JAX_VENV=str(venv), **environment)


def _accelerator(asked: str, path: str) -> subprocess.CompletedProcess:
    return _env("accelerator", PATH=path, MIMO_JAX_ACCELERATOR=asked)


def _env(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; . launch/env.sh; {code}"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_are_what_github_reads(form: Path):
    """A form that GitHub cannot read is left out without a word. https://docs.github.com: syntax of form schemas."""
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert set(content) <= {"blank_issues_enabled", "contact_links"}
        return
    assert set(content) <= {"name", "description", "body", "title", "labels"}
    ids = [element["id"] for element in content["body"]]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", one) for one in ids)
    for element in content["body"]:
        assert element["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert set(element) <= {"type", "id", "attributes", "validations"} and element["attributes"]["label"]
        assert set(element["attributes"]) <= {"label", "description", "placeholder", "value", "render"}
        assert "render" not in element["attributes"] or element["type"] == "textarea"
