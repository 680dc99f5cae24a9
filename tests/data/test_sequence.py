import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.sequence import (
    AudioSegment,
    Layout,
    SpecialTokens,
    StreamedSegment,
    TextSegment,
    arrays,
    expand_audio,
    from_grid,
    label_grid,
    pad_frames,
    render,
    to_grid,
)

SPECIAL = SpecialTokens(100, 101, 102, 103, 104, 105, 106, 107, 108)
LAYOUT = Layout(SPECIAL, empty_codes=(9, 9, 5), group_size=2)


def codes(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 5, (frames, 3)).astype(np.int32)


def encode(text):
    return [ord(c) % 100 for c in text]


segments = st.lists(
    st.one_of(
        st.builds(TextSegment, st.text("abc", max_size=7), st.booleans()),
        st.builds(AudioSegment, st.integers(1, 9).map(codes), st.booleans(), st.booleans()),
        st.builds(StreamedSegment, st.text("abc", max_size=12), st.integers(1, 25).map(codes), st.booleans()),
    ),
    max_size=6,
)


@given(segments)
def test_grid_round_trip_and_invariants(parts):
    text, audio, loss = arrays(parts, encode, LAYOUT)
    again_text, again_audio = from_grid(to_grid(text, audio), LAYOUT.group_size)
    np.testing.assert_array_equal(again_text, text)
    np.testing.assert_array_equal(again_audio, audio)
    is_audio = text == SPECIAL.empty
    assert (audio[~is_audio] == np.asarray(LAYOUT.empty_codes)).all()
    assert (audio[is_audio] < 5).all()
    compact = render(parts, encode, LAYOUT)
    np.testing.assert_array_equal(expand_audio(compact.text, compact.patches, LAYOUT), audio)
    assert len(loss) == len(text) == sum(len(render([p], encode, LAYOUT).text) for p in parts)
    labels = label_grid(text, audio, loss)
    assert (labels[:, np.repeat(~loss, 2)] == -100).all()
    for start, stop in itertools.pairwise([*compact.borders, len(text)]):
        assert len(set(loss[start:stop].tolist())) == 1  # a segment carries loss or does not


@given(st.integers(0, 23), st.integers(1, 40))
def test_streamed_order(letters, frames):
    """5 text tokens, 5 patches in turn; nothing is lost; only the last text block may hold six."""
    given_codes = codes(frames)
    out = render([StreamedSegment([7] * letters, given_codes)], encode, LAYOUT)
    assert out.text[0] == SPECIAL.sostm and out.text[-1] == SPECIAL.eostm
    assert (out.text == 7).sum() == letters and (out.text == SPECIAL.eot).sum() == 1
    np.testing.assert_array_equal(out.patches.reshape(-1, 3), pad_frames(given_codes, 2))
    runs = [(audio, len(list(run))) for audio, run in itertools.groupby(out.text[1:-1] == SPECIAL.empty)]
    assert not runs[0][0]  # text comes first
    for audio, length in runs[:-2]:
        assert length == 5 or (not audio and length <= 6)


def test_padding_repeats_the_last_frame():
    np.testing.assert_array_equal(pad_frames(codes(3), 2)[3], codes(3)[2])
    assert pad_frames(codes(4), 2) is not None and len(pad_frames(codes(4), 2)) == 4


@pytest.mark.parametrize(
    "segment, message",
    [
        (AudioSegment(np.zeros((4, 2), np.int32)), r"\[frames, 3\]"),
        (AudioSegment(np.full((4, 3), 6, np.int32)), "outside"),
        (AudioSegment(np.full((4, 3), -1, np.int32)), "outside"),
        (TextSegment([1, SPECIAL.empty]), "<|empty|>"),
    ],
)
def test_bad_segments_are_refused(segment, message):
    with pytest.raises(ValueError, match=message):
        render([segment], encode, LAYOUT)


def test_grid_of_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="width 3"):
        from_grid(np.zeros((4, 3), np.int32), 2)
