"""The run files of adapters: gin resolves them, on machines of other kinds too, and they are what they say."""

from __future__ import annotations

from types import SimpleNamespace

import gin
import jax
import jax.numpy as jnp
import pytest

from mimo_jax import cli
from mimo_jax import compile as compile_script
from mimo_jax.models import layers
from mimo_jax.objectives.lora import Lora
from mimo_jax.training.optimizer import FROZEN

KEY = jax.random.key(1)


@pytest.fixture
def no_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.mark.parametrize("hardware", [None, "h100_1x8", "v5p_4x8x8"])
def test_the_run_of_the_published_model(no_gin, monkeypatch, hardware):
    found = []
    machine = SimpleNamespace(descriptions=(), device=SimpleNamespace(name="a device"))
    monkeypatch.setattr(compile_script.machines, "describe", lambda topology: machine)
    monkeypatch.setattr(compile_script.steps, "compile_for", lambda machine, *rest: found.append(rest) or 1 / 0)
    files = ["runs/sft_7b_lora.gin", *([f"hardware/{hardware}.gin"] if hardware else [])]
    cli.parse_gin(files, [], macros=compile_script._NOT_NEEDED)
    with pytest.raises(ZeroDivisionError):
        gin.get_configurable(compile_script.compile_step)(topology="h100:1x8")
    objective, optimizer, mesh, batch = found[0]
    assert isinstance(objective, Lora) and batch["text"].shape == (256, 8192)
    params, mutable = layers.unbox(jax.eval_shape(lambda: objective.init(KEY, {})))
    assert sum(x.size for x in jax.tree.leaves(params)) == 41_435_136
    assert sum(x.size for x in jax.tree.leaves(mutable)) == 8_018_587_648
    assert {x.dtype for x in jax.tree.leaves(mutable)} == {jnp.dtype("bfloat16")}
    assert FROZEN not in jax.tree.leaves(optimizer.labels(params))
    assert hardware is None or (objective.compute.dtype == "bfloat16" and objective.vocab_chunk)
    assert hardware is None or len(batch["text"]) % (mesh.data * mesh.fsdp) == 0


def test_the_small_run(no_gin, tmp_path):
    bindings = [f"{name} = '{tmp_path}'" for name in ("MODEL_DIR", "PREPARED", "INIT_FROM", "EXPORT_DIR")]
    cli.parse_gin(["runs/quickstart/sft_lora.gin"], [*bindings, "vocabulary.fit_model.prepared = None"])
    from mimo_jax.train import train

    objective = gin.get_bindings(train, resolve_references=False)["objective"].scoped_configurable_fn()
    assert isinstance(objective, Lora) and (objective.rank, objective.alpha, objective.scale) == (8, 16.0, 2.0)
    assert gin.query_parameter("%STAGE") == "sft_lora"
    params = layers.unbox(jax.eval_shape(lambda: objective.init(KEY, {})[0]))
    optimizer = gin.get_bindings(train, resolve_references=False)["optimizer"].scoped_configurable_fn()
    assert set(jax.tree.leaves(optimizer.labels(params))) == {"group_0"}
    assert optimizer.groups[0].learning_rate == 2e-3 and optimizer.groups[0].weight_decay == 0
    assert gin.get_bindings(train, resolve_references=False)["export"] is not None
