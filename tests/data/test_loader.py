"""Batches as a pure function of the step: shapes, contents, hosts, restarts, rates, phases."""

import collections
import concurrent.futures
import functools
import gc
import logging
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.cli import UserError
from mimo_jax.data.loader import PackedSource
from mimo_jax.data.mixtures import Mixture, Phase
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import from_bytes
from mimo_jax.data.vocabulary import fit_model
from mimo_jax.models.mimo_audio import MimoAudioConfig
from tests.data.prepared_fixture import make_prepared

CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("loader"))


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


def segments(batch):
    """(text bytes, codes bytes, loss bytes) of every segment of a batch."""
    for row, ids in enumerate(batch["segment_ids"]):
        for i in range(1, ids.max() + 1):
            here = ids == i
            audio = batch["audio"][row][here]
            yield tuple(a.tobytes() for a in (batch["text"][row][here], audio, batch["loss_mask"][row][here]))


def test_one_pass_gives_every_example_exactly_once(folder):
    prepared = Prepared(folder)
    source = PackedSource(folder, "sft_tts", 4, CONTEXT, repeat=False)
    expected = collections.Counter()
    reader = prepared.reader("sft_tts", "train")
    for data in reader.read(range(len(reader))):
        example = from_bytes(data)
        audio = np.tile(np.asarray(prepared.layout.empty_codes, np.int32), (len(example.text), 4, 1))
        audio[example.text == prepared.layout.special.empty] = example.codes
        loss = example.loss.astype(bool) & (np.arange(len(example.loss)) > 0)
        expected[example.text.tobytes(), audio.tobytes(), loss.tobytes()] += 1
    found = collections.Counter()
    for step in range(source.steps_per_pass()):
        found.update(segments(source.batch(step)))
    assert found == expected and len(expected) == 60
    assert not source.batch(source.steps_per_pass())["segment_ids"].any()
    assert source.token_counts(source.steps_per_pass()) == (0, 0)


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


PHASES = (
    Phase(Mixture({"asr": 3, "text": 1}), 9000.0),
    Phase(Mixture({"text": 1, "tts": 2, "asr": 1}, text_share=0.5), 12000.0),
    Phase(Mixture({"sft_tts": 1, "text": 1})),
)


@pytest.fixture(scope="module")
def hosts_of(folder):
    """(count, seed) -> the sources of so many hosts, pickled as worker processes get them.

    Each holds some thirty open files and a thread or two: they go with this module.
    """

    @functools.cache
    def make(count, seed):
        hosts = range(count)
        made = [PackedSource(folder, PHASES, 8, CONTEXT, seed=seed, host_index=h, host_count=count) for h in hosts]
        return [pickle.loads(pickle.dumps(one)) for one in made]

    yield make
    make.cache_clear()
    gc.collect()


