"""Codebooks move alike on one device, on eight and in two processes, and no device ever sees another's features."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mimo_jax.models.tokenizer import rvq
from tests.models.tokenizer.test_rvq import empty_books
from tests.parallel.collectives import sizes
from tests.parallel.runs import in_two_processes

UPDATES = 20
ROWS, FRAMES, DIM, SIZES = 16, 24, 8, (32, 16)
OPTIONS = rvq.RvqTraining(decay=0.9, kmeans_iterations=10, dead_code_share=0.5, dropout=0.3)
PROCESS = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
address, index, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, num_processes=2, process_id=index)
import numpy as np
from tests.parallel.test_codebooks import updated
np.savez(f"{file}{index}.npz", **updated(jax.devices()))
"""


def batch(step):
    """Features that wander off, so that codes fall out of use, and how many frames of each row are valid."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(ROWS, FRAMES, DIM)) * np.exp(0.3 * rng.normal(size=DIM)) + 0.2 * step
    return x.astype(np.float32), rng.integers(1, FRAMES + 1, ROWS).astype(np.int32)


def jitted(devices):
    """(train_pass with the rows of its batch spread over devices, their sharding)."""
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def update(books, x, lengths, key):
        return rvq.train_pass(books, x, lengths, key, OPTIONS)

    return jax.jit(update, in_shardings=(whole, rows, rows, whole), out_shardings=(whole, None)), rows


def updated(devices):
    """Arrays of the codebooks after k-means and further updates on all devices, and what was replaced on the way."""
    update, rows = jitted(devices)
    books, dead = empty_books(SIZES, DIM), 0.0
    for step in range(UPDATES):
        spread = [
            jax.make_array_from_callback(value.shape, rows, lambda index, value=value: value[index])
            for value in batch(step)
        ]
        books, out = update(books, *spread, jax.random.key(step))
        dead += float(out.metrics["dead/1"] + out.metrics["dead/2"])
    arrays = {f"{name}/{key}": np.asarray(value) for name, book in books.items() for key, value in book.items()}
    return {**arrays, "dead": np.asarray(dead)}


def same(actual, expected):
    assert expected["dead"] > 10 and expected["layers_1/inited"] == 1
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_one_device_eight_devices_and_two_processes(tmp_path):
    one = updated(jax.devices()[:1])
    same(updated(jax.devices()[:8]), one)
    in_two_processes(PROCESS, tmp_path / "books")
    for index in range(2):
        same(np.load(tmp_path / f"books{index}.npz"), one)


def test_no_features_travel():
    """What the devices of a mesh exchange has the size of a codebook at most, or one number a row of the batch."""
    rows, frames = 8 * 40, 64

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    books = jax.eval_shape(lambda: empty_books(SIZES, DIM))
    x, lengths, key = array(rows, frames, DIM), array(rows, dtype=jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    program = jitted(jax.devices()[:8])[0].lower(books, x, lengths, key).compile().as_text()
    found = sizes(program)
    assert SIZES[0] * DIM in found  # the sums of a codebook are all-reduced
    assert max(found) <= max(rows, max(SIZES) * DIM) < rows * frames // 8
