import collections
import dataclasses

import numpy as np
import pytest

from mimo_jax.data.all_formats import formats
from mimo_jax.data.formats import FormatOptions, Material
from mimo_jax.data.formats_pretraining import conversion_wording
from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.data.sequence import AudioSegment, Layout, StreamedSegment, TextSegment, render
from mimo_jax.data.text_tokenizer import train_text_tokenizer

TOKENIZER = train_text_tokenizer(["one two three four five six seven"] * 9, vocab_size=320)
LAYOUT = Layout(TOKENIZER.special)
LONG = "one two three four five six seven one two three four five six seven"


def codes(record_id):
    rng = np.random.default_rng(sum(map(ord, record_id)))
    return rng.integers(0, 128, (int(rng.integers(9, 30)), 8)).astype(np.uint16)


def material():
    records = [
        Record(
            id=f"r{i}",
            audio="x",
            text=("one two " + "three " * i).strip(),
            speaker=f"voice{i % 2}",
            caption="a slow voice" if i % 2 else None,
            attributes={"rate": "slow" if i % 2 else "fast"},
            instruction="slowly" if i % 2 else None,
            qa=[{"question": "How fast?", "answer": "slow", "choices": ["slow", "fast"]}],
            reply=f"r{i + 1}" if i in (0, 2, 4) else None,
            document={"id": "story", "index": -i} if i < 3 else None,
        )
        for i in range(8)
    ]
    for i in range(4):
        for voice, rate in (("voice0", "fast"), ("voice1", "fast"), ("voice0", "slow")):
            attributes = {"rate": rate}
            records.append(
                Record(f"p{i}{voice}{rate}", "x", "six " * (i + 1), voice, parallel=f"p{i}", attributes=attributes)
            )
        records.append(Record(f"n{i}", "x", "six " * (i + 1), "voice0", clean=f"p{i}voice0fast"))
    records.append(Record("long", "x", LONG, "voice0"))
    records.append(Record("part", "x", part_of="talk"))
    turns = [
        {"role": "user", "content": [{"type": "audio", "audio": "part"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "thinking": False, "content": [{"type": "text", "text": "A bell."}]},
    ]
    texts = [TextRecord("t0", "seven"), TextRecord("t1", "one", reply="two")]
    return Material(records, texts, [Conversation("talk", turns)])


def built(name, options=FormatOptions(shots=2)):  # noqa: B008
    task = formats()[name]
    return {i.id: task.build(i, codes, options) for i in task.plan(material(), options)}


def spelled(segments):
    kinds = {AudioSegment: "AUDIO", StreamedSegment: "STREAM"}
    return "".join(s.text if isinstance(s, TextSegment) else f"[{kinds[type(s)]}]" for s in segments)


def labelled(segments):
    return spelled([s for s in segments if s.loss])


@pytest.mark.parametrize("name", list(formats()))
def test_every_format_makes_examples_that_render(name):
    task = formats()[name]
    examples = built(name)
    assert examples and len(examples) == len(task.plan(material(), FormatOptions(shots=2)))
    for segments in examples.values():
        arrays = render(segments, TOKENIZER.encode, LAYOUT)
        assert arrays.loss.any()
        assert arrays.loss.all() == (task.stage == "pretraining")
        end = "<|endoftext|>" if task.stage == "pretraining" else "<|im_end|>\n"
        assert spelled(segments).endswith(end) and labelled(segments).endswith(end)


@pytest.mark.parametrize(
    "name, example, whole, loss",
    [
        ("asr", "r0", "[AUDIO]\none two<|endoftext|>", None),
        ("tts", "r0", "one two\n[STREAM]<|endoftext|>", None),
        ("captioning", "r1", "[AUDIO]\nCaption: a slow voice<|endoftext|>", None),
        ("instruct_tts", "r1", "slowly\none two three\n[STREAM]<|endoftext|>", None),
        ("continuation", "r0", "[AUDIO]<|endoftext|>", None),
        ("text", "t1", "one\ntwo<|endoftext|>", None),
        (
            "sft_speech_text_dialogue",
            "r0",
            "<|im_start|>user\n[AUDIO]<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\none two three<|im_end|>\n",
            "one two three<|im_end|>\n",
        ),
        (
            "sft_text_dialogue",
            "t1",
            "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\ntwo<|im_end|>\n",
            "two<|im_end|>\n",
        ),
        (
            "sft_understanding",
            "r0/qa0",
            "<|im_start|>user\n[AUDIO]How fast? Choose from: slow, fast.<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\nslow<|im_end|>\n",
            "slow<|im_end|>\n",
        ),
    ],
)
def test_exact_forms(name, example, whole, loss):
    segments = built(name)[example]
    assert spelled(segments) == whole
    assert labelled(segments) == (loss or whole)


def test_prompt_loss_can_be_left_out_per_task():
    options = FormatOptions(no_prompt_loss=("asr", "tts"))
    assert labelled(built("asr", options)["r0"]) == "one two<|endoftext|>"
    assert labelled(built("tts", options)["r0"]) == "[STREAM]<|endoftext|>"
    assert labelled(built("captioning", options)["r1"]).startswith("[AUDIO]")


def test_interleaved_spans_take_turns_in_document_order():
    made = built("interleaved")
    assert set(made) == {"document/story", "long"}
    story = [s for s in made["document/story"] if not (isinstance(s, TextSegment) and "<|" in s.text)]
    kinds = [isinstance(s, AudioSegment) for s in story]
    assert len(kinds) == 3 and kinds in ([True, False, True], [False, True, False])
    texts = [s.text for s in story if isinstance(s, TextSegment)]
    assert texts in (["one two three"], ["one two three three", "one two"])  # indices run backwards here


def test_spans_are_cut_as_the_options_say():
    options = FormatOptions(words_per_span=2, audio_span_share=0.25)
    segments = [s for s in built("interleaved", options)["long"] if not (isinstance(s, TextSegment) and "<|" in s.text)]
    share = sum(isinstance(s, AudioSegment) for s in segments) / len(segments)
    assert len(segments) == -(-len(LONG.split()) // 2) and abs(share - 0.25) <= 1 / len(segments)
    assert "long" not in built("interleaved", FormatOptions(span_kind="sentences"))  # one sentence


def test_recordings_of_a_conversation_are_in_no_other_example():
    for name in formats():
        ids = {i.id for i in formats()[name].plan(material(), FormatOptions(shots=2))}
        assert "part" not in ids and ("talk" in ids) == (name == "sft_conversation")
    made = spelled(built("sft_conversation")["talk"])
    asked = "<|im_start|>user\n[AUDIO]What is it?<|im_end|>\n"
    assert made == asked + "<|im_start|>assistant\n<think>\n\n</think>\nA bell.<|im_end|>\n"


def test_thinking_answers_reason_first():
    segments = built("sft_instruct_tts")["r1"]
    whole = spelled(segments)
    assert "<think>\nThe style asked for" in whole and whole.endswith("</think>\n[STREAM]<|im_end|>\n")
    assert "rate slow" in whole and labelled(segments).startswith("The style")
    thought = spelled(built("sft_understanding_thinking")["r1/qa0"])
    assert "a slow voice" in thought.split("</think>")[0].split("<think>")[1]


def test_a_written_thought_takes_the_place_of_the_one_by_rule():
    qa = [
        {"question": "How fast?", "answer": "slow", "thought": "Few words a second.\n\n"},
        {"question": "Who?", "answer": "a"},
    ]
    given = Material([Record("r", "x", "one two", caption="a slow voice", qa=qa)])
    task = formats()["sft_understanding_thinking"]
    written, by_rule = (task.build(i, codes, FormatOptions()) for i in task.plan(given, FormatOptions()))
    assert labelled(written) == "Few words a second.\n</think>\nslow<|im_end|>\n"
    assert "a slow voice" in labelled(by_rule)
    plain = formats()["sft_understanding"]
    asked = [spelled(plain.build(i, codes, FormatOptions())) for i in plain.plan(given, FormatOptions())]
    assert not any("Few words" in a for a in asked)


def test_dialogue_turns_all_carry_loss_and_voices_agree():
    segments = built("sft_spoken_dialogue_multiturn", FormatOptions(voice_prompt_share=1.0))["r0/turns"]
    assert labelled(segments) == "[STREAM]<|im_end|>\n" * 2
    assert spelled(segments).startswith(
        "<|im_start|>system\nYour voice should be:[AUDIO]<|im_end|>\n<|im_start|>user\n"
    )
    assert spelled(segments).count("<|im_start|>user") == 2


def test_conversion_shots_show_the_same_change():
    task = formats()["conversion"]
    items = task.plan(material(), FormatOptions(shots=2, conversions_per_query=9))
    kinds = collections.Counter(i.question for i in items)
    assert set(kinds) == {
        "Remove the noise from the speech.",
        "Convert the timbre of the speech to the voice shown.",
        "Say it with rate slow.",
        "Say it with rate fast.",
    }
    for item in items:
        pairs = list(zip(item.records[::2], item.records[1::2], strict=True))
        assert len({conversion_wording(*p) for p in pairs}) == 1
        assert all(a.text == b.text and a.id != b.id for a, b in pairs)
        assert len({a.text for a, _ in pairs}) == len(pairs)  # the query's answer is not shown
        assert len({b.speaker for _, b in pairs}) == 1 or "timbre" not in item.question


def test_choices_depend_on_seed_and_id_only():
    def wordings(options, records):
        task = formats()["sft_asr"]
        items = task.plan(Material(records), options)
        return {i.id: spelled(task.build(i, codes, options)) for i in items}

    records = list(material().records)
    one = wordings(FormatOptions(), records)
    assert one == wordings(FormatOptions(), records[::-1])
    assert one != wordings(FormatOptions(seed=1), records)
    assert len({v.split("]")[1] for v in one.values()}) > 5
    english = wordings(dataclasses.replace(FormatOptions(), instruction_language="en"), records)
    assert all(v.isascii() for v in english.values())
