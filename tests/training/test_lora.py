"""Adapters: what they compute, what of them is trained, stored and read again, and the files of their runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec

from mimo_jax import replay
from mimo_jax.cli import UserError
from mimo_jax.interop import hf, trained
from mimo_jax.models import layers
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.objectives.lora import BASE, Lora
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import lora, program, utilization, warm_start
from mimo_jax.training.checkpoints import latest_step, stored_params
from mimo_jax.training.optimizer import FROZEN, Group, Optimizer
from mimo_jax.training.schedule import Schedule
from tests.training.job import FirstDevices, HostRows, job
from tests.training.synthetic import SyntheticSource, tiny_model

MODEL = LanguageModelObjective(model=tiny_model())
ALL = (
    "(llm|patch_(en|de)coder)/layers/.*_proj/kernel",
    "lm_head/kernel",
    "(speech_group|hidden_states)_downcast/kernel",
    "local_heads_3/kernel",
)
SMALL = Lora(MODEL, rank=2, alpha=6.0)
WIDE = dataclasses.replace(SMALL, targets=ALL)
KEY, PROGRESS = jax.random.key(1), jnp.float32(0.5)
BATCH = {name: jnp.asarray(x) for name, x in SyntheticSource().batch(0).items()}
ONE, MESH = FirstDevices(data=1), FirstDevices(data=2, fsdp=2, tensor=2, microbatches=2)

GIN = """
from __gin__ import dynamic_registration
from mimo_jax import train as train_script
from mimo_jax.objectives import language_model
from mimo_jax.objectives import lora
from tests.training import synthetic
train_script.train.objective = @lora.Lora()
lora.Lora.objective = @language_model.LanguageModelObjective()
lora.Lora.rank = 2
lora.Lora.alpha = 6.0
language_model.LanguageModelObjective.model = @synthetic.tiny_model()
"""


def flat(tree) -> dict:
    return traverse_util.flatten_dict(tree, sep="/")


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def base() -> dict:
    return layers.unbox(MODEL.init(jax.random.key(5), {})[0])


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory) -> Path:
    """The base in the released layout."""
    path = tmp_path_factory.mktemp("base")
    hf.save_lm(path, tiny_model(), base)
    return path


def factors(objective: Lora, seed: int = 0) -> dict:
    """Factors of which neither is zero."""
    given = layers.unbox(objective.init(jax.random.key(seed), {})[0])
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), given)


def merged_on_device(base, adapters, scale):
    """W + s A B, written down once more."""
    out = dict(flat(base))
    for name, a in flat(adapters).items():
        if name.endswith("/lora_a"):
            kernel = name.removesuffix("/lora_a")
            out[kernel] = out[kernel] + scale * jnp.einsum("...ir,...ro->...io", a, flat(adapters)[f"{kernel}/lora_b"])
    return traverse_util.unflatten_dict(out, sep="/")


# --- what is computed ---


def test_a_fresh_adapter_changes_nothing(base):
    boxed, mutable = SMALL.init(KEY, {})
    names = {f"{kernel}/{x}" for kernel in SMALL.adapted(MODEL_SHAPES) for x in ("lora_a", "lora_b")}
    adapters = flat(layers.unbox(boxed))
    assert set(adapters) == names and len(names) == 2 * 7
    for name, x in adapters.items():
        if name.endswith("lora_b"):
            assert not np.any(x)
        else:
            bound = x.shape[1] ** -0.5  # Kaiming uniform of PEFT
            assert 0.85 * bound < np.abs(x).max() <= bound and not np.array_equal(x[0], x[1])
    assert flat(boxed)["llm/layers/attention/out_proj/kernel/lora_a"].names == ("layers", "heads", None)
    assert flat(boxed)["llm/layers/down_proj/kernel/lora_b"].names == ("layers", None, "embed")
    assert not any(np.any(x) for x in jax.tree.leaves(mutable[BASE]))
    for objective in (SMALL, WIDE):
        fresh = layers.unbox(objective.init(KEY, {})[0])
        ours = jax.jit(objective.evaluate)(fresh, {BASE: base}, BATCH)
        same(ours, jax.jit(MODEL.evaluate)(base, {}, BATCH))


MODEL_SHAPES = jax.eval_shape(lambda: MODEL.init(KEY, {})[0])


@pytest.mark.parametrize("compute", [Compute(), Compute(remat="attention+qkv", short_attention="pairs", unroll=2)])
def test_loss_and_gradients_are_those_of_the_merged_kernels(base, compute):
    model = dataclasses.replace(MODEL, compute=compute)
    objective = dataclasses.replace(WIDE, objective=model)
    adapters = factors(objective)

    def merged_loss(adapters):
        return model.loss(merged_on_device(base, adapters, 3.0), {}, BATCH, KEY, PROGRESS)[0]

    ours, grads = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, {BASE: base}, BATCH, KEY, PROGRESS)[0]))(
        adapters
    )
    theirs, expected = jax.jit(jax.value_and_grad(merged_loss))(adapters)
    plain = jax.jit(MODEL.loss)(base, {}, BATCH, KEY, PROGRESS)[0]
    assert abs(float(plain) - float(ours)) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for name, gradient in flat(grads).items():
        assert np.abs(gradient).max() > 1e-5, name
        np.testing.assert_allclose(gradient, flat(expected)[name], rtol=1e-3, atol=2e-6, err_msg=name)


def test_a_frozen_kernel_costs_no_weight_gradient(base):
    """The arithmetic of a step is well below that of training everything, or through merged kernels."""
    wide = dataclasses.replace(tiny_model(), hidden_size=64, intermediate_size=256)
    model = LanguageModelObjective(model=wide, codebook_weights=(0.0,) * 8)
    objective = Lora(model, rank=2, alpha=6.0)
    shapes = jax.eval_shape(lambda: layers.unbox(objective.init(KEY, {})))
    batch = jax.eval_shape(lambda: BATCH)

    def flops(loss, *arguments):
        return jax.jit(jax.grad(loss)).lower(*arguments).compile().cost_analysis()["flops"]

    def adapted(adapters, base, batch):
        return objective.loss(adapters, {BASE: base}, batch, KEY, PROGRESS)[0]

    def through_merged(adapters, base, batch):
        return model.loss(merged_on_device(base, adapters, 3.0), {}, batch, KEY, PROGRESS)[0]

    arguments = (shapes[0], shapes[1][BASE], batch)
    assert flops(adapted, *arguments) < 0.8 * flops(through_merged, *arguments)
    audio, text = 8 * 4, 8 * 8
    assert (
        objective.flops(text, audio, batch, causal=True) < 0.8 * utilization.model_flops(model, text, audio, batch)[0]
    )


# --- what is trained, on any mesh ---


def placed(objective, folder, hardware, optimizer=Optimizer((Group(".*", 1e-2),))):
    """(program, fresh state) on a mesh, inside whose context the caller must stay."""
    batch = SyntheticSource().batch(0)
    mesh = hardware.make_mesh()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        stage = program.build(objective, optimizer, hardware, mesh, like)
        state = stage.init(jax.random.key(0), mesh_lib.put_batch(batch, mesh))
        return stage, warm_start.apply(objective, state, str(folder), stage.state)


def steps(objective, folder, hardware, count=3, **changes):
    mesh = hardware.make_mesh()
    stage, state = placed(objective, folder, hardware, **changes)
    losses = []
    with jax.set_mesh(mesh), nn.logical_axis_rules(hardware.rules):
        for _ in range(count):
            batch = mesh_lib.put_batch(SyntheticSource().batch(0), mesh)
            state, metrics = stage.train_step(state, batch, np.float32(0.5), np.float32(np.inf))
            losses.append(float(metrics["loss"]))
    return losses, state


def test_sharded_is_unsharded_and_the_base_stays(base, folder):
    losses, state = steps(WIDE, folder, ONE)
    sharded_losses, sharded = steps(WIDE, folder, MESH)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, sharded_losses, rtol=1e-5)
    for name, x in flat(state.params).items():
        np.testing.assert_allclose(x, flat(sharded.params)[name], atol=2e-4, err_msg=name)
    same(state.mutable[BASE], base)
    same(sharded.mutable[BASE], base)
    places = {name: x.sharding.spec for name, x in flat(sharded.params).items()}
    assert places["llm/layers/down_proj/kernel/lora_a"] == PartitionSpec(None, "tensor", None)
    assert places["llm/layers/down_proj/kernel/lora_b"] == PartitionSpec(None, None, "fsdp")
    assert flat(sharded.mutable[BASE])["llm/layers/down_proj/kernel"].sharding.spec == PartitionSpec(
        None, "tensor", "fsdp"
    )
    # Moments of adapters only.
    count = sum(x.size for x in jax.tree.leaves(state.params))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2 * count + 10


def test_groups_are_patterns_over_adapters(folder):
    groups = (Group(".*/attention/", 0), Group(".*/lora_b$", 1e-2), Group(".*", 1e-4))
    optimizer = Optimizer(groups)
    losses, state = steps(SMALL, folder, ONE, count=1, optimizer=optimizer)
    _, before = placed(SMALL, folder, ONE, optimizer=optimizer)
    labels = flat(optimizer.labels(state.params))
    for name, x in flat(state.params).items():
        moved = np.abs(np.asarray(x) - np.asarray(flat(before.params)[name])).max()
        if labels[name] == FROZEN:
            assert moved == 0
        elif name.endswith("lora_b"):  # a first step of Adam is as long as the rate
            assert moved == pytest.approx(1e-2 * float(Schedule().factor(PROGRESS)), rel=0.02), name
    with pytest.raises(UserError, match="'patch_encoder/' matches no parameter"):
        Optimizer((Group("patch_encoder/", 1e-4), Group(".*", 1e-4))).labels(state.params)


def test_a_base_in_bfloat16(base, folder):
    objective = dataclasses.replace(SMALL, base_dtype="bfloat16")
    _, state = placed(objective, folder, ONE)
    assert {x.dtype for x in jax.tree.leaves(state.mutable)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    same(state.mutable[BASE], jax.tree.map(lambda x: x.astype(jnp.bfloat16), base))


# --- runs ---


class Interrupted(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Breaking(HostRows):
    """Ends the run at a step, as a machine that fails does."""

    at: int = 7

    def batch(self, step):
        if step >= self.at:
            raise Interrupted
        return super().batch(step)


def adapter_job(model_dir, folder, **changes):
    gin.clear_config()
    gin.parse_config(GIN)
    try:
        optimizer = Optimizer((Group(".*", 2e-2),))
        job(model_dir, 6, objective=SMALL, optimizer=optimizer, init_from=folder and str(folder), **changes)
    finally:
        gin.clear_config()


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """A finished run: MODEL_DIR, with its export beside it."""
    path = tmp_path_factory.mktemp("lora") / "run"
    hooked = []

    def export(objective, params, mutable):
        assert isinstance(objective, LanguageModelObjective) and not mutable
        hf.save_lm(path.parent / "exported", objective.model, params)

    def hook(params, mutable):
        hooked.append((jax.tree.map(np.asarray, params), mutable))
        return {"seen": 1.0}

    adapter_job(path, folder, export=export, evaluation_hooks=(hook,))
    _, _, params = trained.load_run(path)
    whole, mutable = hooked[-1]
    assert not mutable
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), atol=1e-6), whole, params)
    return path


def test_a_checkpoint_holds_the_adapter_alone(run, folder):
    params, mutable, meta = stored_params(run)
    assert not mutable and meta.finished and meta.step == 6
    assert set(flat(params)) == {f"{k}/{x}" for k in SMALL.adapted(MODEL_SHAPES) for x in ("lora_a", "lora_b")}
    assert all(np.any(np.asarray(x)) for name, x in flat(params).items())
    assert json.loads((run / lora.FILE).read_text())["base"] == str(folder)


def test_the_merged_model_is_what_was_trained(run, folder, base):
    adapters = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, stored_params(run)[0]))
    ours = jax.jit(SMALL.evaluate)(adapters, {BASE: base}, BATCH)
    kind, config, params = trained.load_run(run)
    assert (kind, config) == ("lm", tiny_model())
    for tree in (params, hf.load_lm(run.parent / "exported")[1]):
        merged = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)
        theirs = jax.jit(MODEL.evaluate)(merged, {}, BATCH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), ours, theirs)
        changed = {name for name, x in flat(merged).items() if not np.array_equal(x, flat(base)[name])}
        assert changed == set(SMALL.adapted(MODEL_SHAPES))
    before = jax.jit(MODEL.evaluate)(base, {}, BATCH)["text_loss"][0]
    assert abs(float(before - ours["text_loss"][0])) > 1.0
    kernel = flat(params)["llm/layers/up_proj/kernel"]
    index = (slice(1, 2), slice(3, 9), slice(None, 7))
    np.testing.assert_allclose(kernel.part(index), np.asarray(kernel)[index], rtol=1e-6)
    np.testing.assert_array_equal(kernel[1], np.asarray(kernel)[1])


def test_an_interrupted_run_ends_with_the_same_bits(run, folder, tmp_path):
    with pytest.raises(Interrupted):
        adapter_job(tmp_path, folder, source=Breaking(at=5))
    # The process lives on here, and so does the thread that writes a checkpoint.
    deadline = time.monotonic() + 60
    while any(tmp_path.glob("checkpoints/*tmp*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert latest_step(tmp_path) in (2, 4)
    adapter_job(tmp_path, None)  # the folder itself knows its base
    ours, theirs = np.load(tmp_path / "final.npz"), np.load(run / "final.npz")
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_run_as_base_and_a_base_that_has_moved(run, folder, base, tmp_path):
    # The merged model is what another stage starts from, with all parameters or with further adapters.
    _, _, merged = trained.load_run(run)
    for objective, found in ((MODEL, lambda s: s.params), (SMALL, lambda s: s.mutable[BASE])):
        same(found(placed(objective, run, ONE)[1]), merged)
    going_on = dataclasses.replace(SMALL, adapter_from=str(run))
    _, state = placed(going_on, folder, ONE)
    same(state.params, stored_params(run)[0])
    same(state.mutable[BASE], base)
    with pytest.raises(UserError, match=r"rank 2, alpha 6.0; this run has rank 2, alpha 8.0"):
        placed(dataclasses.replace(going_on, alpha=8.0), folder, ONE)

    moved, copy = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(folder, moved)
    shutil.copytree(run, copy)
    values = json.loads((copy / lora.FILE).read_text())
    (copy / lora.FILE).write_text(json.dumps(values | {"base": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"gone: the base of the adapter .* is not there; put it back, or .*--base="):
        trained.load_run(copy)
    same(trained.load_run(copy, moved)[2], merged)
    adapter_job(copy, moved)
    assert json.loads((copy / lora.FILE).read_text())["base"] == str(moved)
    hf.save_lm(moved, tiny_model(), jax.tree.map(lambda x: x + 1.0, base))
    with pytest.raises(UserError, match="not the base that the adapter was trained on"):
        adapter_job(copy, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ("llm/layers/q_proj/kernel",)},
            "matches no parameter; it must match a whole name, such as hidden",
        ),
        ({"targets": ("llm/.*",)}, r"matches llm/final_norm/scale \(16,\), which is not the kernel of a linear map"),
        ({"targets": "embed_tokens"}, "not the kernel"),
        ({"targets": ("llm/(",)}, "is no regular expression"),
        ({"targets": ()}, "at least one kernel"),
        ({"rank": 0}, "Lora.rank = 0: at least 1"),
        ({"alpha": 0.0}, "Lora.alpha = 0.0: must be positive"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **changes).init(KEY, {})


def test_mistakes_of_runs_are_named(run, folder, tmp_path):
    adapters = layers.unbox(WIDE.init(KEY, {})[0])
    text_only = dataclasses.replace(WIDE, objective=dataclasses.replace(MODEL, codebook_weights=(0.0,) * 8))
    with pytest.raises(UserError, match=r"patch_decoder/layers/attention/k_proj takes no part in this stage's loss"):
        jax.eval_shape(
            lambda p, m: text_only.loss(p, m, BATCH, KEY, PROGRESS), adapters, layers.unbox(WIDE.init(KEY, {})[1])
        )
    with pytest.raises(UserError, match="the adapter only"):
        SMALL.evaluate(adapters, {}, BATCH)
    begin = lambda objective, where, source: lora.begin(  # noqa: E731
        objective, str(where), source and str(source), objective.init(KEY, {})[0]
    )
    with pytest.raises(UserError, match="INIT_FROM: LoRA adapts weights that are there"):
        begin(SMALL, tmp_path, None)
    with pytest.raises(UserError, match="no training run and no model"):
        begin(SMALL, tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"this run began with alpha = 6.0; configure the same"):
        begin(dataclasses.replace(SMALL, alpha=7.0), run, folder)
    with pytest.raises(UserError, match="this run began with targets"):
        begin(WIDE, run, folder)
    (tmp_path / lora.FILE).write_text("{}")
    with pytest.raises(UserError, match=r"adapter.json: damaged"):
        lora.read(tmp_path)


def test_a_bad_batch_is_replayed_with_the_base(run, base, capsys):
    batch = HostRows(SyntheticSource()).batch(0)
    np.savez(run / "bad_batch_0_0.npz", **batch)
    _, _, params = trained.load_run(run)
    params, batch = (jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree) for tree in (params, batch))
    expected, _ = jax.jit(lambda params, batch: MODEL.loss(params, {}, batch, KEY, PROGRESS))(params, batch)
    assert replay.main([f"--model_dir={run}", "--data_step=0"]) == 0
    shown = capsys.readouterr().out
    assert float(shown.split("loss ")[1].split()[0]) == pytest.approx(float(expected), rel=1e-4)
