"""The chain of instruction tuning and its comparison, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import gin
import pytest

from mimo_jax import cli, post_training
from mimo_jax.data.all_formats import formats
from mimo_jax.data.corpus.instructions import kind_of
from mimo_jax.data.corpus.plan import CorpusConfig, plan_corpus
from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.data.manifest_files import MANIFEST_NAME, TEXTS_NAME, write_manifest, write_texts


def corpus(folder: Path, records, texts=()) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder / MANIFEST_NAME, records)
    write_texts(folder / TEXTS_NAME, texts)
    return folder


@pytest.fixture
def folders(tmp_path):
    """A quickstart's folder as far as the chain looks at it, and an output folder with a corpus and exported models."""
    quickstart, out = tmp_path / "quick", tmp_path / "out"
    for name in ("joint", "export/language_model_base", "export/tokenizer", "prepared/text_tokenizer"):
        (quickstart / name).mkdir(parents=True)
    corpus(quickstart / "prepared" / "curated", [Record("a", "a.wav", "one", "alice")])
    corpus(out / "corpus", [Record("b", "b.wav", "two", "irene", split="test_voices")])
    for name in ("recogniser", "language_model"):
        (out / "export" / name).mkdir(parents=True)
    return quickstart, out


def commands(quickstart, out, preset="small") -> dict[str, list[str]]:
    found = post_training.chain_stages(post_training.PRESETS[preset], quickstart, out, seed=1)
    return {stage.name: list(stage.arguments()) for stage in found}


def test_base_and_tokenizers_are_the_quickstarts_and_each_stage_reads_what_an_earlier_one_wrote(folders):
    quickstart, out = folders
    post_training.require_quickstart(quickstart)
    found = commands(quickstart, out)
    assert list(found) == ["corpus", "prepare", "recogniser", "sft", "evaluate_base", "evaluate_sft", "compare"]
    assert f"--text_tokenizer={quickstart}/prepared/text_tokenizer" in found["prepare"]
    assert f"--codec={quickstart}/export/tokenizer" in found["prepare"]
    assert f"--gin.INIT_FROM={quickstart}/joint" in found["sft"] and f"--gin.PREPARED={out}/prepared" in found["sft"]
    assert f"--gin.LANGUAGE_MODEL={quickstart}/export/language_model_base" in found["evaluate_base"]
    assert f"--gin.LANGUAGE_MODEL={out}/export/language_model" in found["evaluate_sft"]
    differ = set(found["evaluate_base"]) ^ set(found["evaluate_sft"])
    assert {d.split("=")[0] for d in differ} <= {"--gin.OUT", "--gin.LANGUAGE_MODEL", "--gin.IDENTITY"}
    assert found["compare"][2:4] == [f"base={out}/evaluation/base", f"sft={out}/evaluation/sft"]
    assert json.loads((out / "held_out.json").read_text())["held_out_voices"] == 1


@pytest.mark.parametrize("preset", sorted(post_training.PRESETS))
def test_every_measured_section_has_written_instructions(folders, preset):
    (*_, share) = [f for f in commands(*folders, preset)["corpus"] if f.startswith("--instructions=")]
    assert float(share.partition("=")[2]) == 1
    sizes = {k: v for k, v in post_training.PRESETS[preset].corpus.items() if k != "wide_shares"}
    utterances, _ = plan_corpus(CorpusConfig(seed=1, **{**sizes, "texts": 0, "wide_utterances": 0}))
    sections = [(u.record.subset, u.record.split) for u in utterances if u.record.split != "train"]
    told = [(u.record.subset, u.record.split) for u in utterances if any(map(kind_of, u.record.qa))]
    assert all(told.count(section) > 3 for section in set(sections))


def test_a_model_that_was_trained_again_is_measured_again(folders):
    before = commands(*folders)["evaluate_sft"]
    (folders[1] / "export" / "language_model" / "model.safetensors").write_bytes(b"weights")
    after = commands(*folders)
    assert after["evaluate_sft"] != before and commands(*folders) == after


def test_what_the_quickstart_lacks_is_named(tmp_path):
    (tmp_path / "joint").mkdir()
    with pytest.raises(cli.UserError, match="no export/language_model_base, export/tokenizer, .*quickstart.sh"):
        post_training.require_quickstart(tmp_path)


def test_held_out_items_that_were_trained_on_are_refused(tmp_path):
    base = corpus(tmp_path / "base", [Record("a", "a.wav", "one", "alice")], [TextRecord("t", "why", reply="so")])

    def new(name, **fields):
        return corpus(tmp_path / name, [Record("h", "h.wav", **({"split": "validation", "speaker": "alice"} | fields))])

    assert post_training.held_out_apart(base, new("apart", text="two"))["held_out_texts"] == 1
    for name, text in (("spoken", "one"), ("written", "why"), ("reply", "so")):
        with pytest.raises(cli.UserError, match=f"held-out texts were trained on .*'{text}'"):
            post_training.held_out_apart(base, new(name, text=text))
    with pytest.raises(cli.UserError, match="held-out voices .*'alice'"):
        post_training.held_out_apart(base, new("voice", text="two", split="test_voices"))


def test_corpora_of_two_seeds_keep_their_held_out_items_apart(tmp_path):
    sizes = {"core_utterances": 300, "wide_utterances": 300, "texts": 200}
    made = []
    for seed in (0, 1):
        utterances, texts = plan_corpus(CorpusConfig(seed=seed, **sizes))
        made.append(corpus(tmp_path / str(seed), [u.record for u in utterances], texts))
    counts = post_training.held_out_apart(*made)
    assert counts["held_out_texts"] > 500 and counts["held_out_voices"] == 3


@pytest.fixture
def parsed(folders):
    """Parses the gin of one stage's command, as the stage itself would."""
    from mimo_jax import evaluate_chain, train  # noqa: F401  (their parameters)

    def parse(preset: str, stage: str) -> None:
        gin.clear_config()
        arguments = commands(*folders, preset)[stage]
        bindings = cli.rewrite_gin_arguments([a for a in arguments if a.startswith("--gin.")])
        cli.parse_gin(
            [a.removeprefix("--gin_file=") for a in arguments if a.startswith("--gin_file=")],
            [b.removeprefix("--gin_bindings=") for b in bindings],
        )

    yield parse
    gin.clear_config()


@pytest.mark.parametrize("preset", sorted(post_training.PRESETS))
def test_stages_find_their_parameters(parsed, preset):
    parsed(preset, "sft")
    rates = gin.query_parameter("post_training/mixtures.Mixture.rates")
    chat = {f.name for f in formats().values() if f.stage == "post_training"}
    assert set(rates) == chat - {"sft_conversation"}  # the built-in corpus has none in the exchange format
    assert gin.query_parameter("%MIXTURE").scoped_selector.startswith("post_training/")
    assert gin.query_parameter("schedule.Schedule.kind") == "linear"
    parsed(preset, "evaluate_base")
    from mimo_jax.evaluation.suite import SuiteOptions

    options = gin.get_configurable(SuiteOptions)()
    assert options.measures("audio_questions_thinking") and options.measures("written_instructions")
    assert not options.measures("conversion")
    assert set(gin.query_parameter("%IDENTITY")) == {"language_model", "tokenizer", "recogniser"}
    parsed(preset, "recogniser")
