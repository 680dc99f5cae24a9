"""Bad steps: skipped updates, a stop with the batch for replay, the way back; milestones, traces, the watchdog."""

from __future__ import annotations

import http.server
import logging
import math
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mimo_jax import replay
from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.training import loop, stopping
from mimo_jax.training.checkpoints import latest_step, load_meta, load_params
from mimo_jax.training.guards import Guards, Monitor, Verdict
from mimo_jax.training.metrics import read_metrics
from mimo_jax.training.profiling import Profile
from mimo_jax.training.retention import Keep
from mimo_jax.training.watchdog import Watchdog
from tests.training.job import POSITIONS, FirstDevices, job
from tests.training.synthetic import Regression, Vectors
from tests.training.test_meshes_and_processes import StopAt

STEPS = 24


def run(folder: Path, source=None, steps: int = STEPS, **changes) -> dict[str, np.ndarray]:
    arguments = {"objective": Regression(), "source": source or Vectors(), "eval_sources": {}}
    job(folder, steps, hardware=FirstDevices(data=1), **(arguments | changes))
    return dict(np.load(folder / "final.npz"))


def same(a: dict, b: dict) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["train/loss"] for r in read_metrics(folder) if "train/loss" in r}


def stopped_at(step: int, **options) -> StopAt:
    source = StopAt(**options)
    object.__setattr__(source, "stop", step)
    return source


def test_a_bad_batch_changes_nothing_but_the_counters(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, stopped_at(6), steps=8)
    params, mutable, meta = load_params(tmp_path)
    assert meta.step == 7
    final = run(tmp_path, Vectors(bad=(7,)), steps=8)
    assert final[".skipped"] == 1 and final[".step"] == 8
    np.testing.assert_array_equal(final[".params['w']"], params["w"])
    np.testing.assert_array_equal(final[".mutable['mean']"], mutable["mean"])
    assert math.isnan(losses(tmp_path)[8]) and load_meta(tmp_path).text_tokens == 8 * 64


def test_skipped_updates_in_a_row_stop_the_run_and_the_batch_is_saved(tmp_path, monkeypatch, capsys):
    source = Vectors(bad=tuple(range(9, 99)))
    with pytest.raises(UserError, match=r"3 updates in a row \(limit 3\) were skipped for a non-finite loss") as error:
        run(tmp_path, source, guards=Guards(max_in_row=3))
    assert f"--model_dir={tmp_path} --data_step=11" in str(error.value)
    np.testing.assert_array_equal(replay.saved_batch(str(tmp_path), 11)["x"], source.batch(11)["x"])
    assert latest_step(tmp_path) == 8, "a checkpoint amid skipped updates"

    monkeypatch.setattr(replay, "_configured", lambda config, model_dir: (Regression(), 0))
    assert replay.main([f"--model_dir={tmp_path}", "--data_step=11"]) == 0
    said = capsys.readouterr().out
    assert "loss nan" in said and "not finite: input x" in said and "not finite: gradient w" in said
    assert replay.main([f"--model_dir={tmp_path}", "--data_step=5"]) == 2


def test_too_many_skipped_updates_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"3 updates \(limit 2\)"):
        run(tmp_path, Vectors(bad=(1, 3, 5, 7)), guards=Guards(max_skipped=2))


def test_a_spike_is_skipped(tmp_path):
    guards = Guards(spike_z=8.0, spike_window=6)
    final = run(tmp_path, Vectors(high=(2, 12)), guards=guards)
    # The first comes before the window is full.
    assert final[".skipped"] == 1
    assert losses(tmp_path)[13] > 50 * losses(tmp_path)[12]
    limits = {r["step"]: r["train/loss_limit"] for r in read_metrics(tmp_path) if "train/loss_limit" in r}
    assert min(limits) > 6 and losses(tmp_path)[13] > limits[13]


