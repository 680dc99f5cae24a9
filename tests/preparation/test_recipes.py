"""Recipes end to end: built-in corpus -> conversations -> prepared examples; folders of the released toolkit."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from mimo_jax import synthesise
from mimo_jax.data import prompts
from mimo_jax.data.audio import write_wav
from mimo_jax.data.conversations import conversation_segments
from mimo_jax.data.corpus.build import build_corpus
from mimo_jax.data.manifest_files import read_conversations, read_manifest
from mimo_jax.data.records import RecordReader, from_bytes
from mimo_jax.data.sequence import Layout, StreamedSegment, TextSegment, render
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.preparation.recipes.run import run_recipe
from mimo_jax.preparation.recipes.thinking import Thinking
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/sft/conversations.json"
SETTINGS = {"vocab_size": 500, "contexts": (512,), "workers": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes") / "corpus"
    sizes = {"core_validation": 1, "core_test_voices": 1, "wide_validation": 12, "wide_test_voices": 1, "texts": 5}
    build_corpus(folder, core_utterances=3, wide_utterances=40, workers=1, **sizes)
    return folder


def run(*arguments):
    assert synthesise.main([str(a) for a in arguments]) == 0


def examples(prepared, split, task="sft_conversation"):
    """(tokenizer, {id: example}) of a split."""
    paths = sorted((prepared / "examples" / task).glob(f"{split}-*.array_record"))
    reader = RecordReader(paths)
    made = [from_bytes(data) for data in reader.read(range(len(reader)))]
    return TextTokenizer.load(prepared / "text_tokenizer"), {example.id: example for example in made}


def plain(segments, loss=None):
    """The text of segments put together; with ``loss``, of those that (do not) carry it."""
    chosen = [s for s in segments if loss is None or s.loss == loss]
    return "".join(s.text for s in chosen if isinstance(s, (TextSegment, StreamedSegment)))


def test_thinking_becomes_examples_with_loss_on_thought_and_answer(corpus, tmp_path):
    out = tmp_path / "thinking"
    run("--recipe=thinking", f"--source={corpus}", f"--out={out}", "--modes=thinking,plain,bare", "--workers=1")
    result = prepare(out, tmp_path / "prepared", FakeCodec(), **SETTINGS)
    source = {record.id: record for record in read_manifest(corpus)}
    made = read_conversations(out)
    assert result["counts"]["records"]["quarantined"] == 0
    assert result["examples"]["sft_conversation"]["train"] == sum(c.split == "train" for c in made) > 30
    # Its recordings are the conversations' alone.
    assert all(sum(n.values()) == 0 for task, n in result["examples"].items() if task != "sft_conversation")

    kinds = set()
    for split in ("train", "validation"):
        tokenizer, by_id = examples(tmp_path / "prepared", split)
        layout = Layout(tokenizer.special, empty_codes=FakeCodec.codebook_sizes)
        for conversation in (c for c in made if c.split == split):
            record_id, _, key, mode = conversation.id.rsplit("/", 3)
            record, example = source[record_id], by_id[conversation.id]
            answer = source[record.reply].text if key == "asked" else record.qa[int(key[2:])]["answer"]
            thought = conversation.turns[-1].get("Chain-of-thought", "")
            kinds.add((key == "asked", mode))
            labelled = tokenizer.decode(example.text[example.loss == 1].tolist())
            expected = {"thinking": f"{thought}</think>\n", "plain": "", "bare": ""}[mode] + answer + "<|im_end|>\n"
            assert labelled == expected
            assert (mode == "thinking") == bool(thought) and thought.count("\n") == bool(thought)
            assert answer in thought or mode != "thinking" or key == "asked"
            # Exactly the form that the model is asked in.
            codes = example.codes.reshape(-1, 8)
            if key != "asked" and mode != "bare":
                question = conversation.turns[0]["content"][1]["text"]
                asked = prompts.audio_understanding(codes, question, thinking=mode == "thinking")
                whole = prompts.complete_with_text(asked, answer, thought or None)
                arrays = render(whole, tokenizer.encode, layout)
                np.testing.assert_array_equal(arrays.text, example.text)
                np.testing.assert_array_equal(arrays.loss, example.loss)
    assert len(kinds) == 6


def test_instructed_speech_becomes_examples_in_both_forms(corpus, tmp_path):
    out = tmp_path / "styled"
    run("--recipe=instruct_tts", f"--source={corpus}", f"--out={out}", "--subsets=wide", "--workers=1")
    result = prepare(out, tmp_path / "prepared", FakeCodec(), **SETTINGS)
    source = {record.id: record for record in read_manifest(corpus)}
    made = [c for c in read_conversations(out) if c.split == "train"]
    assert result["examples"]["sft_conversation"]["train"] == len(made)
    clean = [r for r in source.values() if r.subset == "wide" and r.attributes["noise"] == "none"]
    assert len(made) == sum(r.split == "train" for r in clean)

    tokenizer, by_id = examples(tmp_path / "prepared", "train")
    forms, wordings = set(), set()
    for conversation in made:
        system, user, answer = conversation.turns
        record = source[answer["content"][1]["audio"]]
        text, thought = user["content"][0]["text"], answer["Chain-of-thought"]
        assert prompts.normalize_case(record.text) in text or record.text in text
        codes = np.zeros((8, 8), np.int32)
        voices = [item["audio"] for item in system["content"][1:]]
        for voice in voices:
            assert source[voice].speaker == record.speaker and source[voice].text != record.text
            assert source[voice].split == record.split and source[voice].attributes["noise"] == "none"
            assert record.attributes["accent"] not in text + thought
        released = text.endswith(")") and ": " in text
        if released:
            wording, style = text.split(": ")[0], text.rsplit("(", 1)[1][:-1]
            asked = prompts.instruct_tts(record.text, style, wording, codes if voices else None)
        else:
            asked = prompts.natural_instruction_tts(text, codes if voices else None)
        forms.add((released, bool(voices)))
        wordings.add(text.replace(record.text, "").replace(prompts.normalize_case(record.text), ""))
        whole = prompts.complete_with_speech(asked, prompts.SpokenText(record.text, codes), thought)
        segments = conversation_segments(conversation.turns, lambda _, codes=codes: codes)
        assert plain(segments) == plain(whole) and plain(segments, True) == plain(whole, True)
        assert [type(s) for s in segments if not isinstance(s, TextSegment)] == [
            type(s) for s in whole if not isinstance(s, TextSegment)
        ]
        example = by_id[conversation.id]
        labelled = tokenizer.decode(
            example.text[(example.loss == 1) & (example.text != tokenizer.special.empty)].tolist()
        )
        assert labelled == f"{thought}</think>\n<|sostm|>{record.text}<|eot|><|eostm|><|im_end|>\n"
    assert len(forms) == 4 and len(wordings) > len(made) // 2


def test_whole_carries_everything_over_and_recipes_follow_each_other(corpus, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run("--recipe=thinking", f"--source={corpus}", f"--out={first}", "--whole", "--workers=1")
    run("--recipe=instruct_tts", f"--source={first}", f"--out={second}", "--whole", "--workers=1")
    again = tmp_path / "again"
    run("--recipe=instruct_tts", f"--source={second}", f"--out={again}", "--whole", "--workers=1")
    assert {c.id for c in read_conversations(again)} == {c.id for c in read_conversations(second)}
    kinds = {c.id.split("/")[1] for c in read_conversations(second)}
    assert kinds == {"thinking", "instruct_tts"}
    there, here = read_manifest(corpus), read_manifest(second)
    assert sorted(r.id for r in here) == sorted(r.id for r in there)
    by_id = {r.id: r for r in there}
    for record in here:
        assert (second / record.audio).resolve() == (corpus / by_id[record.id].audio).resolve()
        assert dataclasses.replace(record, audio="") == dataclasses.replace(by_id[record.id], audio="")
    result = prepare(second, tmp_path / "prepared", FakeCodec(), **SETTINGS)
    assert result["counts"]["records"]["quarantined"] == 0
    for task in ("sft_conversation", "sft_understanding_thinking", "sft_instruct_tts", "sft_asr", "sft_text_dialogue"):
        assert result["examples"][task]["train"] > 0


def test_any_shards_and_workers_give_the_same_conversations(corpus, tmp_path):
    made = []
    for number, settings in enumerate(({"workers": 1}, {"workers": 2}, {"workers": 1})):
        out = tmp_path / str(number)
        run_recipe(str(corpus), str(out), Thinking(), items_per_shard=6 if number < 2 else 1000, **settings)
        made.append([(out / name).read_bytes() for name in ("conversations.jsonl", "manifest.jsonl")])
    assert made[0] == made[1] == made[2]
    before = json.loads((out / "synthesis.json").read_text())
    assert run_recipe(str(corpus), str(out), Thinking(), items_per_shard=1000, workers=1) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--source=/nowhere"], "/nowhere"),
        (["--llm=gpt"], "--llm=gpt: there are: rules, openai:"),
        (["--llm=openai:nowhere"], "expected openai:BASE_URL#MODEL"),
        (["--voice_share=0.1"], "--voice_share: goes with --recipe=instruct_tts"),
        (["--modes=thinking,loud"], "modes .*loud.*: one or more of thinking, plain, bare"),
        (["--workers=0"], "--workers=0 must be at least 1"),
        (["--bad_share=20"], "--bad_share=20.0 must lie within 0 and 1"),
        (["--subsets=user"], "no conversation could be written for the recipe thinking"),
    ],
)
def test_mistakes_are_named(corpus, tmp_path, capsys, arguments, message):
    given = ["--recipe=thinking", f"--source={corpus}", f"--out={tmp_path / 'out'}", *arguments]
    assert synthesise.main(given) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_sources_folder_is_not_written_to(corpus, capsys):
    before = sorted(p.name for p in corpus.iterdir())
    assert synthesise.main(["--recipe=thinking", f"--source={corpus}", f"--out={corpus}/."]) == 2
    assert "the source's own folder" in capsys.readouterr().err
    assert sorted(p.name for p in corpus.iterdir()) == before


def test_a_folder_of_the_released_toolkits_json_is_a_source(tmp_path):
    data = json.loads(GOLDEN.read_text())
    (tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    for case in data["cases"]:
        (tmp_path / "source" / f"{case['name']}.json").write_text(json.dumps(case["conversation"], ensure_ascii=False))
    for name in "ABCDE":
        write_wav(tmp_path / "source" / f"{name}.wav", (0.1 * rng.standard_normal(9600)).astype(np.float32), 24000)
    result = prepare(
        tmp_path / "source", tmp_path / "prepared", FakeCodec(), vocab_size=400, contexts=(512,), workers=1
    )
    assert result["counts"]["records"]["quarantined"] == 0
    assert sum(result["examples"]["sft_conversation"].values()) == len(data["cases"])
    by_id = {}
    for split in ("train", "validation"):
        tokenizer, found = examples(tmp_path / "prepared", split)
        by_id |= {key.removesuffix(".json:1"): example for key, example in found.items()}
    said = {
        name: tokenizer.decode(e.text[(e.loss == 1) & (e.text != tokenizer.special.empty)].tolist())
        for name, e in by_id.items()
    }
    assert said["understanding_thinking"] == "The speaker says hi.\n</think>\nA short greeting.<|im_end|>\n"
    assert said["instruct_tts_voice_thinking"] == (
        "cheerful voice</think>\n<|sostm|>Good day<|eot|><|eostm|><|im_end|>\n"
    )
    assert said["spoken_dialogue_2_turns"].count("<|sostm|>") == 2
    # 0.4 s in frames of 40 ms, padded to patches of four.
    assert by_id["asr"].codes.shape == (3, 4, 8)
    assert said["no_assistant"] == ""
