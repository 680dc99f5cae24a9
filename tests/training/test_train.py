"""The trainer: restart equality, meshes, schedules, checkpoints that were damaged."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from mimo_jax import train as train_script
from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.train import train
from mimo_jax.training import loop
from mimo_jax.training.checkpoints import FOLDER, latest_step, load_params, stored_params
from mimo_jax.training.metrics import read_metrics
from mimo_jax.training.optimizer import Group, Optimizer
from mimo_jax.training.schedule import Budget, Schedule
from tests.training.synthetic import Regression, SyntheticSource, Vectors, tiny_model

ONE_DEVICE = Hardware(data=1)


class StopAt:
    """A source that asks for a stop (as a preemption does) when a step's batch is made."""

    def __init__(self, source: SyntheticSource, step: int, signal_number: int = signal.SIGTERM):
        self._source, self._step, self._signal = source, step, signal_number

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._source.batch(step)

    def token_counts(self, step: int) -> tuple[int, int]:
        if step == self._step:
            os.kill(os.getpid(), self._signal)
        return self._source.token_counts(step)


def run(model_dir: Path, source=None, hardware: Hardware | None = None, steps: int = 8, **changes):
    arguments = {
        "model_dir": str(model_dir),
        "name": "test",
        "objective": LanguageModelObjective(model=tiny_model()),
        "source": source or SyntheticSource(),
        "optimizer": Optimizer(groups=(Group(".*", 1e-2, weight_decay=0.1),), schedule=Schedule("cosine", 0.1)),
        "budget": Budget(steps=steps),
        "eval_sources": {"heldout": SyntheticSource(seed=1)},
        "hardware": hardware or Hardware(data=1, fsdp=-1),
        "intervals": loop.Intervals(log=2, evaluate=4, evaluation_batches=1, checkpoint=3, prefetch=2),
    } | changes
    return train(**arguments)


def same(a, b, rtol: float = 0.0) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=rtol)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_loss_falls_and_figures_are_written(whole):
    folder, state = whole
    records = read_metrics(folder)
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert losses[-1] < losses[0]
    assert any("heldout/codebook_loss_8" in record for record in records)
    assert records[-1]["text_tokens"] == 8 * 8 * 8
    assert records[-1]["audio_tokens"] == 8 * 8 * 4
    assert int(state.skipped) == 0
    assert list(folder.glob("events.out.tfevents*"))


def test_preempted_run_continues_to_the_same_bits(whole, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, source=StopAt(SyntheticSource(), 4))
    assert stop.value.code == EXIT_PREEMPTED
    assert latest_step(tmp_path) == 5
    state = run(tmp_path)
    same(state, whole[1])

    def figures(folder):  # all but those of time and memory
        varying = ("train/step_seconds", "speed/", "memory/", "checkpoint/")
        records = [{k: v for k, v in r.items() if not k.startswith(varying)} for r in read_metrics(folder)]
        return [record for record in records if len(record) > len(("step", "stage", "text_tokens", "audio_tokens"))]

    assert figures(tmp_path) == figures(whole[0])


