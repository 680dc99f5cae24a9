"""The chain of the audio tokenizer alone, without running it."""

import contextlib
import json
from pathlib import Path

import gin
import pytest

from mimo_jax import cli, train_tokenizer


def commands(preset="small", data=None, compare=True, out=Path("/o")):
    stages = train_tokenizer.chain_stages(train_tokenizer.PRESETS[preset], out, data, compare, seed=3)
    return {stage.name: list(stage.arguments()) for stage in stages}


@contextlib.contextmanager
def parsed(arguments):
    """Gin as the command of these arguments has it."""
    gin.clear_config()
    try:
        bindings = cli.rewrite_gin_arguments([a for a in arguments if a.startswith("--gin.")])
        cli.parse_gin(
            [a.removeprefix("--gin_file=") for a in arguments if a.startswith("--gin_file=")],
            [b.removeprefix("--gin_bindings=") for b in bindings],
        )
        yield
    finally:
        gin.clear_config()


def test_comparisons_are_asked_for():
    alone, compared = commands(compare=False), commands()
    assert list(alone) == ["corpus", "curate", "recogniser", "unified", "adversarial", "evaluate"]
    more = ["unified_longer", "reconstruction", "unified_without_text", "probe"]
    assert [name for name in compared if name not in alone] == more
    assert "no discriminators" in str(compared["evaluate"]) and "no discriminators" not in str(alone["evaluate"])
    for name in ("adversarial", "reconstruction", "unified_longer"):
        assert "--gin.INIT_FROM=/o/unified" in compared[name]
    for name in train_tokenizer.TRAINED:
        assert "--gin.SEED=3" in compared[name] and f"--gin.MODEL_DIR=/o/{name}" in compared[name]


@pytest.mark.parametrize("preset", train_tokenizer.PRESETS)
@pytest.mark.parametrize("stage", ["recogniser", *train_tokenizer.TRAINED, "evaluate", "probe"])
def test_gin_knows_every_name(preset, stage):
    from mimo_jax import evaluate_tokenizer, probe_tokenizer, train  # noqa: F401  (their parameters)

    with parsed(commands(preset)[stage]):
        if stage == "reconstruction":
            assert gin.query_parameter("tokenizer_gan.TokenizerGanObjective.discriminators") is None
            assert len(gin.query_parameter("optimizer.Optimizer.groups")) == 1
        if stage == "unified_without_text":
            assert gin.query_parameter("tokenizer_objective.TokenizerObjective.text_weight") == 0
        if stage == "evaluate":
            assert max(gin.query_parameter("%CODEBOOKS")) == 20


def test_what_is_compared_has_the_same_steps_and_rates():
    from mimo_jax import train  # noqa: F401  (its parameters)

    found = {}
    for stage, group in (("adversarial", "generator"), ("reconstruction", "generator"), ("unified_longer", "all")):
        with parsed(commands()[stage]):
            names = ("%BUDGET_STEPS", "%BATCH_ROWS", f"{group}/optimizer.Group.learning_rate")
            schedule = [f"schedule.Schedule.{name}" for name in ("kind", "warmup", "final")]
            found[stage] = [gin.query_parameter(name) for name in (*names, *schedule)]
    assert found["adversarial"] == found["reconstruction"] == found["unified_longer"]


def test_own_recordings_fit_the_rows(tmp_path):
    curated = tmp_path / "out" / "prepared" / "curated"
    curated.mkdir(parents=True)
    (curated / "manifest.jsonl").write_text(json.dumps({"audio": "a.wav", "duration": 9.0}) + "\n")
    found = commands(data=tmp_path, out=tmp_path / "out")
    assert "corpus" not in found and f"--source={tmp_path}" in found["curate"]
    for name in train_tokenizer.TRAINED:
        assert {"--gin.MAX_SAMPLES=218880", "--gin.BATCH_ROWS=4"} <= set(found[name])
