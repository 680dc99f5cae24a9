"""The JobSets of launch/gke.sh against the schemas of Kubernetes and JobSet."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from mimo_jax.cli import EXIT_MISTAKE, EXIT_PREEMPTED
from tests.launch.conftest import GPU, written

VERSIONS = ("1.31", "1.35")
MACHINES = {
    "v5p": {},
    "v5e, two slices": {
        "MACHINE": "v5e:16x16x2slices",
        "HARDWARE": "gin/hardware/v5e_16x16.gin",
        "CAPACITY": "reserved",
        "RESERVATION": "my-reservation",
        "SERVICE_ACCOUNT": "trainer",
    },
    "one v6e chip": {"MACHINE": "v6e:1x1", "HARDWARE": "", "CAPACITY": "on-demand"},
    "tpu7x": {"MACHINE": "tpu7x:4x4x8", "HARDWARE": "gin/hardware/tpu7x_4x4x8.gin"},
    "h100": GPU,
}


def validate(jobset: dict[str, Any]) -> None:
    """Raises unless every field of the JobSet and of the jobs and pods in it is known and of its type."""
    validated = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(jobset))
    # from_dict drops fields that it does not know: what comes back must be what went in.
    unknown = difference(jobset, validated.to_dict())
    if unknown:
        raise ValueError(f"unknown to JobSet: {unknown}")
    for job in jobset["spec"]["replicatedJobs"]:
        template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        pod = template["spec"]["template"]
        for version in VERSIONS:
            kubernetes_validate.validate(template, version, strict=True)
            kubernetes_validate.validate(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "pod", **pod["metadata"]},
                    "spec": pod["spec"],
                },
                version,
                strict=True,
            )


def difference(given: Any, known: Any, path: str = "") -> list[str]:
    """Paths of the fields of `given` that `known` has not."""
    if isinstance(given, dict):
        if not isinstance(known, dict):
            return [path]
        missing = [f"{path}/{key}" for key in given if key not in known]
        return missing + [
            p for key in given if key in known for p in difference(given[key], known[key], f"{path}/{key}")
        ]
    if isinstance(given, list):
        pairs = zip(given, known, strict=True)
        return [p for number, (a, b) in enumerate(pairs) for p in difference(a, b, f"{path}/{number}")]
    return []


@pytest.fixture
def jobset(launcher):
    def make(**options: str) -> dict[str, Any]:
        return yaml.safe_load(written(launcher.dry("gke", **options)))

    return make


@pytest.mark.parametrize("machine", MACHINES)
def test_valid(jobset, machine):
    validate(jobset(**MACHINES[machine]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/failurePolicy/maxRestart", 3),
        ("spec/failurePolicy/rules/0/onJobFailureReason", ["PodFailurePolicy"]),
        ("spec/failurePolicy/maxRestarts", "3"),
        ("spec/replicatedJobs/0/replica", 2),
        ("spec/replicatedJobs/0/template/spec/parallelizm", 2),
        ("spec/replicatedJobs/0/template/spec/backoffLimit", "0"),
        ("spec/replicatedJobs/0/template/spec/podFailurePolicy/rules/0/onExitCode", {}),
        ("spec/replicatedJobs/0/template/spec/template/spec/restartpolicy", "Never"),
        ("spec/replicatedJobs/0/template/spec/template/spec/containers/0/volumeMount", []),
        ("spec/replicatedJobs/0/template/spec/template/spec/containers/0/env/0/value", 1),
        ("spec/replicatedJobs/0/template/spec/template/spec/volumes/0/csi/volumeAttribute", {}),
    ],
)
def test_a_misspelt_field_is_found(jobset, path, value):
    made = jobset()
    *parents, last = path.split("/")
    place = made
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    with pytest.raises((ValueError, TypeError, kubernetes_validate.ValidationError)):
        validate(made)


def job_and_pod(made: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    (replicated,) = made["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    return {"slices": replicated["replicas"], "hosts": spec["completions"], **spec}, spec["template"]["spec"]


@pytest.mark.parametrize(
    ("machine", "slices", "hosts", "selector", "resource"),
    [
        (
            "v5p",
            1,
            64,
            {"gke-tpu-accelerator": "tpu-v5p-slice", "gke-tpu-topology": "4x8x8", "gke-spot": "true"},
            ("google.com/tpu", 4),
        ),
        (
            "v5e, two slices",
            2,
            64,
            {
                "gke-tpu-accelerator": "tpu-v5-lite-podslice",
                "gke-tpu-topology": "16x16",
                "reservation-name": "my-reservation",
            },
            ("google.com/tpu", 4),
        ),
        (
            "one v6e chip",
            1,
            1,
            {"gke-tpu-accelerator": "tpu-v6e-slice", "gke-tpu-topology": "1x1"},
            ("google.com/tpu", 1),
        ),
        (
            "tpu7x",
            1,
            32,
            {"gke-tpu-accelerator": "tpu7x", "gke-tpu-topology": "4x4x8", "gke-spot": "true"},
            ("google.com/tpu", 4),
        ),
        ("h100", 1, 32, {"gke-accelerator": "nvidia-h100-80gb", "gke-spot": "true"}, ("nvidia.com/gpu", 8)),
    ],
)
def test_machine(jobset, machine, slices, hosts, selector, resource):
    job, pod = job_and_pod(jobset(**MACHINES[machine]))
    assert (job["slices"], job["hosts"], job["parallelism"]) == (slices, hosts, hosts)
    assert pod["nodeSelector"] == {f"cloud.google.com/{name}": value for name, value in selector.items()}
    assert pod["containers"][0]["resources"] == {"requests": dict([resource]), "limits": dict([resource])}
    assert ("tolerations" in pod) == ("gke-spot" in selector)


def test_what_restarts_it(jobset):
    """A mistake in the input fails the JobSet; preemptions do not count; everything else does."""
    made = jobset(MAX_RESTARTS="7")
    job, pod = job_and_pod(made)
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    mistake, preempted = policy["rules"]
    assert (mistake["action"], preempted["action"]) == ("FailJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    # As Kubernetes words it: "Container train for pod x/y failed with exit code 2 matching FailJob rule at index 0".
    assert mistake["onJobFailureMessagePatterns"] == [f".*exit code {EXIT_MISTAKE} .*"]
    codes, disruption = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [EXIT_MISTAKE, EXIT_PREEMPTED]
    assert codes["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never"), "else Kubernetes restarts single pods"


def test_command_storage_and_cache(jobset):
    made = jobset(ENVIRONMENT="('GREETING=say \"$(HOME)\" and \\\\ so on')")
    _, pod = job_and_pod(made)
    (container,) = pod["containers"]
    assert container["command"] == [
        *("python", "-m", "mimo_jax.train"),
        *("--gin_file=gin/runs/pretrain_7b_joint.gin", "--gin_file=gin/hardware/v5p_4x8x8.gin"),
        *("--gin.MODEL_DIR=/storage/mimo/runs/joint", "--gin.INIT_FROM=/storage/mimo/runs/understanding"),
        *("--gin.PREPARED=/storage/mimo/prepared", "--gin.guards.Guards.watchdog_exit=True"),
    ]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/storage/mimo/cache/jax"
    assert environment["GREETING"] == 'say "$$(HOME)" and \\\\ so on'
    storage = pod["volumes"][0]["csi"]
    assert (
        storage["driver"] == "gcsfuse.csi.storage.gke.io" and storage["volumeAttributes"]["bucketName"] == "my-bucket"
    )
    assert container["volumeMounts"][0] == {"name": "storage", "mountPath": "/storage"}


def test_pods_with_gpus_are_told_who_they_are(jobset):
    _, pod = job_and_pod(jobset(**GPU))
    environment = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "joint-7b-hosts-0-0.joint-7b:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "32"
    field = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    _, pod = job_and_pod(jobset())
    assert not [each for each in pod["containers"][0]["env"] if each["name"].startswith("JAX_NUM")]
