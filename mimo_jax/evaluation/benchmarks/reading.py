"""Data of benchmarks as published: JSON lines, JSON lists, Parquet, tables; errors name file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.data import references
from mimo_jax.evaluation.benchmarks.base import Item

_KINDS = (".jsonl", ".json", ".parquet")


class Row(Mapping[str, Any]):
    """A record with where it stands, for errors."""

    def __init__(self, values: Mapping[str, Any], where: str, folder: Path):
        self._values, self.where, self.folder = values, where, folder

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def error(self, name: str, problem: str) -> UserError:
        """The error of a field."""
        return UserError(f"{self.where}: field {name!r} {problem}")

    def required(self, name: str) -> Any:
        """The value of a field. Raises UserError where there is none."""
        value = self._values.get(name)
        if value is None:
            raise self.error(name, f"is missing; there are {', '.join(sorted(map(str, self._values)))}")
        return value

    def text(self, name: str, *, empty: bool = False) -> str:
        """A field of text; numbers (as answers may be) are spelled. Raises UserError."""
        value = self.required(name)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(name, f"is {value!r}: expected text")
        value = str(value)
        if not empty and not value.strip():
            raise self.error(name, "is empty")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts, at least one. Raises UserError."""
        values = self.required(name)
        if (
            not isinstance(values, list)
            or not values
            or not all(isinstance(value, (str, int, float)) for value in values)
        ):
            raise self.error(name, f"is {values!r}: expected a list of texts")
        return [str(value) for value in values]

    def choices(self, name: str, answer: str) -> list[str]:
        """A list of choices that the answer is one of. Raises UserError."""
        choices = self.texts(name)
        if answer not in choices:
            raise self.error(name, f"does not hold the answer {answer!r}: {choices}")
        return choices

    def recording(self, name: str) -> str:
        """A field that names a recording, relative to the benchmark's folder. Raises UserError."""
        return self.at(self.text(name), name)

    def at(self, path: str, name: str) -> str:
        """A recording's path seen from the benchmark's folder. Raises UserError where there is no such file."""
        return audio_path(path, self.folder, lambda problem: self.error(name, problem))

    def group(self, *names: str) -> dict[str, str]:
        """Groupings by fields; one that the record lacks is left out."""
        return {name: str(self._values[name]) for name in names if self._values.get(name) not in (None, "")}


def audio_path(path: str, folder: Path, error: Any) -> str:
    """`path` as seen from `folder`; `error`: problem -> exception to raise where there is no such file."""
    found = references.resolve(path.removeprefix("./"), str(folder))
    if not references.is_reference(found) and not Path(found).is_file():
        raise error(f"names {path!r}, and there is no file {found}")
    return found


def data_files(folder: Path, *names: str, leave_out: Sequence[str] = ()) -> list[Path]:
    """The first of the named files that is there, else every JSON and Parquet file under the folder.

    Raises:
      UserError: no folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; put the benchmark's data there (docs/evaluation.md says in what form)"
        )
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _KINDS
        and path.name not in leave_out
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        wanted = ", ".join(names) or "a .jsonl, .json or .parquet file"
        raise UserError(f"{folder}: the benchmark's data are not there; expected {wanted}")
    return found


def rows(files: Sequence[Path], folder: Path) -> Iterator[Row]:
    """Records of files, in order.

    Of Parquet files, columns that hold sound become references to their cells (`mimo_jax.data.references`).

    Raises:
      UserError: a file that cannot be read, a line that is no JSON object.
    """
    for file in files:
        try:
            if file.suffix == ".parquet":
                yield from _parquet(file, folder)
            elif file.suffix == ".json":
                values = json.loads(file.read_text(encoding="utf-8-sig"))
                if not isinstance(values, list):
                    raise UserError(f"{file}: expected a JSON list of records")
                for number, value in enumerate(values):
                    yield _row(value, f"{file}, record {number + 1}", folder)
            else:
                for where, line in _lines(file):
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise UserError(f"{where}: no JSON: {error}") from error
                    yield _row(value, where, folder)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise UserError(f"{file}: {error}") from error


def _row(value: Any, where: str, folder: Path) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {str(value)[:80]!r}")
    return Row(value, where, folder)


def _parquet(file: Path, folder: Path) -> Iterator[Row]:
    from mimo_jax.data.tables import open_parquet, pyarrow

    types = pyarrow().types
    opened = open_parquet(str(file))
    schema = opened.schema_arrow
    sound = [f.name for f in schema if types.is_struct(f.type) and any(part.name == "bytes" for part in f.type)]
    others = [name for name in schema.names if name not in sound]
    number = 0
    for batch in opened.iter_batches(columns=others):
        for values in batch.to_pylist():
            cells = {name: references.table_cell(str(file), number, name) for name in sound}
            yield Row({**values, **cells}, f"{file}, row {number + 1}", folder)
            number += 1


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of a text file's lines that are not empty. Raises UserError."""
    try:
        yield from _lines(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; docs/evaluation.md says what the task's data look like") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """As of `lines`, of Windows too; other signs that break lines may stand inside of texts."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            if line.strip():
                yield f"{path}, line {number + 1}", line.removesuffix("\n")


def unique(items: list[Item], where: Path) -> list[Item]:
    """The items. Raises UserError where there are none, or two have one id."""
    if not items:
        raise UserError(f"{where}: no items")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(f"{where}: two items have the id {item.id!r}")
        seen.add(item.id)
    return items
