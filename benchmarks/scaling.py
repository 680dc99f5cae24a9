"""Step time against tokens a batch, layers and audio share: cost should grow linearly in each.

    python benchmarks/scaling.py [--steps 5] [--rounds 3] [--plot FILE.png]

A small language model with patch encoder and decoder on one device; each sweep changes one thing. The sizes of a sweep
are measured in turns and their medians fitted by a line; R^2 says how good it is. The audio share is that of the batch
and of the buffers' capacity, as a run would set it. Prints a table and, as the last line, one JSON object. `--plot`
needs matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn

from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware, put_batch
from mimo_jax.training import program
from mimo_jax.training.optimizer import Optimizer

CONTEXT = 256
MODEL = MimoAudioConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    local_dim=128,
    local_layers=2,
    local_attn_heads=8,
    local_ffn_dim=256,
    input_local_dim=128,
    input_local_layers=2,
    empty_token_id=2047,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One size: rows of `CONTEXT` positions, layers of the LLM, share of positions that hold a patch."""

    rows: int = 8
    layers: int = 4
    audio: float = 0.5


SWEEPS: dict[str, dict[float, Case]] = {
    "tokens a batch": {rows * CONTEXT: Case(rows=rows) for rows in (4, 8, 12, 16, 24)},
    "layers": {layers: Case(layers=layers) for layers in (2, 4, 6, 8, 12)},
    "audio share": {share: Case(audio=share) for share in (0.125, 0.25, 0.5, 0.75, 1.0)},
}


def batch_of(case: Case) -> dict[str, np.ndarray]:
    """Random rows of one segment whose first positions hold patches."""
    rng, shape = np.random.default_rng(0), (case.rows, CONTEXT)
    text = rng.integers(0, MODEL.vocab_size - 1, shape).astype(np.int32)
    text[:, : int(case.audio * CONTEXT)] = MODEL.empty_token_id
    return {
        "text": text,
        "audio": rng.integers(0, 128, (*shape, MODEL.group_size, MODEL.audio_channels)).astype(np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), shape).copy(),
        "loss_mask": np.ones(shape, bool),
    }


def stepper(case: Case) -> Callable[[int], float]:
    """`f(steps) -> seconds a step`, compiled and warm."""
    model = dataclasses.replace(MODEL, num_hidden_layers=case.layers)
    # The first position of a row is no target, so the decoder's buffer is never quite full.
    objective = LanguageModelObjective(model, Compute(), patch_capacity=case.audio)
    hardware = Hardware(data=1)
    mesh, batch = hardware.make_mesh(jax.devices()[:1]), batch_of(case)
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
        stage = program.build(objective, Optimizer(), hardware, mesh, shapes)
        placed = put_batch(batch, mesh)
        state = stage.init(jax.random.key(0), placed)

    def run(steps: int) -> float:
        nonlocal state
        with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
            begin = time.perf_counter()
            for _ in range(steps):
                state, metrics = stage.train_step(state, placed, np.float32(0.5), np.float32(np.inf))
            if float(metrics["patch_overflow"]):
                raise RuntimeError(f"{case}: patches found no room, the work is not that of the batch")
            return (time.perf_counter() - begin) / steps

    run(2)
    return run


def fit(points: dict[float, float]) -> tuple[float, float, float]:
    """(slope, intercept, R^2) of the line through points."""
    x, y = np.array(list(points)), np.array(list(points.values()))
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    return float(slope), float(intercept), float(1 - residual.var() / y.var())


def plot(results: dict[str, dict[float, float]], file: str) -> None:
    """One panel a sweep: measured points and the fitted line."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(12, 3.4), constrained_layout=True)
    for panel, (name, points) in zip(panels, results.items(), strict=True):
        slope, intercept, quality = fit(points)
        ends = np.array([0, max(points)])
        panel.plot(ends, slope * ends + intercept, color="0.7", label=f"line, $R^2$ = {quality:.3f}")
        panel.plot(list(points), list(points.values()), "o", label="measured")
        panel.set(xlabel=name, ylabel="seconds a step", xlim=(0, None), ylim=(0, None))
        panel.legend(loc="upper left")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", help="picture to write")
    arguments = parser.parse_args()
    results, summary = {}, {}
    for name, cases in SWEEPS.items():
        steppers = {size: stepper(case) for size, case in cases.items()}
        seconds: dict[float, list[float]] = {size: [] for size in cases}
        for _ in range(arguments.rounds):
            for size, run in steppers.items():
                seconds[size].append(run(arguments.steps))
        results[name] = {size: statistics.median(values) for size, values in seconds.items()}
        slope, intercept, quality = fit(results[name])
        print(f"{name:<16} {'s/step':>8} {'line':>8}")
        for size, value in results[name].items():
            print(f"{size:<16g} {value:8.4f} {slope * size + intercept:8.4f}")
        print(f"R^2 = {quality:.4f}\n")
        summary[name.replace(" ", "_") + "_r2"] = round(quality, 4)
    if arguments.plot:
        plot(results, arguments.plot)
    print(json.dumps({"device": jax.devices()[0].device_kind, **summary}))


if __name__ == "__main__":
    main()
