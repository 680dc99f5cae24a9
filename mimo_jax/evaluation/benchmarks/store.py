"""Files of a task's results: lines that survive a kill, answers of several workers, what decided them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.files import replacing

ANSWERS = "answers.jsonl"
SETTINGS = "run.json"
# Of a run's settings, what is told and decides nothing: another one may go on with the run.
_TOLD = "environment"
# Of a large file, what is read to know it again: this many bytes, at its start and so many times after that.
_SAMPLE, _SAMPLES = 1 << 14, 128


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines, none where there is no file; a last line that a kill cut is left out.

    Raises:
      UserError: another line that is no JSON object.
    """
    if not path.is_file():
        return []
    out = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number + 1}: {error}; delete the line, and its item is done again"
            ) from error
        out.append(value)
    return out


def dump(values: Sequence[Mapping[str, Any]]) -> bytes:
    """Objects as JSON lines."""
    return b"".join(json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n" for value in values)


def append(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines to a file; half a line that a kill left at its end is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(dump(values))


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines at once."""
    with replacing(path) as partial:
        partial.write_bytes(dump(values))


class AnswerStore:
    """Answers of one task in a folder.

    One worker writes answers.jsonl, several write answers-I-of-N.jsonl each; what any of them answered counts. The
    settings in run.json belong to all of them.

    Args:
      folder: of the task.
      worker, workers: which of how many writes.
    """

    def __init__(self, folder: Path, worker: int = 0, workers: int = 1):
        self.folder = folder
        self._run: str | None = None
        part = "" if workers == 1 else f"-{worker}-of-{workers}"
        self._own, self._own_failures = folder / f"answers{part}.jsonl", folder / f"failures{part}.jsonl"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Stores the settings of the run, or finds that they are those of the answers that are there.

        Raises:
          UserError: other settings; the first that differs is named.
        """
        settings = json.loads(json.dumps(settings))
        self._run = _identity(settings)
        stored = self.settings()
        if stored is None or not self.answers():
            _write_alone(self.folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        for name in sorted((stored.keys() | settings.keys()) - {_TOLD}):
            if stored.get(name) != settings.get(name):
                raise UserError(
                    f"{self.folder} holds answers of other settings: {name} was {_short(stored.get(name))} and is "
                    f"{_short(settings.get(name))}; choose another --out"
                )

    def settings(self) -> dict[str, Any] | None:
        """What decided the answers; None before the first run.

        Raises:
          UserError: the file is damaged.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; it says what the answers were made with: restore it, or choose another --out"
            ) from error

    def answers(self) -> dict[str, dict[str, Any]]:
        """id -> line of all workers. Raises UserError for a damaged line, or one that was made with other settings."""
        lines: dict[str, dict[str, Any]] = {}
        settings = self.settings()
        run = None if settings is None else _identity(settings)
        for path in sorted(self.folder.glob("answers*.jsonl")):
            for number, line in enumerate(read_lines(path)):
                if line.get("run") != run:
                    raise UserError(
                        f"{path}, line {number + 1}: made with other settings than {self.folder / SETTINGS} says; give "
                        "all workers the same, or choose another --out"
                    )
                lines.setdefault(line["id"], line)
        return lines

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds answers of this worker, each with a digest of the run's settings."""
        append(self._own, [{**line, "run": self._run} for line in lines])

    def fail(self, failures: Mapping[str, str]) -> None:
        """Notes which items this worker could not answer, and why (id -> reason), in place of what it noted before."""
        if failures or self._own_failures.is_file():
            write_lines(self._own_failures, [{"id": name, "reason": reason} for name, reason in failures.items()])

    def failures(self) -> dict[str, str]:
        """id -> why a worker could not answer it when it last tried; some may have been answered since."""
        paths = sorted(self.folder.glob("failures*.jsonl"))
        return {line["id"]: line["reason"] for path in paths for line in read_lines(path)}

    def merge(self, order: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All answers, written to answers.jsonl in the order of the ids; ids that are not in it follow, sorted."""
        found = self.answers()
        known = set(order)
        ids = [*(i for i in order if i in found), *sorted(i for i in found if i not in known)]
        lines = [found[i] for i in ids]
        path = self.folder / ANSWERS
        if lines and (not path.is_file() or path.read_bytes() != dump(lines)):
            write_lines(path, lines)
        return found


def _write_alone(path: Path, text: str) -> None:
    """Writes a file whole, also where others write the same one at the same time: each has a hidden file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _identity(settings: Mapping[str, Any]) -> str:
    """A digest of what decides a run's answers."""
    decisive = {name: value for name, value in settings.items() if name != _TOLD}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 100 else text[:97] + "..."


def file_name(identifier: str) -> str:
    """A name for an item's files: the id where it is a plain name, else made plain and told apart by a digest."""
    # ASCII alone: names are limited by bytes, and some systems spell other letters in a way of their own.
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in identifier)
    if plain == identifier and not plain.startswith(".") and len(plain) < 100:
        return plain
    return f"{plain[:80].lstrip('.')}-{hashlib.sha256(identifier.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def digest_of_folder(folder: Path, suffixes: Sequence[str] | None = None, whole: int = 1 << 20) -> str:
    """SHA-256 of the files under a folder by path, size and content.

    Args:
      folder: where. What is hidden does not count.
      suffixes: files of these count by content, all others by path and size alone; None = all by content.
      whole: of files longer than this (bytes), both ends and places between them stand for the content.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        size = path.stat().st_size
        total.update(f"{name.as_posix()}\x1f{size}\x1f".encode("utf-8", "surrogateescape"))
        if suffixes is not None and path.suffix not in suffixes:
            continue
        with path.open("rb") as file:
            if size <= whole:
                total.update(file.read())
            else:
                for place in range(_SAMPLES + 1):
                    file.seek((size - _SAMPLE) * place // _SAMPLES)
                    total.update(file.read(_SAMPLE))
    return total.hexdigest()[:16]