def test_damaged_checkpoint_is_set_aside_and_the_previous_one_used(whole, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, source=StopAt(SyntheticSource(), 4))
    damaged = 0
    for path in (tmp_path / FOLDER / "5" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            damaged += 1
    assert damaged
    state = run(tmp_path)
    assert (tmp_path / "damaged_checkpoint_5").is_dir()
    same(state, whole[1])


def test_finished_run_is_not_trained_again(whole):
    folder, state = whole
    before = (folder / "metrics.jsonl").read_text()
    same(run(folder), state)
    assert (folder / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    "hardware",
    [
        ONE_DEVICE,
        pytest.param(Hardware(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
        pytest.param(Hardware(data=-1, sequence=2), marks=pytest.mark.slow),
    ],
)
def test_any_mesh_gives_the_same_result(whole, tmp_path, hardware):
    devices = jax.devices()[:1] if hardware is ONE_DEVICE else jax.devices()

    class OnDevices(Hardware):
        def make_mesh(self, _=None):
            return super().make_mesh(devices)

    state = run(tmp_path, hardware=OnDevices(hardware.data, hardware.fsdp, hardware.sequence, hardware.tensor))
    # Adam divides by the root of tiny second moments: float32 reduction order shows up to 1e-3 of a step.
    same(state.params, whole[1].params, rtol=2e-4)


def test_frozen_parameters_stay_and_have_no_moments(tmp_path):
    groups = (Group("patch_decoder/.*|local_heads.*|hidden_states_downcast", 0.0), Group(".*", 1e-2))
    objective = LanguageModelObjective(model=tiny_model(), text_weight=1.0, codebook_weights=(0.0,) * 8)
    state = run(tmp_path, optimizer=Optimizer(groups=groups), objective=objective, steps=2)
    fresh, _ = objective.init(jax.random.key(0), {})
    from flax import linen as nn

    fresh = nn.unbox(fresh)
    same(state.params["patch_decoder"], fresh["patch_decoder"], rtol=1e-7)
    assert not np.allclose(state.params["lm_head"]["kernel"], fresh["lm_head"]["kernel"])
    moments = {"/".join(str(k) for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]}
    assert not any("patch_decoder" in name for name in moments)
    assert any("lm_head" in name for name in moments)


def test_load_params_reads_only_the_model(whole):
    params, mutable, meta = load_params(whole[0])
    same(params, whole[1].params)
    assert mutable == {}
    assert meta.step == 8 and meta.finished


def test_moving_average_is_evaluated_and_exported(tmp_path):
    exported, evaluated = [], []
    optimizer = Optimizer(groups=(Group(".*", 1e-2),), average=0.9)
    state = run(
        tmp_path,
        objective=Regression(),
        source=Vectors(),
        eval_sources={},
        optimizer=optimizer,
        steps=4,
        export=lambda objective, params, mutable: exported.append(jax.tree.map(np.asarray, params)),
        evaluation_hooks=[lambda params, mutable: evaluated.append(jax.device_get(params)) or {}],
    )
    average = state.evaluated_params
    assert not np.allclose(average["w"], state.params["w"], atol=1e-3)
    same(evaluated[-1], average)
    same(exported[-1], average, rtol=1e-6)
    same(stored_params(tmp_path)[0], state.params)


def test_token_budget_counts_positions():
    budget = Budget(tokens=100)
    assert budget.progress(step=7, text_tokens=30, audio_tokens=20) == 0.5
    assert budget.progress(step=7, text_tokens=100, audio_tokens=50) == 1.0
    assert Budget(text_tokens=100).progress(step=7, text_tokens=30, audio_tokens=90) == 0.3
    assert Budget(audio_tokens=100).progress(step=7, text_tokens=30, audio_tokens=90) == 0.9
    assert Budget(steps=14).progress(step=7, text_tokens=30, audio_tokens=90) == 0.5
    for wrong in ({"tokens": 1, "steps": 1}, {}, {"steps": 0}, {"tokens": "abc"}, {"tokens": float("nan")}):
        with pytest.raises(UserError, match="set one of tokens"):
            Budget(**wrong)


def test_groups_must_cover_and_match():
    params = {"a": {"kernel": np.zeros((2, 2))}, "b": {"bias": np.zeros(2)}}
    with pytest.raises(UserError, match="matches the parameter b/bias"):
        Optimizer(groups=(Group("a/.*", 1.0),)).labels(params)
    with pytest.raises(UserError, match="'c/.\\*' matches no parameter"):
        Optimizer(groups=(Group(".*", 1.0), Group("c/.*", 1.0))).labels(params)


def test_batch_that_does_not_divide_the_mesh(tmp_path):
    with pytest.raises(UserError, match="7 rows does not divide"):
        run(tmp_path, source=SyntheticSource(rows=7))


def test_non_finite_updates_are_skipped_and_stop_the_run(tmp_path):
    class Nan(LanguageModelObjective):
        def loss(self, params, mutable, batch, rng, progress):
            loss, aux = super().loss(params, mutable, batch, rng, progress)
            return loss * np.nan, aux

    with pytest.raises(UserError, match="non-finite"):
        run(tmp_path, objective=Nan(model=tiny_model()), steps=60)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_schedule(kind):
    schedule = Schedule(kind, warmup=0.1, final=0.2)
    factors = [float(schedule.factor(np.float32(p))) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert 0 < factors[0] < 0.01
    assert factors[1] == pytest.approx(0.505, abs=0.01)
    assert factors[2] == pytest.approx(1.0, abs=0.01)
    assert factors[3] == pytest.approx({"constant": 1.0, "cosine": 0.6, "linear": 0.6}[kind], abs=0.01)
    assert factors[4] == pytest.approx({"constant": 1.0, "cosine": 0.2, "linear": 0.2}[kind], abs=0.01)


def test_metrics_survive_a_cut_line(tmp_path):
    from mimo_jax.training.metrics import MetricWriter

    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 9}) + '\n{"st')
    MetricWriter(tmp_path, restored_step=5).close()
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_prefetch_is_in_order_for_any_depth():
    for depth in (0, 1, 5):
        batches = loop.prefetch(lambda step: step * step, 3, depth)
        assert [next(batches) for _ in range(4)] == [(3, 9), (4, 16), (5, 25), (6, 36)]
        batches.close()
    assert threading.active_count() < 50


def test_rows_are_dealt_to_devices_and_microbatches():
    class Dealer:
        def dealt(self, shards, microbatches):
            return shards, microbatches

    hardware = Hardware(data=2, fsdp=2, sequence=2, microbatches=3)
    mesh = hardware.make_mesh(jax.devices()[:8])
    assert train_script._dealt(Dealer(), mesh, hardware) == (4, 3)
    source = SyntheticSource()
    assert train_script._dealt(source, mesh, hardware) is source  # it does not know how
