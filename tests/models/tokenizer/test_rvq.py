"""The quantiser's training pass: k-means, moving averages, dead codes, gradients, independence of padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.models.tokenizer import TokenizerConfig, rvq
from mimo_jax.models.tokenizer.extents import Packed

OPTIONS = rvq.RvqTraining(kmeans_iterations=20, dead_code_share=0.0)


def empty_books(sizes, dim):
    return {
        f"layers_{i}": {
            "embed": jnp.zeros((size, dim)),
            "embed_avg": jnp.zeros((size, dim)),
            "cluster_size": jnp.zeros(size),
            "inited": jnp.zeros(1),
        }
        for i, size in enumerate(sizes)
    }


def features(batch=4, length=32, dim=6, centres=8, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(centres, dim)) * 5
    x = points[rng.integers(0, centres, (batch, length))] + rng.normal(size=(batch, length, dim)) * 0.01
    return jnp.asarray(x, jnp.float32), points


train_pass = jax.jit(rvq.train_pass, static_argnums=4)


def test_kmeans_finds_the_clusters_and_the_second_book_reduces_the_rest():
    x, points = features()
    lengths = jnp.full(4, 32)
    books, out = train_pass(empty_books((32, 8), 6), x, lengths, jax.random.key(0), OPTIONS)
    distances = np.linalg.norm(np.asarray(books["layers_0"]["embed"])[None] - points[:, None], axis=-1)
    assert distances.min(axis=1).max() < 0.1
    assert np.abs(out.quantized - x).max() < 0.1
    assert books["layers_0"]["inited"] == books["layers_1"]["inited"] == 1
    assert books["layers_0"]["cluster_size"].sum() == pytest.approx(4 * 32, rel=1e-5)


def test_moving_averages():
    x, _ = features(centres=3)
    lengths = jnp.full(4, 32)
    books, _ = train_pass(empty_books((4,), 6), x, lengths, jax.random.key(0), OPTIONS)
    shifted = x + 0.1
    after, out = train_pass(books, shifted, lengths, jax.random.key(1), OPTIONS)
    counts, sums = np.zeros(4), np.zeros((4, 6))
    np.add.at(counts, np.asarray(out.codes[..., 0]).ravel(), 1)
    np.add.at(sums, np.asarray(out.codes[..., 0]).ravel(), np.asarray(shifted).reshape(-1, 6))
    before = books["layers_0"]
    size = 0.99 * before["cluster_size"] + 0.01 * counts
    average = 0.99 * before["embed_avg"] + 0.01 * sums
    smoothed = (size + 1e-5) / (size.sum() + 4e-5) * size.sum()
    np.testing.assert_allclose(after["layers_0"]["cluster_size"], size, rtol=1e-5)
    used = np.asarray(size) > 0
    np.testing.assert_allclose(after["layers_0"]["embed"][used], (average / smoothed[:, None])[used], rtol=1e-4)


def test_counts_are_smoothed():
    """An epsilon as large as the counts shows where it enters: Laplace smoothing that keeps the total."""
    book = {"embed": jnp.zeros((3, 2)), "embed_avg": jnp.array([[1.0, 2], [3, 4], [0, 0]]), "inited": jnp.ones(1)}
    book["cluster_size"] = jnp.array([2.0, 1, 0])
    options = rvq.RvqTraining(decay=1.0, epsilon=1.0)
    after = rvq.ema_update(book, jnp.zeros(3), jnp.zeros((3, 2)), options)
    smoothed = np.array([3.0, 2, 1]) / (3 + 3) * 3
    np.testing.assert_allclose(after["embed"], np.maximum(smoothed, 1.0)[:, None] ** -1 * book["embed_avg"], rtol=1e-6)
    assert rvq.RvqTraining().epsilon == 1e-5 and rvq.RvqTraining().decay == 0.99  # the report's


def test_a_codebook_without_frames_waits_for_them():
    """With codebook dropout a late codebook may have nothing to quantise in the step that initialises the others."""
    x, _ = features()
    book = empty_books((4,), 6)["layers_0"]
    same = rvq.initialise(book, jax.random.key(0), x, jnp.zeros((4, 32), bool), OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, same, book)
    assert rvq.initialise(book, jax.random.key(0), x, jnp.ones((4, 32), bool), OPTIONS)["inited"] == 1


def test_padding_and_dropout_leave_no_trace():
    x, _ = features()
    lengths = jnp.array([32, 10, 1, 20])
    mask = jnp.arange(32)[None, :] < lengths[:, None]
    start = empty_books((8, 4), 6)
    clean, out = train_pass(start, jnp.where(mask[..., None], x, 0), lengths, jax.random.key(2), OPTIONS)
    noisy, noisy_out = train_pass(start, jnp.where(mask[..., None], x, 99.0), lengths, jax.random.key(2), OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, clean, noisy)
    assert out.commitment == noisy_out.commitment and not np.any(out.quantized[~np.asarray(mask)])

    always = dataclasses.replace(OPTIONS, dropout=1.0)
    _, dropped = train_pass(clean, x, lengths, jax.random.key(3), always)
    one, two = (rvq.decode(clean, dropped.codes[..., :n]) for n in (1, 2))
    for row, a, b, valid in zip(dropped.quantized, one, two, mask, strict=True):
        gaps = [float(np.abs(np.where(valid[:, None], row - option, 0)).max()) for option in (a, b)]
        assert min(gaps) < 1e-5


def test_dead_codes_become_samples_of_the_batch():
    x, _ = features()
    book = empty_books((4,), 6)["layers_0"] | {"inited": jnp.ones(1)}
    book |= {"embed": jnp.full((4, 6), 100.0).at[0].set(0), "embed_avg": jnp.zeros((4, 6))}
    book |= {"cluster_size": jnp.array([500.0, 0, 0, 0])}
    lengths = jnp.array([32, 5, 0, 7])
    mask = jnp.arange(32)[None, :] < lengths[:, None]
    options = dataclasses.replace(OPTIONS, dead_code_share=0.1)
    books, out = train_pass({"layers_0": book}, x, lengths, jax.random.key(0), options)
    assert out.metrics["dead/1"] == 3 and out.metrics["usage/1"] == 0.25
    valid_rows = np.asarray(x)[np.asarray(mask)]
    for code in np.asarray(books["layers_0"]["embed"])[1:]:
        assert (np.abs(valid_rows - code).max(axis=1) == 0).any()
    # They stay what they are when the averages move on.
    mean = float(0.99 * 500 + 0.01 * mask.sum()) / 4
    after = books["layers_0"]
    threshold = min(options.dead_code_threshold, options.dead_code_share * mean)
    np.testing.assert_allclose(after["cluster_size"][1:], threshold, rtol=1e-6)
    np.testing.assert_allclose(after["embed_avg"][1:], threshold * after["embed"][1:], rtol=1e-6)


def test_gradients_pass_straight_through():
    x, _ = features()
    lengths = jnp.array([32, 10, 1, 20])
    mask = jnp.arange(32)[None, :] < lengths[:, None]
    books, _ = train_pass(empty_books((4, 4), 6), x, lengths, jax.random.key(0), OPTIONS)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def loss(x, commit):
        _, out = rvq.train_pass(books, x, lengths, jax.random.key(0), OPTIONS)
        return (out.quantized * weights).sum() * (1 - commit) + out.commitment * commit

    gradient = jax.jit(jax.grad(loss))
    through = gradient(x, 0.0)
    np.testing.assert_allclose(through, np.where(mask[..., None], weights, 0), atol=1e-6)
    codes = rvq.encode(books, x, 2)
    first = x - rvq.decode(books, codes[..., :1])
    second = x - rvq.decode(books, codes)
    expected = np.where(mask[..., None], (first + second) / (mask.sum() * 6), 0)  # 2 r / (frames D), mean of 2 books
    np.testing.assert_allclose(gradient(x, 1.0), expected, atol=1e-6)


def test_inactive_changes_nothing():
    x, _ = features()
    lengths = jnp.full(4, 32)
    start = empty_books((4,), 6)
    books, out = jax.jit(lambda a: rvq.train_pass(start, x, lengths, jax.random.key(0), OPTIONS, a))(False)
    jax.tree.map(np.testing.assert_array_equal, books, start)
    np.testing.assert_array_equal(out.quantized, x)
    assert out.commitment == 0


def test_update_is_the_same_on_a_sharded_batch():
    """Statistics are global: eight devices with a part of the batch each move the codebooks as one device does."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 (simulated) devices")
    x = jax.random.normal(jax.random.key(4), (16, 32, 6))  # spread out: no two codes at nearly the same distance
    lengths = jnp.arange(17, 33)
    start, key = empty_books((16, 8), 6), jax.random.key(5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    alone, _ = train_pass(start, x, lengths, key, OPTIONS)
    spread, _ = train_pass(start, jax.device_put(x, rows), jax.device_put(lengths, rows), key, OPTIONS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), alone, spread)


