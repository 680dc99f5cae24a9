"""What each launcher shows with --dry-run, which programs it calls without, and what it says to bad input."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import GPU, ROOT, SUPERVISED, TPU, TRAIN, written

LAUNCHERS = ("local", "tpu_vm", "xpk", "gke", "slurm", "skypilot", "docker")
# What a launcher wants instead of, or beside, the TPU's variables.
OPTIONS = {"local": {"MACHINE": "", "STORAGE": "/data"}, "slurm": GPU | {"STORAGE": "/lustre/me"}}


# --- dry runs ---


@pytest.mark.parametrize("name", LAUNCHERS)
def test_dry_run(launcher, name):
    said = launcher.dry(name, **OPTIONS.get(name, {}))
    assert "\n+ " in f"\n{said}" and not (launcher.folder / "launch").exists()
    if name not in ("local", "docker"):
        assert "not checked: gin files, bindings and mesh" in said, "there is no jax in this test's Python"
    if name != "docker":
        assert "JAX_COMPILATION_CACHE_DIR" in said and "/cache/jax" in said
        assert "/runs/joint" in said and "mimo_jax.train" in said


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help(name):
    done = subprocess.run(["bash", ROOT / "launch" / f"{name}.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and f"./launch/{name}.sh --env=FILE [--dry-run]" in done.stdout


def test_the_example_is_a_job(launcher, tmp_path):
    """Every launcher takes the example once what is the user's own is filled in; each variable is explained."""
    example = (ROOT / "launch" / "job.env.example").read_text()
    variables = re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)
    known = re.search(r'JOB_VARIABLES="([^"]*)"', (ROOT / "launch" / "job.sh").read_text()).group(1)
    assert sorted(variables) == sorted(known.replace("\\\n", " ").split())
    for line in example.splitlines():
        assert re.match(r"^([A-Z_]+=.*\s# \S.*|#.*|)$", line), line
    file = tmp_path / "example.env"
    file.write_text(example)
    for name in ("gke", "xpk", "tpu_vm", "skypilot", "docker"):
        done = launcher.run(name, "--dry-run", f"--env={file}")
        assert done.returncode == 0, done.stderr


def test_bindings_of_stages_and_lists(launcher):
    said = launcher.dry("gke", STAGES="('gin/runs/sft_7b.gin gin/hardware/h100_1x8.gin EVAL_SPLIT=validation')")
    command = yaml.safe_load(written(said))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = command["containers"][0]["command"]
    assert words[3:7] == [
        "--gin_file=gin/runs/sft_7b.gin",
        "--gin_file=gin/hardware/v5p_4x8x8.gin",
        "--gin_file=gin/hardware/h100_1x8.gin",
        "--gin.EVAL_SPLIT=validation",
    ]
    stages = "(gin/runs/pretrain_7b_joint.gin 'gin/runs/sft_7b.gin EVAL_SPLIT=validation')"
    said = launcher.dry("gke", STAGES=stages)
    command = yaml.safe_load(written(said))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert command["containers"][0]["command"] == [
        *("python", "-m", "mimo_jax.pretrain", "--out=/storage/mimo/runs/joint"),
        "--stage=gin/runs/pretrain_7b_joint.gin gin/hardware/v5p_4x8x8.gin",
        "--stage=gin/runs/sft_7b.gin gin/hardware/v5p_4x8x8.gin EVAL_SPLIT=validation",
        "--init_from=/storage/mimo/runs/understanding",
        *TRAIN[-2:],
    ]


def test_no_function_is_defined_twice():
    """The second would silently take the place of the first."""
    for script in (ROOT / "launch").glob("*.sh"):
        functions = re.findall(r"^(\w+)\(\)", script.read_text(), re.MULTILINE)
        assert len(functions) == len(set(functions)), script


def test_a_list_over_several_lines(launcher, monkeypatch):
    monkeypatch.setenv("BATCH_ROWS", "inherited")
    said = launcher.dry("gke", BINDINGS="(\n  guards.Guards.watchdog_exit=True\n  BATCH_ROWS=512 # a (longer) one\n)")
    assert "--gin.guards.Guards.watchdog_exit=True" in said and "--gin.BATCH_ROWS=512" in said
    assert "unknown variable BATCH_ROWS" in launcher.error("gke", BINDINGS="(\n)\nBATCH_ROWS=512")


def test_no_entry_on_the_command_line_empties_a_list(launcher):
    done = launcher.run("gke", "--dry-run", "BINDINGS=")
    assert done.returncode == 0 and "watchdog_exit" not in done.stdout, done.stderr


