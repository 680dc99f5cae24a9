"""Token-exact agreement with the released code: packing, prompts, fine-tuning conversations, post-processing."""

import json
import pathlib

import numpy as np
import pytest

from mimo_jax.data import prompts
from mimo_jax.data.conversations import conversation_segments
from mimo_jax.data.postprocess import postprocess
from mimo_jax.data.sequence import (
    AudioSegment,
    Layout,
    SpecialTokens,
    StreamedSegment,
    TextSegment,
    arrays,
    flatten_grid,
    from_grid,
    label_grid,
    to_grid,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def read(folder, name):
    return json.loads((GOLDEN / folder / name).read_text(encoding="utf-8"))


class CharacterTokenizer:
    """Special strings and single characters to ids, as the fixtures were made."""

    def __init__(self, facts):
        self.special, self.characters = facts["special_token_ids"], facts["char_ids"]
        self.names = {i: s for s, i in {**self.characters, **self.special}.items()}

    def encode(self, text):
        ids = []
        while text:
            token = next((s for s in self.special if text.startswith(s)), text[0])
            ids.append(self.special.get(token, self.characters.get(token)))
            text = text[len(token) :]
        return ids

    def decode(self, ids):
        return "".join(self.names[i] for i in ids)

    def layout(self, **kwargs):
        names = {"end_of_text": "<|endoftext|>"} | {
            k: f"<|{k}|>" for k in ("im_start", "im_end", "sosp", "eosp", "empty", "sostm", "eostm", "eot")
        }
        return Layout(SpecialTokens(**{k: self.special[s] for k, s in names.items()}), **kwargs)


PACKING = read("packing", "cases.json")


@pytest.mark.parametrize("case", PACKING["cases"], ids=lambda c: c["name"])
def test_packing(case):
    tokenizer = CharacterTokenizer(PACKING)
    inputs, outputs = np.load(GOLDEN / "packing/inputs.npz"), np.load(GOLDEN / "packing/outputs.npz")
    empty = case["speech_zeroemb_idx"]
    empty = tuple(empty) if isinstance(empty, list) else (empty,) * case["audio_channels"]
    parts = []
    for number, spec in enumerate(case["segments"]):
        layout = tokenizer.layout(
            empty_codes=empty,
            group_size=case["group_size"],
            stream_text=spec.get("text_segment_size", 5),
            stream_patches=spec.get("audio_segment_size", 5),
        )
        segment = {
            "text": lambda s=spec: TextSegment(s["text"]),
            "token_ids": lambda s=spec: TextSegment(s["ids"]),
            "audio": lambda s=spec: AudioSegment(inputs[s["codes"]], delimited=s["add_sosp_eosp"]),
            "streaming": lambda s=spec: StreamedSegment(s["text"], inputs[s["codes"]]),
        }[spec["kind"]]()
        text, audio, _ = arrays([segment], tokenizer.encode, layout)
        assert len(text) == spec["groups"]
        parts.append(to_grid(text, audio))
        np.testing.assert_array_equal(parts[-1], outputs[f"{case['name']}.seg{number}"])
    full = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(full, outputs[f"{case['name']}.full"])
    np.testing.assert_array_equal(flatten_grid(full), outputs[f"{case['name']}.flat"])


PROMPTS = read("prompts", "prompts.json")
TEMPLATE = "\u0001TEMPLATE\u0001"


def build_prompt(call, codes):
    function, message_list = call["function"], call.get("message_list", [])
    voice = codes[call["prompt_speech"]] if call.get("prompt_speech") in codes else None

    def content(value):
        if isinstance(value, dict):
            return prompts.SpokenText(value["text"], codes[value["audio"]])
        return codes.get(value, value)

    messages = [prompts.Message(m["role"], content(m["content"])) for m in message_list]
    if function == "get_asr_sft_prompt":
        return prompts.asr(codes[call["input"]], TEMPLATE)
    if function == "get_tts_sft_prompt":
        if call.get("read_text_only") is False:
            return prompts.natural_instruction_tts(call["input"], voice)
        if call.get("instruct"):
            return prompts.instruct_tts(call["input"], call["instruct"], TEMPLATE, voice)
        return prompts.tts(call["input"], TEMPLATE)
    if function == "get_audio_understanding_sft_prompt":
        return prompts.audio_understanding(codes[call["input_speech"]], call["input_text"], call["thinking"])
    if function in ("get_s2t_dialogue_sft_prompt", "get_text_dialogue_sft_prompt"):
        given = codes[call["input_speech"]] if "input_speech" in call else call["input_text"]
        return prompts.text_answer_dialogue([prompts.Message("user", given)], call["thinking"])
    if function in ("get_s2t_dialogue_sft_multiturn_prompt", "get_text_dialogue_sft_multiturn_prompt"):
        return prompts.text_answer_dialogue(messages, call.get("thinking", False))
    if function == "get_spoken_dialogue_sft_prompt":
        first = [prompts.Message("user", codes[call["input_speech"]])]
        history = "a history exists" in str(call.get("add_history"))
        return prompts.spoken_dialogue(first, None if history else call.get("system_prompt"), voice)
    if function == "get_spoken_dialogue_sft_multiturn_prompt":
        return prompts.spoken_dialogue(messages, call.get("system_prompt"), voice)
    assert function == "get_in_context_learning_s2s_prompt"
    shown = [
        prompts.FewShotExample(
            codes[e["input_audio"]], prompts.SpokenText(e["output_transcription"], codes[e["output_audio"]])
        )
        for e in call["prompt_examples"]
    ]
    return prompts.few_shot_speech_to_speech(call["instruction"], shown, codes[call["audio"]])


@pytest.mark.parametrize("case", [c for c in PROMPTS["cases"] if not c.get("error")], ids=lambda c: c["name"])
def test_prompts(case):
    data = np.load(GOLDEN / "prompts/prompts.npz")
    codes = {k.removeprefix("codes."): data[k] for k in data if k.startswith("codes.")}
    tokenizer = CharacterTokenizer(PROMPTS)
    segments = build_prompt(case["call"], codes)
    text, audio, loss = arrays(segments, tokenizer.encode, tokenizer.layout())
    np.testing.assert_array_equal(to_grid(text, audio), data[f"{case['name']}.input_ids"])
    assert not loss.any()
    # Segment borders matter as well: a subword tokenizer never merges across them.
    expected = [
        s["text"].replace("{template}", TEMPLATE) if s["kind"] == "text" else s["kind"] for s in case["segments"]
    ]
    kinds = {AudioSegment: "audio", StreamedSegment: "streaming"}
    assert [s.text if isinstance(s, TextSegment) else kinds[type(s)] for s in segments] == expected


def test_invalid_role_is_refused():
    with pytest.raises(ValueError, match="'system'"):
        prompts.text_answer_dialogue([prompts.Message("system", "x"), prompts.Message("user", "y")])


SFT = read("sft", "conversations.json")
# The released code labels turns of the user that no answer follows; ours never does.
UNANSWERED = ("trailing_user_turn", "no_assistant")


@pytest.mark.parametrize("case", SFT["cases"], ids=lambda c: c["name"])
def test_conversations(case):
    data = np.load(GOLDEN / "sft/arrays.npz")
    tokenizer = CharacterTokenizer(SFT)
    segments = conversation_segments(case["conversation"], lambda path: data[f"codes.{path}"])
    text, audio, loss = arrays(segments, tokenizer.encode, tokenizer.layout())
    np.testing.assert_array_equal(to_grid(text, audio), data[f"{case['name']}.input_ids"])
    labels = data[f"{case['name']}.labels"]
    if case["name"] in UNANSWERED:
        answer = np.zeros(len(text), bool)
        end = len(tokenizer.encode("hi<|im_end|>\n"))
        answer[24 : 24 + end] = case["name"] == "trailing_user_turn"
        labels = label_grid(text, audio, answer)
        assert (labels != data[f"{case['name']}.labels"]).any()
    np.testing.assert_array_equal(label_grid(text, audio, loss), labels)


@pytest.mark.parametrize(
    "turn, message",
    [
        ({"role": "tool", "content": []}, "role 'tool'"),
        ({"role": "user", "content": []}, "non-empty list"),
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "item must be"),
        ({"role": "assistant", "thinking": True, "content": [{"type": "text", "text": "x"}]}, "Chain-of-thought"),
        ({"role": "assistant", "content": [{"type": "audio", "audio": "x"}]}, "an answer is one text item"),
    ],
)
def test_bad_conversations_are_refused(turn, message):
    with pytest.raises(ValueError, match=message):
        conversation_segments([turn], lambda path: np.zeros((4, 8), np.int32))


POSTPROCESS = read("postprocess", "cases.json")


@pytest.mark.parametrize("case", POSTPROCESS["cases"], ids=lambda c: c["name"])
def test_postprocess(case):
    data = np.load(GOLDEN / "postprocess/arrays.npz")
    tokenizer = CharacterTokenizer(POSTPROCESS)
    text, audio = from_grid(data[f"{case['name']}.new"], 4)
    out = postprocess(text, audio, tokenizer.decode, tokenizer.layout())
    assert out.text == case["printed_text"]
    np.testing.assert_array_equal(out.codes.T, data[f"{case['name']}.codes"])
    assert "<|" not in out.answer and "think>" not in out.answer


def test_postprocess_keeps_the_last_position_without_a_stop_token():
    data = np.load(GOLDEN / "postprocess/arrays.npz")
    tokenizer = CharacterTokenizer(POSTPROCESS)
    text, audio = from_grid(data["text_only_no_stop_hit.new"], 4)
    kept = postprocess(text, audio, tokenizer.decode, tokenizer.layout(), drop_last=False)
    assert kept.text == "some answer"
