"""Where a recording lies: a plain file, an object behind a URL, a range of bytes of one of them, a cell of a table.

    clips/a.wav                                a local file, absolute or relative to its manifest
    s3://bucket/a.flac  memory://a.wav         an object, read through fsspec
    train-0001.tar#bytes=1536-88064            bytes 1536 up to (not with) 88064; the end may be left out
    data/train.parquet#row=17&column=audio     row 17 (from 0) of a Parquet or Arrow file; "audio" unless named

Ranges and rows work on URLs too. A local file whose name looks like a reference is that file.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

EXTRA_HINT = "install it with: pip install 'mimo_jax[prepare]'"
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*(::[A-Za-z][A-Za-z0-9+.\-]*)*://")
_RANGE = re.compile(r"^(?P<file>.+)#bytes=(?P<start>\d{1,18})-(?P<end>\d{1,18})?$", re.DOTALL)
_ROW = re.compile(r"^(?P<file>.+)#row=(?P<row>\d{1,18})(&column=(?P<column>[^#&]+))?$", re.DOTALL)
# One request that brings a whole object is faster and fails more clearly than many small ones, until memory counts.
_WHOLE_BYTES = 1 << 28


class AudioError(Exception):
    """A file that cannot be used. ``reason`` is a key of :data:`mimo_jax.data.audio.REASONS`, ``detail`` says why."""

    def __init__(self, reason: str, path: str | os.PathLike[str], detail: str) -> None:
        super().__init__(reason, str(path), detail)
        self.reason = reason
        self.path = str(path)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


def is_url(path: str) -> bool:
    """Whether it starts with a scheme, like ``gs://`` (``file://`` too)."""
    return bool(_URL.match(path))


def is_reference(audio: str) -> bool:
    """Whether it is more than the path of a local file: a URL, a range or a row."""
    return is_url(audio) or (_split(audio) is not None and not os.path.exists(audio))


def container(audio: str) -> str:
    """The file or object that holds the recording: the reference without its range or row."""
    found = _split(audio) if is_reference(audio) else None
    return found["file"] if found else audio


def local_path(path: str) -> str | None:
    """The local path as the file system knows it, also of a file:// URL; None for what is elsewhere."""
    if not is_url(path):
        return path
    return unquote(path[7:]) if path[:7].lower() == "file://" else None


def byte_range(file: str, start: int, end: int | None = None) -> str:
    """The reference of bytes ``start`` up to, not with, ``end`` of a file or URL; None is its end."""
    return f"{file}#bytes={start}-{'' if end is None else end}"


def table_cell(file: str, row: int, column: str = "audio") -> str:
    """The reference of a row (from 0) of a Parquet or Arrow file or URL."""
    return f"{file}#row={row}&column={quote(column)}"


def resolve(audio: str, root: str) -> str:
    """A path, URL or reference seen from the folder or URL ``root``; what is absolute stays as it is."""
    if is_url(audio) or os.path.isabs(audio):
        return audio
    if not is_url(root):
        return os.path.join(os.path.abspath(root), audio)
    scheme, _, rest = root.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, audio))}"


def open_reference(audio: str) -> BinaryIO:
    """Opens what a reference names, seekable; relative paths are relative to the working folder.

    Raises:
      AudioError: "missing" (no such file or object, or an empty cell), "unreadable" (permissions, I/O, a package that
        reads it is not installed), "bad_reference" (the range or row is not in the file).
    """
    if not is_reference(audio):
        with _explained(audio):
            return _open_local(audio)
    if found := _RANGE.match(audio):
        end = found["end"]
        return _open_range(audio, found["file"], int(found["start"]), None if end is None else int(end))
    if found := _ROW.match(audio):
        from mimo_jax.data import tables

        with _explained(audio):
            cell = tables.cell(found["file"], int(found["row"]), unquote(found["column"] or "audio"))
        return _open_cell(audio, cell, found["file"])
    with _explained(audio):
        return open_file(audio)