@given(
    st.integers(0, 1),
    st.integers(0, 60),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3)), min_size=1, max_size=4),
)
def test_hosts_may_come_and_go_at_any_step(folder, hosts_of, seed, step, runs):
    """A run that restarts again and again with another number of hosts reads what one that never stopped reads."""
    whole = PackedSource(folder, PHASES, 8, CONTEXT, seed=seed)
    for count, steps in runs:
        for _ in range(steps):
            rows = [one.batch(step) for one in hosts_of(count, seed)]
            assert equal({k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, whole.batch(step))
            step += 1


def test_dealing_evens_out_patches_and_keeps_the_rows(folder):
    plain = PackedSource(folder, "joint", 32, CONTEXT)
    dealt = plain.dealt(4, 2)
    hosts = [PackedSource(folder, "joint", 32, CONTEXT, host_index=i, host_count=2).dealt(4, 2) for i in range(2)]
    before, after = [], []
    for step in range(10):
        batch, moved = plain.batch(step), dealt.batch(step)
        assert plain.token_counts(step) == dealt.token_counts(step)
        rows = lambda batch: sorted(batch["text"][row].tobytes() + batch["audio"][row].tobytes() for row in range(32))  # noqa: E731
        assert rows(batch) == rows(moved)
        halves = [host.batch(step) for host in hosts]
        assert equal(moved, {name: np.concatenate([half[name] for half in halves]) for name in moved})
        for order, found in ((batch, before), (moved, after)):
            # [shards, rows of a microbatch, microbatches]
            patches = (order["text"] == Prepared(folder).layout.special.empty).sum(axis=1).reshape(4, 4, 2)
            found.append(patches.sum(axis=1).max() / patches.sum() * 8)
    assert np.mean(after) < 1.2 < np.mean(before)
    with pytest.raises(ValueError, match="32 rows cannot be dealt to 3 shards x 2"):
        plain.dealt(3, 2)


def test_split_examples_repeat_their_prompt_without_loss(folder):
    task, empty = "sft_spoken_dialogue_multiturn", Prepared(folder).layout.special.empty
    reader = Prepared(folder).reader(task, "train")
    whole = [from_bytes(data) for data in reader.read(range(len(reader)))]
    loss = sum(int(example.loss.sum()) for example in whole)
    targets, repeated = {}, 0
    for overlong in ("split", "split_with_context"):
        source = PackedSource(folder, task, 4, CONTEXT, overlong=overlong, repeat=False)
        assert source.num_examples > len(whole)
        found = [source.batch(step) for step in range(source.steps_per_pass())]
        targets[overlong] = sum(int(batch["loss_mask"].sum()) for batch in found)
        for batch in found:
            is_audio = batch["text"] == empty
            assert (batch["audio"][is_audio] != np.asarray(Prepared(folder).layout.empty_codes)).all()
            for text, _, mask in segments(batch):
                mask = np.frombuffer(mask, bool)
                text = np.frombuffer(text, np.int32)
                beginnings = [e for e in whole if e.text[: len(text)].tobytes() == text.tobytes()]
                repeated += not beginnings and any(e.text[:5].tobytes() == text[:5].tobytes() for e in whole)
                assert not mask[0]
    # Only the first position of a part can lose its loss, and every part with a repetition one more at most.
    assert loss - PackedSource(folder, task, 4, CONTEXT).num_examples <= targets["split"] <= loss
    assert loss - 2 * source.num_examples <= targets["split_with_context"] <= loss
    assert repeated > 5
    quarantined = PackedSource(folder, task, 4, CONTEXT, overlong="quarantine", repeat=False)
    assert 0 < quarantined.num_examples < len(whole)


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
        by_task += np.bincount(source.places(step).tasks, minlength=3)
    np.testing.assert_allclose(by_task / by_task.sum(), [0.25, 0.25, 0.5], atol=0.001)

    shared = PackedSource(folder, Mixture({"continuation": 1.0, "text": 1.0, "tts": 2.0}, 0.75), 8, CONTEXT)
    text, audio = np.sum([shared.token_counts(s) for s in range(1000)], axis=0)
    assert abs(text / (text + audio) - 0.75) < 0.0075
    with caplog.at_level(logging.WARNING):
        PackedSource(folder, Mixture({"text": 1.0, "tts": 1.0}, 0.01), 8, CONTEXT)
    assert "out of reach" in caplog.text
    assert "less than an eighth" not in caplog.text
    own = PackedSource(folder, "tts", 8, CONTEXT).text_share
    with caplog.at_level(logging.WARNING):
        PackedSource(folder, Mixture({"text": 1.0, "tts": 1.0}, own + 0.01), 8, CONTEXT)
    assert "leaves text less than an eighth" in caplog.text


EARLY, LATE = Mixture({"asr": 3.0, "text": 1.0}), Mixture({"text": 1.0, "tts": 1.0, "asr": 2.0})


def rows_of(source, steps):
    """(task, epoch, packed row) of every row of the steps, in order."""
    found = []
    for step in steps:
        places = source.places(step)
        found += zip([source.tasks[t] for t in places.tasks], places.epochs.tolist(), places.rows.tolist(), strict=True)
    return found


def test_a_later_stage_goes_on_where_the_earlier_one_stopped(folder):
    first = PackedSource(folder, EARLY, 4, CONTEXT)
    tokens = sum(sum(first.token_counts(step)) for step in range(300))
    later = PackedSource(folder, LATE, 4, CONTEXT, before=[Phase(EARLY, tokens)])
    read, following = rows_of(first, range(300)), rows_of(later, range(300))
    for task, size in zip(first.tasks, first._num_rows, strict=True):
        seen = [(epoch, row) for name, epoch, row in read if name == task]
        then = [(epoch, row) for name, epoch, row in following if name == task]
        # Up to 0.5 % of what was read may come again or be left out: tokens count as rows by their mean.
        order = [(len(seen) + i) // size for i in range(len(then))]
        off = abs(np.asarray([epoch for epoch, _ in then]) - order)
        assert off.max() <= 1 and off.mean() < 0.005 * len(seen) / size + 1 / len(then)
        if then[0][0] == seen[-1][0]:
            again = {row for epoch, row in seen if epoch == then[0][0]} & {r for e, r in then if e == then[0][0]}
            assert len(again) <= 0.005 * len(seen)
    # A stage by itself begins every task with its first epoch.
    assert all(epoch == 0 for _, epoch, _ in rows_of(PackedSource(folder, LATE, 4, CONTEXT), range(3)))
    assert [row for row in following if row[0] == "tts"][0][1] == 0


def test_rates_change_at_a_token_count(folder):
    tokens = 120_000
    source = PackedSource(folder, [Phase(EARLY, tokens), Phase(LATE)], 4, CONTEXT)
    alone = PackedSource(folder, EARLY, 4, CONTEXT)
    counted, step = 0, 0
    while "tts" not in {task for task, _, _ in rows_of(source, [step])}:
        assert rows_of(source, [step]) == rows_of(alone, [step])
        counted += sum(source.token_counts(step))
        step += 1
    assert abs(counted - tokens) < 0.005 * tokens + 4 * CONTEXT
    shares = collections.Counter(task for task, _, _ in rows_of(source, range(step, step + 400)))
    assert [round(shares[task] / 1600, 2) for task in ("asr", "text", "tts")] == [0.5, 0.25, 0.25]
    # Stages and changes within them are one thing: the same rows from one source or from two.
    second = PackedSource(folder, LATE, 4, CONTEXT, before=[Phase(EARLY, tokens)])
    start = int(source._curriculum.starts[1])
    combined = rows_of(source, range(start // 4, start // 4 + 50))[start % 4 :]
    assert combined == rows_of(second, range(50))[: len(combined)]


def test_tasks_without_examples_are_told_of(tmp_path, caplog):
    make_prepared(tmp_path, ["text"], (8, 1))
    with caplog.at_level(logging.WARNING):
        PackedSource(tmp_path, Mixture({"text": 1.0, "captioning": 1.0, "conversion": 1.0}), 1, CONTEXT)
    assert "no train examples for: captioning, conversion; the other tasks take their share" in caplog.text


def test_a_vocabulary_that_does_not_fit_is_named(folder):
    with pytest.raises(UserError, match=r"the model 7; raise .* --gin.prepare.vocab_size=N"):
        fit_model(MimoAudioConfig(vocab_size=7, empty_token_id=0), folder)


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no finished preparation.*mimo_jax.prepare"):
        PackedSource(tmp_path, "joint", 8, CONTEXT)
    with pytest.raises(ValueError, match="8 rows, host 0 of 3"):
        PackedSource(folder, "joint", 8, CONTEXT, host_count=3)
    with pytest.raises(ValueError, match="test_voices"):
        PackedSource(folder, "joint", 8, CONTEXT, split="test_voices")
    with pytest.raises(ValueError, match="each but the last needs some"):
        PackedSource(folder, "joint", 8, CONTEXT, before=[Phase("asr")])
    with pytest.raises(ValueError, match="the last has None"):
        PackedSource(folder, [Phase("asr", 5.0), Phase("joint", 9.0)], 8, CONTEXT)
    with pytest.raises(ValueError, match="'cut': use one of"):
        PackedSource(folder, "asr", 8, CONTEXT, overlong="cut")
