"""Spans of an utterance that are text and audio in turn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.interleaving import aligned_spans, is_audio, span_sizes, units

texts = st.text("ab .,?!。你好\n", max_size=60).map(str.strip).filter(bool)


@given(texts, st.integers(0, 200), st.sampled_from(["words", "sentences"]), st.integers(1, 5), st.booleans())
def test_spans_cover_all_words_and_frames(text, frames, kind, words_per_span, timed):
    pieces = units(text)
    assert "".join(pieces) == text and sum(span_sizes(pieces, kind, words_per_span)) == len(pieces)
    words = [[p, 0.5 * i, 0.5 * i + 0.3] for i, p in enumerate(pieces)] if timed else []
    spans = aligned_spans(text, frames, words, 0.5 * len(pieces), kind=kind, words_per_span=words_per_span)
    assert "".join("".join(s for s, _, _ in spans).split()) == "".join(text.split())
    assert [a for _, a, _ in spans] == [0, *[b for _, _, b in spans[:-1]]] and spans[-1][2] == frames
    assert all(a <= b for _, a, b in spans)


def test_spans_end_where_the_words_do():
    words = [["one", 0.0, 0.4], ["two", 0.5, 1.0], ["three", 3.0, 3.5], ["four", 3.6, 4.0]]
    assert aligned_spans("one two three four", 100, words, 4.0, words_per_span=2) == [
        ("one two", 0, 50),  # 2.0 s of 4: in the middle of the pause from 1.0 to 3.0
        ("three four", 50, 100),
    ]
    # Times of other words than the text's are of no use: shares of the characters then.
    assert aligned_spans("one two three four", 100, words[:3], 4.0, words_per_span=2)[0] == ("one two", 0, 42)


def test_spans_end_where_sentences_do():
    text = 'Who? "Me." It is 3.5 m. no end'
    assert [s for s, _, _ in aligned_spans(text, 90, kind="sentences")] == ["Who?", '"Me."', "It is 3.5 m.", "no end"]
    assert [s for s, _, _ in aligned_spans("你好。再见!", 90, kind="sentences")] == ["你好。", "再见!"]
    assert units("你好。 ok") == ["你", "好。 ", "ok"]


@given(st.integers(0, 50), st.floats(0, 1), st.booleans())
def test_the_share_of_audio_is_kept(count, share, first):
    assert abs(sum(is_audio(count, share, first)) - share * count) <= 1


@pytest.mark.parametrize("first", [True, False])
def test_at_one_half_they_take_turns(first):
    assert is_audio(5, 0.5, first) == [bool((i + first) % 2) for i in range(5)]
    assert not np.any(is_audio(5, 0.0, first)) and np.all(is_audio(5, 1.0, first))
