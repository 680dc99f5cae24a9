"""The ladder's command: what it starts, what it reads of finished runs, what it writes; mistakes are named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mimo_jax import ladder as script
from mimo_jax.cli import UserError
from mimo_jax.evaluation.scaling_law import Law
from mimo_jax.training.checkpoints import Checkpoints
from mimo_jax.training.meta import Meta

TEXT, CODES = Law(1.7, 4.0, 0.3, 200.0, 0.35), Law(2.5, 9.0, 0.2, 90.0, 0.3)
SIZES = {"s": {"WIDTH": 8}, "m": {"WIDTH": 16}, "l": {"WIDTH": 32}}
BUDGETS = (1e4, 4e4, 2e5)
LOSSES = {"text": "asr/text_loss", "codebook 1": "tts/codebook_loss_1"}


def finished(model_dir: Path, width: int, tokens: int, **record: float) -> None:
    """A run as training leaves it."""
    params = {"llm": {"kernel": np.zeros((width, width), np.float32)}, "embed_tokens": np.zeros((9, 9), np.float32)}
    checkpoints = Checkpoints(model_dir, asynchronous=False)
    meta = Meta(step=3, finished=True, text_tokens=tokens // 2, audio_tokens=tokens - tokens // 2)
    checkpoints.save({"params": params, "mutable": {}}, meta)
    checkpoints.close()
    losses = {"asr/text_loss": float(TEXT(width**2, tokens)), "tts/codebook_loss_1": float(CODES(width**2, tokens))}
    lines = [{"step": 1, "train/loss": 5.0}, {"step": 3, **losses, **record}, {"step": 3, "checkpoint/gigabytes": 1.0}]
    (model_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def trainings(monkeypatch):
    """Runs that end at once; the commands that were started."""
    started = []

    def run(self, stages, independent=False):
        assert independent
        for stage in stages:
            arguments = stage.arguments()
            started.append(arguments)
            given = dict(re.match(r"--gin\.(\w+)=(.*)", a).groups() for a in arguments if a.startswith("--gin."))
            finished(Path(given["MODEL_DIR"]), int(given["WIDTH"]), int(float(given["BUDGET_TOKENS"])))

    monkeypatch.setattr(script.Chain, "run", run)
    return started


def climb(out, **options):
    given = {"run_file": "run.gin", "sizes": SIZES, "budgets": BUDGETS, "losses": LOSSES, "resamples": 5, "seed": 7}
    return script.ladder(out=str(out), **{**given, **options})


def test_a_ladder_is_trained_fitted_and_told(trainings, tmp_path, capsys):
    result = climb(tmp_path, bindings={"PREPARED": "here"})
    assert len(trainings) == 9
    assert trainings[0][:3] == ["-m", "mimo_jax.train", "--gin_file=run.gin"]
    assert {"--gin.PREPARED=here", "--gin.WIDTH=8", "--gin.SEED=7"} <= set(trainings[0])
    assert trainings[0] != trainings[1] and trainings[-1][-1] == "--gin.BUDGET_TOKENS=200000.0"
    for row in result["predictions"]:
        assert (row["size"], row["tokens"]) == ("l", 200_000)
        assert row["predicted"] == pytest.approx(row["measured"], rel=1e-3)
    # Tables that are looked up do not count.
    assert sorted({run["parameters"] for run in result["runs"]}) == [64, 256, 1024]
    assert [run["held_back"] for run in result["runs"]].count(True) == 1
    assert json.loads((tmp_path / "ladder.json").read_text())["predictions"] == result["predictions"]
    assert "codebook 1" in (tmp_path / "ladder.html").read_text()
    assert "codebook 1" in capsys.readouterr().out


def test_what_is_held_back_can_be_chosen(trainings, tmp_path):
    result = climb(tmp_path, held_back=[("s", 2e5), ("m", 2e5)])
    assert {(r["size"], r["tokens"]) for r in result["predictions"]} == {("s", 200_000), ("m", 200_000)}


def test_mistakes_are_named(trainings, tmp_path):
    with pytest.raises(UserError, match=r"held_back: \[\('xl', 10000.0\)\] are not among"):
        climb(tmp_path, held_back=[("xl", 1e4)])
    with pytest.raises(UserError, match="no asr/nothing at its end; it has asr/text_loss, tts/codebook_loss_1"):
        climb(tmp_path / "a", losses={"x": "asr/nothing", "text": "asr/text_loss"})
    with pytest.raises(UserError, match="ladder: 3 runs of 2 sizes"):
        climb(tmp_path / "b", sizes={name: SIZES[name] for name in ("s", "m")}, budgets=BUDGETS[:2])
