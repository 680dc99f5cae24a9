"""Checksums of a checkpoint's files: written before the checkpoint takes its name, compared before it is used.

The array files' own format checks its index, not the numbers: a flipped byte in a compressed part can decode to other
numbers. A CRC-32 of each file finds it, whatever the file holds.
"""

from __future__ import annotations

import concurrent.futures
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from mimo_jax.files import write_text

MANIFEST = "checksums.json"
_THREADS = 8
_BUFFER = 4 << 20


def write_manifest(folder: Path) -> None:
    """Writes `checksums.json`: size in bytes and CRC-32 of every file in `folder`'s subfolders, by relative path."""
    names = _names(folder)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        files = dict(zip(names, threads.map(lambda name: _size_and_checksum(folder / name), names), strict=True))
    write_text(folder / MANIFEST, json.dumps({"algorithm": "crc32", "files": files}))


def find_damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, naming the first bad one; None if all are as they were written.

    Args:
      folder: of the checkpoint's step.
      part, parts: only every `parts`-th file beginning with file `part`, so that processes share the reading.

    Returns:
      None too where nothing can be said: `has_manifest` tells.
    """
    if not has_manifest(folder):
        return None
    try:
        files: dict[str, list[int]] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    names = sorted(files)[part::parts]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        for name, problem in zip(names, threads.map(lambda name: _compare(folder / name, files[name]), names)):  # noqa: B905
            if problem:
                return f"{name} {problem}"
    return None


def has_manifest(folder: Path) -> bool:
    """Whether the checkpoint has checksums; one of an earlier version has none."""
    return (folder / MANIFEST).is_file()


def _names(folder: Path) -> Sequence[str]:
    # Files beside the subfolders (the commit's time) are still written when the checkpoint takes its name.
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file())


def _compare(path: Path, expected: Sequence[int]) -> str:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"has {size} bytes, {expected[0]} were written"
        if _size_and_checksum(path)[1] != expected[1]:
            return "has other bytes than were written (CRC-32)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return ""


def _size_and_checksum(path: Path) -> list[int]:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while buffer := file.read(_BUFFER):
            size, checksum = size + len(buffer), zlib.crc32(buffer, checksum)
    return [size, checksum]
