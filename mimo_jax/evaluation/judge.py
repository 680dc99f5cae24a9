"""The independent recogniser as a judge of intelligibility: waves in, texts out; saved as one folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mimo_jax.files import replacing, write_text
from mimo_jax.models.recogniser import Recogniser, RecogniserConfig
from mimo_jax.objectives.recogniser import greedy_decode
from mimo_jax.objectives.transcripts import VOCABULARY_FILE, Vocabulary

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_BATCH = 16
_BUCKET_SECONDS = 4.0  # waves are padded to a multiple: few shapes, few compilations


class Judge(Protocol):
    """Anything that writes down what it hears."""

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """Texts of mono float32 waves [samples] at 24 kHz."""
        ...


class CtcJudge:
    """Greedy transcription with a trained `Recogniser`. Results do not depend on the batch a wave is in."""

    def __init__(self, config: RecogniserConfig, params: Any, vocabulary: Vocabulary):
        import flax
        import jax

        if len(vocabulary.words) > config.num_words:
            raise ValueError(f"{len(vocabulary.words)} words, but the recogniser has {config.num_words} word slots")
        self.config, self.vocabulary = config, vocabulary
        self.params = flax.linen.unbox(params)
        module = Recogniser(config)
        self._apply = jax.jit(lambda p, wave, count: module.apply({"params": p}, wave, count))

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """Texts of mono float32 waves [samples] at `config.sample_rate`; an empty wave gives an empty text."""
        step = int(_BUCKET_SECONDS * self.config.sample_rate)
        buckets: dict[int, list[int]] = {}
        for i, wave in enumerate(waves):
            buckets.setdefault(max(1, -(-len(wave) // step)), []).append(i)
        texts = [""] * len(waves)
        for size in sorted(buckets):
            for first in range(0, len(buckets[size]), _BATCH):
                chosen = buckets[size][first : first + _BATCH]
                batch = np.zeros((_BATCH, size * step), np.float32)
                counts = np.zeros(_BATCH, np.int32)
                for row, i in enumerate(chosen):
                    batch[row, : len(waves[i])] = waves[i]
                    counts[row] = len(waves[i])
                logits, lengths = self._apply(self.params, batch, counts)
                decoded = greedy_decode(logits, lengths)
                for row, i in enumerate(chosen):
                    texts[i] = self.vocabulary.decode(decoded[row])
        return texts

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, config and vocabulary; the config comes last, so that it marks a complete folder."""
        from flax.traverse_util import flatten_dict
        from safetensors.numpy import save_file

        folder = Path(folder)
        arrays = {name: np.ascontiguousarray(value) for name, value in flatten_dict(self.params, sep="/").items()}
        with replacing(folder / _WEIGHTS_FILE) as partial:
            save_file(arrays, partial)
        self.vocabulary.save(folder / VOCABULARY_FILE)
        write_text(folder / _CONFIG_FILE, json.dumps(dataclasses.asdict(self.config), indent=1))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CtcJudge:
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: the folder holds no saved recogniser.
        """
        from flax.traverse_util import unflatten_dict
        from safetensors.numpy import load_file

        folder = Path(folder)
        if not (folder / _CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder}: no {_CONFIG_FILE} of a recogniser; train one and export it there first")
        values = json.loads((folder / _CONFIG_FILE).read_text())
        values["dilations"] = tuple(values["dilations"])
        params = unflatten_dict(load_file(folder / _WEIGHTS_FILE), sep="/")
        return cls(RecogniserConfig(**values), params, Vocabulary.load(folder / VOCABULARY_FILE))