def test_a_folder_whose_name_holds_gin(launcher):
    run = launcher.folder / "my.gin.files" / "run.gin"
    run.parent.mkdir()
    run.touch()
    said = launcher.dry("local", STAGES=f"('{run} STEPS=3')", **OPTIONS["local"])
    assert f"--gin_file={run} " in said and "--gin.STEPS=3 " in said
    said = launcher.dry("local", STAGES=f"('{run} STEPS=3' gin/runs/sft_7b.gin)", **OPTIONS["local"])
    assert f"'--stage={run} gin/hardware/v5p_4x8x8.gin STEPS=3'" in said


# --- what is called ---


def test_gke(launcher):
    done = launcher.run("gke")
    file = launcher.folder / "launch" / "joint-7b.yaml"
    assert done.returncode == 0, done.stderr
    assert launcher.calls() == [["kubectl", "create", "-f", str(file)]]
    assert yaml.safe_load(file.read_text())["kind"] == "JobSet"
    launcher.answer(("kubectl", "already exists", 1))
    assert launcher.run("gke").returncode == 1


def test_xpk(launcher):
    assert launcher.run("xpk", MACHINE="v5e:16x16x2slices", CAPACITY="on-demand").returncode == 0
    (call,) = launcher.calls()
    assert call[:3] == ["xpk", "workload", "create"]
    # Exit code 2, a mistake in the input, must not restart it.
    assert {"--tpu-type=v5litepod-16x16", "--num-slices=2", "--on-demand", "--restart-on-exit-codes=1,75,76"} <= set(
        call
    )
    assert {"--max-restarts=5", "--storage=mimo-jax", f"--docker-image={TPU['IMAGE']}"} <= set(call)
    (command,) = (word for word in call if word.startswith("--command="))
    assert command == f"--command=exec env JAX_COMPILATION_CACHE_DIR=/storage/mimo/cache/jax {' '.join(TRAIN)}"


def test_xpk_tells_gpu_nodes_who_they_are(launcher):
    assert launcher.run("xpk", **GPU).returncode == 0
    (call,) = launcher.calls()
    assert {"--device-type=h100-80gb-8", "--num-nodes=32"} <= set(call)
    # As in the pod: the shell that XPK starts there knows these variables.
    command = (
        next(word for word in call if word.startswith("--command=")).removeprefix("--command=").partition(" python ")[0]
    )
    environment = {"JAX_COORDINATOR_ADDRESS": "first", "JAX_COORDINATOR_PORT": "6002", "NNODES": "32", "NODE_RANK": "3"}
    done = subprocess.run(
        ["bash", "-c", f"({command})"], env={"PATH": "/usr/bin:/bin"} | environment, capture_output=True, text=True
    )
    assert {"JAX_COORDINATOR_ADDRESS=first:6002", "JAX_NUM_PROCESSES=32", "JAX_PROCESS_ID=3"} <= set(
        done.stdout.split()
    )


