"""Stages of a preparation that survive a kill at any moment: done once, redone when their input changed.

A stage owns a folder. Its ``stage.json`` holds the fingerprint of everything the result depends on, from the first
moment; ``counts`` are added when it is complete. Files inside appear atomically and are deterministic, so a stage that
was interrupted goes on with the files that are there.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from mimo_jax.files import write_text

_STAGE = "stage.json"


def fingerprint(*parts: Any) -> str:
    """Hex digest of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: str | os.PathLike[str]) -> str:
    """Fingerprint of all files of a folder, by name and content."""
    root = pathlib.Path(folder)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    return fingerprint([[str(p.relative_to(root)), file_hash(p)] for p in files])


def to_json(value: Any) -> str:
    """JSON that is the same for the same value."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def run_stage(folder: pathlib.Path, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run ``work`` (which writes into ``folder``) unless it was done for the same ``key``; returns its counts."""
    marker = folder / _STAGE
    state = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if state.get("fingerprint") == key and "counts" in state:
        return state["counts"]
    if state.get("fingerprint") != key:
        if folder.exists():
            shutil.rmtree(folder)
        write_text(marker, to_json({"fingerprint": key}))
    counts = work()
    write_text(marker, to_json({"fingerprint": key, "counts": counts}))
    return counts
