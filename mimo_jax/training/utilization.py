"""Model FLOPs utilisation: the model's arithmetic over what the devices could do at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mimo_jax.models import cost

# Dense bf16 FLOP/s of one device as jax counts devices (half a chip of TPU7x, otherwise a chip), from the makers' data
# sheets. `device_kind` of jax; the first entry that it begins with applies.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU7", 1153e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA H200", 989.4e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989.4e12),
    ("NVIDIA GH200", 989.4e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L4", 121e12),
)


def peak_flops(device: jax.Device) -> float | None:
    """Dense bf16 FLOP/s of a device; None for one that is not in the table, such as a CPU."""
    kind = device.device_kind
    return next((flops for name, flops in PEAK_FLOPS if kind.startswith(name)), None)


def model_flops(
    objective: Any, text: float, audio: float, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[float, float] | None:
    """(causal, full) training FLOPs of so many text positions and audio patches in batches of such shapes.

    None where nothing is known: an objective that is no language model and has no method
    `flops(text, audio, batch, causal) -> float`.
    """
    own = getattr(objective, "flops", None)
    if own is not None:
        return own(text, audio, batch, causal=True), own(text, audio, batch, causal=False)
    # Imported here: the trainer of other objectives needs no language model.
    from mimo_jax.objectives.language_model import LanguageModelObjective

    if not isinstance(objective, LanguageModelObjective):
        return None
    context = batch["text"].shape[1]
    causal, full = (
        cost.training_flops(objective.model, context, text, audio, decoder=objective.trains_audio, causal=causal)
        for causal in (True, False)
    )
    return causal, full