def test_dropout_is_drawn_for_each_sequence_of_a_row():
    x, _ = features(batch=8)
    ids = jnp.tile(jnp.repeat(jnp.array([1, 0, 2, 3]), 8), (8, 1))
    books, _ = train_pass(empty_books((8, 4), 6), x, jnp.full(8, 32), jax.random.key(2), OPTIONS)
    always = dataclasses.replace(OPTIONS, dropout=1.0)
    _, out = train_pass(books, x, Packed(ids, 3), jax.random.key(3), always)
    one, two = (np.asarray(rvq.decode(books, out.codes[..., :n])) for n in (1, 2))
    of_one, of_two = (np.isclose(out.quantized, a, atol=1e-5).all(axis=-1) for a in (one, two))
    numbers = set()
    for row in range(8):
        for start in (0, 16, 24):
            part = slice(start, start + 8)
            assert of_one[row, part].all() != of_two[row, part].all()
            numbers.add((start, bool(of_one[row, part].all())))
    assert len(numbers) == 6 and not np.any(out.quantized[:, 8:16])


def test_the_first_eight_of_twenty():
    config = TokenizerConfig(d_model=32, encoder_attention_heads=1, decoder_attention_heads=1, codebook_size=(64, 16))
    assert config.num_quantizers == 20
    quantizer, lengths = rvq.Quantizer(config), jnp.array([12, 7])
    x = jax.random.normal(jax.random.key(0), (2, 12, 32))
    variables = quantizer.init(jax.random.key(1), x, lengths, method="encode")
    run = functools.partial(quantizer.apply, variables)
    every, first = run(x, lengths, method="encode"), run(x, lengths, 8, method="encode")
    np.testing.assert_array_equal(first, every[..., :8])
    books = variables["codebooks"]
    expected = sum(books[f"layers_{i}"]["embed"][first[..., i]] for i in range(8))
    np.testing.assert_allclose(run(first, lengths, method="decode")[0], expected[0], rtol=1e-5, atol=1e-5)
    assert not np.any(run(first, lengths, method="decode")[1, 7:])
    with pytest.raises(ValueError, match=r"num_quantizers is 21: this tokenizer has 1\.\.20"):
        run(x, lengths, 21, method="encode")


def test_decode_of_fewer_codebooks_in_some_frames():
    x, _ = features(batch=2, length=5)
    books, _ = train_pass(empty_books((4, 4), 6), x, jnp.full(2, 5), jax.random.key(0), OPTIONS)
    codes = rvq.encode(books, x, 2)
    count = jnp.array([[0, 1, 2, 2, 1], [2, 1, 0, 1, 2]])
    out = rvq.decode(books, codes, count)
    for n in (1, 2):
        np.testing.assert_array_equal(out[count == n], rvq.decode(books, codes[..., :n])[count == n])
    assert not out[count == 0].any()
