"""Compiled programs are read right: loops turn, collectives are counted with their bytes and groups."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mimo_jax.ahead_of_time.hlo import Program, shape_bytes
from mimo_jax.cli import UserError


def test_bytes_of_shapes():
    assert shape_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert shape_bytes("(f32[2,3], s32[], pred[7])") == 24 + 4 + 7
    assert shape_bytes("f8e4m3fn[16]") == 16 and shape_bytes("s4[16]") == 8
    assert shape_bytes("token[]") == 0


def compiled(layers, width, rows):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernels = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))

    def forward(kernels, x):
        def layer(x, kernel):
            whole = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x, kernels)[0].sum()

    return mesh, jax.jit(forward).lower(kernels, x).compile()


def test_a_scan_over_gathered_layers():
    layers, width = 7, 64
    mesh, program = compiled(layers, width, 16)
    found = Program(program.as_text()).collectives()
    gathers = [c for c in found if c.kind == "all-gather"]
    # The kernels are gathered over fsdp, layer by layer (or all at once, if the compiler hoists it).
    assert sum(c.count * c.bytes for c in gathers) == layers * width * width * 4
    for gather in gathers:
        assert gather.devices == 4
        assert sorted(map(sorted, gather.groups.tolist())) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert gather.sent_bytes == gather.bytes * 3 / 4
    reduced = [c for c in found if c.kind == "all-reduce"]
    assert reduced and all(c.bytes == 4 for c in reduced)


TPU = Path(__file__).with_name("tpu_step.hlo").read_text()  # in the form of what libtpu 0.0.42 writes, shortened


def test_what_the_tpu_compiler_writes():
    program = Program(TPU)
    found = {collective.kind: collective for collective in program.collectives()}
    scatter, gather = found["reduce-scatter"], found["all-gather"]
    assert (scatter.count, scatter.bytes, scatter.devices) == (36, 64 * 128 * 2, 4)
    assert scatter.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (gather.count, gather.op_name) == (36, "jit(step)/gather")
    # [2, 4] transposed is 4 x 2: its first axis joins devices that are 0, 4, 1, 5 ... apart.
    assert gather.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    reduced = found["all-reduce"]
    assert (reduced.count, reduced.bytes) == (1, 32) and reduced.sent_bytes == 32
    assert reduced.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert found["collective-permute"].in_background and found["collective-permute"].groups.tolist() == [[0, 1], [1, 0]]
    assert program.compute_cycles() == 36 * 1000 + 5
    kernels = [(line.op_name, times) for line, times, _ in program.executed() if line.opcode == "custom-call"]
    assert kernels == [("jit(step)/splash_mha_fwd", 36)]


def test_another_format_is_an_error():
    with pytest.raises(UserError, match="no ENTRY"):
        Program("module @jit_step {}")


def test_groups_of_every_form_agree():
    from mimo_jax.ahead_of_time.hlo import _groups

    listed = _groups("replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}")
    iota = _groups("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}")
    assert np.array_equal(listed, iota) and listed.shape == (4, 2)
    assert _groups("dimensions={0}") is None
