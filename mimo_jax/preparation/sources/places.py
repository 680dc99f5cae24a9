"""Folders and files, local or behind URLs, as sources look at them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from mimo_jax.data import storage
from mimo_jax.preparation.sources.base import SourceError

# What file systems call the thing that changes with an object's content.
_VERSIONS = ("etag", "ETag", "generation", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated")
_GAP_BYTES = 1 << 20


def absolute(path: str) -> str:
    """A path that other processes find too; URLs stay as they are."""
    local = storage.local_path(path)
    return path.rstrip("/") if local is None else os.path.abspath(os.path.expanduser(local))


def is_folder(path: str) -> bool:
    """Whether it is a folder, or the beginning of objects' names."""
    if not storage.is_url(path):
        return os.path.isdir(path)
    fs, inside = _filesystem(path)
    return bool(fs.isdir(inside))


def is_file(path: str) -> bool:
    """Whether it is a file or an object."""
    if not storage.is_url(path):
        return os.path.isfile(path)
    fs, inside = _filesystem(path)
    return bool(fs.isfile(inside))


def parent(path: str) -> str:
    """The folder of a file."""
    return posixpath.dirname(path) if storage.is_url(path) else os.path.dirname(path)


def join(folder: str, name: str) -> str:
    """A file of a folder, by its relative name."""
    return f"{folder}/{name}" if storage.is_url(folder) else os.path.join(folder, name)


def names_in(folder: str, *, below: bool = False) -> list[str]:
    """Relative names of the files in a folder (``below``: of its folders too), sorted; hidden ones are left out.

    Raises:
        SourceError: it cannot be listed.
    """
    try:
        names = list(_remote_names(folder, below) if storage.is_url(folder) else _local_names(folder, below))
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error})") from error
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def stamp(path: str) -> list[Any]:
    """[size in bytes, what changes with the content]: mtime in ns, or an etag or the like of an object.

    Raises:
        SourceError: it cannot be seen.
    """
    try:
        if not storage.is_url(path):
            found = os.stat(path)
            return [found.st_size, found.st_mtime_ns]
        fs, inside = _filesystem(path)
        info = fs.info(inside)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), str(info.get("created", "")))
    return [info.get("size"), version]


def check_size(path: str, expected: list[Any]) -> None:
    """Raises SourceError where a file is not as long as when its shards were planned.

    Times are not compared: on another machine the same files may have others.
    """
    size = stamp(path)[0]
    if size != expected[0]:
        raise SourceError(
            f"{path}: had {expected[0]} bytes when its shards were planned and now has {size}; start again"
        )


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from start up to end of each range; neighbouring ranges of an object come in one request.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        if not storage.is_url(path):
            with storage.open_file(path) as file:
                return [_at(file, start, end) for start, end in ranges]
        fs, inside = _filesystem(path)
        found: dict[tuple[int, int], bytes] = {}
        for start, end, members in _merged(ranges):
            data = fs.cat_file(inside, start=start, end=end)
            found.update({(a, b): data[a - start : b - start] for a, b in members})
        return [found[one] for one in ranges]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error


def _at(file: Any, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    waiting: list[tuple[int, int]] = []
    for one in sorted(ranges):
        if waiting and one[0] - waiting[-1][1] > _GAP_BYTES:
            yield waiting[0][0], waiting[-1][1], waiting
            waiting = []
        waiting.append(one)
    if waiting:
        yield waiting[0][0], waiting[-1][1], waiting


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        return storage.filesystem(path)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{path}: {error}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _local_names(root: str, below: bool) -> Iterator[str]:
    if not below:
        with os.scandir(root) as entries:
            yield from (entry.name for entry in entries if _is_file(entry))
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (name if prefix == "." else f"{prefix}/{name}" for name in files)


def _remote_names(root: str, below: bool) -> Iterator[str]:
    fs, inside = _filesystem(root)
    paths = fs.find(inside, maxdepth=None if below else 1)
    cut = len(inside.rstrip("/")) + 1
    yield from (path[cut:] for path in paths)