def test_slurm(launcher, shellcheck, tmp_path):
    python = tmp_path / "python"
    python.write_text("")
    python.chmod(0o755)
    options = GPU | {
        "STORAGE": str(tmp_path / "lustre"),
        "NODE_PYTHON": str(python),
        "PARTITION": "gpu",
        "SBATCH": "(--qos=high)",
    }
    done = launcher.run("slurm", **options)
    assert done.returncode == 0, done.stderr
    file = launcher.folder / "launch" / "joint-7b.sbatch"
    assert launcher.calls() == [["sbatch", str(file)]]
    script = file.read_text()
    shellcheck(script)
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    )
    # One process drives all GPUs of a node; five minutes before the end it is told, not the script.
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("32", "1", "8")
    assert options["signal"] == "TERM@300" and "requeue" in options
    assert (options["partition"], options["qos"], options["time"]) == ("gpu", "high", "24:00:00")
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in script
    said = launcher.run("slurm", "--dry-run", **GPU, STORAGE="'/lustre/my runs'").stdout
    assert '#SBATCH --output="/lustre/my runs/runs/joint/slurm-%j.log"' in said


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(75, "RUNNING", True), (75, "CANCELLED", False), (2, "RUNNING", False), (0, "RUNNING", False)],
)
def test_slurm_requeues_what_has_saved(launcher, code, state, requeued):
    script = written(launcher.dry("slurm", **OPTIONS["slurm"]))
    for name in ("srun", "squeue", "scontrol"):
        (launcher.programs / name).symlink_to(launcher.programs / "sbatch")
    launcher.answer(("^srun", "", code), ("^squeue", state, 0))
    environment = {"PATH": f"{launcher.programs}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if requeued else code), done.stderr
    assert (["scontrol", "requeue", "12"] in launcher.calls()) == requeued
    srun = launcher.calls()[0]
    # With --kill-on-bad-exit=1 the first 75 would have the others killed while they save, and the job would not go on.
    assert srun[:3] == ["srun", "--kill-on-bad-exit=0", "--wait=600"]
    srun = srun[srun.index("--label") - 2 :]
    assert srun[3] == ".venv/bin/python"
    assert srun[4:6] == ["-m", "mimo_jax.supervise"] and "--gin.MODEL_DIR=/lustre/me/runs/joint" in srun


def test_skypilot(launcher, shellcheck):
    assert launcher.run("skypilot", **GPU).returncode == 0
    file = launcher.folder / "launch" / "joint-7b-sky.yaml"
    assert launcher.calls() == [["sky", "jobs", "launch", "--yes", "--detach-run", "--name=joint-7b", str(file)]]
    task = yaml.safe_load(file.read_text())
    assert task["num_nodes"] == 32 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["file_mounts"] == {"/storage": {"source": "gs://my-bucket", "mode": "MOUNT"}}
    assert task["envs"]["JAX_COMPILATION_CACHE_DIR"] == "/storage/mimo/cache/jax"
    assert task["envs"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
    shellcheck(task["run"])
    done = subprocess.run(
        ["bash", "-c", task["run"].replace("cd /opt/mimo_jax || exit 2", "").partition("exec ")[0] + "env"],
        env={
            "PATH": "/usr/bin:/bin",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
        },
        capture_output=True,
        text=True,
    )
    assert {"JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"} <= set(
        done.stdout.split()
    )


def test_skypilot_on_a_tpu(launcher):
    task = yaml.safe_load(written(launcher.dry("skypilot", CAPACITY="on-demand")))
    assert task["num_nodes"] == 1 and task["resources"]["accelerators"] == "tpu-v5p-512:1"
    assert task["resources"]["infra"] == "gcp/us-east5/us-east5-a" and not task["resources"]["use_spot"]
    assert "JAX_COORDINATOR_ADDRESS" not in task["run"], "TPU hosts know it"
    assert task["run"].split("exec ")[1].split() == SUPERVISED


def test_docker(launcher):
    for machine, accelerator in ((TPU["MACHINE"], "tpu"), (GPU["MACHINE"], "cuda")):
        assert launcher.run("docker", MACHINE=machine).returncode == 0
        build, push = launcher.calls()[-2:]
        assert f"--build-arg=ACCELERATOR={accelerator}" in build and f"--tag={TPU['IMAGE']}" in build
        assert push == ["docker", "push", TPU["IMAGE"]]
        assert (ROOT / "requirements" / f"{accelerator}.txt").is_file()


def test_the_image_copies_what_is_there():
    """Every path of the Dockerfile exists and is not ignored."""
    dockerfile = (ROOT / "launch" / "docker" / "Dockerfile").read_text()
    ignored = (ROOT / "launch" / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE):
        for path in line.split()[:-1]:
            for accelerator in ("tpu", "cuda"):
                assert (ROOT / path.replace("${ACCELERATOR}", accelerator)).exists(), path
            assert f"!{path}" in ignored or f"!{path.replace('${ACCELERATOR}', '*')}" in ignored, path


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gke", {"STORAGE": "gs://My_Bucket"}, "STORAGE=gs://My_Bucket: write gs://BUCKET or gs://BUCKET/FOLDER"),
        ("gke", {"STORAGE": "my-bucket"}, "STORAGE=my-bucket: gs://BUCKET[/FOLDER], or the whole path of a folder"),
        ("gke", {"STORAGE": "/data"}, "STORAGE=/data: gke.sh mounts a bucket"),
        ("slurm", GPU, "STORAGE=gs://my-bucket/mimo: slurm.sh wants a folder that all nodes see"),
        (
            "gke",
            {"MODEL_DIR": "gs://my-bucket/run"},
            "MODEL_DIR, PREPARED and INIT_FROM lie in STORAGE=gs://my-bucket/mimo",
        ),
        ("gke", {"MODEL_DIR": ""}, "MODEL_DIR is empty"),
        ("gke", {"MODEL_DIR": "/runs/joint"}, "MODEL_DIR=/runs/joint: write its path in STORAGE=gs://my-bucket/mimo"),
        ("gke", {"MODEL_DIR": "$'runs/joint\\r'"}, "no line ends and other control characters"),
        ("slurm", GPU | {"STORAGE": "/l", "SBATCH": "($'--qos=a\\nb')"}, "no line ends and other control characters"),
        ("xpk", {"PROJECT": "My Project"}, "PROJECT='My Project': a project ID has 6 to 30"),
        ("tpu_vm", {"ZONE": "us-east5"}, "ZONE=us-east5: a zone looks like us-east5-a"),
        ("tpu_vm", {"CAPACITY": "cheap"}, "CAPACITY=cheap: use spot, on-demand or reserved"),
        ("gke", {"CAPACITY": "reserved"}, "RESERVATION=: CAPACITY=reserved needs a reservation's name"),
        ("gke", {"NAME": "Joint_7B"}, "NAME=Joint_7B: lowercase letters"),
        ("gke", {"IMAGE": "mimo_jax"}, "IMAGE=mimo_jax: the image's whole name"),
        ("gke", {"MACHINE": ""}, "MACHINE is empty"),
        ("gke", {"MACHINE": "v5p:16x16"}, "MACHINE=v5p:16x16: a topology of v5p is 2x2x1"),
        ("gke", {"MACHINE": "v5p:4x4x6"}, "MACHINE=v5p:4x4x6: a topology of v5p is 2x2x1"),
        ("gke", {"MACHINE": "v5e:4x8x8"}, "MACHINE=v5e:4x8x8: a topology of v5e is 1x1, 2x2"),
        ("gke", {"MACHINE": "v9:4x4"}, "MACHINE=v9:4x4: unknown kind v9"),
        ("gke", {"MACHINE": "v5p-512"}, "MACHINE=v5p-512: write KIND:TOPOLOGY"),
        ("slurm", {"STORAGE": "/l", "MACHINE": "h100:8x16"}, "MACHINE=h100:8x16: write h100:NODESxGPUS"),
        ("slurm", {"STORAGE": "/l"}, "MACHINE=v5p:4x8x8: slurm.sh is for GPUs"),
        ("slurm", GPU | {"STORAGE": "/l", "MODEL_DIR": "100%"}, "MODEL_DIR=100%: Slurm names a log in it"),
        ("slurm", GPU | {"STORAGE": "/l", "TIME": "1 day"}, "TIME='1 day': write HH:MM:SS"),
        ("tpu_vm", GPU, "MACHINE=h100:32x8: tpu_vm.sh is for TPUs"),
        ("tpu_vm", {"MACHINE": "v5e:16x16x2slices"}, "tpu_vm.sh is for one slice"),
        ("local", {"STORAGE": "/d", "MACHINE": "h100:2x8"}, "MACHINE=h100:2x8 has 2 hosts; local.sh is for one"),
        ("local", {"STORAGE": "/d", "PROCESSES": "0"}, "PROCESSES=0: a whole number, at least 1"),
        ("gke", {"HARDWARE": "gin/hardware/v5p.gin"}, "HARDWARE: gin/hardware/v5p.gin: no such file in"),
        ("gke", {"STAGES": "(gin/runs/joint.gin)"}, "STAGES: gin/runs/joint.gin: no such file in"),
        ("gke", {"STAGES": "()"}, "STAGES is empty"),
        ("gke", {"STAGES": "('BATCH_ROWS=8')"}, "STAGES: 'BATCH_ROWS=8' should begin with a gin run file"),
        (
            "gke",
            {"STAGES": "(\"gin/runs/sft_7b.gin A='b'\")"},
            "write bindings with quotes into BINDINGS or a gin file",
        ),
        ("gke", {"BINDINGS": "(--gin.BATCH_ROWS=8)"}, "BINDINGS: write BATCH_ROWS=8 without dashes in front"),
        ("gke", {"BINDINGS": "(BATCH_ROWS)"}, "BINDINGS: BATCH_ROWS: write NAME=VALUE"),
        ("gke", {"ENVIRONMENT": "(NCCL-DEBUG=INFO)"}, "ENVIRONMENT: NCCL-DEBUG=INFO: write NAME=VALUE"),
        ("gke", {"MAX_RESTARTS": "many"}, "MAX_RESTARTS=many: a whole number is wanted"),
        ("xpk", {"BINDINGS": "('A=\"b\"')"}, "XPK cannot hand on double quotes"),
        ("gke", {"MODELDIR": "runs"}, "unknown variable MODELDIR"),
    ],
)
def test_bad_input_is_named(launcher, name, options, message):
    options = {
        key: f"'{value}'" if " " in value and not value.startswith("(") else value for key, value in options.items()
    }
    said = launcher.error(name, **options)
    assert message.replace("'My Project'", "My Project").replace("'1 day'", "1 day") in said


