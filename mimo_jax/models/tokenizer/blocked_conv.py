"""Convolutions with few channels over a long axis, computed as convolutions with many channels over a short one.

A matrix unit, and a CPU's vector unit, is filled by channels. The STFT discriminators have 2 to 32 of them over
hundreds of frequencies: on a TPU they are padded to 128, on a CPU a plain convolution takes 5 to 10 times as long.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def conv2d(
    x: Array, kernel: Array, strides: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), block: int = 1
) -> Array:
    """2-D convolution, padded on either side by dilation * (size - 1) // 2.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, D].
      strides: along H and W.
      dilation: of the kernel along H and W.
      block: neighbours along W that are computed as channels, a multiple of the stride along W. Each of them then sees
        all inputs of the blocks under the kernel, most of them with weight zero: with a kernel of 9 and blocks of 8
        that is 16 / 9 of the products. 1 = a plain convolution.

    Returns:
      [B, H', W', D], the same for every block but for rounding.

    Raises:
      ValueError: blocks together with a stride along H, a dilation along W, or a stride along W that does not divide
        them.
    """
    pads = [d * (k - 1) // 2 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    if block == 1:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=strides,
            padding=[(p, p) for p in pads],
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if strides[0] != 1 or dilation[1] != 1 or block % strides[1]:
        raise ValueError(f"blocks of {block} with strides {strides} and dilation {dilation}: use block = 1")
    return _blocked(x, kernel, strides[1], dilation[0], block, pads[1])


def _blocked(x: Array, kernel: Array, stride: int, dilation: int, block: int, pad: int) -> Array:
    """`conv2d` in blocks of `block` inputs, block / stride outputs, along W; `pad` zeros before the first input."""
    batch, height, width, channels = x.shape
    taps, size, _, features = kernel.shape
    outputs = (width + 2 * pad - size) // stride + 1
    each = block // stride  # outputs of a block
    blocks = -(-outputs // each)
    reach = -(-((each - 1) * stride + size) // block)  # blocks of inputs that a block of outputs sees
    # Rows that are `dilation` apart meet in the same convolution: rows by their remainder are a batch of their own.
    x = jnp.pad(x, ((0, 0), (0, -height % dilation), (pad, 0), (0, 0)))
    wanted = (blocks + reach - 1) * block
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, wanted - x.shape[2])), (0, 0)))[:, :, :wanted]
    rows = x.shape[1] // dilation
    x = x.reshape(batch, rows, dilation, wanted // block, block * channels)
    x = x.swapaxes(1, 2).reshape(batch * dilation, rows, wanted // block, block * channels)
    # Output i of a block looks i * stride further than its first.
    shifted = [
        jnp.pad(kernel, ((0, 0), (i * stride, reach * block - i * stride - size), (0, 0), (0, 0))) for i in range(each)
    ]
    wide = jnp.stack(shifted, axis=3).reshape(taps, reach, block * channels, each * features)
    y = jax.lax.conv_general_dilated(
        x, wide, (1, 1), (((taps - 1) // 2,) * 2, (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y.reshape(batch, dilation, -1, blocks * each, features).swapaxes(1, 2)
    return y.reshape(batch, -1, blocks * each, features)[:, :height, :outputs]
