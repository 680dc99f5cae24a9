"""The figures of a compiled step, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimo_jax.ahead_of_time import estimates
from mimo_jax.ahead_of_time.hlo import Program
from mimo_jax.ahead_of_time.steps import CompiledStep
from mimo_jax.models import cost
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.training.schedule import PATCH_SECONDS, Budget
from mimo_jax.training.utilization import model_flops

BACKWARD_KERNEL = 2.5
"""FLOPs of a flash attention's backward pass over its forward pass: five products instead of two."""
# Executed over model FLOPs: what a policy computes a second time in the backward pass.
_RECOMPUTATION = {"none": 1.0, "dots": 1.0}
_FULL_RECOMPUTATION = 4 / 3
_GIB = 2.0**30


def figures(name: str, step: CompiledStep, budget: Budget, audio_share: float) -> dict[str, Any]:
    """All figures of a step; those that need a compiled program are None where it did not fit."""
    memory, devices = step.memory, step.mesh.devices.size
    rows, context = _rows_and_context(step)
    positions = rows * context
    audio = positions * audio_share
    seconds_of_audio = _seconds_of_audio(step)
    if seconds_of_audio is None:
        flops = model_flops(step.objective, positions - audio, audio, step.batch)
    else:
        flops = model_flops(step.objective, 0.0, seconds_of_audio / PATCH_SECONDS, step.batch)
    result: dict[str, Any] = {
        "stage": name,
        "topology": step.machine.topology,
        "devices": devices,
        "device": step.machine.device.name,
        "mesh": {axis: int(size) for axis, size in step.mesh.shape.items()},
        "microbatches": step.hardware.microbatches,
        "parameters": step.parameters,
        "fits": memory.fits,
        "peak_bytes": int(memory.peak),
        "hbm_bytes": memory.limit,
        "bytes_by_kind": {**memory.kinds, "temporary": memory.temporary, "program": memory.program},
        "next_knob": None if memory.fits else next_knob(step),
        "tokens_per_step": positions if seconds_of_audio is None else None,
        "audio_share": audio_share if seconds_of_audio is None else None,
        "audio_hours_per_step": None if seconds_of_audio is None else seconds_of_audio / 3600,
        "model_flops": None if flops is None else flops[0],
        "model_flops_full_attention": None if flops is None else flops[1],
        "compile_seconds": round(step.seconds, 1),
        "est_step_seconds": None,
        "est_step_seconds_nothing_hidden": None,
        "est_compute_seconds": None,
        "est_communication_seconds": None,
        "est_hideable_seconds": None,
        "est_mfu_causal": None,
        "est_mfu_full": None,
        "collectives": None,
        "budget": None,
        "est_audio_hours_per_second_per_device": None,
    }
    if step.text:
        result |= _speed(step, flops, positions, devices)
        if seconds_of_audio is not None:
            result |= _audio_cost(result, seconds_of_audio / 3600, budget.audio_hours, devices)
        if budget.tokens:
            count = budget.tokens / positions
            seconds = count * result["est_step_seconds"]
            result["budget"] = {
                "tokens": budget.tokens,
                "steps": count,
                "est_days": seconds / 86400,
                "est_device_hours": seconds * devices / 3600,
            }
    return result


def _seconds_of_audio(step: CompiledStep) -> float | None:
    """Of a batch of waveforms, its rows full; None for other batches."""
    if "waveform" not in step.batch:
        return None
    rows, samples = step.batch["waveform"].shape
    return rows * samples / step.objective.config.sampling_rate  # type: ignore[attr-defined]


def _audio_cost(result: Mapping[str, Any], hours_per_step: float, wanted: float | None, devices: int) -> dict[str, Any]:
    seconds = result["est_step_seconds"]
    cost_of: dict[str, Any] = {"est_audio_hours_per_second_per_device": hours_per_step / seconds / devices}
    if wanted:
        steps = wanted / hours_per_step
        cost_of["budget"] = {
            "audio_hours": wanted,
            "steps": steps,
            "est_days": steps * seconds / 86400,
            "est_device_hours": steps * seconds * devices / 3600,
        }
    return cost_of


def _rows_and_context(step: CompiledStep) -> tuple[int, int]:
    shape = next(iter(step.batch.values())).shape
    return shape[0], shape[1] if len(shape) > 1 else 1


def _speed(step: CompiledStep, flops: tuple[float, float] | None, positions: int, devices: int) -> dict[str, Any]:
    program = Program(step.text)
    found = estimates.traffic(program, step.machine, step.mesh)
    causal = flops[0] / devices if flops else 0.0
    remat = getattr(getattr(step.objective, "compute", None), "remat", "none")
    time = estimates.step_time(
        program,
        step.machine,
        found,
        kernel_flops=_kernel_flops(step, program, positions / devices),
        executed_flops=causal * _RECOMPUTATION.get(remat, _FULL_RECOMPUTATION),
    )
    available = time.best * devices * step.machine.device.flops
    return {
        "est_step_seconds": time.best,
        "est_step_seconds_nothing_hidden": time.worst,
        "est_compute_seconds": time.compute,
        "est_communication_seconds": time.communication,
        "est_hideable_seconds": time.hideable,
        "est_mfu_causal": flops[0] / available if flops else None,
        "est_mfu_full": flops[1] / available if flops else None,
        "collectives": [
            {"kind": t.kind, "axes": t.axes, "count": t.count, "bytes": t.bytes, "est_seconds": t.seconds}
            for t in found
        ],
    }


