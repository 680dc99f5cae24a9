"""What the log says of a run, and the file of its figures."""

import pytest

from mimo_jax.cli import UserError
from mimo_jax.training import progress
from mimo_jax.training.metrics import MetricWriter, read_metrics
from mimo_jax.training.schedule import Budget


def test_speed_counts_positions_and_audio():
    speed = progress.Speed(lambda text, audio: None, started=0.0, useful_seconds=0.0, progress=0.0)
    speed.compiled()
    for _ in range(3):
        speed.step(text=10, audio=25)
    values = speed.figures(progress=0.5)
    rate = values["speed/tokens_per_second_per_device"]
    assert values["speed/audio_seconds_per_second_per_device"] == pytest.approx(rate * 25 / 35 * 0.16)


def test_many_figures_of_a_kind_are_one_range():
    values = {f"train/usage/{i}": i / 20 for i in range(1, 21)} | {"train/loss/text": 2.5}
    values |= {f"train/codebook/{i}": float(i) for i in range(1, 4)}
    values |= {"train/loss": 3.0, "train/grad_norm": 1.0, "train/skipped": 0, "text_tokens": 1500, "audio_tokens": 0}
    values |= {"speed/goodput": 0.5, "memory/host_gigabytes": 1.0}
    shown = progress.line("stage", 7, 0.25, values)
    assert "usage/* 0.05 to 1  " in shown and "loss/text 2.5  " in shown
    assert "codebook/1 1  codebook/2 2  codebook/3 3" in shown
    assert shown.startswith("stage step 7 (25.0 %)  tokens 1.5 k text 0 audio  loss 3.0000")


def test_a_budget_in_hours_of_audio():
    budget = Budget(audio_hours=2)
    assert budget.progress(step=5, text_tokens=10**9, audio_tokens=22500) == 0.5
    with pytest.raises(UserError, match="audio_hours, steps"):
        Budget(audio_hours=2, steps=3)


def test_a_record_cut_short_is_left_out(tmp_path):
    """By whoever looks at a run that was killed, and by the run when it goes on."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    MetricWriter(tmp_path, restored_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
