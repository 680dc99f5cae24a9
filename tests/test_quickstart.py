"""The quickstart's chain of commands, without running it."""

from __future__ import annotations

import json
from pathlib import Path

from mimo_jax import quickstart


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


def test_own_data_fits_the_rows_to_the_recordings(tmp_path):
    scan = tmp_path / "out" / "prepared" / "scan"
    scan.mkdir(parents=True)
    (scan / "manifest.jsonl").write_text("".join(json.dumps({"duration": d}) + "\n" for d in (2.0, 9.0, 40.0)))
    found = commands(quickstart.chain_stages(quickstart.PRESETS["quick"], tmp_path / "out", tmp_path, seed=0))
    assert "corpus" not in found
    assert "--gin.MAX_SAMPLES=480000" in found["tokenizer_unified"]
    assert "--gin.CONTEXT=1024" in found["joint"]
    assert "--gin.LOSS_SPLIT=validation" in found["evaluate"]