def test_bad_arguments(launcher, tmp_path):
    def said(*arguments: str) -> str:
        done = subprocess.run(["bash", ROOT / "launch" / "gke.sh", *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr

    assert "--env=FILE is missing" in said("--dry-run")
    assert f"--env={tmp_path}/none: no such file" in said(f"--env={tmp_path}/none")
    assert "--dryrun: unknown" in said("--dryrun")
    (tmp_path / "job.env").write_text("NAME=x\n")
    assert "NAMES=y: unknown variable" in said(f"--env={tmp_path / 'job.env'}", "NAMES=y")
    (tmp_path / "job.env").write_text("STAGES=(\n")
    assert "bash cannot read it" in said(f"--env={tmp_path / 'job.env'}") or "syntax error" in said(
        f"--env={tmp_path / 'job.env'}"
    )


def test_a_missing_program_is_named(launcher):
    done = launcher.run(
        "gke", path="/usr/bin:/bin" if not Path("/usr/bin/kubectl").exists() else str(bare(launcher.folder))
    )
    assert done.returncode == 1 and "kubectl is not installed: https://" in done.stderr


def bare(folder: Path) -> Path:
    """A PATH without the programs of clouds that this machine may have."""
    programs = folder / "bare"
    programs.mkdir()
    for name in ("bash", "sed", "cat", "dirname", "basename", "tr", "date", "mkdir"):
        (programs / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    return programs


# --- the gin files against the machine ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MACHINE": "v5p:4x4x8"}, "does not fit 128 devices"),
        ({"BINDINGS": "(BATCH_ROW=64)"}, "no gin file of this run defines the macro BATCH_ROW"),
    ],
)
def test_a_run_that_does_not_go_with_the_machine(launcher, options, message):
    done = launcher.run("gke", "--dry-run", check=True, **options)
    assert done.returncode == 1 and message in done.stderr
    assert (
        "gin/runs/pretrain_7b_joint.gin with HARDWARE=gin/hardware/v5p_4x8x8.gin does not go with MACHINE=v5p:4x"
        in done.stderr
    )


def test_a_run_that_goes_with_the_machine(launcher):
    done = launcher.run("gke", "--dry-run", check=True)
    assert "data 4, fsdp 64 = 256 devices of 64 process(es): fits" in done.stdout, done.stderr


def test_a_run_that_wants_init_from(launcher):
    """A later stage has the folder of the one before."""
    (launcher.folder / "more.gin").write_text("include 'tests/launch/run.gin'\nINIT_FROM = %gin.REQUIRED\n")
    options = {"STORAGE": "/data", "MACHINE": "h100:1x2", "HARDWARE": "tests/launch/hardware.gin"}
    options |= {"BINDINGS": "()", "INIT_FROM": "", "PREPARED": ""}
    more = str(launcher.folder / "more.gin")
    done = launcher.run("local", "--dry-run", check=True, STAGES=f"(tests/launch/run.gin {more})", **options)
    assert done.returncode == 0 and done.stdout.count("2 devices of 1 process(es): fits") == 2, done.stderr


def test_processes_on_cpus_are_compared_with_the_mesh(launcher):
    """The example's hardware file is for a pod; without MACHINE there is a device for each process."""
    options = {"STORAGE": str(launcher.folder), "MACHINE": "", "PROCESSES": "2"}
    done = launcher.run("local", "--dry-run", check=True, **options)
    assert done.returncode == 1
    assert "does not fit 2 devices" in done.stderr and "does not go with 2 processes" in done.stderr


def test_data_that_are_not_there(launcher):
    """A dry run says so, a start refuses: every process would end with it."""
    options = {"STORAGE": str(launcher.folder), "MACHINE": "", "HARDWARE": ""}
    missing = f"PREPARED=prepared: there is no folder {launcher.folder}/prepared"
    assert missing in launcher.dry("local", **options)
    done = launcher.run("local", check=True, **options)
    assert done.returncode == 1 and f"error: {missing}" in done.stderr


def test_a_list_on_the_command_line_is_one_entry(launcher):
    done = launcher.run("gke", "--dry-run", "BINDINGS=(A=1 B=2)")
    assert done.returncode == 1
    assert "BINDINGS=(A=1 B=2): one entry without brackets, please; a list stands in" in done.stderr
