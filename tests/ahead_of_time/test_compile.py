"""The report on a compiled step: memory, traffic, estimates; a step that does not fit; topologies."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mimo_jax import compile as compile_script
from mimo_jax.ahead_of_time import batches, machines, report, steps
from mimo_jax.cli import UserError
from mimo_jax.models import cost
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training.optimizer import Optimizer
from mimo_jax.training.schedule import Budget
from tests.training.synthetic import SyntheticSource, tiny_model

DEVICE = machines.Device("test", flops=1e9, hbm_bytes=2**28, hbm_bandwidth=1e9, link=1e8, clock=None, network=1e7)


@pytest.fixture(scope="module")
def machine():
    return machines.Machine("cpu:8", "cpu", DEVICE, jax.devices()[:8])


@pytest.fixture(scope="module")
def step(machine):
    objective = LanguageModelObjective(tiny_model(), Compute(remat="full"))
    batch = batches.packed_rows(16, 12, tiny_model())
    return steps.compile_for(machine, objective, Optimizer(), Hardware(data=2, fsdp=4, microbatches=2), batch)


def test_shapes_are_those_of_batches():
    shapes = batches.packed_rows(8, 12, tiny_model())
    batch = SyntheticSource().batch(0)
    assert {k: (v.shape, v.dtype) for k, v in shapes.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}


def test_figures(step):
    figures = report.figures("joint", step, Budget(tokens=19200.0), audio_share=0.25)
    assert json.loads(json.dumps(figures)) == figures
    needed = {"fits", "peak_bytes", "hbm_bytes", "model_flops", "est_step_seconds", "est_mfu_causal", "collectives"}
    assert needed | {"compile_seconds"} <= figures.keys()
    parameters = sum(cost.parameters(tiny_model()).values())
    assert figures["parameters"] == parameters
    kinds = figures["bytes_by_kind"]
    # Sharded four ways, but for what does not divide; two moments an entry.
    assert parameters <= kinds["parameters"] <= 2 * parameters
    assert 1.9 < kinds["optimiser state"] / kinds["parameters"] < 2.1
    assert figures["fits"] and figures["peak_bytes"] == sum(kinds.values())
    expected = cost.training_flops(tiny_model(), 12, text=144, audio=48)
    assert figures["model_flops"] == pytest.approx(expected)
    assert figures["budget"]["steps"] == pytest.approx(100)
    assert figures["budget"]["est_device_hours"] == pytest.approx(100 * 8 * figures["est_step_seconds"] / 3600)
    assert figures["est_mfu_causal"] == pytest.approx(expected / (figures["est_step_seconds"] * 8 * DEVICE.flops))
    axes = {entry["axes"] for entry in figures["collectives"]}
    assert "fsdp" in axes and axes <= {"fsdp", "data", "data+fsdp"}
    assert figures["est_step_seconds"] <= figures["est_step_seconds_nothing_hidden"]


def test_the_table_says_it_all(step):
    text = report.table(report.figures("joint", step, Budget(tokens=19200.0), audio_share=0.25))
    parts = ("cpu:8", "data 2 x fsdp 4", "optimiser state", "peak", "fits", "fsdp", "MFU", "100 steps", "estimates")
    for part in parts:
        assert part in text, part


def test_what_does_not_fit_names_the_next_knob(step, machine):
    small = dataclasses.replace(step, text="", memory=dataclasses.replace(step.memory, limit=1000))
    figures = report.figures("joint", small, Budget(tokens=1.0), audio_share=0.5)
    assert not figures["fits"] and figures["est_step_seconds"] is None
    assert figures["next_knob"] == "Hardware.fsdp = 8, data = 1: the state over all devices"
    assert "NO; next: Hardware.fsdp = 8" in report.table(figures)
    no_remat = dataclasses.replace(small, objective=dataclasses.replace(small.objective, compute=Compute()))
    assert "Compute.remat" in report.next_knob(no_remat)
    once = dataclasses.replace(small, hardware=Hardware(data=2, fsdp=4))
    assert report.next_knob(once) == "Hardware.microbatches = 2 (now 1)"


def test_messages_of_compilers_that_run_out_of_memory():
    tpu = "RESOURCE_EXHAUSTED: ... Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded ..."
    assert steps._needed_bytes(tpu, 2**30) == int(19.5 * 2**30)
    temporaries = "the total memory required for HLO temporaries (6.34T) exceeds available HBM (95.74G)"
    assert steps._needed_bytes(temporaries, 2**30) == int(6.34 * 2**40)
    assert steps._needed_bytes("INVALID_ARGUMENT: something else", 0) is None


def test_bandwidth_follows_the_torus():
    chips = [SimpleNamespace(coords=[x, y, 0]) for x in range(4) for y in range(8)]
    pod = machines.Machine("v5e:4x8", "tpu", DEVICE, chips)
    assert pod.bandwidth(chips) == 2 * DEVICE.link  # two rings
    assert pod.bandwidth(chips[:8]) == DEVICE.link  # one whole dimension
    assert pod.bandwidth(chips[:4]) == DEVICE.link / 2  # half of it is a line
    slices = [SimpleNamespace(coords=[0, 0, 0], slice_index=i) for i in range(2)]
    assert pod.bandwidth(slices) == DEVICE.network
    nodes = [SimpleNamespace(process_index=i // 8) for i in range(16)]
    cluster = machines.Machine("h100:2x8", "cuda", DEVICE, nodes)
    assert cluster.bandwidth(nodes[:8]) == DEVICE.link
    assert cluster.bandwidth(nodes) == 8 * DEVICE.network and cluster.bandwidth(nodes[::8]) == DEVICE.network


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "KIND one of v4, v5e"),
        ("v5p", "write KIND:SHAPE"),
        ("h100:1x9", "at most 8"),
        ("h100:2x2x2", "NODES"),
    ],
)
def test_wrong_topologies_are_named(topology, message):
    with pytest.raises(UserError, match=message):
        machines.describe(topology)


def test_without_the_compiler_the_way_to_it_is_named():
    pytest.importorskip("jax")
    if machines_have_libtpu():
        pytest.skip("libtpu is installed")
    with pytest.raises(UserError, match="launch/compile.sh"):
        machines.describe("v5p:2x2x2")


def machines_have_libtpu():
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None


def test_step_of_a_run_by_function(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machines, "describe", lambda topology: machine)
    objective = LanguageModelObjective(tiny_model())
    figures = compile_script.compile_step(
        name="joint",
        objective=objective,
        optimizer=Optimizer(),
        budget=Budget(steps=3),
        hardware=Hardware(fsdp=8, data=1),
        batch=batches.packed_rows(8, 12, tiny_model()),
        topology="cpu:8",
        json_file=str(tmp_path / "figures.json"),
        hlo_file=str(tmp_path / "step.txt"),
    )
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert "ENTRY" in (tmp_path / "step.txt").read_text()
    assert "joint on cpu:8: 8 devices" in capsys.readouterr().out
    assert figures["budget"] is None and np.isfinite(figures["est_step_seconds"])
