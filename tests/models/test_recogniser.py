"""The recogniser: masks, shapes, decoding, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.models.recogniser import BLANK, Recogniser, RecogniserConfig, log_mel
from mimo_jax.objectives.recogniser import RecogniserObjective, greedy_decode, greedy_ids
from mimo_jax.objectives.transcripts import Vocabulary, normalise_text

TINY = RecogniserConfig(
    num_words=4, d_model=32, dilations=(1,), num_mels=20, outputs_per_state=1, time_masks=0, mel_masks=0
)


def _waves(seed: int, batch: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (batch, samples)).astype(np.float32)


def test_padding_does_not_change_an_utterance():
    module = Recogniser(TINY)
    wave = _waves(0, 2, 9600)
    count = np.array([9600, 5280], np.int32)
    params = module.init(jax.random.key(0), wave, count)
    logits, lengths = module.apply(params, wave, count)
    assert logits.shape == (2, 10, TINY.num_classes)
    assert lengths.tolist() == [10, 6]
    padded = np.concatenate([wave[1:], _waves(1, 1, 9600)], axis=1)
    padded[0, 5280:9600] = 7.0
    again, again_lengths = module.apply(params, padded, count[1:])
    assert again_lengths.tolist() == [6]
    np.testing.assert_allclose(again[0, :6], logits[1, :6], atol=1e-5)


def test_log_mel_places_a_tone_in_its_bin():
    config = RecogniserConfig()
    tone = np.sin(2 * np.pi * 1000 * np.arange(24_000) / 24_000).astype(np.float32)[None]
    mel = np.asarray(log_mel(jnp.asarray(tone), config))
    assert mel.shape == (1, 100, 80)
    top = 2595 * np.log10(1 + 12_000 / 700)
    expected = 2595 * np.log10(1 + 1000 / 700) / top * 81 - 1
    assert abs(mel[0, 50].argmax() - expected) <= 1


def test_config_rejects_even_kernels():
    with pytest.raises(ValueError, match="kernel_size 4"):
        RecogniserConfig(kernel_size=4)


def _slow_greedy(path: list[int]) -> list[int]:
    merged = [value for i, value in enumerate(path) if i == 0 or value != path[i - 1]]
    return [value for value in merged if value != BLANK]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(0, 12))
def test_greedy_decoding_equals_its_definition(path, length):
    logits = np.eye(4, dtype=np.float32)[path][None]
    assert greedy_decode(logits, np.array([length])) == [_slow_greedy(path[:length])]


def test_greedy_ids_reports_what_did_not_fit():
    ids, counts = greedy_ids(jnp.eye(4)[jnp.array([1, 2, 3, 1])][None], jnp.array([4]), 2)
    assert ids.tolist() == [[1, 2]] and counts.tolist() == [4]


@given(st.lists(st.sampled_from(["open", "the", "door", "don't", "caf\u00e9", "\u95e8", "x9"]), max_size=6))
def test_vocabulary_round_trip(words):
    vocabulary = Vocabulary(("open", "the", "door"))
    text = " ".join(words)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == normalise_text(text)
    assert all(0 < value < 257 + 3 for value in ids)


def test_vocabulary_takes_frequent_words(tmp_path):
    vocabulary = Vocabulary.from_texts(["One two, one!", "two one"], num_words=8, min_count=2)
    assert vocabulary.words == ("one", "two")
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="bad.json"):
        Vocabulary.load(tmp_path / "bad.json")


def _tones(seed: int, batch: int) -> dict[str, np.ndarray]:
    """Three tones stand for three words: a task that a broken loss or alignment cannot learn."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 3, (batch, 3))
    time = np.arange(4800) / 24_000
    tones = np.stack([np.sin(2 * np.pi * f * time) for f in (300, 1200, 4000)]).astype(np.float32)
    gap = np.zeros((batch, 3, 1200), np.float32)
    wave = np.concatenate([tones[words], gap], axis=-1).reshape(batch, -1)
    wave += rng.normal(0, 0.01, wave.shape).astype(np.float32)
    return {
        "waveform": wave,
        "num_samples": np.full(batch, wave.shape[1], np.int32),
        "text": np.pad(words + 257, ((0, 0), (0, 2))).astype(np.int32),
        "text_length": np.full(batch, 3, np.int32),
    }


def test_learns_to_tell_tones_apart():
    objective = RecogniserObjective(TINY)
    batch = _tones(0, 8)
    params, mutable = objective.init(jax.random.key(0), batch)
    optimiser = optax.adam(1e-2)
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, batch, rng):
        gradients = jax.grad(lambda p: objective.loss(p, {}, batch, rng, jnp.float32(0))[0])(params)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state

    for i in range(60):
        params, state = step(params, state, _tones(i, 8), jax.random.key(i))
    results = objective.evaluate(params, mutable, _tones(1000, 8))
    wrong, count = results["sequence_error"]
    assert count == 8 and wrong <= 1


def test_impossible_targets_have_no_weight():
    objective = RecogniserObjective(TINY)
    batch = _tones(0, 2)
    batch["num_samples"] = np.array([batch["num_samples"][0], 480], np.int32)
    params, _ = objective.init(jax.random.key(0), batch)
    loss, (_, metrics) = objective.loss(params, {}, batch, jax.random.key(1), jnp.float32(0))
    assert np.isfinite(loss) and metrics["used_share"] == 0.5
