"""What a finished run leaves beside its checkpoints: folders in the released layout, ready for use (bound by gin)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mimo_jax.interop import hf
from mimo_jax.objectives.base import Objective

logger = logging.getLogger(__name__)

Exporter = Callable[[Objective, Any, Any], None]


def language_model(folder: str | os.PathLike[str], prepared: str | os.PathLike[str]) -> Exporter:
    """Exporter of a language-model run into `folder`, with the text tokenizer of the prepared data."""

    def export(objective: Any, params: Any, mutable: Any) -> None:
        del mutable
        hf.save_lm(folder, objective.model, params, text_tokenizer_dir=Path(prepared) / "text_tokenizer")
        logger.info("language model exported to %s", folder)

    return export


def audio_tokenizer(folder: str | os.PathLike[str]) -> Exporter:
    """Exporter of an audio-tokenizer run (either stage) into `folder`; what only training needs is left behind."""

    def export(objective: Any, params: Any, mutable: Any) -> None:
        hf.save_tokenizer(folder, objective.config, objective.tokenizer_variables(params, mutable))
        logger.info("audio tokenizer exported to %s", folder)

    return export
