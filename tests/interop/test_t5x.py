"""Training under t5x is training under our trainer; see docs/t5x.md.

What needs t5x is run by `./launch/t5x.sh test`; elsewhere it is skipped, since t5x is no package of an index.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import freeze, meta
from flax.linen import partitioning as flax_partitioning

from mimo_jax import convert
from mimo_jax.cli import UserError
from mimo_jax.interop.t5x import axes, stand_ins
from mimo_jax.models import layers
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training.checkpoints import load_params
from mimo_jax.training.optimizer import Group, Optimizer
from mimo_jax.training.schedule import Budget
from tests.data.prepared_fixture import make_prepared
from tests.interop.t5x_runs import ON_8_DEVICES, STEPS, STOP_AT_10, Runs, figures, of_steps, our_figures
from tests.training.synthetic import SyntheticSource, tiny_model
from tests.xla import xla_flags

ROOT = Path(__file__).resolve().parents[2]
GIN = ROOT / "gin"
HAS_T5X = importlib.util.find_spec("t5x") is not None
needs_t5x = pytest.mark.skipif(not HAS_T5X, reason="t5x is not installed: run ./launch/t5x.sh test")

# --- everywhere ---


def boxed_params():
    return jax.eval_shape(lambda: LanguageModelObjective(tiny_model()).init(jax.random.key(0), {})[0])


def test_every_parameter_has_its_axes():
    boxed = boxed_params()
    names = traverse_util.flatten_dict(flax_partitioning.get_axis_names(freeze(axes.params_axes(boxed))))
    shapes = traverse_util.flatten_dict(layers.unbox(boxed))
    assert names.keys() == shapes.keys()
    assert all(len(names[path]) == len(x.shape) for path, x in shapes.items())
    flat = traverse_util.flatten_dict(boxed, is_leaf=lambda path, x: isinstance(x, meta.AxisMetadata))
    assert all(tuple(names[path]) == tuple(x.names) for path, x in flat.items() if isinstance(x, meta.Partitioned))
    assert tuple(names["llm", "layers", "up_proj", "kernel"]) == ("layers", "embed", "mlp")


def test_rules_for_the_mesh_of_t5x():
    rules = dict(axes.standard_rules())
    assert rules.keys() == dict(Hardware().rules).keys()
    assert rules["batch"] == rules["embed"] == rules["patches"] == "data"
    assert rules["heads"] == rules["mlp"] == rules["vocab"] == "model"
    assert rules["length"] is rules["layers"] is rules["norm"] is None


def test_stand_ins_step_back_for_the_real_modules(tmp_path):
    code = (
        "import sys; from mimo_jax.interop.t5x import stand_ins; stand_ins.install(); stand_ins.install();"
        "assert sys.path.count(stand_ins.FOLDER) <= 1; import airio.core as airio;"
        "from jestimator import amos, amos_helper; airio.Task, airio.Mixture, airio.DatasetProviderBase,"
        "airio.AirIODatasetIterator, airio.dataset_providers.get_vocabularies;"
        "amos.amos, amos.ScaleByAmosState, amos_helper.state_partition_rule; print(airio.__file__)"
    )

    def found(*paths):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT)])}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        return Path(done.stdout.strip())

    if importlib.util.find_spec("airio") is None:
        assert found() == Path(stand_ins.FOLDER) / "airio" / "core.py"
    (tmp_path / "airio").mkdir()
    (tmp_path / "airio" / "__init__.py").touch()
    real = (Path(stand_ins.FOLDER) / "airio" / "core.py").read_text()
    (tmp_path / "airio" / "core.py").write_text(real)
    assert found(tmp_path) == tmp_path / "airio" / "core.py"


def test_gin_files_include_files_that_are_there():
    files = sorted((GIN / "t5x").glob("*.gin"))
    assert {"run", "tiny", "tiny_seqio", "pretrain_7b_joint", "standard_partitioner"} <= {path.stem for path in files}
    for path in files:
        for included in re.findall(r"^include '(.*)'$", path.read_text(), re.MULTILINE):
            assert (GIN / included).is_file(), (path, included)


@pytest.mark.skipif(HAS_T5X, reason="t5x is installed")
def test_conversion_says_where_t5x_is_to_be_had(tmp_path, capsys):
    assert convert.main(["t5x-import", f"--checkpoint={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "launch/t5x.sh" in capsys.readouterr().err


# --- under t5x ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, prepared):
    return Runs(tmp_path_factory.mktemp("runs"), prepared)


@pytest.fixture(scope="module")
def under_t5x(runs):
    """The tiny model, 20 steps, with a held-out evaluation at the end."""
    return runs.t5x("t5x", "tiny", f"--gin.EVAL_PERIOD={STEPS}")


@pytest.fixture(scope="module")
def under_ours(runs):
    return runs.ours("ours")


def same_arrays(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@needs_t5x
def test_same_losses_as_our_trainer(under_t5x, under_ours):
    from mimo_jax.interop.t5x import checkpoints

    for tag in ("loss", "text_loss", "codebook_loss_1", "codebook_loss_8"):
        ours = of_steps(our_figures(under_ours, f"train/{tag}"))
        np.testing.assert_allclose(of_steps(figures(under_t5x / "train", tag)), ours, rtol=3e-6, err_msg=tag)
    assert ours[0] > ours[-1]
    _, params, step = checkpoints.load(under_t5x)
    assert step == STEPS
    ours, _, _ = load_params(under_ours)
    # Compiled without the backend's optimisations the two programs round differently (with them: no bit differs), and
    # Adam makes steps of a full learning rate, up to 6e-3, of gradients that are next to nothing.
    apart = [np.abs(a - b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(ours), strict=True)]
    assert max(x.max() for x in apart) < 2e-3 and max(x.mean() for x in apart) < 1e-5
    # Held-out batches, too: t5x adds up sums and counts as our evaluation does.
    for source, tag in (("asr", "text_loss"), ("tts", "codebook_loss_3")):
        theirs = figures(under_t5x / "training_eval" / source, tag)[STEPS]
        assert theirs == pytest.approx(our_figures(under_ours, f"{source}/{tag}")[STEPS], rel=1e-6)


@needs_t5x
def test_interrupted_run_is_the_uninterrupted_one(runs, under_t5x):
    from mimo_jax.interop.t5x import checkpoints

    runs.t5x("resumed", "tiny", overlays=[STOP_AT_10])
    assert not (runs.folder / "resumed" / f"checkpoint_{STEPS}").exists()
    resumed = runs.t5x("resumed", "tiny")
    np.testing.assert_array_equal(*(of_steps(figures(run / "train", "loss")) for run in (resumed, under_t5x)))
    same_arrays(checkpoints.load(resumed)[1], checkpoints.load(under_t5x)[1])


@needs_t5x
def test_eight_devices_are_as_one(runs, under_t5x):
    several = runs.t5x("several", "tiny", overlays=[ON_8_DEVICES], devices=8)
    losses = [of_steps(figures(run / "train", "loss")) for run in (several, under_t5x)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    placed = (several / "model-info.txt").read_text()
    assert re.search(r"Variable llm/layers/up_proj/kernel .* \(None, 'fsdp', 'tensor'\)", placed)
    assert re.search(r"Variable param_states/.*/mu/llm/layers/up_proj/kernel .* \(None, 'fsdp', 'tensor'\)", placed)


@needs_t5x
def test_the_partitioner_of_t5x_trains_it_too(runs, under_t5x):
    run = runs.t5x("standard", "tiny", "--gin_file=gin/t5x/standard_partitioner.gin", "--gin.TRAIN_STEPS=20")
    np.testing.assert_allclose(*(of_steps(figures(f / "train", "loss")) for f in (run, under_t5x)), rtol=1e-5)


@needs_t5x
def test_data_path_of_seqio(runs, under_t5x):
    losses = of_steps(figures(runs.t5x("seqio", "tiny_seqio") / "train", "loss"))
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < losses[:5].mean() - 1
    assert not np.allclose(losses[0], of_steps(figures(under_t5x / "train", "loss"))[0], rtol=1e-6)  # other rows


@needs_t5x
def test_checkpoints_both_ways(runs, under_t5x, under_ours, tmp_path, capsys):
    from t5x import checkpoints as t5x_checkpoints

    from mimo_jax.interop import configs, hf
    from mimo_jax.interop.t5x import checkpoints

    def run(*arguments, code=0):
        assert convert.main(list(arguments)) == code
        return capsys.readouterr()

    run("t5x-import", f"--checkpoint={under_t5x}", f"--out={tmp_path / 'ours'}")
    _, params, _ = checkpoints.load(under_t5x)
    same_arrays(load_params(tmp_path / "ours")[0], params)
    run("t5x-export", f"--model_dir={tmp_path / 'ours'}", f"--out={tmp_path / 't5x'}")
    values, again, step = checkpoints.load(tmp_path / "t5x")
    assert step == 0 and values == json.loads((under_t5x / "config.json").read_text())
    same_arrays(again, params)
    # Of t5x's older layout.
    shapes, partitioner = checkpoints._state(configs.lm_config(values, "values", values["empty_token_id"]))
    older = t5x_checkpoints.Checkpointer(shapes, partitioner, str(tmp_path / "older"))
    older.save(shapes.replace(step=jnp.asarray(7), params=freeze(jax.tree.map(jnp.asarray, params))))
    shutil.copy(under_t5x / "config.json", tmp_path / "older")
    _, again, step = checkpoints.load(tmp_path / "older")
    assert step == 7
    same_arrays(again, params)
    # Into the released layout, and from it.
    run("export", f"--model_dir={tmp_path / 'ours'}", f"--out={tmp_path / 'released'}")
    same_arrays(hf.load_lm(tmp_path / "released")[1], params)
    run("t5x-export", f"--weights={tmp_path / 'released'}", f"--out={tmp_path / 'small'}", "--dtype=bfloat16")
    half = checkpoints.load(tmp_path / "small" / "checkpoint_0")[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
    # Mistakes.
    assert "already" in run("t5x-import", f"--checkpoint={under_t5x}", f"--out={tmp_path / 'ours'}", code=2).err
    assert "already" in run("t5x-export", f"--model_dir={under_ours}", f"--out={under_t5x}", code=2).err
    assert "[0]" in run("t5x-import", f"--checkpoint={tmp_path / 't5x/checkpoint_7'}", "--out=x", code=2).err
    wrong = json.loads((tmp_path / "t5x" / "config.json").read_text()) | {"intermediate_size": 640}
    (tmp_path / "t5x" / "config.json").write_text(json.dumps(wrong))
    assert "640" in run("t5x-import", f"--checkpoint={tmp_path / 't5x'}", f"--out={tmp_path / 'x'}", code=2).err
    # A run from a converted checkpoint begins where that ended, at step 0 with a fresh optimiser.
    run("t5x-export", f"--model_dir={under_ours}", f"--out={tmp_path / 'trained'}")
    arguments = [f"--gin.RESTORE='{tmp_path / 'trained'}'", "--gin.TRAIN_STEPS=2", "--gin.CHECKPOINT_PERIOD=2"]
    losses = figures(runs.t5x("warm", "tiny", *arguments) / "train", "loss")
    assert losses.keys() == {1, 2} and losses[1] < of_steps(figures(under_t5x / "train", "loss"))[-10]


@needs_t5x
def test_microbatches_leave_the_gradient_as_it_is():
    from mimo_jax.interop.t5x.model import Model
    from mimo_jax.interop.t5x.optimizer import GroupedOptimizer

    objective = LanguageModelObjective(tiny_model())
    batch = {name: jnp.asarray(x) for name, x in SyntheticSource().batch(0).items()}
    # Parts with unlike numbers of targets: a mean of their means would be another loss.
    batch["loss_mask"] = batch["loss_mask"].at[1].set(False)
    results = []
    for count in (1, 2):
        optimizer = GroupedOptimizer(Optimizer((Group(".*", 1e-3),)), STEPS)
        model = Model(objective, optimizer, Hardware(data=4, tensor=2, microbatches=count))
        params = freeze(model.get_initial_variables(jax.random.key(1), {})["params"])
        gradient = jax.jit(
            jax.value_and_grad(model.loss_fn, has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
        )
        results.append(gradient(params, batch, None))
    (whole, metrics), gradients = results[0]
    (in_parts, same_metrics), same_gradients = results[1]
    np.testing.assert_allclose(in_parts, whole, rtol=1e-6)
    assert metrics.keys() == same_metrics.keys() and "codebook_loss_8" in metrics
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), same_gradients, gradients)
    # Of the initialisation that `mimo_jax.train` makes of this seed, whatever t5x's generator.
    same_arrays(params.unfreeze(), layers.unbox(objective.init(jax.random.key(0), batch)[0]))


@needs_t5x
def test_optimizer_skips_what_is_not_finite():
    from mimo_jax.interop.t5x.optimizer import GroupedOptimizer

    optimizer = GroupedOptimizer(Optimizer((Group("a", 1e-1), Group("b", 0.0)), average=0.9), 10)
    params = freeze({"a": jnp.ones((2, 3)), "b": jnp.ones(4)})
    state = optimizer.create(params)
    gradients = freeze({"a": jnp.full((2, 3), 0.1), "b": jnp.ones(4)})
    after = state.apply_gradient(gradients)
    assert int(after.state.step) == 1
    assert not np.array_equal(after.target["a"], params["a"])
    same_arrays(after.target["b"], params["b"])  # frozen
    skipped = after.apply_gradient(freeze({"a": jnp.full((2, 3), jnp.nan), "b": jnp.ones(4)}))
    assert int(skipped.state.step) == 2
    same_arrays((skipped.target, skipped.state.param_states), (after.target, after.state.param_states))
    # The state as t5x's checkpoints hold it, with nothing lost on the way.
    same_arrays(optimizer.restore_state(params, after.state, after.state_dict())[1], after.state)


@needs_t5x
def test_rows_packed_by_seqio_hold_the_examples(prepared):
    import seqio

    from mimo_jax.data import tasks
    from mimo_jax.data.loader import PackedSource
    from mimo_jax.interop.t5x.seqio_data import PackedRows

    tasks.set_prepared(prepared)
    length = 512
    lengths = dict.fromkeys(PackedRows.TASK_FEATURES, length)

    def examples(rows):
        names = ("text", "audio", "loss_mask", "positions")
        numbered = [(row, number) for row in rows for number in range(1, row["segment_ids"].max() + 1)]
        return sorted(tuple(row[name][row["segment_ids"] == n].tobytes() for name in names) for row, n in numbered)

    def rows(pack):
        rows = seqio.get_dataset("mimo_tts", lengths, PackedRows(pack=pack), "train", shuffle=False, num_epochs=1)
        return list(rows.as_numpy_iterator())

    source = PackedSource(prepared, "tts", 1, length, repeat=False)
    batches = [source.batch(step) for step in range(source.steps_per_pass())]
    ours = [{name: x[0] for name, x in batch.items()} for batch in batches]
    packed, alone = rows(True), rows(False)
    assert examples(packed) == examples(alone) == examples(ours) and len(alone) == 60
    assert len(ours) <= len(packed) < len(alone) / 2
    for name, x in ours[0].items():
        assert (packed[0][name].shape, packed[0][name].dtype) == (x.shape, x.dtype)
    unused = packed[0]["segment_ids"] == 0
    assert unused.any()
    np.testing.assert_array_equal(
        packed[0]["audio"][unused], np.broadcast_to(tasks.layout().empty_codes, packed[0]["audio"][unused].shape)
    )


@needs_t5x
def test_steps_that_a_budget_lasts(prepared):
    from mimo_jax.data.loader import PackedSource
    from mimo_jax.interop.t5x.data import steps_of

    source = functools.partial(PackedSource, prepared, "tts", 4, 256)
    made, seen, steps = source(), 0, 0
    while seen < 20_000:
        seen += sum(made.token_counts(steps))
        steps += 1
    assert abs(steps_of(Budget(tokens=20_000), source) - steps) <= 1
    assert steps_of(Budget(steps=7), source) == 7
    with pytest.raises(UserError, match="no audio"):
        steps_of(Budget(audio_hours=1.0), functools.partial(PackedSource, prepared, "text", 4, 256))


@needs_t5x
def test_the_7b_lies_under_t5x_as_under_our_trainer():
    """Parameters and moments on the 256 devices of its hardware file; nothing is allocated."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(256), "JAX_PLATFORMS": "cpu"}
    files = ["gin/t5x/pretrain_7b_joint.gin", "gin/hardware/v5p_4x8x8.gin"]
    command = [sys.executable, "-m", "tests.interop.t5x_placement", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    count, split, steps = map(int, done.stdout.split())
    assert count == 8_018_587_648 and split > 100 and steps == 10
