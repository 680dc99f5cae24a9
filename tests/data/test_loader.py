import collections
import concurrent.futures
import logging

import numpy as np
import pytest

from mimo_jax.data.formats import FormatOptions
from mimo_jax.data.loader import PackedSource
from mimo_jax.data.mixtures import Mixture
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import from_bytes
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus

CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    make_corpus(root / "corpus", count=60)
    options = FormatOptions(shots=1)
    prepare(root / "corpus", root / "out", FakeCodec(), vocab_size=400, contexts=(CONTEXT,), options=options)
    return root / "out"


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_shapes_types_and_segments(folder):
    batch = PackedSource(folder, "joint", 8, CONTEXT).batch(3)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "text": ("int32", (8, CONTEXT)),
        "audio": ("int32", (8, CONTEXT, 4, 8)),
        "segment_ids": ("int32", (8, CONTEXT)),
        "positions": ("int32", (8, CONTEXT)),
        "loss_mask": ("bool", (8, CONTEXT)),
    }
    layout = Prepared(folder).layout
    is_audio = batch["text"] == layout.special.empty
    empty = np.asarray(layout.empty_codes)
    assert (batch["audio"][~is_audio] == empty).all() and (batch["audio"][is_audio] < empty).all()
    for row in range(8):
        ids = batch["segment_ids"][row]
        used = ids > 0
        assert (np.diff(ids[used]) >= 0).all() and not used[np.argmin(used) :].any() or used.all()
        first = np.flatnonzero(np.diff(ids, prepend=0) != 0)
        first = first[ids[first] > 0]
        assert (batch["positions"][row][first] == 0).all() and not batch["loss_mask"][row][first].any()
        assert (np.diff(batch["positions"][row])[used[1:] & (np.diff(ids) == 0)] == 1).all()
        assert not batch["loss_mask"][row][~used].any() and (batch["text"][row][~used] == 0).all()


@pytest.mark.parametrize("mixture", ["understanding", "joint", "sft"])
def test_same_global_batch_for_any_hosts_order_and_restart(folder, mixture):
    whole = PackedSource(folder, mixture, 8, CONTEXT, seed=5)
    steps = [0, 7, 123, 100_000]
    expected = {s: whole.batch(s) for s in steps}
    for hosts in (2, 4, 8):
        parts = [
            PackedSource(folder, mixture, 8, CONTEXT, seed=5, host_index=h, host_count=hosts) for h in range(hosts)
        ]
        for step in reversed(steps):
            rows = [p.batch(step) for p in parts]
            assert equal({k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, expected[step])
            assert parts[-1].token_counts(step) == whole.token_counts(step)
    uncached = PackedSource(folder, mixture, 8, CONTEXT, seed=5, cache_bytes=0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(equal(b, expected[s]) for s, b in zip(steps, pool.map(uncached.batch, steps), strict=True))
    assert not equal(PackedSource(folder, mixture, 8, CONTEXT, seed=6).batch(0), expected[0])


def test_one_pass_gives_every_example_exactly_once(folder):
    source = PackedSource(folder, "asr", 4, CONTEXT, repeat=False)
    reader = Prepared(folder).reader("asr", "train")
    expected = sorted(from_bytes(d).text.tobytes() for d in reader.read(range(len(reader))))
    found = []
    for step in range(source.steps_per_pass()):
        batch = source.batch(step)
        for row, ids in zip(batch["text"], batch["segment_ids"], strict=True):
            found += [row[ids == i].tobytes() for i in range(1, ids.max() + 1)]
    assert sorted(found) == expected
    assert not source.batch(source.steps_per_pass())["segment_ids"].any()
    assert source.token_counts(source.steps_per_pass()) == (0, 0)


def test_codes_and_loss_of_the_records_come_through(folder):
    """One row rebuilt from its records by hand, also for a mixture whose examples were split."""
    prepared = Prepared(folder)
    tokenizer = TextTokenizer.load(prepared.text_tokenizer_folder)
    texts = collections.defaultdict(list)  # parallel utterances have one text
    for data in (reader := prepared.reader("tts", "train")).read(range(len(reader))):
        example = from_bytes(data)
        texts[example.text.tobytes()].append(example)
    batch = PackedSource(folder, "tts", 2, CONTEXT).batch(0)
    same_text = texts[batch["text"][0][batch["segment_ids"][0] == 1].tobytes()]
    here = (batch["segment_ids"][0] == 1) & (batch["text"][0] == prepared.layout.special.empty)
    assert sum(np.array_equal(batch["audio"][0][here], example.codes) for example in same_text) == 1
    assert "<|sostm|>" in tokenizer.decode(same_text[0].text)

    split = PackedSource(folder, "sft_spoken_dialogue_multiturn", 4, 64)
    assert split.num_examples > len(prepared.reader("sft_spoken_dialogue_multiturn", "train"))
    for step in range(split.steps_per_pass()):
        batch = split.batch(step)
        is_audio = batch["text"] == prepared.layout.special.empty
        assert (batch["audio"][is_audio] != np.asarray(prepared.layout.empty_codes)).all()


def test_token_counts_and_rates(folder, caplog):
    source = PackedSource(folder, Mixture({"asr": 1.0, "text": 1.0, "tts": 2.0}), 8, CONTEXT)
    empty = Prepared(folder).layout.special.empty
    by_task = np.zeros(3)
    for step in range(200):
        batch = source.batch(step)
        used = batch["segment_ids"] > 0
        audio = int((used & (batch["text"] == empty)).sum())
        assert source.token_counts(step) == (int(used.sum()) - audio, audio)
        counts = source.task_counts(step)
        assert np.sum(list(counts.values()), axis=0).tolist() == [int(used.sum()) - audio, audio]
        by_task += [sum(counts[t]) for t in source.tasks]
    # Rates are by rows of nearly equal fill; on this small set the fill differs by some percent.
    np.testing.assert_allclose(by_task / by_task.sum(), [0.25, 0.25, 0.5], atol=0.03)

    shared = PackedSource(folder, Mixture({"continuation": 1.0, "text": 1.0, "tts": 2.0}, 0.6), 8, CONTEXT)
    text, audio = np.sum([shared.token_counts(s) for s in range(1000)], axis=0)
    assert abs(text / (text + audio) - 0.6) < 0.006
    with caplog.at_level(logging.WARNING):
        PackedSource(folder, Mixture({"text": 1.0, "tts": 1.0}, 0.01), 8, CONTEXT)
    assert "out of reach" in caplog.text


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="mimo_jax.prepare"):
        PackedSource(tmp_path, "joint", 8, CONTEXT)
    with pytest.raises(ValueError, match="8 rows, host 0 of 3"):
        PackedSource(folder, "joint", 8, CONTEXT, host_count=3)
    with pytest.raises(ValueError, match="test_voices"):
        PackedSource(folder, "joint", 8, CONTEXT, split="test_voices")
