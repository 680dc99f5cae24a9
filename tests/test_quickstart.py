"""The quickstart's chain of commands, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import gin
import pytest

from mimo_jax import cli, quickstart
from mimo_jax.data.all_formats import formats


def commands(stages) -> dict[str, list[str]]:
    return {stage.name: list(stage.arguments()) for stage in stages}


def test_built_in_corpus_comes_first_and_each_stage_reads_what_an_earlier_one_wrote():
    found = commands(quickstart.chain_stages(quickstart.PRESETS["quick"], Path("/o"), None, seed=3))
    names = list(found)
    assert names[0] == "corpus" and names[-1] == "evaluate"
    assert "--gin.INIT_FROM=/o/understanding" in found["joint"]
    assert "--gin.INIT_FROM=/o/joint" in found["sft"]
    assert "--codec=/o/export/tokenizer" in found["prepare"]
    for name in quickstart.TRAINED:
        assert "--gin.SEED=3" in found[name]


def test_presets_differ_in_budgets_only():
    quick, full = (
        commands(quickstart.chain_stages(quickstart.PRESETS[name], Path("/o"), None, seed=0))
        for name in ("quick", "full")
    )
    assert list(quick) == list(full)
    for name in quickstart.LANGUAGE_STAGES:
        assert set(quick[name]) < set(full[name])


@pytest.fixture
def parsed():
    """Parses the gin of one stage's command and looks parameters up, as the stage itself would see them."""
    from mimo_jax import train  # noqa: F401  (its parameters)

    def parse(preset: str, stage: str) -> dict[str, object]:
        gin.clear_config()
        arguments = commands(quickstart.chain_stages(quickstart.PRESETS[preset], Path("/o"), None, seed=0))[stage]
        bindings = cli.rewrite_gin_arguments([a for a in arguments if a.startswith("--gin.")])
        cli.parse_gin(
            [a.removeprefix("--gin_file=") for a in arguments if a.startswith("--gin_file=")],
            [b.removeprefix("--gin_bindings=") for b in bindings],
        )
        names = ("code_embeddings", "patch_encoder", "patch_decoder", "llm")
        if stage == "understanding":
            names = ("code_embeddings", "patch_encoder", "llm")
        return {
            "rates": gin.query_parameter(f"quickstart_{stage}/mixtures.Mixture.rates"),
            "learning rates": [gin.query_parameter(f"{n}/optimizer.Group.learning_rate") for n in names],
            "schedule": gin.query_parameter("schedule.Schedule.kind"),
            "tokens": gin.query_parameter("%BUDGET_TOKENS"),
        }

    yield parse
    gin.clear_config()


def test_every_format_is_trained_on_in_both_presets(parsed):
    for preset in ("quick", "full"):
        for stages, kind in ((("understanding", "joint"), "pretraining"), (("sft",), "post_training")):
            trained = {task for stage in stages for task, rate in parsed(preset, stage)["rates"].items() if rate > 0}
            known = {f.name for f in formats().values() if f.stage == kind}
            # The built-in corpus has no conversations in the exchange format.
            assert trained >= known - {"sft_conversation"}, (preset, kind)


def test_full_has_mixtures_and_budgets_of_its_own(parsed):
    for stage in quickstart.LANGUAGE_STAGES:
        quick, full = parsed("quick", stage), parsed("full", stage)
        assert full["rates"] != quick["rates"]
        assert full["tokens"] > 2 * quick["tokens"]


def test_instruction_tuning_is_the_decay_of_the_joint_stage(parsed):
    joint, sft = parsed("quick", "joint"), parsed("quick", "sft")
    assert joint["schedule"] == "constant" and sft["schedule"] == "linear"
    assert joint["learning rates"] == sft["learning rates"]


def test_own_data_fits_the_rows_to_the_recordings(tmp_path):
    curated = tmp_path / "out" / "prepared" / "curated"
    curated.mkdir(parents=True)
    for longest, samples in ((3.0, 98_880), (40.0, 480_000)):  # whole code frames
        lines = [json.dumps({"audio": f"{d}.wav", "duration": d}) + "\n" for d in (2.0, longest)]
        (curated / "manifest.jsonl").write_text("".join(lines))
        assert (
            f"MAX_SAMPLES={samples}"
            in quickstart.fitted_to(curated, quickstart.PRESETS["quick"])["tokenizer_adversarial"]
        )
    found = commands(quickstart.chain_stages(quickstart.PRESETS["quick"], tmp_path / "out", tmp_path, seed=0))
    assert "corpus" not in found
    assert "--gin.MAX_SAMPLES=480000" in found["tokenizer_unified"]
    assert "--gin.CONTEXT=1024" in found["joint"]
    assert "--gin.LOSS_SPLIT=validation" in found["evaluate"]