def _kernel_flops(step: CompiledStep, program: Program, positions: float) -> float:
    """FLOPs of the attention kernels on one device: the compiler's estimates leave them out."""
    if not isinstance(step.objective, LanguageModelObjective):
        return 0.0
    calls = [
        (line.op_name, times)
        for line, times, _ in program.executed()
        if line.opcode == "custom-call" and "splash" in line.op_name
    ]
    if not calls:
        return 0.0
    llm, (_, context) = step.objective.model.llm, _rows_and_context(step)
    forward = sum(times for op_name, times in calls if "_fwd" in op_name)
    executions = forward / (llm.num_layers * step.hardware.microbatches)
    return positions * cost.attention_flops(llm, context, causal=True) * (executions + BACKWARD_KERNEL)


def next_knob(step: CompiledStep) -> str:
    """What to change first in the hardware gin when the step does not fit."""
    hardware, mesh = step.hardware, step.mesh
    rows, _ = _rows_and_context(step)
    shards = mesh.size // (mesh.shape["sequence"] * mesh.shape["tensor"])
    compute = getattr(step.objective, "compute", None)
    if compute is not None and compute.remat != "full":
        return f"Compute.remat = 'full' (now {compute.remat!r})"
    if rows // shards // hardware.microbatches > 1:
        return f"Hardware.microbatches = {2 * hardware.microbatches} (now {hardware.microbatches})"
    if mesh.shape["data"] > 1:
        return f"Hardware.fsdp = {mesh.shape['fsdp'] * mesh.shape['data']}, data = 1: the state over all devices"
    if getattr(step.objective, "vocab_chunk", 1) > 512:
        return "LanguageModelObjective.vocab_chunk = 512"
    if mesh.shape["tensor"] == 1:
        return "Hardware.tensor = 2: weights and activations over two devices"
    return "Optimizer.moment_dtype = 'bfloat16', or more devices"


def table(result: Mapping[str, Any]) -> str:
    """The figures for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1)
    lines = [
        f"{result['stage']} on {result['topology']}: {result['devices']} devices ({result['device']}), mesh {mesh}, "
        f"{result['microbatches']} microbatches",
        _row("parameters", f"{result['parameters'] / 1e9:.3f} B"),
        _work(result),
        "memory of a device (GiB)",
        *(_row(f"  {kind}", f"{size / _GIB:9.3f}") for kind, size in result["bytes_by_kind"].items()),
        _row("  peak", f"{result['peak_bytes'] / _GIB:9.3f} of {result['hbm_bytes'] / _GIB:.2f}"),
        _row("  fits", "yes" if result["fits"] else f"NO; next: {result['next_knob']}"),
    ]
    if result["model_flops"]:
        lines.append(
            _row(
                "model FLOPs a step",
                f"{result['model_flops']:.4g} (full attention {result['model_flops_full_attention']:.4g})",
            )
        )
    if result["collectives"] is not None:
        lines += _speed_lines(result)
    lines.append(_row("compiled in", f"{result['compile_seconds']:.0f} s"))
    return "\n".join(lines)


def _work(result: Mapping[str, Any]) -> str:
    if result["tokens_per_step"] is None:
        return _row("audio a step", f"{result['audio_hours_per_step']:.2f} hours, rows full")
    return _row("tokens a step", f"{result['tokens_per_step'] / 1e6:.2f} M, {100 * result['audio_share']:.0f} % audio")


def _speed_lines(result: Mapping[str, Any]) -> Sequence[str]:
    lines = ["collectives of a step on a device      count        GiB   est. seconds"]
    for entry in result["collectives"]:
        if entry["est_seconds"] >= 5e-4 or entry["bytes"] >= 2**20:
            name = f"  {entry['kind']:<18} {entry['axes']:<16} {entry['count']:7d}"
            lines.append(f"{name} {entry['bytes'] / _GIB:10.2f} {entry['est_seconds']:14.3f}")
    communication, hideable = result["est_communication_seconds"], result["est_hideable_seconds"]
    share = hideable / communication if communication else 0.0
    step, slowest = result["est_step_seconds"], result["est_step_seconds_nothing_hidden"]
    lines += [
        "estimates (arithmetic, not measured)",
        _row("  compute", f"{result['est_compute_seconds']:.2f} s"),
        _row("  communication", f"{communication:.2f} s, of which {100 * share:.0f} % can be hidden"),
        _row("  step", f"{step:.2f} s; {slowest:.2f} s if nothing is hidden"),
    ]
    if rate := result["est_audio_hours_per_second_per_device"]:
        lines.append(_row("  audio", f"{rate:.4f} hours a second and device, {3600 * rate:.0f} x real time"))
    if result["est_mfu_causal"] is not None:
        lines.append(
            _row("  MFU", f"{result['est_mfu_causal']:.1%} causal, {result['est_mfu_full']:.1%} full attention")
        )
    if result["budget"]:
        budget = result["budget"]
        what = f"{budget['tokens']:.3g} tokens" if "tokens" in budget else f"{budget['audio_hours']:.3g} hours of audio"
        lines.append(
            _row(
                "  the stage's budget",
                f"{what} = {budget['steps']:,.0f} steps, {budget['est_days']:.1f} days, "
                f"{budget['est_device_hours']:,.0f} device-hours",
            )
        )
    return lines


def _row(name: str, value: str) -> str:
    return f"{name:<28} {value}"
