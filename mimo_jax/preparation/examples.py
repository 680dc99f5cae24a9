"""Tokenized examples of every task format, volume by volume, as ArrayRecord shards with their lengths beside them.

examples/TASK/SPLIT-VVVVV-NNNNN.array_record     shard NNNNN of volume VVVVV
examples/TASK/SPLIT-lengths.npy                  int32 [N, 2]: text and audio positions of each example, in order
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mimo_jax.data import records
from mimo_jax.data.all_formats import formats
from mimo_jax.data.formats import Codes, FormatOptions, Item, Material, TaskFormat
from mimo_jax.data.manifest import TextRecord
from mimo_jax.data.sequence import Layout, render
from mimo_jax.data.stages import file_hash, fingerprint
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.files import replacing, write_text
from mimo_jax.preparation.codes import CodesStore
from mimo_jax.preparation.curated import Curated, Volume

SCHEMA_VERSION = 2
SPLITS = ("train", "validation", "test_voices")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Records of one split, or of one subset of it; ``name`` is the split's name in the prepared folder."""

    name: str
    split: str
    subset: str | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """Examples of one task, selection and volume."""

    task: str
    selection: Selection
    volume: Volume

    def stem(self) -> str:
        """Beginning of its files' names."""
        return f"{self.selection.name}-{self.volume.number:05d}"


def selections(curated: Curated) -> list[Selection]:
    """Splits that occur; held-out ones also apart by subset ("validation_core"), so that their losses can be, too."""
    there = [key.split(" ") for key in curated.splits]
    splits = {split for split, _ in there} | {t.split for v in curated.volumes for t in curated.texts(v)}
    splits |= {c.split for v in curated.volumes for c in curated.conversations(v)}
    subsets = sorted({subset for _, subset in there})
    found = [Selection(split, split) for split in SPLITS if split in splits]
    if len(subsets) > 1:
        found += [Selection(f"{s.split}_{subset}", s.split, subset) for s in list(found) for subset in subsets]
    return [s for s in found if s.subset is None or s.split != "train"]


@dataclasses.dataclass(frozen=True)
class ExampleWork:
    """Writes the examples of jobs; picklable.

    Attributes:
        curated: the records.
        codes_folder: of their codes.
        tokenizer_folder: of the text tokenizer.
        layout, options: of the examples.
        out: the examples' folder.
        key: fingerprint of all that is not the volume's.
        per_shard: examples of a record file.
    """

    curated: Curated
    codes_folder: pathlib.Path
    tokenizer_folder: pathlib.Path
    layout: Layout
    options: FormatOptions
    out: pathlib.Path
    key: str
    per_shard: int = 8192

    def setup(self) -> None:
        """Reads the text tokenizer."""
        object.__setattr__(self, "_tokenizer", TextTokenizer.load(self.tokenizer_folder))
        object.__setattr__(self, "_open", None)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def _volume(self, volume: Volume) -> tuple[list[Any], list[TextRecord], list[Any], CodesStore]:
        """The volume's records, texts, conversations and codes; the last one stays open."""
        if self.__dict__["_open"] is None or self.__dict__["_open"][0] != volume.number:
            codes = CodesStore(self.codes_folder, volume.shards)
            usable = [r for r in self.curated.records(volume) if r.id in codes]
            content = usable, self.curated.texts(volume), self.curated.conversations(volume), codes
            object.__setattr__(self, "_open", (volume.number, content))
        return self.__dict__["_open"][1]

    def _material(self, job: Job) -> tuple[Material, CodesStore]:
        usable, texts, conversations, codes = self._volume(job.volume)

        def pick(items: Iterable[Any]) -> list[Any]:
            selection = job.selection
            return [i for i in items if i.split == selection.split and selection.subset in (None, i.subset)]

        return Material(pick(usable), pick(texts), pick(conversations)), codes

    def run(self, job: Job) -> dict[str, Any]:
        """The job's counts; its shards are on disk then."""
        task = formats()[job.task]
        key = fingerprint(self.key, job.volume.key, job.task, dataclasses.asdict(job.selection))
        done = self.out / job.task / f".{job.stem()}.json"
        if done.is_file():
            side = json.loads(done.read_text(encoding="utf-8"))
            if side["key"] == key and all((self.out / job.task / name).is_file() for name in side["sha256"]):
                return side
        material, codes = self._material(job)
        items = task.plan(material, self.options)
        bad: list[dict[str, str]] = []
        lengths: list[tuple[int, int]] = []
        files = []
        for number, start in enumerate(range(0, len(items), self.per_shard)):
            path = self.out / job.task / f"{job.stem()}-{number:05d}.array_record"
            part = self._build(task, items[start : start + self.per_shard], codes, bad)
            made = list(part)
            records.write_records(path, [data for data, _ in made])
            lengths += [counts for _, counts in made]
            files.append(path)
        side = {
            "key": key,
            "in": len(items),
            "bad": bad,
            "sha256": {p.name: file_hash(p) for p in files},
            "lengths": lengths,
        }
        write_text(done, json.dumps(side, ensure_ascii=False))
        return side

    def _build(
        self, task: TaskFormat, items: Sequence[Item], codes: Codes, bad: list[dict[str, str]]
    ) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """(bytes, (text, audio) positions) of each example; those that cannot be made go to ``bad``."""
        for item in items:
            try:
                arrays = render(task.build(item, codes, self.options), self.__dict__["_tokenizer"].encode, self.layout)
            except ValueError as error:
                bad.append({"id": item.id, "reason": "bad_example", "detail": f"{task.name}: {error}"})
                continue
            audio = arrays.audio_positions
            yield records.to_bytes(records.Example.of(item.id, task.name, arrays)), (len(arrays.text) - audio, audio)


