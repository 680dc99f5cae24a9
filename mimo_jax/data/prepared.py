"""Where things lie in a prepared folder, and reading them: the one place that knows its names."""

import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data import packing, row_index
from mimo_jax.data.records import RecordReader, from_bytes
from mimo_jax.data.sequence import Layout, SpecialTokens

MANIFEST = "prepare.json"
TEXT_TOKENIZER = "text_tokenizer"


class Prepared:
    """A prepared folder, opened for reading.

    Raises:
        UserError: the folder holds no finished preparation.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            raise UserError(
                f"{self.folder}: no finished preparation ({MANIFEST} is missing); correct the path, or make it: "
                f"python -m mimo_jax.prepare --source=DIR --codec=TOKENIZER --out={self.folder}"
            )
        self.manifest: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))

    @property
    def layout(self) -> Layout:
        """The sequence layout the examples were made with."""
        fields = self.manifest["layout"]
        return Layout(
            special=SpecialTokens(**fields["special"]),
            empty_codes=tuple(fields["empty_codes"]),
            group_size=fields["group_size"],
            stream_text=fields["stream_text"],
            stream_patches=fields["stream_patches"],
        )

    @property
    def text_tokenizer_folder(self) -> pathlib.Path:
        """Folder of the text tokenizer."""
        return self.folder / TEXT_TOKENIZER

    def tasks(self, split: str) -> dict[str, int]:
        """Tasks that have examples in a split -> their number."""
        return {task: n[split] for task, n in self.manifest["examples"].items() if n.get(split)}

    def shards(self, task: str, split: str) -> list[pathlib.Path]:
        """Record files of a task and split, in order."""
        return sorted((self.folder / "examples" / task).glob(f"{split}-*.array_record"))

    def counts(self, task: str, split: str) -> np.ndarray:
        """int32 [N, 2]: text and audio positions of each example."""
        return np.load(self.folder / "examples" / task / f"{split}-lengths.npy")

    def reader(self, task: str, split: str, cache_bytes: int = 0) -> RecordReader:
        """Random access to the examples of a task and split."""
        return RecordReader(self.shards(task, split), cache_bytes)

    def rows(self, task: str, split: str, context: int, overlong: packing.Overlong = "split") -> packing.Rows:
        """The packing plan of a task and split; see `planned_rows`."""
        return planned_rows(self.folder, task, split, context, self.layout.special.empty, overlong)


def planned_rows(
    folder: pathlib.Path,
    task: str,
    split: str,
    context: int,
    empty: int,
    overlong: packing.Overlong = "split",
) -> packing.Rows:
    """The rows of a task and split for one context length, planned and written if they are not there.

    Args:
        folder: a prepared folder.
        task, split: of the examples.
        context: positions of a row.
        empty: id of ``<|empty|>``.
        overlong: what becomes of examples longer than the context, see `packing.plan_rows`; each way has its own plan.

    Raises:
        ValueError: an unknown way with overlong examples.
    """
    examples = folder / "examples" / task

    @functools.cache
    def reader() -> RecordReader:
        return RecordReader(sorted(examples.glob(f"{split}-*.array_record")))

    def outline(number: int) -> packing.Outline:
        example = from_bytes(reader().read([number])[0])
        return packing.Outline(example.borders, example.text == empty, example.loss != 0)

    counts = np.load(examples / f"{split}-lengths.npy", mmap_mode="r")
    return row_index.planned(
        folder / "rows" / f"{task}-{split}-{context}-{overlong}", counts, context, overlong, outline
    )
