"""Compiled programs are read right: loops turn, collectives are counted with their bytes and groups."""

import textwrap

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


TPU = textwrap.dedent(
    """\
    HloModule jit_step, is_scheduled=true

    %all-reduce-scatter.3.clone (input: bf16[64,128]) -> bf16[16,128] {
      %input = bf16[64,128]{1,0} parameter(0)
      %all-reduce.9 = bf16[64,128]{1,0} all-reduce(%input), channel_id=4, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
      ROOT %dynamic-slice.1 = bf16[16,128]{1,0} dynamic-slice(%all-reduce.9, %c), dynamic_slice_sizes={16,128}
    }

    %cond.1 (p: (s32[], bf16[64,128])) -> pred[] {
      %constant.5 = s32[]{:T(128)} constant(36)
      %p = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
      %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
      ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.5), direction=LT
    }

    %body.1 (p.1: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
      %p.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
      %x = bf16[64,128]{1,0} get-tuple-element(%p.1), index=1
      %fusion.2 = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3.clone, metadata={op_name="jit(step)/scatter"}
      %all-gather.7 = bf16[64,128]{1,0} all-gather(%fusion.2), channel_id=5, replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, metadata={op_name="jit(step)/gather"}
      %dot.1 = bf16[64,128]{1,0} fusion(%all-gather.7), kind=kOutput, calls=%nothing, backend_config={"estimated_cycles":"1000"}
      %kernel.2 = bf16[64,128]{1,0} custom-call(%dot.1), custom_call_target="tpu_custom_call", frontend_attributes={
    "block": 1024
    }}, metadata={op_name="jit(step)/splash_mha_fwd"}
      %odd.1 = bf16[64,128]{1,0} copy(%dot.1), backend_config={"estimated_cycles":"9223372036854775807"}
      ROOT %tuple.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}) tuple(%i, %odd.1)
    }

    %nothing (q: bf16[64,128]) -> bf16[64,128] {
      ROOT %q = bf16[64,128]{1,0} parameter(0)
    }, execution_thread="sparsecore"

    ENTRY %main.5_spmd (a: bf16[64,128]) -> bf16[64,128] {
      %a = bf16[64,128]{1,0} parameter(0)
      %while.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}) while(%a), condition=%cond.1, body=%body.1
      %all-reduce.1 = f32[8]{0} all-reduce(%a), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add, backend_config={"estimated_cycles":"5"}
      %collective-permute-start.1 = (bf16[32]{0}, bf16[32]{0}) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
      ROOT %b = bf16[64,128]{1,0} get-tuple-element(%while.1), index=1
    }
    """
)


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
