"""The independent recogniser of a corpus: its vocabulary, the text ids of its batches, its export (bound by gin)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from mimo_jax.data.manifest_files import read_manifest
from mimo_jax.data.waveforms import TextIds
from mimo_jax.evaluation.judge import CtcJudge
from mimo_jax.objectives.base import Objective
from mimo_jax.objectives.transcripts import Vocabulary

logger = logging.getLogger(__name__)


def vocabulary(manifest: str | os.PathLike[str], num_words: int, min_count: int = 5) -> Vocabulary:
    """Words of a manifest's training texts that are frequent enough for a class of their own, `num_words` at most."""
    records = (record for record in read_manifest(manifest) if record.split == "train" and record.text)
    return Vocabulary.from_texts((record.text or "" for record in records), num_words, min_count)


def text_ids(manifest: str | os.PathLike[str], num_words: int) -> TextIds:
    """Text -> class ids of that vocabulary, for waveform batches."""
    return vocabulary(manifest, num_words).encode


def exporter(folder: str | os.PathLike[str], manifest: str | os.PathLike[str]) -> Callable[[Objective, Any, Any], None]:
    """Exporter of a recogniser run into the folder that `CtcJudge.load` reads."""

    def export(objective: Any, params: Any, mutable: Any) -> None:
        del mutable
        CtcJudge(objective.model, params, vocabulary(manifest, objective.model.num_words)).save(folder)
        logger.info("recogniser exported to %s", folder)

    return export
