"""TPU VMs: another slice after a preemption, an end when the job has ended, and what a host says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.conftest import SUPERVISED, TPU, written

STATE, LEFT = "queued-resources describe", "storage cat"


def slice_calls(launcher) -> list[str]:
    """What was done to the slice: create, delete."""
    return [call[4] for call in launcher.calls() if call[3] == "queued-resources" and call[4] != "describe"]


def test_tpu_vm_gets_another_slice_after_a_preemption(launcher, shellcheck):
    launcher.answer(
        (f"(?#once){STATE}", "ERROR: NOT_FOUND: it does not exist", 1),
        (f"(?#once){STATE}", "ERROR: NOT_FOUND: it does not exist", 1),
        (f"(?#once){STATE}", "WAITING_FOR_RESOURCES", 0),
        (f"(?#once){STATE}", "ERROR: the network is down", 1),
        (f"(?#once){STATE}", "SUSPENDED", 0),
        (f"(?#once){STATE}", "ACTIVE", 0),
        (f"(?#once){LEFT}", "0", 0),  # of an earlier job of this name
        *[(f"(?#once){LEFT}", "no such object", 1)] * 5,
        (LEFT, "0", 0),
        (STATE, "ACTIVE", 0),
    )
    done = launcher.run("tpu_vm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert slice_calls(launcher) == ["create", "delete", "create", "delete"]
    assert "taken away; asking for another one" in done.stdout and "the job has ended well" in done.stdout
    create = next(call for call in launcher.calls() if call[4] == "create")
    script = launcher.folder / "launch" / "joint-7b-startup.sh"
    assert {
        "--accelerator-type=v5p-512",
        "--runtime-version=v2-alpha-tpuv5",
        "--spot",
        f"--metadata-from-file=startup-script={script}",
    } <= set(create)
    shellcheck(script.read_text())


@pytest.mark.parametrize(
    ("code", "restarts", "calls", "said"),
    [
        ("2", "5", ["delete"], "a mistake in the input; the end of gs://my-bucket/mimo/jobs/joint-7b.log names it"),
        ("76 12 0", "1", ["delete", "create", "delete"], "the job has failed 2 times without a newer checkpoint"),
    ],
)
def test_tpu_vm_gives_up(launcher, code, restarts, calls, said):
    launcher.answer((STATE, "ACTIVE", 0), (LEFT, code, 0))
    done = launcher.run("tpu_vm", MAX_RESTARTS=restarts)
    assert done.returncode == 1 and said in done.stderr
    assert slice_calls(launcher) == calls


def test_tpu_vm_counts_failures_without_a_newer_checkpoint(launcher):
    launcher.answer(
        *[(f"(?#once){LEFT}", f"76 {checkpoints} 0", 0) for checkpoints in (1, 2, 3, 3)],
        (LEFT, "0 3 0", 0),
        (STATE, "ACTIVE", 0),
    )
    assert launcher.run("tpu_vm", MAX_RESTARTS="1").returncode == 1
    assert slice_calls(launcher) == ["delete", "create"] * 3 + ["delete"]


def test_tpu_vm_tries_again_what_the_cloud_refuses(launcher):
    """The first slice is refused for good; later ones may be for a while."""
    down = "ERROR: the service is unavailable"
    launcher.answer(("queued-resources create", down, 1), (STATE, "NOT_FOUND", 1))
    assert launcher.run("tpu_vm").returncode == 1
    assert slice_calls(launcher) == ["create"]
    launcher.answer(
        *[("(?#once)queued-resources delete", down, 1)] * 2,
        ("(?#once)queued-resources create", down, 1),
        *[(f"(?#once){STATE}", "SUSPENDED", 0)] * 4,
        (f"(?#once){STATE}", "NOT_FOUND", 1),
        *[(f"(?#once){LEFT}", "no such object", 1)] * 4,
        (LEFT, "0", 0),
        (STATE, "ACTIVE", 0),
    )
    done = launcher.run("tpu_vm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert slice_calls(launcher)[1:] == ["delete", "delete", "delete", "create", "create", "delete"]
    assert done.stdout.count("trying again") == 3


def run_startup(launcher, worker: int, code: int, **answers: int) -> list[list[str]]:
    """What the startup script of a host does, on which every program is a stand-in."""
    script = written(launcher.dry("tpu_vm", MACHINE="v6e:16x16", HARDWARE="gin/hardware/v6e_16x16.gin"))
    for name in ("curl", "apt-get", "gcsfuse", "mountpoint", "mkdir", "lsb_release"):
        (launcher.programs / name).symlink_to(launcher.programs / "gcloud")
    fails = [(program, "", status) for program, status in answers.items()]
    launcher.answer(*fails, ("^curl", str(worker), 0), ("^docker run", "", code), ("^mountpoint", "", 1))
    environment = {"PATH": f"{launcher.programs}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    return launcher.calls()


@pytest.mark.parametrize(("worker", "code", "tells"), [(0, 0, True), (3, 0, False), (3, 76, True), (0, 2, True)])
def test_tpu_vm_host(launcher, worker, code, tells):
    calls = run_startup(launcher, worker, code)
    (mount,) = (call for call in calls if call[0] == "gcsfuse")
    assert mount[-2:] == ["my-bucket", "/storage"] and "--rename-dir-limit=1000000" in mount
    (run,) = (call for call in calls if call[:2] == ["docker", "run"])
    assert run[run.index(TPU["IMAGE"]) + 1 :] == [word.replace("v5p_4x8x8", "v6e_16x16") for word in SUPERVISED]
    assert run[run.index("--env") + 1] == "JAX_COMPILATION_CACHE_DIR=/storage/mimo/cache/jax"
    left = ["gcloud", "storage", "cp", "-", "gs://my-bucket/mimo/jobs/joint-7b.exit_code"]
    assert (left in calls) == tells


def test_tpu_vm_host_that_cannot_pull_the_image_says_so(launcher):
    calls = run_startup(launcher, 3, 0, **{"^docker pull": 1, "^docker logs": 1, "^gcloud storage cp - .*log": 1})
    assert ["gcloud", "storage", "cp", "-", "gs://my-bucket/mimo/jobs/joint-7b.exit_code"] in calls
    assert not [call for call in calls if call[:2] == ["docker", "run"]]


def test_tpu_vm_host_that_is_shut_down_has_not_ended_well(launcher):
    script = written(launcher.dry("tpu_vm"))
    for name in ("curl", "mountpoint", "mkdir"):
        (launcher.programs / name).symlink_to(launcher.programs / "gcloud")
    (launcher.programs / "gcsfuse").symlink_to(launcher.programs / "gcloud")
    left, asked = launcher.folder / "left", launcher.folder / "asked"
    # The container runs until it is asked to stop.
    docker = f"#!/bin/bash\ncase $1 in run) touch {asked}.run; sleep 30 ;; stop) touch {asked} ;; esac\n"
    gcloud = f'#!/bin/bash\ncase "$*" in *exit_code) cat >{left} ;; *cp*) cat >/dev/null ;; esac\n'
    for name, text in (("docker", docker), ("gcloud2", gcloud)):
        (launcher.programs / name).write_text(text)
        (launcher.programs / name).chmod(0o755)
    launcher.answer(("^curl", "0", 0))
    script = script.replace("gcloud storage", "gcloud2 storage")
    environment = {"PATH": f"{launcher.programs}:/usr/bin:/bin"}
    process = subprocess.Popen(["bash", "-c", script], env=environment, start_new_session=True)
    while process.poll() is None and not Path(f"{asked}.run").exists():
        time.sleep(0.02)
    process.terminate()
    process.wait(60)
    os.killpg(process.pid, signal.SIGKILL)
    assert left.read_text().split()[0] == "75" and asked.exists()