def jobs_of(curated: Curated, tasks: Sequence[str]) -> list[Job]:
    """All jobs, a volume's together.

    Raises:
        ValueError: a task that does not exist.
    """
    known = formats()
    if unknown := [task for task in tasks if task not in known]:
        raise ValueError(f"unknown tasks {unknown}; known are {sorted(known)}")
    chosen = selections(curated)
    return [Job(task, s, volume) for volume in curated.volumes for task in tasks or known for s in chosen]


def finish(out: pathlib.Path, sides: Sequence[tuple[Job, dict[str, Any]]]) -> dict[str, Any]:
    """Counts by task and split, from the jobs' sides in order; writes the lengths, removes shards of earlier runs."""
    by_split: dict[tuple[str, str], list[dict[str, Any]]] = {}
    wanted: dict[str, set[str]] = {}
    for job, side in sides:
        by_split.setdefault((job.task, job.selection.name), []).append(side)
        wanted.setdefault(job.task, set()).update([*side["sha256"], f".{job.stem()}.json"])
    counts: dict[str, Any] = {}
    for (task, split), parts in by_split.items():
        table = np.asarray([pair for part in parts for pair in part["lengths"]], np.int32).reshape(-1, 2)
        name = f"{split}-lengths.npy"
        wanted[task].add(name)
        with replacing(out / task / name) as partial, partial.open("wb") as file:
            np.save(file, table)
        text, audio = table.sum(axis=0, dtype=np.int64).tolist()
        bad = [one for part in parts for one in part["bad"]]
        total = {"in": sum(p["in"] for p in parts), "written": len(table), "quarantined": len(bad)}
        counts.setdefault(task, {})[split] = {**total, "text": text, "audio": audio, "bad": bad}
    for folder in out.iterdir():
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in wanted.get(folder.name, set()):
                path.unlink()
    return counts


def hashes(out: pathlib.Path, sides: Sequence[tuple[Job, dict[str, Any]]]) -> dict[str, str]:
    """SHA-256 of every record file, by its name below the prepared folder."""
    return {f"{out.name}/{job.task}/{name}": digest for job, side in sides for name, digest in side["sha256"].items()}
