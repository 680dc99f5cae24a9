"""Which utterances of a manifest a source draws from: some 30 bytes each, however long their lines are."""

from __future__ import annotations

import os
from array import array

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.data.manifest_files import ManifestLines


class UtteranceTable:
    """Utterances by number, with what is needed to plan rows; everything else is read from the manifest when needed.

    Args:
        manifest: folder or file.

    Attributes:
        samples: int64 [N], at 24 kHz.
        transcript_ids, caption_ids: int64 [N], how many text ids either has; 0 = there is none, or it is not wanted.
    """

    def __init__(self, manifest: str | os.PathLike[str]):
        self._lines = ManifestLines(manifest)
        self._columns = {name: array("i") for name in ("file", "samples", "transcript", "caption")}
        self._columns["offset"] = array("q")

    def add(self, place: tuple[int, int], samples: int, transcript_ids: int, caption_ids: int) -> None:
        """Appends an utterance; place as `manifest_files.iterate_manifest` gives it."""
        file, offset = place
        row = {"file": file, "offset": offset, "samples": samples}
        row |= {"transcript": transcript_ids, "caption": caption_ids}
        for name, value in row.items():
            self._columns[name].append(value)

    def __len__(self) -> int:
        return len(self._columns["offset"])

    def record(self, number: int) -> Record:
        """The utterance's line."""
        return self._lines.record(self._columns["file"][number], self._columns["offset"][number])

    def samples_of(self, number: int) -> int:
        """Samples of one utterance."""
        return self._columns["samples"][number]

    def ids_of(self, number: int) -> tuple[int, int]:
        """Text ids of one utterance's transcript and caption."""
        return self._columns["transcript"][number], self._columns["caption"][number]

    @property
    def samples(self) -> np.ndarray:
        return np.asarray(self._columns["samples"], np.int64)

    @property
    def transcript_ids(self) -> np.ndarray:
        return np.asarray(self._columns["transcript"], np.int64)

    @property
    def caption_ids(self) -> np.ndarray:
        return np.asarray(self._columns["caption"], np.int64)
