"""Instructions about the words of a recording: their right answers, and what they change in the corpus."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mimo_jax.data import manifest, manifest_files
from mimo_jax.data.corpus import instructions
from mimo_jax.data.corpus.build import SUMMARY_NAME, build_corpus
from mimo_jax.data.corpus.plan import CorpusConfig, generator, plan_corpus
from mimo_jax.data.formats import FormatOptions, Material
from mimo_jax.data.formats_chat import FORMATS
from mimo_jax.data.sequence import TextSegment

SIZES = {"core_utterances": 200, "wide_utterances": 200, "texts": 100}
WORDS = st.lists(st.text(st.sampled_from("abcdefgo'"), min_size=1, max_size=5), max_size=10)


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("first_word", "turn"),
        ("last_word", "light"),
        ("word_count", "four"),
        ("capitals", "TURN ON THE LIGHT"),
        ("reversed", "light the on turn"),
        ("commas", "turn, on, the, light"),
        ("twice", "turn on the light turn on the light"),
        ("over", "turn on the light over"),
    ],
)
def test_right_answers(kind: str, right: str) -> None:
    assert instructions.answer(kind, ["turn", "on", "the", "light"]) == right


def test_there_is_an_answer_by_hand_for_each_kind() -> None:
    cases = next(mark for mark in test_right_answers.pytestmark if mark.name == "parametrize").args[1]
    assert tuple(sorted(kind for kind, _ in cases)) == tuple(sorted(instructions.KINDS))


def test_numbers_beyond_those_with_a_word_are_digits_and_nothing_answers_without_words() -> None:
    assert instructions.answer("word_count", ["a"] * 20) == "twenty"
    assert instructions.answer("word_count", ["a"] * 21) == "21"
    assert instructions.answers([]) == {}
    with pytest.raises(ValueError, match="no words"):
        instructions.answer("first_word", [])


def test_kinds_whose_answers_are_no_others_own_are_not_asked_for() -> None:
    assert set(instructions.answers(["six", "six"])) == set(instructions.KINDS) - {
        "first_word",
        "last_word",
        "reversed",
    }
    assert set(instructions.answers(["one", "two"])) == set(instructions.KINDS) - {"last_word", "word_count"}
    assert set(instructions.answers(["stop"])) == {"word_count", "capitals", "twice", "over"}
    assert set(instructions.answers(["over"])) == {"word_count", "capitals"}  # twice is as with over at the end


@given(WORDS, st.integers(0, 1000))
def test_an_instruction_has_one_right_answer_of_its_own(words: list[str], key: int) -> None:
    made = instructions.instruction(generator(key), words)
    assert made == instructions.instruction(generator(key), words)
    if not instructions.FEWEST_WORDS <= len(words) <= instructions.MOST_WORDS:
        assert made is None
        return
    assert made is not None
    kind = instructions.kind_of(made)
    assert kind is not None and made["answer"] == instructions.answer(kind, words) != " ".join(words)
    others = [instructions.answer(other, words) for other in instructions.KINDS if other != kind]
    assert made["answer"] not in others
    # What is thought is what is heard, then the answer.
    assert made["thought"].startswith(f'The words are "{" ".join(words)}". ')
    assert made["thought"].endswith(f"{made['answer']}.")


@given(WORDS)
def test_words_can_be_told_from_the_answers_that_hold_all_of_them(words: list[str]) -> None:
    assume(words)
    assert instructions.answer("capitals", words).lower().split() == words
    assert instructions.answer("reversed", words).split()[::-1] == words
    assert instructions.answer("commas", words).split(", ") == words
    assert instructions.answer("twice", words).split() == words * 2
    assert instructions.answer("over", words).split() == [*words, "over"]


def test_every_kind_and_several_wordings_of_each_are_drawn_alike() -> None:
    words = "set the timer for five minutes".split()
    made = [instructions.instruction(generator(7, i), words) for i in range(4000)]
    counts = collections.Counter(instructions.kind_of(qa) for qa in made if qa)
    assert set(counts) == set(instructions.KINDS) and max(counts.values()) < 1.25 * min(counts.values())
    wordings = collections.defaultdict(set)
    for qa in made:
        wordings[qa["kind"]].add(qa["question"])
    assert all(len(of_kind) >= 3 for of_kind in wordings.values())
    assert len(set.union(*wordings.values())) == sum(map(len, wordings.values()))  # a wording says which kind


def test_kind_of_knows_instructions_from_other_questions() -> None:
    assert instructions.kind_of({"question": "q", "answer": "a", "kind": "instruction/over"}) == "over"
    for kind in ("over", "instruction/", "instruction/sing", "my/instruction/over", "sound"):
        assert instructions.kind_of({"question": "q", "answer": "a", "kind": kind}) is None
    assert instructions.kind_of({"question": "q", "answer": "a"}) is None


def digest(config: CorpusConfig) -> str:
    """Hash of everything that is planned."""
    utterances, written = plan_corpus(config)
    found = hashlib.sha256()
    for u in utterances:
        sound = (u.voice, u.rate, u.pitch, u.pitch_range, u.level_db, u.before, u.after, u.noise_key, u.noise)
        found.update(repr(sound).encode() + manifest.to_json(u.record).encode())
    for text in written:
        found.update(manifest.to_json(text).encode())
    return found.hexdigest()


def test_without_instructions_the_corpus_is_what_it_was_before_there_were_any() -> None:
    # Computed by the version before them.
    assert digest(CorpusConfig(**SIZES)) == "244212130e03ca24825dbc43b3b342758d0a416e7f0f83d6b0d767abb9fe72c4"


def test_instructions_change_nothing_else_and_a_larger_share_keeps_those_of_a_smaller_one() -> None:
    plain, _ = plan_corpus(CorpusConfig(**SIZES))
    some, written = plan_corpus(CorpusConfig(instructions=0.3, **SIZES))
    every, _ = plan_corpus(CorpusConfig(instructions=1.0, **SIZES))
    assert written == plan_corpus(CorpusConfig(**SIZES))[1]
    kept = 0
    for before, with_some, with_all in zip(plain, some, every, strict=True):
        for now in (with_some, with_all):
            qa = [item for item in now.record.qa if instructions.kind_of(item) is None]
            assert dataclasses.replace(now, record=dataclasses.replace(now.record, qa=qa)) == before
            assert now.record.qa[: len(qa)] == qa  # behind the questions, whose places name their examples
        suitable = instructions.FEWEST_WORDS <= len(before.record.text.split()) <= instructions.MOST_WORDS
        assert len(with_all.record.qa) == len(before.record.qa) + suitable
        kept += len(with_some.record.qa) > len(before.record.qa)
        assert with_some.record.qa in (before.record.qa, with_all.record.qa)
    assert 0.2 < kept / sum(len(u.record.qa) - len(b.record.qa) for u, b in zip(every, plain, strict=True)) < 0.4
    assert {u.record.subset for u in every if any(map(instructions.kind_of, u.record.qa))} == {"core", "wide"}


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ValueError, match="instructions"):
        CorpusConfig(instructions=share)


def test_the_built_corpus_holds_them_and_names_the_option_only_where_it_is_used(tmp_path: Path) -> None:
    few = {"core_utterances": 4, "core_validation": 2, "core_test_voices": 0, "wide_utterances": 0}
    few |= {"wide_validation": 0, "wide_test_voices": 0, "texts": 0}
    for share in (0.0, 1.0):
        path = build_corpus(tmp_path / str(share), **few, instructions=share, workers=1, progress=False)
        settings = json.loads((path.parent / SUMMARY_NAME).read_text())["config"]
        assert settings.get("instructions") == (share or None)
        found = [qa for record in manifest_files.read_manifest(path) for qa in record.qa]
        assert bool(found) == bool(share) and all(instructions.kind_of(qa) for qa in found)


def test_the_formats_of_audio_understanding_train_on_them() -> None:
    asked = instructions.instruction(generator(0), ["two", "three"])
    assert asked is not None
    sound = {"question": "how high", "answer": "low"}
    record = manifest.from_json(manifest.to_json(manifest.Record("r", "x", "two three", qa=[sound, asked])))
    assert record.qa == [sound, asked]
    for name in ("sft_understanding", "sft_understanding_thinking"):
        (form,) = [f for f in FORMATS if f.name == name]
        item = form.plan(Material([record]), FormatOptions())[-1]
        assert item.id == f"{record.id}/qa{len(record.qa) - 1}"
        segments = form.build(item, lambda _: None, FormatOptions())  # type: ignore[arg-type,return-value]
        text = "".join(s.text for s in segments if isinstance(s, TextSegment))
        assert asked["question"] in text and f"</think>\n{asked['answer']}" in text
        assert (asked["thought"] in text) == (name == "sft_understanding_thinking")
