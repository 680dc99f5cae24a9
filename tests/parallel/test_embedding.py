"""Lookups in tables that devices hold in parts: values and gradients as on one device, in every placement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mimo_jax.models import embedding, layers, partition
from mimo_jax.parallel.mesh import DEFAULT_RULES, Hardware


def on(hardware, function, *arguments):
    with jax.set_mesh(hardware.make_mesh(jax.devices()[:8])), nn.logical_axis_rules(DEFAULT_RULES):
        return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


MESHES = {
    "fsdp": Hardware(data=1, fsdp=8),
    "mixed": Hardware(data=2, fsdp=2, sequence=2),
    "tensor": Hardware(data=1, fsdp=2, tensor=4),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("axes", [("table_rows", "table_columns"), ("vocab", "embed"), ("code_vocab", "code_embed")])
def test_lookup(mesh, axes):
    table = jax.random.normal(jax.random.key(0), (640, 16))
    ids = jax.random.randint(jax.random.key(1), (8, 6), 0, 640).at[0].set(3)
    weights = jax.random.normal(jax.random.key(2), (8, 6, 16))

    def loss(table):
        vectors = embedding.lookup(table, ids, axes, ("batch", "length"), jnp.float32)
        return (vectors * weights).sum(), vectors

    (_, vectors), gradient = on(MESHES[mesh], jax.value_and_grad(loss, has_aux=True), table)
    np.testing.assert_array_equal(vectors, table[ids])
    expected = jnp.zeros_like(table).at[ids].add(weights)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed"), ("local_embed", "code_vocab")])
def test_gradient_of_a_kernel(mesh, axes):
    # 520 columns are no multiple of what a reduce-scatter wants.
    x, kernel = jax.random.normal(jax.random.key(0), (8, 6, 16)), jax.random.normal(jax.random.key(1), (16, 520))
    if axes[0] == "mlp":
        x, kernel = jax.random.normal(jax.random.key(0), (8, 6, 520)), kernel.T

    def loss(x, kernel):
        return (layers.matmul(x, kernel, axes, ("batch", "length")) ** 2).sum()

    gradients = on(MESHES[mesh], jax.grad(loss, argnums=(0, 1)), x, kernel)
    expected = jax.grad(lambda x, kernel: ((x @ kernel) ** 2).sum(), argnums=(0, 1))(x, kernel)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-3)


def test_reduce_scatter_of_either_dimension():
    matrices = jax.random.normal(jax.random.key(0), (8, 16, 1040))

    def both(x):
        def local(x):
            return partition.reduce_scatter(x[0], ("fsdp",), 0), partition.reduce_scatter(x[0].T, ("fsdp",), 1)

        specs = jax.sharding.PartitionSpec("fsdp"), jax.sharding.PartitionSpec(None, "fsdp")
        return jax.shard_map(local, in_specs=jax.sharding.PartitionSpec("fsdp"), out_specs=specs, check_vma=False)(x)

    rows, columns = on(MESHES["fsdp"], both, matrices)
    np.testing.assert_allclose(rows, matrices.sum(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(columns.T, rows, rtol=1e-5, atol=1e-5)
