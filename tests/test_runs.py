"""The runs of the published sizes: gin resolves them, on every hardware file, and they are what the report says."""

from pathlib import Path
from types import SimpleNamespace

import gin
import jax
import numpy as np
import pytest

from mimo_jax import cli
from mimo_jax import compile as compile_script
from mimo_jax.models import layers
from mimo_jax.training import utilization
from mimo_jax.training.optimizer import FROZEN
from mimo_jax.training.schedule import PATCH_SECONDS

GIN = Path(__file__).parents[1] / "gin"
FILES = sorted(path.stem for path in (GIN / "hardware").glob("*_*.gin"))
HARDWARE = [name for name in FILES if not name.startswith("tokenizer_")]
OF_TOKENIZER = [name for name in FILES if name.startswith("tokenizer_")]
DEVICE = SimpleNamespace(name="a device")
RUNS = {
    "pretrain_7b_understanding": (2048, 2.6e12),
    "pretrain_7b_joint": (2048, 5e12),
    "sft_7b": (256, 1e11),
}


class Resolved(Exception):
    """Ends a run where it would be compiled."""


@pytest.fixture
def resolve(monkeypatch):
    """(objective, optimizer, hardware, batch) of a run on hardware files."""
    monkeypatch.setattr(
        compile_script.machines, "describe", lambda topology: SimpleNamespace(descriptions=(), device=DEVICE)
    )

    found = []

    def stop(machine, *arguments):
        found[:] = arguments
        raise Resolved

    monkeypatch.setattr(compile_script.steps, "compile_for", stop)

    def arguments(run, *files):
        gin.clear_config()
        cli.parse_gin([f"runs/{run}.gin", *files], [], macros=compile_script._NOT_NEEDED)
        with pytest.raises(Resolved):
            gin.get_configurable(compile_script.compile_step)(topology="v5p:4x8x8")
        return found

    yield arguments
    gin.clear_config()


@pytest.mark.parametrize("run", RUNS)
def test_runs_of_the_published_model(resolve, run):
    rows, tokens = RUNS[run]
    objective, optimizer, _, batch = resolve(run)
    assert batch["text"].shape == (rows, 8192)
    assert gin.query_parameter("%BUDGET_TOKENS") == tokens
    params = layers.unbox(
        jax.eval_shape(lambda: objective.init(jax.random.key(0), {}))[0]  # nothing is allocated
    )
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert count == 8_018_587_648
    labels = optimizer.labels(params)
    frozen = {name for name, tree in labels.items() if FROZEN in jax.tree.leaves(tree)}
    decoder = {"patch_decoder", "hidden_states_downcast", *(f"local_heads_{i}" for i in range(8))}
    assert frozen == (decoder if run == "pretrain_7b_understanding" else set())


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("run", RUNS)
def test_runs_go_with_every_hardware_file(resolve, run, hardware):
    objective, _, mesh, batch = resolve(run, f"hardware/{hardware}.gin")
    parts = 1 if run == "sft_7b" else mesh.microbatches  # its batch is an eighth, see the run's comment
    assert batch["text"].shape[0] % (mesh.data * mesh.fsdp * parts) == 0
    assert objective.compute.dtype == "bfloat16" and objective.compute.param_dtype == "float32"
    assert objective.vocab_chunk and mesh.indivisible == "error"


@pytest.mark.parametrize("hardware", OF_TOKENIZER)
@pytest.mark.parametrize("run", ["tokenizer_1b_unified", "tokenizer_1b_adversarial"])
def test_runs_of_the_published_tokenizer(resolve, run, hardware):
    objective, optimizer, mesh, batch = resolve(run, f"hardware/{hardware}.gin")
    rows, samples = batch["waveform"].shape
    assert (rows, samples) == (512, 30.72 * 24000) and rows % (mesh.data * mesh.fsdp) == 0 and mesh.microbatches == 1
    assert objective.compute.dtype == "bfloat16" and objective.compute.param_dtype == "float32"
    params, mutable = layers.unbox(jax.eval_shape(objective.init, jax.random.key(0), batch))
    optimizer.labels(params)  # every parameter is in a group

    def count(tree):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))

    tokenizer = params["tokenizer"] if "tokenizer" in params else {"encoder": mutable["encoder"], **params["generator"]}
    assert 1.2e9 < count(tokenizer) < 1.3e9
    # About six FLOPs a parameter and frame that it sees: two frames inside encoder and decoder a code frame.
    frames = rows * samples / 960
    stacks = sum(count(tokenizer[name]["transformer"]) for name in ("encoder", "decoder"))
    trained = 6 if "tokenizer" in params else 4  # a frozen encoder has no backward pass
    assert 1.0 < objective.step_flops(batch) / (trained * 2 * frames * stacks) < 1.6
    # All of a batch is audio: what the log calls utilisation counts a step's arithmetic.
    causal, full = utilization.model_flops(objective, 0, rows * 30.72 / PATCH_SECONDS, batch)
    assert causal == pytest.approx(objective.step_flops(batch)) and full > causal
