"""Both tokenizer stages at a tiny size: what they compute, what they learn, what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimo_jax.models import layers
from mimo_jax.models.tokenizer import TokenizerConfig, frontend
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig, Discriminators, SpectralConv, spectral_norm
from mimo_jax.models.tokenizer.rvq import RvqTraining
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives import tokenizer_gan
from mimo_jax.objectives.reconstruction import Stretch, mel_distance, scaled_mel
from mimo_jax.objectives.tokenizer import SMALL_LLM, TokenizerObjective
from mimo_jax.objectives.tokenizer_gan import TokenizerGanObjective

CONFIG = TokenizerConfig(
    d_model=32,
    encoder_layers=2,
    encoder_skip_layer_id=1,
    encoder_attention_heads=1,
    encoder_ffn_dim=64,
    decoder_layers=1,
    decoder_attention_heads=1,
    decoder_ffn_dim=64,
    n_mels=40,
    vocoder_dim=32,
    vocoder_intermediate_dim=64,
    vocoder_num_layers=1,
    vocoder_attention_heads=1,
    num_quantizers=3,
    codebook_size=(16, 8),
)
LLM = dataclasses.replace(SMALL_LLM, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=1, num_kv_heads=1)
OBJECTIVE = TokenizerObjective(
    CONFIG, text_vocab_size=12, llm=dataclasses.replace(LLM, head_dim=32), coarse_mel_weight=1.0,
    quantizer=RvqTraining(kmeans_iterations=5), unquantized_steps=3, segment_frames=20,
)  # fmt: skip
GAN = TokenizerGanObjective(
    CONFIG,
    DiscriminatorConfig(periods=(2, 3), period_channels=(4, 8, 8), stft_sizes=(256, 64), stft_channels=4),
    segment_frames=10,
    adversarial_start=0.5,
)


def batch(seed=0, size=4, samples=12000):
    """Tones in noise whose pitch is the text."""
    rng = np.random.default_rng(seed)
    text = rng.integers(1, 12, (size, 3)).astype(np.int32)
    time = np.arange(samples) / 24000
    index = np.minimum(np.arange(samples) * 3 // samples, 2)
    wave = np.stack([np.sin(2 * np.pi * 150 * t[index] * time) for t in text]) * 0.3
    wave = (wave + rng.normal(size=wave.shape) * 0.01).astype(np.float32)
    num_samples = np.full(size, samples, np.int32)
    num_samples[1] = samples - 5000
    return {
        "waveform": wave, "num_samples": num_samples, "text": text, "text_length": np.array([3, 2, 0, 3], np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """(first and last metrics, params, mutable) of a short stage 1 run."""
    params, mutable = layers.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), batch()))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, mutable, state, data, rng):
        grads, (mutable, metrics) = jax.grad(OBJECTIVE.loss, has_aux=True)(params, mutable, data, rng, jnp.float32(0))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), mutable, state, metrics

    state, history = optimizer.init(params), []
    for i in range(25):
        params, mutable, state, metrics = step(params, mutable, state, batch(i), jax.random.key(i))
        history.append(jax.device_get(metrics))
    return history, params, mutable


def test_stage_one_learns(trained):
    history, _, mutable = trained
    for name in ("loss/coarse_mel", "loss/reconstruction"):
        assert history[-1][name] < 0.7 * history[0][name], name
    assert history[2]["loss/commitment"] == 0 and history[3]["loss/commitment"] > 0
    assert history[2]["perplexity/1"] == 0 and history[-1]["perplexity/1"] > 1.5
    assert mutable["step"] == 25 and mutable["codebooks"]["quantizer"]["layers_2"]["inited"] == 1
    assert all(np.isfinite(v) for metrics in history for v in metrics.values())


def test_evaluation_is_additive_and_ignores_padding(trained):
    _, params, mutable = trained
    evaluate = jax.jit(OBJECTIVE.evaluate)
    data = batch(100)
    whole = evaluate(params, mutable, data)
    padded = {**data, "waveform": np.pad(data["waveform"], ((0, 0), (0, 2400)), constant_values=5.0)}
    longer = evaluate(params, mutable, padded)
    empty = evaluate(params, mutable, {**data, "num_samples": 0 * data["num_samples"], "text_length": np.zeros(4, int)})
    for name, (total, count) in whole.items():
        assert np.sum(longer[name][1]) == np.sum(count) > 0
        np.testing.assert_allclose(np.sum(longer[name][0]), np.sum(total), rtol=1e-3, err_msg=name)
        assert np.sum(empty[name][0]) == 0 == np.sum(empty[name][1]), name


def test_text_counts_only_where_there_is_text(trained):
    _, params, mutable = trained
    data = batch(100)
    nll = jax.jit(OBJECTIVE.evaluate)(params, mutable, data)["text"]
    assert nll[1] == 8
    changed = {**data, "text": np.where(np.arange(3)[None] < data["text_length"][:, None], data["text"], 7)}
    other = jax.jit(OBJECTIVE.evaluate)(params, mutable, changed)["text"]
    np.testing.assert_allclose(nll[0], other[0], rtol=1e-5)


def test_without_text_no_text_is_needed():
    objective = dataclasses.replace(OBJECTIVE, text_weight=0.0)
    data = {name: batch()[name] for name in ("waveform", "num_samples")}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), data)
    assert set(shapes[0]) == {"tokenizer"}
    jax.eval_shape(objective.loss, *layers.unbox(shapes), data, jax.random.key(0), jnp.float32(0))


def test_spectral_norm_converges_to_one():
    conv = SpectralConv(6, (3, 5))
    x = jnp.ones((1, 8, 8, 2))
    variables = layers.unbox(conv.init(jax.random.key(0), x))
    start, matrix = variables["spectral"]["u"], variables["params"]["kernel"].reshape(-1, 6)
    for _ in range(50):
        _, moved = conv.apply(variables, x, mutable=["spectral"])
        variables = {**variables, **moved}
    assert np.abs(variables["spectral"]["u"] - start).max() > 0
    expected = np.linalg.svd(np.asarray(matrix), compute_uv=False)[0]
    assert spectral_norm(matrix, variables["spectral"]["u"])[0] == pytest.approx(expected, rel=1e-3)
    scaled = {**variables, "params": jax.tree.map(lambda a: 3 * a, variables["params"])}
    np.testing.assert_allclose(conv.apply(scaled, x), conv.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_discriminators_of_the_published_sizes():
    judge, wave = Discriminators(DiscriminatorConfig()), jnp.zeros((2, 24000))
    (logits, activations), variables = jax.eval_shape(lambda: judge.init_with_output(jax.random.key(0), wave))
    params = layers.unbox(variables["params"])
    of_period = 5 * (1 * 32 + 32 * 128 + 128 * 512 + 512 * 1024 + 1024 * 1024) + (32 + 128 + 512 + 1024 + 1024)
    of_stft = 27 * 2 * 32 + 3 * 27 * 32 * 32 + 9 * 32 * 32 + 5 * 32
    sizes = {"period": of_period + 3 * 1024 + 1, "stft": of_stft + 9 * 32 + 1}  # with the layer that gives the logits
    names = [f"period_{p}" for p in (2, 3, 5, 7, 11)] + [f"stft_{n}" for n in (2048, 1024, 512, 256, 128)]
    assert set(params) == set(names)
    for name, tree in params.items():
        assert sum(x.size for x in jax.tree.leaves(tree)) == sizes[name.partition("_")[0]], name
        assert set(variables["spectral"][name]) == set(tree)  # every layer is normalised
    assert [len(part) for part in activations] == [5] * 10
    # A fold of 11 has 2182 samples a column, 1/81 of them at the end; STFTs keep time and an eighth of the bins.
    assert logits[4].shape == (2, 27, 11, 1) and logits[6].shape == (2, 1 + (24000 - 1024) // 256, 65, 1)


def test_stage_two(trained):
    _, params1, mutable1 = trained
    params, mutable = GAN.from_stage1(params1, mutable1, jax.random.key(7), batch())
    exported, before = GAN.tokenizer_variables(params, mutable), OBJECTIVE.tokenizer_variables(params1, mutable1)
    jax.tree.map(np.testing.assert_array_equal, exported, before)

    loss = jax.jit(jax.value_and_grad(GAN.loss, has_aux=True))
    (early, (moved, metrics)), grads = loss(params, mutable, batch(), jax.random.key(0), jnp.float32(0.1))
    assert early == pytest.approx(float(metrics["loss/reconstruction"] + metrics["loss/discriminator"]), rel=1e-5)
    (late, (_, metrics)), late_grads = loss(params, mutable, batch(), jax.random.key(0), jnp.float32(0.6))
    total = metrics["loss/reconstruction"] + metrics["loss/adversarial"] + 2 * metrics["loss/feature_matching"]
    assert late == pytest.approx(float(total + metrics["loss/discriminator"]), rel=1e-5)
    # The discriminators' gradient does not know of the generator's loss, nor whether it listens yet.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        grads["discriminator"],
        late_grads["discriminator"],
    )
    assert all(np.any(g) for g in jax.tree.leaves(grads["discriminator"]))
    # What the discriminators say is a part of the generator's gradient that counts.
    change = jax.tree.map(jnp.subtract, late_grads["generator"], grads["generator"])
    assert optax.global_norm(change) > 0.002 * optax.global_norm(grads["generator"])
    for name in ("encoder", "codebooks", "constants"):
        jax.tree.map(np.testing.assert_array_equal, moved[name], mutable[name])
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), moved["spectral"], mutable["spectral"])))


def test_stage_two_decodes_from_fewer_codebooks(trained):
    _, params1, mutable1 = trained
    params, mutable = GAN.from_stage1(params1, mutable1, jax.random.key(7), batch())

    def reconstruction(objective, mutable):
        loss = jax.jit(objective.loss)
        draws = [loss(params, mutable, batch(), jax.random.key(i), jnp.float32(0))[1][1] for i in range(3)]
        return [float(metrics["loss/reconstruction"]) for metrics in draws]

    # Where only the first codebook says anything, it does not matter how many are in use.
    books = {name: dict(book) for name, book in mutable["codebooks"]["quantizer"].items()}
    for name in sorted(books)[1:]:
        books[name]["embed"] = jnp.zeros_like(books[name]["embed"])
    first_only = {**mutable, "codebooks": {"quantizer": books}}
    dropping = dataclasses.replace(GAN, dropout=1.0)
    assert reconstruction(dropping, first_only) == pytest.approx(reconstruction(GAN, first_only), rel=1e-6)
    assert reconstruction(dropping, mutable) != pytest.approx(reconstruction(GAN, mutable), rel=1e-6)


def test_stage_two_without_discriminators(trained):
    _, params1, mutable1 = trained
    alone = dataclasses.replace(GAN, discriminators=None, coarse_mel_weight=2.0)
    params, mutable = alone.from_stage1(params1, mutable1, jax.random.key(7), batch())
    assert set(params) == {"generator"} and "spectral" not in mutable
    total, (same, metrics) = jax.jit(alone.loss)(params, mutable, batch(), jax.random.key(0), jnp.float32(0.6))
    assert total == pytest.approx(float(metrics["loss/reconstruction"] + 2 * metrics["loss/coarse_mel"]), rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, mutable)
    # The same rows, codebooks and crops as beside discriminators.
    judged = GAN.from_stage1(params1, mutable1, jax.random.key(7), batch())
    beside = jax.jit(GAN.loss)(*judged, batch(), jax.random.key(0), jnp.float32(0.6))[1][1]
    for name in ("loss/reconstruction", "loss/coarse_mel"):
        assert metrics[name] == pytest.approx(float(beside[name]), rel=1e-5)
    assert alone.step_flops(batch()) < GAN.step_flops(batch())


def test_discriminators_may_hear_some_of_the_segments(monkeypatch):
    some = dataclasses.replace(GAN, segments_per_row=3, judged_per_row=1)
    with pytest.raises(ValueError, match=r"judged_per_row = 4: 1 to segments_per_row \(3\)"):
        dataclasses.replace(some, judged_per_row=4)
    waves = jnp.arange(12.0).reshape(12, 1)  # 4 rows
    np.testing.assert_array_equal(some._judged(waves)[:, 0], [0, 3, 6, 9])
    every = dataclasses.replace(some, judged_per_row=None)
    heard = []

    def verdict(judge, params, spectral, real, fake, relative):
        heard.append((real.shape, fake.shape))
        return {"loss/adversarial": 0.0, "loss/feature_matching": 0.0, "loss/discriminator": 0.0}, spectral

    monkeypatch.setattr(tokenizer_gan, "verdict", verdict)
    for objective in (some, every):
        jax.eval_shape(objective.loss, *fives(GAN), batch(), jax.random.key(0), jnp.float32(0.6))
    assert heard == [((rows, 2400), (rows, 2400)) for rows in (4, 12)]
    assert some.step_flops(batch()) < every.step_flops(batch())


def test_stage_two_refuses_another_tokenizer(trained):
    _, params, mutable = trained
    other = dataclasses.replace(GAN, config=dataclasses.replace(CONFIG, vocoder_num_layers=2))
    with pytest.raises(ValueError, match="vocoder"):
        other.from_stage1(params, mutable, jax.random.key(0), batch())


def test_gan_losses():
    real, fake = [jnp.array([2.0, 0.5])], [jnp.array([-2.0, 0.5])]
    assert tokenizer_gan.hinge_discriminator(real, fake) == 0.25 + 0.75
    assert tokenizer_gan.hinge_generator(fake) == (3 + 0.5) / 2
    assert tokenizer_gan.feature_matching([[real[0]], [real[0]]], [[real[0]], [fake[0]]]) == 1.0
    features = [[real[0], 8 * real[0]]], [[fake[0], 8 * fake[0]]]
    assert tokenizer_gan.feature_matching(*features) == (2 + 16) / 2
    assert tokenizer_gan.feature_matching(*features, relative=True) == 2 / 1.25  # whatever the level of a layer


def test_equal_waves_have_equal_features():
    """Whatever the spectral-norm vectors: they are fresh here."""
    judge = Discriminators(DiscriminatorConfig((2, 3), (4, 8), (64,), 4))
    wave = jnp.asarray(np.random.default_rng(0).standard_normal((3, 240)), jnp.float32)
    variables = layers.unbox(jax.jit(judge.init)(jax.random.key(0), wave))

    @jax.jit
    def judged(variables):
        return tokenizer_gan.verdict(judge, variables["params"], variables["spectral"], wave, wave)[0]

    assert judged(variables)["loss/feature_matching"] < 1e-6


def test_logits_are_exact_in_bfloat16():
    """1 and 1 + a thousandth are the same number in bfloat16."""
    low = Compute(dtype="bfloat16")
    judge = Discriminators(DiscriminatorConfig((2,), (4,), (64,), 4), low)
    wave = jnp.asarray(np.random.default_rng(0).standard_normal((1, 240)) * 1e-3, jnp.float32)
    variables = layers.unbox(jax.jit(judge.init)(jax.random.key(0), wave))
    logits, activations = jax.jit(judge.apply)(variables, wave)
    assert {x.dtype for x in logits} == {jnp.dtype("float32")} and activations[0][0].dtype == jnp.dtype("bfloat16")
    assert float(tokenizer_gan.hinge_generator(logits)) != 1.0


def fives(objective):
    """A state in which every number is 5."""
    shapes = layers.unbox(jax.eval_shape(objective.init, jax.random.key(3), batch()))
    return jax.tree.map(lambda x: np.full(x.shape, 5, x.dtype), shapes)


def test_stage_one_goes_on_from_either_stage(trained):
    _, params1, mutable1 = trained
    fresh = fives(OBJECTIVE)
    params, mutable = OBJECTIVE.warm_start(*fresh, params1, mutable1)
    jax.tree.map(np.testing.assert_array_equal, (params, mutable), (params1, mutable1))

    # Stage 2 and the released layout have no LLM: a fresh one; codebooks that are there are in use at once.
    stage2 = GAN.warm_start(*fives(GAN), params1, mutable1)
    released = {"tokenizer": params1["tokenizer"]}, {k: mutable1[k] for k in ("codebooks", "constants")}
    for source in (stage2, released):
        params, mutable = OBJECTIVE.warm_start(*fresh, *source)
        jax.tree.map(np.testing.assert_array_equal, params["tokenizer"], params1["tokenizer"])
        jax.tree.map(np.testing.assert_array_equal, params["llm"], fresh[0]["llm"])
        jax.tree.map(np.testing.assert_array_equal, mutable["codebooks"], mutable1["codebooks"])
        assert mutable["step"] == OBJECTIVE.unquantized_steps
    other = dataclasses.replace(OBJECTIVE, config=dataclasses.replace(CONFIG, n_mels=20))
    with pytest.raises(ValueError, match="what this stage starts from does not fit its configuration: .*there and"):
        other.warm_start(*fives(other), params1, mutable1)


def test_verdict_is_that_of_each_wave_alone():
    judge = Discriminators(DiscriminatorConfig((2, 3), (4, 8), (64,), 4, input_gain=3.0))
    real, fake = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 240)), jnp.float32)
    variables = layers.unbox(judge.init(jax.random.key(0), real))
    judged = jax.jit(lambda params, spectral: tokenizer_gan.verdict(judge, params, spectral, real, fake))
    losses, spectral = judged(variables["params"], variables["spectral"])

    @jax.jit
    def alone(wave):
        return judge.apply(variables, wave, mutable=["spectral"])

    ((real_logits, of_real), moved), ((fake_logits, _), _) = alone(real), alone(fake)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), spectral, moved["spectral"])
    expected = {
        "loss/discriminator": tokenizer_gan.hinge_discriminator(real_logits, fake_logits),
        "discriminator/real": np.mean([x.mean() for x in real_logits]),
        "discriminator/fake": np.mean([x.mean() for x in fake_logits]),
    }
    fake_logits, of_fake = judge.apply(variables, fake)
    expected["loss/adversarial"] = tokenizer_gan.hinge_generator(fake_logits)
    expected["loss/feature_matching"] = tokenizer_gan.feature_matching(of_real, of_fake)
    assert expected.keys() == losses.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_mel_scales_have_the_published_shapes():
    wave = jax.random.normal(jax.random.key(0), (1, 24000))
    for scale, bins, hop in ((5, 32, 120), (6, 64, 240), (7, 128, 480)):
        mel = scaled_mel(wave, jnp.array([24000]), 24000, scale, None)
        assert mel.shape == (1, 1 + 24000 // hop, bins)
        # Normalised: white noise of variance one has unit power in every STFT bin, whatever the window.
        window, bank = 15 * 2 ** (scale - 1), frontend.mel_filterbank(24000, 15 * 2 ** (scale - 1), bins, 0, None)
        assert bank.shape[0] == window // 2 + 1
        np.testing.assert_allclose((mel[0].mean(axis=0) / bank.sum(axis=0))[-8:], np.sqrt(np.pi) / 2, rtol=0.1)


def test_mel_distance_sees_only_valid_samples():
    a, b = jax.random.normal(jax.random.key(0), (2, 2, 9600))
    n = jnp.array([9600, 4000])
    total, count = mel_distance(a, b, n, 24000)
    cut, _ = mel_distance(a[1:, :4000], b[1:, :4000], n[1:], 24000)
    np.testing.assert_allclose(total[1], cut[0], rtol=1e-5)
    assert count.tolist() == [[9600], [4000]] and mel_distance(a, a, n, 24000)[0].sum() == 0


def test_segments_stay_aligned():
    hop, frames = 4, 30
    ramp = jnp.arange(frames * hop, dtype=jnp.float32)[None].repeat(3, 0)
    mel = ramp[:, ::hop, None]
    lengths = jnp.array([30, 12, 5])
    part = Stretch.whole(mel, lengths, ramp[:, :-3], lengths * hop - 3, hop).random(jax.random.key(1), 8, hop)
    for row in range(3):
        start = int(part.mel[row, 0, 0])
        valid = int(part.sample_extent[row])
        np.testing.assert_array_equal(part.waveform[row, :valid], np.arange(start, start + valid))
        assert not part.waveform[row, valid:].any()
        assert part.mel_extent[row] == min(8, int(lengths[row]) - start // hop)
        assert part.sample_extent[row] <= part.mel_extent[row] * hop
    assert part.waveform.shape == (3, 8 * hop)
