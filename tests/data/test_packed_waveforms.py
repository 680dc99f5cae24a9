"""Rows of several utterances: nothing lost, nothing overlapping, texts with their audio."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data.audio import load_audio, write_flac
from mimo_jax.data.manifest import Record
from mimo_jax.data.manifest_files import read_manifest, write_manifest
from mimo_jax.data.waveforms import FRAME_SAMPLES, PATCH_SAMPLES, WaveformSource, character_ids
from tests.data.corpus_fixture import make_corpus

LETTERS = character_ids("abcdefghijklmnopqrstuvwxyz '0123456789.")
ROW, SHORT = 150 * FRAME_SAMPLES, 20 * FRAME_SAMPLES
OPTIONS = {"max_samples": ROW, "text_ids": LETTERS, "max_text": 400, "lengths": "packed"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    make_corpus(folder, count=24)
    return folder


def utterances(batch):
    """(samples, text ids, kind) of each utterance; checks that they keep apart and that nothing lies between them."""
    found = []
    for row in range(len(batch["waveform"])):
        rest, free = batch["waveform"][row].copy(), 0
        count = int((batch["num_samples"][row] > 0).sum())
        assert not batch["num_samples"][row, count:].any()
        for place in range(count):
            start, n = int(batch["starts"][row, place]), int(batch["num_samples"][row, place])
            assert start % FRAME_SAMPLES == 0 and start >= free and start + n <= len(rest)
            free = (start + n) // FRAME_SAMPLES * FRAME_SAMPLES + 2 * FRAME_SAMPLES
            ids = batch["text"][row][batch["text_segments"][row] == place + 1].tolist()
            found.append((batch["waveform"][row, start : start + n], ids, int(batch["text_kind"][row, place])))
            rest[start : start + n] = 0
        assert not rest.any() and batch["text_segments"][row].max(initial=0) <= count
    return found


def test_an_epoch_holds_every_utterance_with_its_text(corpus):
    source = WaveformSource(corpus, 2, repeat=False, **OPTIONS)
    found = [one for step in range(source.steps_per_pass()) for one in utterances(source.batch(step))]
    records = [r for r in read_manifest(corpus) if r.split == "train"]
    assert len(found) == len(records) == 24 and not any(kind for _, _, kind in found)
    for record in records:
        wave = load_audio(corpus / record.audio)
        same = [ids for w, ids, _ in found if len(w) == len(wave) and np.allclose(w, wave, atol=2e-5)]
        assert same == [LETTERS(record.text)]
    assert source.fill == pytest.approx(sum(len(w) for w, _, _ in found) / (source.num_rows * ROW), rel=1e-3)
    assert not source.batch(source.steps_per_pass())["num_samples"].any()


def test_pure_in_step_for_any_hosts(corpus):
    whole = WaveformSource(corpus, 4, seed=3, caption_share=0.5, **OPTIONS)
    parts = [
        WaveformSource(corpus, 4, seed=3, caption_share=0.5, host_index=h, host_count=2, **OPTIONS) for h in range(2)
    ]
    for step in (7, 0, 123):
        rows = [part.batch(step) for part in parts]
        expected = whole.batch(step)
        for name, value in expected.items():
            np.testing.assert_array_equal(np.concatenate([r[name] for r in rows]), value, err_msg=name)


@pytest.mark.parametrize("lengths", ["whole", "crop", "joined", "packed"])
def test_counts_are_those_of_the_batch(corpus, lengths):
    options = OPTIONS | {"lengths": lengths, "max_samples": 45 * FRAME_SAMPLES if lengths == "crop" else ROW}
    source = WaveformSource(corpus, 4, caption_share=0.5, seed=1, **options)
    for step in (0, 3, 50):
        text, audio = source.token_counts(step)
        batch = source.batch(step)
        ids = batch["text_segments"] > 0 if lengths == "packed" else batch["text_length"]
        assert text == ids.sum() and audio == pytest.approx(batch["num_samples"].sum() / PATCH_SAMPLES, abs=0.6)
    once = WaveformSource(corpus, 4, repeat=False, **options)
    assert once.token_counts(once.steps_per_pass()) == (0, 0)


def test_captions_are_asked_for_at_their_share(corpus):
    source = WaveformSource(corpus, 2, caption_share=0.25, **OPTIONS)
    records = {tuple(LETTERS(r.text)) for r in read_manifest(corpus)}
    captions = {tuple(LETTERS(r.caption)) for r in read_manifest(corpus)}
    found = [one for step in range(100) for one in utterances(source.batch(step))]
    for _, ids, kind in found:
        assert tuple(ids) in (captions if kind else records)
    assert np.mean([kind for _, _, kind in found]) == pytest.approx(0.25, abs=0.06)


def test_without_text_by_reconstruction_alone(corpus, tmp_path):
    records = [dataclasses.replace(r, audio=str(corpus / r.audio)) for r in read_manifest(corpus)]
    changed = [dataclasses.replace(r, text=None) if i % 2 else r for i, r in enumerate(records)]
    write_manifest(tmp_path / "manifest.jsonl", changed)
    assert WaveformSource(tmp_path, 2, **OPTIONS).skipped["no_text"] == 12
    source = WaveformSource(tmp_path, 2, untexted=True, repeat=False, **OPTIONS)
    found = [one for step in range(source.steps_per_pass()) for one in utterances(source.batch(step))]
    assert len(found) == 24 and sum(not ids for _, ids, _ in found) == 12 and not source.skipped
    # One that has only a caption is captioned where captions are wanted at all.
    captioned = WaveformSource(tmp_path, 2, caption_share=1e-6, repeat=False, **OPTIONS)
    found = [one for step in range(captioned.steps_per_pass()) for one in utterances(captioned.batch(step))]
    assert sum(kind for _, _, kind in found) == 12 and not captioned.skipped


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.integers(2400, 30 * FRAME_SAMPLES) | st.integers(-2, 2).map(lambda n: n + SHORT), min_size=1, max_size=12
    ),
    st.integers(0, 3),
)
def test_rows_of_any_lengths(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(seed)
    records = []
    for i, size in enumerate(sizes):
        write_flac(folder / f"{i}.flac", rng.uniform(0.1, 0.5, size).astype(np.float32))
        records.append(Record(id=str(i), audio=f"{i}.flac", text="a"))
    write_manifest(folder / "manifest.jsonl", records)
    options = {**OPTIONS, "max_samples": SHORT}
    fitting = [min(size, SHORT - 1) for size in sizes if size <= SHORT]  # one that fills a row loses its last sample
    if not fitting:
        with pytest.raises(ValueError, match="audio_too_long"):
            WaveformSource(folder, 1, **options)
        return
    source = WaveformSource(folder, 1, seed=seed, repeat=False, **options)
    found = [one for step in range(source.steps_per_pass()) for one in utterances(source.batch(step))]
    assert sorted(len(wave) for wave, _, _ in found) == sorted(fitting)


def test_bad_sizes(corpus):
    with pytest.raises(ValueError, match="max_samples is 1000: packed rows need a multiple of 960"):
        WaveformSource(corpus, 2, **{**OPTIONS, "max_samples": 1000})


@pytest.mark.parametrize("lengths", ["packed", "joined"])
def test_little_room_for_text_makes_rows_of_less_audio(corpus, lengths):
    longest = max(len(LETTERS(r.text)) for r in read_manifest(corpus))
    wide, narrow = (
        WaveformSource(corpus, 2, repeat=False, **{**OPTIONS, "lengths": lengths, "max_text": ids})
        for ids in (400, longest)
    )
    assert narrow.num_examples == wide.num_examples == 24 and narrow.fill < 0.7 * wide.fill
    texts = [row["text"] for row in map(narrow.batch, range(narrow.steps_per_pass()))]
    assert sum(int((text > 0).sum()) for text in texts) == sum(
        len(LETTERS(r.text)) for r in read_manifest(corpus) if r.split == "train"
    )