def test_a_stopped_run_decides_alike(tmp_path):
    guards = Guards(spike_z=8.0, spike_window=6)
    whole = run(tmp_path / "whole", Vectors(high=(12,)), guards=guards)
    for stop in (11, 12, 13):
        with pytest.raises(SystemExit) as end:
            run(tmp_path / str(stop), stopped_at(stop, high=(12,)), guards=guards)
        assert end.value.code == EXIT_PREEMPTED
        same(run(tmp_path / str(stop), Vectors(high=(12,)), guards=guards), whole)
        assert losses(tmp_path / str(stop)) == pytest.approx(losses(tmp_path / "whole"), nan_ok=True)


def test_the_way_back_passes_over_the_data(tmp_path, caplog):
    guards = Guards(max_in_row=3, rollbacks=1)
    with caplog.at_level(logging.WARNING, "mimo_jax"):
        final = run(tmp_path / "a", Vectors(bad=(9, 10, 11)), guards=guards)
    assert "back from step 14 to the checkpoint of step 8 (1 of 1 times); goes on with data step 14" in caplog.text
    meta = load_meta(tmp_path / "a")
    assert (meta.step, meta.rollbacks, meta.data_rows) == (STEPS, 1, (STEPS + 6) * 8)
    assert meta.text_tokens + meta.audio_tokens == STEPS * POSITIONS
    assert final[".skipped"] == 0 and not any(math.isnan(loss) for loss in losses(tmp_path / "a").values())

    with pytest.raises(UserError, match="3 updates in a row"):
        run(tmp_path / "b", Vectors(bad=(9, 10, 11, 20, 21, 22)), guards=guards)

    # Killed behind the way back, before the next checkpoint or after it: the same bits.
    for stop in (15, 18):
        with pytest.raises(SystemExit):
            run(tmp_path / str(stop), stopped_at(stop, bad=(9, 10, 11)), guards=guards)
        same(run(tmp_path / str(stop), Vectors(bad=(9, 10, 11)), guards=guards), final)


def test_monitor():
    monitor = Monitor(Guards(spike_z=2.0, spike_window=4, max_in_row=2, max_skipped=9))
    for loss in (1.0, 2.0, 3.0):
        assert monitor.look(loss, 0) is Verdict.FINE and monitor.loss_limit() == math.inf
    monitor.look(4.0, 0)
    assert monitor.loss_limit() == pytest.approx(2.5 + 2.0 * np.std([1, 2, 3, 4]))
    assert monitor.look(99.0, 1) is Verdict.FINE
    again = Monitor(Guards(spike_z=2.0, spike_window=4, max_in_row=2, max_skipped=9), monitor.record())
    assert again.loss_limit() == monitor.loss_limit(), "a skipped loss is none of the window"
    assert again.look(99.0, 2) is Verdict.IN_ROW
    for wrong in ({"max_in_row": 0}, {"spike_z": -1.0}, {"spike_window": 1}):
        with pytest.raises(UserError, match="Guards"):
            Guards(**wrong)


def test_token_milestones_are_evaluated_and_the_best_is_kept(tmp_path):
    seen = []

    def hook(params, mutable):
        seen.append(params["w"].shape)
        return {"few_shot/accuracy": 0.5}

    run(
        tmp_path,
        eval_sources={"heldout": Vectors(seed=1)},
        evaluation_hooks=[hook],
        intervals=loop.Intervals(log=4, evaluate_tokens=10 * POSITIONS, evaluation_batches=1, checkpoint=5),
        keep=Keep(latest=1, every_tokens=10 * POSITIONS, best_metric="heldout/loss"),
    )
    evaluated = [record for record in read_metrics(tmp_path) if "heldout/loss" in record]
    assert [record["step"] for record in evaluated] == [10, 20, 24]
    assert all(record["few_shot/accuracy"] == 0.5 for record in evaluated) and len(seen) == 3
    assert load_meta(tmp_path).metrics["heldout/loss"] == evaluated[-1]["heldout/loss"]
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [10, 20, 24]
    with pytest.raises(UserError, match="no such metric"):
        run(tmp_path / "b", eval_sources={"heldout": Vectors(seed=1)}, keep=Keep(best_metric="heldout/accuracy"))


