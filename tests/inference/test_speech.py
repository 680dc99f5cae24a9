"""An answer told in pieces is the answer told at once."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import prompts
from mimo_jax.data.postprocess import postprocess, split_thinking
from mimo_jax.data.sequence import Layout
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.inference.requests import Update
from mimo_jax.inference.speech import Listener

WORDS = st.text(st.sampled_from("ab <>/.\n中文é🙂"), max_size=12).filter(lambda s: "<think>" not in s and "</" not in s)


@pytest.fixture(scope="module")
def parts():
    tokenizer = train_text_tokenizer(["abba baab <a/>"] * 3, vocab_size=270)
    return SimpleNamespace(tokenizer=tokenizer, layout=Layout(tokenizer.special, (16, 16, 8), 2))


def told(parts, ids, patches, reason, cuts, thinking, until=""):
    """(text, thinking, codes) of a listener that gets the positions between the cuts one after another."""
    listener = Listener(parts.tokenizer.decode, parts.layout, thinking, until)
    bounds = [0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]
    heard = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        spoken = ids == parts.layout.special.empty
        codes = patches[spoken[:start].sum() : spoken[:end].sum()]
        heard.append(listener(Update(1, ids[start:end], codes, reason if end == len(ids) else None)))
        if end == len(ids):
            break
    return "".join(h[0] for h in heard), "".join(h[1] for h in heard), np.concatenate([h[2] for h in heard])


@settings(max_examples=150, deadline=None)
@given(
    thought=st.none() | WORDS,
    opened=st.booleans(),
    blocks=st.lists(WORDS | st.integers(1, 3), max_size=6),
    after=WORDS,
    spoken=st.booleans(),
    split=st.booleans(),
    stopped=st.booleans(),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    seed=st.integers(0, 9),
)
def test_pieces_are_the_whole(parts, thought, opened, blocks, after, spoken, split, stopped, cuts, seed):
    special, encode = parts.layout.special, parts.tokenizer.encode
    ids = []
    if thought is not None:
        ids += encode(("" if opened else "<think>") + thought + "</think>\n")
    if spoken:
        ids.append(special.sostm)
    for block in blocks:
        words = encode(block) if isinstance(block, str) else []
        # Patches also stand between the bytes of a character.
        ids += [*words[:1], special.empty, *words[1:]] if spoken and words and split else words
        ids += [special.empty] * (block if spoken and not words and isinstance(block, int) else 0)
    if spoken:
        ids += [special.eot, special.empty, special.eostm, *encode(after), special.empty]
    if stopped:
        ids.append(special.im_end)
    if not ids:
        return
    ids = np.array(ids, np.int32)
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 9, (int((ids == special.empty).sum()), 2, 3)).astype(np.int32)
    patches[rng.random(len(patches)) < 0.2] = parts.layout.empty_codes
    thinking = thought is not None and opened

    audio = np.empty((len(ids), 2, 3), np.int32)
    audio[:] = parts.layout.empty_codes
    audio[ids == special.empty] = patches
    whole = postprocess(ids, audio, parts.tokenizer.decode, parts.layout, drop_last=stopped)
    expected = split_thinking(prompts.THINK_START + whole.text) if thinking and whole.thinking is None else None
    text = whole.answer if expected is None else expected[1]
    thinks = (whole.thinking if expected is None else expected[0]) or ""
    made = told(parts, ids, patches, "stop" if stopped else "length", cuts, thinking)
    assert made[:2] == (text, thinks)
    np.testing.assert_array_equal(made[2], whole.codes)


def test_a_character_that_patches_divide_is_whole(parts):
    special, (first, *rest) = parts.layout.special, parts.tokenizer.encode("中")
    ids = np.array([special.sostm, first, special.empty, *rest, special.eot, special.eostm], np.int32)
    assert postprocess(ids, np.zeros((len(ids), 2, 3)), parts.tokenizer.decode, parts.layout).answer == "中"


def test_what_is_not_certain_is_held_back(parts):
    listener = Listener(parts.tokenizer.decode, parts.layout, thinking=True, until="\n\n")

    def tell(text, reason=None):
        return listener(Update(1, np.array(parts.tokenizer.encode(text), np.int32), np.zeros((0, 2, 3)), reason))[:2]

    assert tell(" so it is ") == ("", "so it is")
    assert tell("<") == ("", "")
    assert tell("a>") == ("", " <a>")
    assert tell("</think>ab\n") == ("ab", "")
    assert tell("\nab") == ("", ""), "after the end of the answer"
    assert tell("ab", "length") == ("", "")
    half = parts.tokenizer.encode("中")
    assert len(half) > 1
    listener = Listener(parts.tokenizer.decode, parts.layout, thinking=False)
    first = Update(1, np.array(half[:1], np.int32), np.zeros((0, 2, 3)), None)
    assert listener(first)[0] == "", "half a character"
    assert listener(Update(1, np.array(half[1:], np.int32), np.zeros((0, 2, 3)), "length"))[0] == "中"
