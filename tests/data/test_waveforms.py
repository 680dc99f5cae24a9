import concurrent.futures
import dataclasses

import numpy as np
import pytest

from mimo_jax.data.audio import load_audio
from mimo_jax.data.manifest_files import read_manifest, write_manifest
from mimo_jax.data.waveforms import WaveformSource, character_ids
from tests.data.corpus_fixture import WORDS, make_corpus

LETTERS = character_ids("abcdefghijklmnopqrstuvwxyz '")
ALL = {"max_samples": 60_000, "text_ids": LETTERS, "max_text": 100}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waveforms")
    make_corpus(folder, count=24)
    return folder


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_batch_holds_waves_and_texts(corpus):
    source = WaveformSource(corpus, 4, shuffle=False, **ALL)
    batch = source.batch(1)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "waveform": ("float32", (4, 60_000)),
        "num_samples": ("int32", (4,)),
        "text": ("int32", (4, 100)),
        "text_length": ("int32", (4,)),
    }
    records = [r for r in read_manifest(corpus) if r.split == "train"]
    assert source.num_examples == len(records) == 24 and not source.skipped
    for row, record in enumerate(records[4:8]):
        wave = load_audio(corpus / record.audio)
        n = batch["num_samples"][row]
        assert n == len(wave)
        np.testing.assert_allclose(batch["waveform"][row, :n], wave, atol=2e-5)
        assert not batch["waveform"][row, n:].any()
        assert batch["text"][row, : batch["text_length"][row]].tolist() == LETTERS(record.text)


def test_pure_in_step_for_any_hosts_threads_and_cache(corpus):
    whole = WaveformSource(corpus, 4, seed=3, **ALL)
    steps = [0, 5, 6, 1000]
    expected = {s: whole.batch(s) for s in steps}
    for hosts, cache in ((2, 0), (4, 300_000)):
        parts = [
            WaveformSource(corpus, 4, seed=3, host_index=h, host_count=hosts, cache_bytes=cache, **ALL)
            for h in range(hosts)
        ]
        for step in reversed(steps):
            rows = [p.batch(step) for p in parts]
            assert equal({k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, expected[step])
            assert all(0 <= p._room <= cache for p in parts)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(equal(b, expected[s]) for s, b in zip(steps, pool.map(whole.batch, steps), strict=True))


def test_epochs_see_every_utterance_once(corpus):
    source = WaveformSource(corpus, 4, seed=1, **ALL)
    lengths = sorted(source.batch(s)["num_samples"].tolist() for s in range(6))
    again = sorted(source.batch(s)["num_samples"].tolist() for s in range(6, 12))
    assert sorted(sum(lengths, [])) == sorted(sum(again, [])) and lengths != again
    once = WaveformSource(corpus, 5, repeat=False, **ALL)
    batches = [once.batch(s) for s in range(once.steps_per_pass() + 1)]
    assert sum(int((b["num_samples"] > 0).sum()) for b in batches) == 24 and not batches[-1]["waveform"].any()


def test_long_ones_are_skipped_or_cropped(corpus):
    short = WaveformSource(corpus, 4, max_samples=24_000, text_ids=LETTERS, max_text=100)
    assert short.skipped["audio_too_long"] == 24 - short.num_examples > 0
    assert WaveformSource(corpus, 4, 60_000, LETTERS, max_text=30).skipped["text_too_long"] > 0
    crops = WaveformSource(corpus, 4, 6_000, lengths="crop", seed=2)
    assert crops.num_examples == 24
    batch = crops.batch(0)
    assert (batch["num_samples"] == 6_000).all() and batch["text"].shape == (4, 0)
    assert not np.array_equal(np.sort(crops.batch(0)["waveform"], 0), np.sort(crops.batch(6)["waveform"], 0))


def test_unreadable_and_textless_records_are_counted(corpus, tmp_path):
    records = [dataclasses.replace(r, audio=str(corpus / r.audio), duration=None) for r in read_manifest(corpus)]
    records[0] = dataclasses.replace(records[0], audio="nowhere.flac")
    records[1] = dataclasses.replace(records[1], text=None)
    write_manifest(tmp_path / "manifest.jsonl", records)
    source = WaveformSource(tmp_path, 4, **ALL)
    assert dict(source.skipped) == {"missing": 1, "no_text": 1} and source.num_examples == 22
    with pytest.raises(ValueError, match="test_voices"):
        WaveformSource(tmp_path, 4, split="test_voices", **ALL)
    with pytest.raises(ValueError, match="hosts"):
        WaveformSource(tmp_path, 4, host_count=3, **ALL)


def test_character_ids():
    assert character_ids("ab ")("B a?") == [2, 3, 1]
    assert all(min(LETTERS(w)) >= 1 for w in WORDS)