def signature(audio: str) -> list[Any] | None:
    """What changes when the local file behind a reference changes: [size, mtime in ns]; None if it cannot be seen.

    Objects behind URLs are not asked, as that takes a request each.
    """
    name = local_path(container(audio))
    if name is None:
        return None
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URL.

    Raises:
      ModuleNotFoundError: fsspec, or what it needs for this scheme, is not installed.
      ValueError: no such scheme.
    """
    try:
        import fsspec
    except ImportError as error:
        raise ModuleNotFoundError(f"{url}: URLs are read with fsspec; {EXTRA_HINT}") from error
    return fsspec.core.url_to_fs(url)


def open_file(path: str) -> BinaryIO:
    """Opens a local path or a URL for seeking and reading; errors are those of the file system."""
    name = local_path(path)
    if name is not None:
        return _open_local(name)
    fs, inside = filesystem(path)
    size = fs.info(inside).get("size")
    if size is None or size <= _WHOLE_BYTES:
        return io.BytesIO(fs.cat_file(inside))
    return fs.open(inside, "rb")


def _split(audio: str) -> re.Match[str] | None:
    return _RANGE.match(audio) or _ROW.match(audio)


@contextmanager
def _explained(audio: str) -> Iterator[None]:
    """Turns what file systems raise into an AudioError about ``audio``."""
    try:
        yield
    except AudioError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise AudioError("missing", audio, f"no such file or object ({error})") from error
    except LookupError as error:
        raise AudioError("bad_reference", audio, str(error.args[0] if error.args else error)) from error
    # Clients of object stores raise exceptions of their own for denied access and broken connections.
    except Exception as error:
        raise AudioError("unreadable", audio, f"{type(error).__name__}: {error}") from error


def _open_local(name: str) -> BinaryIO:
    # Opening a named pipe would wait for ever.
    if not os.path.isfile(name):
        raise FileNotFoundError("not a file" if os.path.exists(name) else "no such file")
    return open(name, "rb")


def _open_range(audio: str, file: str, start: int, end: int | None) -> BinaryIO:
    with _explained(audio):
        if local_path(file) is not None:
            whole = open_file(file)
            stop = _checked_end(audio, start, end, whole.seek(0, io.SEEK_END))
            return io.BufferedReader(_Window(whole, start, stop))
        fs, inside = filesystem(file)
        stop = _checked_end(audio, start, end, int(fs.info(inside)["size"]))
        if stop - start <= _WHOLE_BYTES:
            return io.BytesIO(fs.cat_file(inside, start=start, end=stop))
        return io.BufferedReader(_Window(fs.open(inside, "rb"), start, stop))


def _checked_end(audio: str, start: int, end: int | None, size: int) -> int:
    stop = size if end is None else end
    if not start <= stop <= size:
        raise AudioError("bad_reference", audio, f"the file has {size} bytes")
    return stop


def _open_cell(audio: str, cell: Any, file: str) -> BinaryIO:
    """The sound of a table's cell: bytes, a path, or a struct of both as Hugging Face `datasets` writes it."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise AudioError("missing", audio, "the cell is empty")
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if not isinstance(cell, str) or _ROW.match(cell):
        raise AudioError("bad_reference", audio, f"the cell holds neither bytes nor a path: {cell!r:.100}")
    folder = file.rpartition("/")[0] if is_url(file) else os.path.dirname(os.path.abspath(file))
    return open_reference(resolve(cell, folder))


class _Window(io.RawIOBase):
    """Bytes ``start`` up to ``end`` of a seekable file, as a file; closes it with itself."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._size = end - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base: Callable[[], int] = {
            io.SEEK_SET: lambda: 0,
            io.SEEK_CUR: lambda: self._at,
            io.SEEK_END: lambda: self._size,
        }[whence]
        self._at = max(0, base() + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
