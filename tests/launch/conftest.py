"""Runs a launcher with an environment file and stand-ins for the clouds' programs, which write down their calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TPU = {
    "NAME": "joint-7b",
    "STAGES": "(gin/runs/pretrain_7b_joint.gin)",
    "HARDWARE": "gin/hardware/v5p_4x8x8.gin",
    "BINDINGS": "(guards.Guards.watchdog_exit=True)",
    "PREPARED": "prepared",
    "MODEL_DIR": "runs/joint",
    "INIT_FROM": "runs/understanding",
    "MACHINE": "v5p:4x8x8",
    "STORAGE": "gs://my-bucket/mimo",
    "IMAGE": "us-docker.pkg.dev/my-project/images/mimo_jax:1",
    "PROJECT": "my-project",
    "ZONE": "us-east5-a",
    "CLUSTER": "my-cluster",
}
GPU = {"MACHINE": "h100:32x8", "HARDWARE": "gin/hardware/h100_32x8.gin"}
# The process of one host for these variables, and the same under the supervisor.
TRAIN = [
    *("python", "-m", "mimo_jax.train"),
    *("--gin_file=gin/runs/pretrain_7b_joint.gin", "--gin_file=gin/hardware/v5p_4x8x8.gin"),
    *("--gin.MODEL_DIR=/storage/mimo/runs/joint", "--gin.INIT_FROM=/storage/mimo/runs/understanding"),
    *("--gin.PREPARED=/storage/mimo/prepared", "--gin.guards.Guards.watchdog_exit=True"),
]
SUPERVISED = [
    *("python", "-m", "mimo_jax.supervise", "--model_dir=/storage/mimo/runs/joint", "--max_restarts=5", "--"),
    *TRAIN,
]
# What a stand-in does: writes its words to a file, then answers as `answers` says for the first pattern that fits.
STAND_IN = """#!{python} -SE
import json, pathlib, re, sys
folder = pathlib.Path({folder!r})
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (folder / "calls").open("a") as file:
    print(json.dumps(words), file=file)
answers = json.loads((folder / "answers").read_text())
for number, (pattern, answer, code) in enumerate(answers):
    if re.search(pattern, " ".join(words)):
        if pattern.startswith("(?#once)"):
            del answers[number]
            (folder / "answers").write_text(json.dumps(answers))
        print(answer, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


class Launcher:
    """Of one test: its folder, and the calls that the stand-ins have seen."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        for name in ("gcloud", "xpk", "kubectl", "sbatch", "sky", "docker"):
            path = self.programs / name
            path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)
        self.answer()

    def answer(self, *answers: tuple[str, str, int]) -> None:
        """(pattern, what is printed, exit code); a pattern that begins with (?#once) is used up."""
        (self.folder / "answers").write_text(json.dumps(answers))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(
        self, name: str, *arguments: str, check: bool = False, path: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """The launcher with TPU's variables and these; `check` lets Python read the gin files, too."""
        file = self.folder / "job.env"
        file.write_text("".join(f"{key}={value}\n" for key, value in (TPU | variables).items()))
        python = sys.executable if check else "/none"
        environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}" if path is None else path,
            "HOME": str(self.folder),
            "MIMO_JAX_PYTHON": python,
            "MIMO_JAX_LAUNCH_DIR": str(self.folder / "launch"),
            "MIMO_JAX_POLL_SECONDS": "0.02",
            "JAX_PLATFORMS": "cpu",
        }
        return subprocess.run(
            ["bash", str(ROOT / "launch" / f"{name}.sh"), f"--env={file}", *arguments],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def dry(self, name: str, **options: str) -> str:
        """What a dry run prints; it succeeds and calls nothing."""
        done = self.run(name, "--dry-run", **options)
        assert done.returncode == 0, done.stderr
        assert self.calls() == []
        return done.stdout

    def error(self, name: str, **options: str) -> str:
        """The message of a launcher that refuses its input, and calls nothing."""
        done = self.run(name, "--dry-run", **options)
        assert done.returncode == 1, done.stdout
        assert self.calls() == []
        return done.stderr


def written(said: str) -> str:
    """The file that a dry run shows: what stands between its name and the first command."""
    lines = said.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("# /"))
    end = next(number for number in range(begin, len(lines)) if lines[number].startswith(("+ ", "log: ")))
    return "\n".join(lines[begin + 1 : end]) + "\n"


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


@pytest.fixture(scope="session")
def shellcheck() -> Callable[[str], None]:
    """Fails for a script that shellcheck complains of."""
    program = Path(sys.executable).with_name("shellcheck")

    def check(script: str) -> None:
        done = subprocess.run([program, "--shell=bash", "-"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return check