def test_profile_windows(tmp_path):
    assert Profile("4:2,9:1").steps() == [(4, 2), (9, 1)] == Profile(((4, 2), (9, 1))).steps()
    for wrong in ("4", "4:0", "9:1,4:2", ((1, 2, 3),)):
        with pytest.raises(UserError, match="Profile.windows"):
            Profile(wrong)
    run(tmp_path, steps=12, profile=Profile("4:2,9:1"))
    traces = list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert traces and all(trace.stat().st_size for trace in traces)


def test_log_lines(tmp_path, caplog, monkeypatch):
    from mimo_jax.training import progress

    monkeypatch.setattr(progress, "peak_flops", lambda device: 1e9)
    objective = type("Counted", (Regression,), {"flops": lambda self, t, a, batch, causal: (t + a) * (1 + causal)})
    with caplog.at_level(logging.INFO, "mimo_jax"):
        run(tmp_path, objective=objective(), intervals=loop.Intervals(log=8, checkpoint=0))
    line = next(record.message for record in caplog.records if "step 16 " in record.message)
    for part in ("job step 16 (66.7 %)", "tokens 1.024 k text 512 audio", "loss ", "largest ", "grad norm ", "s/step"):
        assert part in line
    for part in ("tokens/s/device", "MFU", "causal", "full", "goodput", "host", "left 0:00:0"):
        assert part in line
    record = next(record for record in read_metrics(tmp_path) if record["step"] == 16)
    assert record["speed/mfu_causal"] == pytest.approx(2 * record["speed/mfu_full"])
    assert 0 < record["speed/goodput"] <= 1
    assert "parameters" in caplog.text and "checkpoint of step 24 written" in caplog.text


def test_watchdog_says_where_every_thread_stands(tmp_path, caplog):
    with caplog.at_level(logging.ERROR, "mimo_jax"), Watchdog(tmp_path, seconds=0.2) as watchdog:
        time.sleep(0.5)
        assert not caplog.text, "time counts from the first step on"
        watchdog.beat(7)
        time.sleep(0.6)
        watchdog.pause()
    assert "after step 7 on process 0 of 1" in caplog.text
    stacks = (tmp_path / "stacks_0.txt").read_text()
    assert "test_watchdog_says_where_every_thread_stands" in stacks and stacks.count("no step for") == 1


def test_a_step_that_hangs_is_noticed(tmp_path, caplog):
    class Hanging(Vectors):
        def batch(self, step):
            time.sleep(1.5 if step == 6 else 0)
            return super().batch(step)

    with caplog.at_level(logging.ERROR, "mimo_jax"):
        run(tmp_path, Hanging(), steps=8, guards=Guards(watchdog_seconds=0.5))
    assert "no step for" in caplog.text
    assert "batch" in (tmp_path / "stacks_0.txt").read_text()
    assert jax.process_count() == 1


def test_a_notice_of_maintenance_stops_the_run(tmp_path, monkeypatch):
    """Only one that was not there from the start."""
    answers = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path.rpartition("/")[2]].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(stopping.METADATA_HOST, f"localhost:{server.server_port}")

    class Noticed(Vectors):
        def batch(self, step):
            time.sleep(0.02)
            if step == 10:
                answers["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
            return super().batch(step)

    monkeypatch.setattr(loop, "MaintenanceNotice", lambda: stopping.MaintenanceNotice(seconds=0.05))
    with pytest.raises(SystemExit) as end:
        run(tmp_path, Noticed(), steps=300)
    assert end.value.code == EXIT_PREEMPTED
    assert 0 < latest_step(tmp_path) < 300
    final = run(tmp_path / "b", Noticed(), steps=20)
    assert final[".step"] == 20
    server.shutdown()
