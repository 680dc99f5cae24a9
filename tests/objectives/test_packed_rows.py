"""Utterances that share a row give what they give alone: features, codes, waveforms, losses, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.models import kernels, layers
from mimo_jax.models.tokenizer import MimoAudioTokenizer, extents
from mimo_jax.objectives import audio_batches
from mimo_jax.objectives.reconstruction import Stretch
from tests.objectives.test_tokenizer import CONFIG, GAN, OBJECTIVE

FRAME = CONFIG.samples_per_frame
SIZES = (7000, 3360, 5041, 1200)  # the second ends with a mel frame
OBJECTIVE = dataclasses.replace(OBJECTIVE, unquantized_steps=0, segment_frames=0)


def utterances():
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=n).cumsum() for n in SIZES]
    return [(w / np.abs(w).max() * 0.5).astype(np.float32) for w in waves]


def alone():
    """One utterance a row."""
    rng = np.random.default_rng(1)
    batch = {
        "waveform": np.zeros((4, 9 * FRAME), np.float32),
        "num_samples": np.asarray(SIZES, np.int32),
        "text": rng.integers(1, 12, (4, 5)).astype(np.int32),
        "text_length": np.asarray([5, 0, 3, 2], np.int32),
        "text_kind": np.asarray([[0], [0], [1], [0]], np.int32),
    }
    for row, wave in enumerate(utterances()):
        batch["waveform"][row, : len(wave)] = wave
    return batch


def packed():
    """The same in two rows of 20 code frames: three, with the least room between them, and one in the second row."""
    given = alone()
    batch = {"waveform": np.zeros((2, 20 * FRAME), np.float32), "text": np.zeros((2, 10), np.int32)}
    for name in ("starts", "num_samples", "text_kind"):
        batch[name] = np.zeros((2, 3), np.int32)
    batch["text_segments"] = np.zeros((2, 10), np.int32)
    start = behind = 0
    for u, (row, place) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0))):
        if not place:
            start = behind = 0
        n, length = SIZES[u], given["text_length"][u]
        batch["waveform"][row, start : start + n] = given["waveform"][u, :n]
        batch["starts"][row, place], batch["num_samples"][row, place] = start, n
        batch["text"][row, behind : behind + length] = given["text"][u, :length]
        batch["text_segments"][row, behind : behind + length] = place + 1
        batch["text_kind"][row, place] = given["text_kind"][u, 0]
        start, behind = start + (n // FRAME + 2) * FRAME, behind + length
    return batch


@pytest.fixture(scope="module")
def state():
    """Parameters and codebooks after k-means, all of them random otherwise.

    Of so few frames k-means draws some twice: equal codes are moved apart, or rounding would choose between them.
    """
    params, mutable = layers.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), packed()))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    _, (mutable, _) = jax.jit(OBJECTIVE.loss)(params, mutable, alone(), jax.random.key(1), jnp.float32(0))
    for number, book in enumerate(mutable["codebooks"]["quantizer"].values()):
        noise = jax.random.normal(jax.random.key(number), book["embed"].shape)
        book["embed"] = book["embed"] + 0.1 * book["embed"].std() * noise
    return params, mutable


def of_stage_two(state):
    """Parameters and state of stage 2 after stage 1; its discriminators are not needed here."""
    params, mutable = state
    generator = dict(params["tokenizer"])
    return {"generator": generator}, {**mutable, "encoder": generator.pop("encoder")}


def apart(x, ids):
    """The parts of x [2, T, ...] that belong to the four utterances."""
    x, ids = np.asarray(x), np.asarray(ids)
    return [x[row][ids[row] == place] for row, place in ((0, 1), (0, 2), (0, 3), (1, 1))]


@pytest.mark.parametrize("plain", [True, False], ids=["masks", "kernels"])
def test_everything_is_as_alone(state, monkeypatch, plain):
    if not plain:
        monkeypatch.setitem(kernels.PLAIN_LENGTH, "xla", 4)
    params, mutable = state
    variables = {"params": params["tokenizer"], **{name: mutable[name] for name in ("codebooks", "constants")}}
    model = MimoAudioTokenizer(CONFIG)

    def run(batch):
        mel, extent, samples = audio_batches.log_mel(batch, CONFIG)
        features, code_extent = model.apply(variables, mel, extent, method="encode_features")
        codes, _ = model.apply(variables, mel, extent, method="encode")
        coarse, frames = model.apply(variables, features, code_extent, method="decode_features")
        wave, produced = model.apply(variables, codes, code_extent, method="decode")
        results = {"mel": mel, "features": features, "codes": codes, "coarse": coarse, "wave": wave}
        of = {"mel": extent, "features": code_extent, "codes": code_extent, "coarse": frames, "wave": produced}
        return results, {name: extents.segment_ids(of[name], results[name].shape[1]) for name in of}

    one, one_ids = jax.jit(lambda: run(alone()))()
    many, many_ids = jax.jit(lambda: run(packed()))()
    for name, tolerance in (("mel", 1e-4), ("features", 5e-5), ("coarse", 5e-5), ("codes", 0), ("wave", 5e-5)):
        expected = [np.asarray(x)[np.asarray(i) == 1] for x, i in zip(one[name], one_ids[name], strict=True)]
        for u, (found, wanted) in enumerate(zip(apart(many[name], many_ids[name]), expected, strict=True)):
            assert found.shape == wanted.shape and len(wanted), (name, u)
            np.testing.assert_allclose(found, wanted, atol=tolerance, err_msg=f"{name} of utterance {u}")
        outside = np.asarray(many[name])[np.asarray(many_ids[name]) == 0]
        assert not np.any(outside), f"{name} between utterances"


@pytest.mark.parametrize("plain", [True, False], ids=["masks", "kernels"])
def test_losses_and_gradients_of_stage_one(state, monkeypatch, plain):
    if not plain:
        monkeypatch.setitem(kernels.PLAIN_LENGTH, "xla", 4)
    params, mutable = state

    def loss(params, batch):
        total, (moved, metrics) = OBJECTIVE.loss(params, mutable, batch, jax.random.key(2), jnp.float32(0))
        return total, (moved["codebooks"], metrics)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (books, metrics)), gradients = run(params, packed())
    (expected, (other_books, others)), wanted = run(params, alone())
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for name in ("loss/text", "loss/coarse_mel", "loss/reconstruction", "loss/commitment", "perplexity/1"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-5, err_msg=name)
    assert metrics["fill"] == (8 + 4 + 6 + 2) / 40
    for found, reference in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, reference, atol=2e-4 * max(1.0, float(np.abs(reference).max())))
    for i in range(CONFIG.num_quantizers):  # what replaces dead codes is drawn by place in the batch: compare sums
        found, reference = books["quantizer"][f"layers_{i}"], other_books["quantizer"][f"layers_{i}"]
        np.testing.assert_allclose(found["cluster_size"], reference["cluster_size"], rtol=1e-5)


def test_evaluation_of_both_stages(state):
    evaluate = jax.jit(OBJECTIVE.evaluate)
    found, expected = (evaluate(*state, batch) for batch in (packed(), alone()))
    for name, (total, count) in found.items():
        wanted, number = expected[name]
        assert np.sum(count) == np.sum(number) > 0, name
        np.testing.assert_allclose(np.sum(total), np.sum(wanted), rtol=1e-5, err_msg=name)
    params, mutable = of_stage_two(state)

    def distance(generator, batch):
        return GAN.evaluate({**params, "generator": generator}, mutable, batch)["reconstruction"][0].sum()

    run = jax.jit(jax.value_and_grad(distance))
    (found, gradients), (wanted, expected) = (run(params["generator"], batch) for batch in (packed(), alone()))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for gradient, reference in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-4 * float(np.abs(reference).max()) + 1e-3)


def test_text_reads_its_own_audio_only(state):
    params, mutable = state
    sums = jax.jit(lambda batch: OBJECTIVE.evaluate(params, mutable, batch)["text"][0])
    batch = packed()
    batch["text_segments"] = np.where(batch["text_segments"] == 3, 3, 0)  # the third utterance's text alone
    expected = sums(batch)
    other = dict(batch, waveform=batch["waveform"].copy())
    other["waveform"][0, :7000] *= -0.5
    np.testing.assert_allclose(sums(other), expected, rtol=1e-5)
    other["waveform"][0, batch["starts"][0, 2] :][:5041] *= -0.5
    assert abs(sums(other) - expected) > 1e-3
    # The kind of a text is told.
    assert abs(sums(dict(batch, text_kind=0 * batch["text_kind"])) - expected) > 1e-3


def test_crops_hold_one_utterance(state):
    def cut(batch):
        whole, _ = GAN._whole(*of_stage_two(state), batch, None)
        return dataclasses.astuple(whole.random(jax.random.key(3), 10, CONFIG.hop_length, crops=64))

    crops = Stretch(*jax.jit(cut)(packed()))
    assert crops.mel.shape[0] == crops.waveform.shape[0] == 128 and crops.waveform.shape[1] == 10 * CONFIG.hop_length
    # Each crop is found in one utterance, as long as it says, at a frame of it; long ones come more often.
    waves, hits = utterances(), np.zeros(4, int)
    for row, (wave, n) in enumerate(zip(np.asarray(crops.waveform), np.asarray(crops.sample_extent), strict=True)):
        assert 0 < n and not wave[n:].any()
        found = [
            u
            for u in ((0, 1, 2) if row < 64 else (3,))
            for start in range(0, len(waves[u]), CONFIG.hop_length)
            if np.array_equal(waves[u][start : start + n], wave[:n]) and n == min(2400, len(waves[u]) - start)
        ]
        assert len(found) == 1, row
        hits[found[0]] += 1
    assert hits[3] == 64 and hits[0] > hits[1] > 5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kernel_size": 5}, "kernel_size is 5: packed sequences need 3"),
        ({"nfft": 1200}, "nfft is 1200: packed sequences need 960 or less"),
        ({"decoder_stride_size": 1}, "stride_size 2 is not decoder_stride_size 1"),
        ({"hop_length": 250}, "packed rows of 19200 samples: give a multiple of 1000"),
    ],
)
def test_what_cannot_be_packed_is_refused(changes, complaint):
    objective = dataclasses.replace(OBJECTIVE, config=dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(objective.init, jax.random.key(0), packed())
