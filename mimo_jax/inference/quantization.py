"""Weights of 8 bits: a step of generation reads all weights of the LLM, and its time is mostly that.

Kernels of the LLM's layers and of the text head become int8 with one scale per output (`qwix`, absolute maximum);
embeddings, norms, biases and the patch models stay as they are. Products are computed in the activations' dtype.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mimo_jax.cli import UserError

WEIGHTS = ("full", "int8")

T = TypeVar("T")


def check(weights: str) -> None:
    """Raises UserError for a name that is not one of `WEIGHTS`, or if the package that int8 needs is missing."""
    if weights not in WEIGHTS:
        raise UserError(f"weights = {weights!r}: use one of {', '.join(WEIGHTS)}")
    if weights == "int8":
        try:
            import qwix  # noqa: F401
        except ImportError as error:
            raise UserError(f"weights = 'int8' needs qwix ({error}); pip install mimo_jax[int8]") from error


def quantized(path: str, x: jax.Array) -> Any:
    """A parameter as it is kept: `path` is its place in the tree ("llm/layers/0/mlp/up_proj/kernel"), x [in, out]."""
    if x.ndim != 2 or not path.endswith("/kernel") or not path.startswith(("llm/", "lm_head/")):
        return x
    return _quantize(x)


@jax.jit
def _quantize(kernel: jax.Array) -> Any:
    import qwix

    return qwix.quantize(kernel, "int8", channelwise_axes=(1,), scale_dtype=jnp.float32)


def whole(params: T, near: jax.Array, dtype: Any) -> T:
    """Parameters with their kernels in `dtype`, for one use.

    `near`: something computed shortly before. Without that tie, XLA computes the whole kernels before a loop over
    positions, keeps them, and reads those.
    """
    import qwix

    held, _ = jax.lax.optimization_barrier((params, near))

    def dequantized(x: Any) -> Any:
        return (x.qvalue.astype(dtype) * x.scale.astype(dtype)) if isinstance(x, qwix.QArray) else x

    return jax.tree.map(dequantized, held, is_leaf=lambda x: isinstance(x, qwix.QArray))
