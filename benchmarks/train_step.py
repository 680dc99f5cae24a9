"""Tokens per second of our train step against PyTorch's of the same shape, on the same device in one run.

    python benchmarks/train_step.py [--shape cpu|gpu] [--rounds 5] [--steps 3]

A Qwen2 language model on text: ours (`LanguageModelObjective`, text loss alone, AdamW with gradient clipping and the
guard against non-finite updates) against `transformers`' Qwen2 with SDPA, cross entropy, clipping and fused AdamW. On a
GPU both compute in bfloat16 with float32 parameters, at the widths of the 7B and as many layers as fit; on a CPU in
float32. PyTorch is taken as it comes and through `torch.compile`, and the faster one counts. Our rows are packed: four
segments in each. PyTorch's rows are one segment, which spares it the mask (its fastest path).

Each contender has a process of its own and they are measured in turns; the figures are medians. Prints a table and, as
the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the model and its batch."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    context: int
    dtype: str
    segments: int = 4


SHAPES = {
    "cpu": Shape(8192, 512, 1376, 6, 8, 2, 64, rows=4, context=512, dtype="float32"),
    "gpu": Shape(151680, 4096, 11008, 4, 32, 8, 128, rows=2, context=8192, dtype="bfloat16"),
}
CONTENDERS = ("ours", "torch", "torch compiled")


def text(shape: Shape) -> np.ndarray:
    """Random ids [rows, context]."""
    return np.random.default_rng(0).integers(0, shape.vocab_size - 16, (shape.rows, shape.context)).astype(np.int32)


def ours(shape: Shape) -> tuple[Callable[[], float], dict[str, Any]]:
    """A step that returns its loss, and what is known of it."""
    import jax
    from flax import linen as nn

    from mimo_jax.models import cost
    from mimo_jax.models.mimo_audio import MimoAudioConfig
    from mimo_jax.models.transformer import Compute
    from mimo_jax.objectives.language_model import LanguageModelObjective
    from mimo_jax.parallel.mesh import Hardware, put_batch
    from mimo_jax.training import program
    from mimo_jax.training.optimizer import Group, Optimizer
    from mimo_jax.training.utilization import peak_flops

    model = MimoAudioConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        empty_token_id=shape.vocab_size - 1,
        # There is no audio: the smallest patch models, which nothing reaches.
        local_dim=64,
        local_layers=1,
        local_attn_heads=4,
        local_ffn_dim=64,
        input_local_dim=64,
        input_local_layers=1,
    )
    on_gpu = shape.dtype == "bfloat16"
    compute = Compute(
        dtype=shape.dtype, attention="cudnn" if on_gpu else "xla", remat="full" if on_gpu else "none",
        unroll=1 if on_gpu else shape.layers,
    )  # fmt: skip
    objective = LanguageModelObjective(
        model, compute, codebook_weights=(0.0,) * 8, patch_capacity=1e-9, vocab_chunk=1024 if on_gpu else 0
    )
    groups = (Group("patch_|speech_|local_|hidden_", 0.0), Group(".*", 1e-4, weight_decay=0.1))
    ids = text(shape)
    each = shape.context // shape.segments
    batch = {
        "text": ids,
        "audio": np.zeros((*ids.shape, 4, 8), np.int32),
        "segment_ids": np.broadcast_to(np.arange(shape.context) // each + 1, ids.shape).astype(np.int32),
        "positions": np.broadcast_to(np.arange(shape.context) % each, ids.shape).astype(np.int32),
        "loss_mask": np.ones(ids.shape, bool),
    }
    hardware = Hardware()
    mesh = hardware.make_mesh()
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
        stage = program.build(objective, Optimizer(groups), hardware, mesh, shapes)
        placed = put_batch(batch, mesh)
        state = stage.init(jax.random.key(0), placed)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
            state, metrics = stage.train_step(state, placed, np.float32(0.5), np.float32(np.inf))
            return float(metrics["loss"])

    flops = [cost.training_flops(model, shape.context, ids.size, 0, causal=causal) for causal in (True, False)]
    return step, {"flops": flops, "peak": peak_flops(jax.devices()[0]), "device": jax.devices()[0].device_kind}


def torch_step(shape: Shape, compiled: bool) -> tuple[Callable[[], float], dict[str, Any]]:
    """As `ours`, with PyTorch."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.float32).train()
    if shape.dtype == "bfloat16":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(text(shape).astype(np.int64)).to(device)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=shape.dtype == "bfloat16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, {}


def contend(name: str, shape: Shape, steps: int) -> None:
    """One contender's process: a line once it is warm, then a line with seconds a step for each line it reads."""
    make = {"ours": ours, "torch": lambda s: torch_step(s, False), "torch compiled": lambda s: torch_step(s, True)}
    step, facts = make[name](shape)
    losses = [step(), step()]
    print(json.dumps({"ready": True, "losses": losses, **facts}), flush=True)
    for _ in sys.stdin:
        step()  # the first after a pause finds its memory and caches taken by another contender
        begin = time.perf_counter()
        for _ in range(steps):
            losses.append(step())
        print(json.dumps({"seconds": (time.perf_counter() - begin) / steps, "loss": losses[-1]}), flush=True)


class Contender:
    """A contender's process, seen from the benchmark."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        command = [sys.executable, __file__, "--contender", name, "--shape", arguments.shape]
        command += ["--steps", str(arguments.steps)]
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"it ended with exit code {self._process.wait()}")

    def measure(self) -> float:
        """Seconds a step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process and frees its device."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds a step of every contender that runs, and facts about ours."""
    seconds: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    together = arguments.shape == "cpu"  # a GPU's memory holds one at a time
    waiting: dict[str, Contender] = {}
    for name in CONTENDERS:
        try:
            contender = Contender(name, arguments)
        except RuntimeError as error:
            print(f"{name}: does not run here ({error})", file=sys.stderr)
            continue
        facts = contender.facts if name == "ours" else facts
        waiting[name] = contender
        if not together:
            seconds[name] = [contender.measure() for _ in range(arguments.rounds)]
            contender.close()
    if together:
        for _ in range(arguments.rounds):
            for name, contender in waiting.items():
                seconds.setdefault(name, []).append(contender.measure())
        for contender in waiting.values():
            contender.close()
    return seconds, facts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.contender:
        contend(arguments.contender, shape, arguments.steps)
        return
    seconds, facts = measure(arguments)
    tokens = shape.rows * shape.context
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{facts['device']}, {shape}")
    print(f"{'':<16} {'s/step':>9} {'tokens/s':>10} {'MFU causal':>11} {'MFU full':>9}")
    result: dict[str, Any] = {"shape": arguments.shape, "device": facts["device"]}
    for name, value in medians.items():
        rates = [flops / value / facts["peak"] if facts["peak"] else None for flops in facts["flops"]]
        shown = [f"{rate:.1%}" if rate is not None else "-" for rate in rates]
        print(f"{name:<16} {value:9.3f} {tokens / value:10.0f} {shown[0]:>11} {shown[1]:>9}")
        result[name.replace(" ", "_") + "_tokens_per_second"] = round(tokens / value, 1)
        if name == "ours":
            result["mfu_causal"], result["mfu_full"] = rates
    rivals = [value for name, value in medians.items() if name != "ours"]
    result["ratio"] = round(min(rivals) / medians["ours"], 3) if rivals else None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
