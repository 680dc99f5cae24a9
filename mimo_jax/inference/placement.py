"""Where generation keeps its arrays: parameters split like a trained model's, caches by rows and by heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mimo_jax.inference import quantization
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute, LayerCaches
from mimo_jax.parallel import mesh as mesh_lib

Tree = Any


def params_shardings(
    config: MimoAudioConfig, mesh: Mesh, rules: Sequence[tuple[str, Any]] = mesh_lib.DEFAULT_RULES
) -> Tree:
    """Shardings of the language model's parameter tree (stacked layers); dimensions that do not divide stay whole."""
    text = jnp.zeros((1, 1), jnp.int32)
    audio = jnp.zeros((1, 1, config.group_size, config.audio_channels), jnp.int32)
    boxed = jax.eval_shape(MimoAudio(config).init, jax.random.key(0), text, audio)["params"]
    return mesh_lib.tree_shardings(boxed, mesh, rules)


def placed_params(
    config: MimoAudioConfig, compute: Compute, params: Tree, mesh: Mesh | None, weights: str = "full"
) -> Tree:
    """Parameters on their devices in `compute.param_dtype`, the layers of its transformers as lists of trees.

    One array after the other, so that hardly more than the parameters themselves is needed.

    Args:
      config, compute: of the model.
      params: the tree as trained or loaded, stacked layers, boxed or not; stays as it is. Its arrays may be such that
        are read when they are used (`interop.trees.FolderArray`, `training.checkpoints.StoredArray`).
      mesh: None = the default device.
      weights: one of `quantization.WEIGHTS`.
    """
    params = nn.unbox(params)
    keep = quantization.quantized if weights == "int8" else lambda _, x: x
    shardings = jax.tree.map(lambda _: None, params) if mesh is None else params_shardings(config, mesh)

    def placed(path: Any, x: Any, sharding: Any) -> Any:
        """The array, or those of each layer if it has all of them."""
        name = "/".join(key.key for key in path)
        if not isinstance(x, jax.Array):
            x = np.asarray(x)  # read now, where it was not yet
        # Cast where it is: a parameter in pieces never lies whole on one device.
        cast = jnp.asarray(x, compute.param_dtype) if mesh is None else x.astype(compute.param_dtype)
        on_device = jax.device_put(cast, sharding)
        if "/layers/" not in name:
            return keep(name, on_device)
        layers = [keep(name, on_device[i]) for i in range(len(on_device))]
        jax.block_until_ready(layers)
        if not isinstance(x, jax.Array):  # what the caller holds stays his
            on_device.delete()
        return _Layers(layers)

    made = jax.tree_util.tree_map_with_path(placed, params, shardings, is_leaf=lambda x: x is None)
    return {
        name: _by_layer(part) if isinstance(part, dict) and "layers" in part else part for name, part in made.items()
    }


def _by_layer(part: Tree) -> Tree:
    """A transformer's parameters, those of each layer together."""
    layers = part["layers"]
    depth = len(jax.tree.leaves(layers, is_leaf=_is_layers)[0])
    stack = [jax.tree.map(lambda held, i=i: held[i], layers, is_leaf=_is_layers) for i in range(depth)]
    return {**part, "layers": stack}


class _Layers(list[Any]):
    """A parameter of each layer; a leaf."""


def _is_layers(x: Any) -> bool:
    return isinstance(x, _Layers)


def cache_sharding(mesh: Mesh | None, rows: int, heads: int) -> NamedSharding | None:
    """Of a cache [B, Hkv, S, D]: its rows over the mesh's copies and its heads over `tensor`, where they divide."""
    if mesh is None:
        return None
    copies = math.prod(mesh.shape[axis] for axis in mesh_lib.ROW_AXES)
    spec = PartitionSpec(
        mesh_lib.ROW_AXES if rows % copies == 0 else None, "tensor" if heads % mesh.shape["tensor"] == 0 else None
    )
    return NamedSharding(mesh, spec)


def constrained(caches: LayerCaches, mesh: Mesh | None) -> LayerCaches:
    """Caches within a compiled function, kept where `cache_sharding` says."""
    sharding = cache_sharding(mesh, *caches[0][0].shape[:2])
    if sharding is None:
        return caches
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), caches)
