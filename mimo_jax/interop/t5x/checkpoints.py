"""t5x's checkpoints made of ours, and ours made of t5x's: the parameters of a language model, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
from t5x import gin_utils

from mimo_jax.files import replacing
from mimo_jax.interop import configs
from mimo_jax.models.mimo_audio import MimoAudioConfig


def write_configuration(model_dir: str, summary_writer: Any, step: int, *, model: MimoAudioConfig) -> None:
    """t5x's `summarize_config_fn`: the gin text as t5x writes it, and the model's `config.json` beside it.

    The latter is what a checkpoint of the run is converted by.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        with replacing(Path(model_dir) / configs.CONFIG) as partial:
            partial.write_text(json.dumps(configs.lm_values(model, "float32"), indent=2) + "\n")
