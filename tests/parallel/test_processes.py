"""Eight devices of two processes compute what eight devices of one do; the partitioner has nothing to complain of."""

import numpy as np
import pytest

from mimo_jax.parallel.mesh import Hardware
from tests.parallel.runs import in_two_processes, run, start

PROCESS = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
address, index, axes, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if address:
    jax.distributed.initialize(address, num_processes=2, process_id=index)
from mimo_jax.parallel.mesh import Hardware
from tests.parallel.runs import Rows, run
hardware = Hardware(**{name: int(size) for name, size in (pair.split("=") for pair in axes.split(","))})
print("LOSSES", *run(hardware, source=Rows(index, 2 if address else 1), steps=steps)[:, 0])
"""


def check_two_processes(hardware, axes, steps):
    outputs = in_two_processes(PROCESS, axes, steps)
    lines = [line for out in outputs for line in out.splitlines() if line.startswith("LOSSES")]
    losses = [np.array(line.split()[1:], float) for line in lines]
    assert len(losses) == 2
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_allclose(losses[0], run(hardware, steps=steps)[:, 0], rtol=1e-4)


def test_two_processes():
    check_two_processes(Hardware(data=2, fsdp=2, tensor=2), "data=2,fsdp=2,tensor=2", 5)


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["data=1,fsdp=8", "slice=2,data=1,fsdp=4", "data=4,sequence=2"])
def test_two_processes_on_other_meshes(axes):
    sizes = {name: int(size) for name, size in (pair.split("=") for pair in axes.split(","))}
    check_two_processes(Hardware(**sizes), axes, 20)


def warnings(axes):
    process = start(PROCESS, "", 0, axes, 1, devices=8, TF_CPP_MIN_LOG_LEVEL="0", JAX_ENABLE_COMPILATION_CACHE="false")
    out, errors = process.communicate(timeout=1200)
    assert process.returncode == 0 and "LOSSES" in out, errors[-3000:]
    return [line for line in errors.splitlines() if "rematerialization" in line]


def test_no_full_rematerialization():
    assert not warnings("data=2,fsdp=4")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["data=1,fsdp=8", "data=1,fsdp=2,sequence=2,tensor=2"])
def test_no_full_rematerialization_on_other_meshes(axes):
    assert not warnings(axes)
