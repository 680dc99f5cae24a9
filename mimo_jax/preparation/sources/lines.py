"""Files of lines by byte offsets, so that a shard is some ranges of bytes and nothing has to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mimo_jax.data import storage
from mimo_jax.preparation.sources import places
from mimo_jax.preparation.sources.base import SourceError

_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line that is not blank: its number from 1, its bytes' range with the line break, and its bytes without."""

    number: int
    start: int
    end: int
    raw: bytes


class Run(NamedTuple):
    """Consecutive lines of a file: the number of the first, and the range of their bytes."""

    file: int
    first: int
    start: int
    end: int


def read_lines(path: str) -> Iterator[Line]:
    """Every line of a file that is not blank.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with storage.open_file(path) as file:
            yield from _numbered(file, 1, 0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error


def runs_of(places_of_lines: Sequence[tuple[int, int, int, int, int]]) -> list[Run]:
    """(item, file, line number, start, end) of lines, in order -> as few runs as hold them in this order.

    ``item`` counts the lines of all files that are not blank: neighbours have consecutive ones.
    """
    runs: list[Run] = []
    last = -2
    for item, file, number, start, end in places_of_lines:
        if item == last + 1 and runs[-1].file == file:
            runs[-1] = runs[-1]._replace(end=end)
        else:
            runs.append(Run(file, number, start, end))
        last = item
    return runs


def read_runs(paths: Sequence[str], runs: Sequence[Run]) -> Iterator[tuple[int, Line]]:
    """(file, line) of each line of runs, in order.

    Raises:
        SourceError: a file cannot be read.
    """
    found: dict[Run, bytes] = {}
    for file in sorted({run.file for run in runs}):
        mine = [run for run in runs if run.file == file]
        found.update(zip(mine, places.read_ranges(paths[file], [(r.start, r.end) for r in mine]), strict=True))
    for run in runs:
        for line in _numbered(_split(found[run]), run.first, run.start):
            yield run.file, line


def _split(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        yield data[at:end]
        at = end


def _numbered(lines: Iterator[bytes], first: int, offset: int) -> Iterator[Line]:
    for number, line in enumerate(lines, start=first):
        raw = line.removeprefix(_BOM) if offset == 0 else line
        if raw.strip():
            yield Line(number, offset, offset + len(line), raw.rstrip(b"\r\n"))
        offset += len(line)
