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

from mimo_jax.data import storage, tables

_RANGE = re.compile(r"^(?P<file>.+)#bytes=(?P<start>\d{1,18})-(?P<end>\d{1,18})?$", re.DOTALL)
_ROW = re.compile(r"^(?P<file>.+)#row=(?P<row>\d{1,18})(&column=(?P<column>[^#&]+))?$", re.DOTALL)


class AudioError(Exception):
    """A file that cannot be used. ``reason`` is a key of :data:`mimo_jax.data.audio.REASONS`, ``detail`` says why."""

    def __init__(self, reason: str, path: str | os.PathLike[str], detail: str) -> None:
        super().__init__(reason, str(path), detail)
        self.reason = reason
        self.path = str(path)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


def is_reference(audio: str) -> bool:
    """Whether it is more than the path of a local file: a URL, a range or a row."""
    return storage.is_url(audio) or (_split(audio) is not None and not os.path.exists(audio))


def container(audio: str) -> str:
    """The file or object that holds the recording: the reference without its range or row."""
    found = _split(audio) if is_reference(audio) else None
    return found["file"] if found else audio


def byte_range(file: str, start: int, end: int | None = None) -> str:
    """The reference of bytes ``start`` up to, not with, ``end`` of a file or URL; None is its end."""
    return f"{file}#bytes={start}-{'' if end is None else end}"


def table_cell(file: str, row: int, column: str = "audio") -> str:
    """The reference of a row (from 0) of a Parquet or Arrow file or URL."""
    return f"{file}#row={row}&column={quote(column)}"


def resolve(audio: str, root: str) -> str:
    """A path, URL or reference seen from the folder or URL ``root``; what is absolute stays as it is."""
    if storage.is_url(audio) or os.path.isabs(audio):
        return audio
    if not storage.is_url(root):
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
            return storage.open_local(audio)
    if found := _RANGE.match(audio):
        end = found["end"]
        return _open_range(audio, found["file"], int(found["start"]), None if end is None else int(end))
    if found := _ROW.match(audio):
        with _explained(audio):
            cell = tables.cell(found["file"], int(found["row"]), unquote(found["column"] or "audio"))
        return _open_cell(audio, cell, found["file"])
    with _explained(audio):
        return storage.open_file(audio)


def signature(audio: str) -> list[Any] | None:
    """`storage.signature` of the file behind a reference."""
    return storage.signature(container(audio))


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


def _open_range(audio: str, file: str, start: int, end: int | None) -> BinaryIO:
    with _explained(audio):
        if storage.local_path(file) is not None:
            whole = storage.open_file(file)
            stop = _checked_end(audio, start, end, whole.seek(0, io.SEEK_END))
            return io.BufferedReader(_Window(whole, start, stop))
        fs, inside = storage.filesystem(file)
        stop = _checked_end(audio, start, end, int(fs.info(inside)["size"]))
        if stop - start <= storage.WHOLE_BYTES:
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
    folder = file.rpartition("/")[0] if storage.is_url(file) else os.path.dirname(os.path.abspath(file))
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
