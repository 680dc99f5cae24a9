"""Files and objects by path or URL: local ones by the file system, all others through fsspec."""

from __future__ import annotations

import io
import os
import re
from typing import Any, BinaryIO
from urllib.parse import unquote

EXTRA_HINT = "install it with: pip install 'mimo_jax[prepare]'"
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*(::[A-Za-z][A-Za-z0-9+.\-]*)*://")
# One request that brings a whole object is faster and fails more clearly than many small ones, until memory counts.
WHOLE_BYTES = 1 << 28


def is_url(path: str) -> bool:
    """Whether it starts with a scheme, like ``gs://`` (``file://`` too)."""
    return bool(_URL.match(path))


def local_path(path: str) -> str | None:
    """The local path as the file system knows it, also of a file:// URL; None for what is elsewhere."""
    if not is_url(path):
        return path
    return unquote(path[7:]) if path[:7].lower() == "file://" else None


def signature(path: str) -> list[Any] | None:
    """What changes when a local file changes: [size, mtime in ns]; None if it cannot be seen.

    Objects behind URLs are not asked, as that takes a request each.
    """
    name = local_path(path)
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
        return open_local(name)
    fs, inside = filesystem(path)
    size = fs.info(inside).get("size")
    if size is None or size <= WHOLE_BYTES:
        return io.BytesIO(fs.cat_file(inside))
    return fs.open(inside, "rb")


def open_local(name: str) -> BinaryIO:
    """Opens a local file.

    Raises:
      FileNotFoundError: there is none, or it is no plain file.
    """
    # Opening a named pipe would wait for ever.
    if not os.path.isfile(name):
        raise FileNotFoundError("not a file" if os.path.exists(name) else "no such file")
    return open(name, "rb")
