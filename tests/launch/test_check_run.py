"""The check of a run's gin files against a machine."""

from __future__ import annotations

import gin
import pytest

from mimo_jax import check_run

HARDWARE = "mesh.Hardware."


@pytest.fixture
def check(capsys):
    """Exit code and what is said, for a machine and bindings."""

    def run(devices: int, processes: int, *bindings: str, slices: int = 1) -> tuple[int, str]:
        gin.clear_config()
        flags = [f"--devices={devices}", f"--processes={processes}", f"--slices={slices}", "--gin.MODEL_DIR=/x"]
        code = check_run.main(["--gin_file=tests/launch/run.gin", *flags, *(f"--gin.{each}" for each in bindings)])
        return code, "".join(capsys.readouterr())

    yield run
    gin.clear_config()


def test_fits(check):
    assert check(8, 2, f"{HARDWARE}data=2", f"{HARDWARE}fsdp=4") == (
        0,
        "tests/launch/run.gin: data 2, fsdp 4 = 8 devices of 2 process(es): fits\n",
    )
    assert check(1, 1)[0] == 0


@pytest.mark.parametrize(
    ("devices", "processes", "slices", "bindings", "message"),
    [
        (16, 4, 1, ("data=2", "fsdp=4"), "does not fit 16 devices"),
        (16, 4, 2, ("data=16",), "Hardware.slice = 1, but the machine has 2 slices"),
        (8, 4, 1, ("data=2", "tensor=4"), "4 devices share a row, but a process has 2"),
        (16, 2, 1, ("data=16",), "a batch of 8 rows does not divide over"),
        (8, 2, 1, ("data=8", "microbatches=2"), "choose a batch that is a multiple of 16"),
        (9, 2, 1, (), "--devices=9 do not divide into --processes=2"),
        (8, 2, 1, ("dta=8",), "gin: "),
    ],
)
def test_what_does_not_fit_is_named(check, devices, processes, slices, bindings, message):
    code, said = check(devices, processes, *(HARDWARE + binding for binding in bindings), slices=slices)
    assert code == 2 and "error: " in said and message in said
