"""Passes: a source, stages, and a sink that writes what comes out of one shard, whole or not at all.

Each shard is finished on its own: its files have names that follow from the shard's, appear atomically, and a small
``NAME.json`` written last says what they are made of. A shard whose ``NAME.json`` has the same key is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mimo_jax.data.stages import file_hash, fingerprint, to_json
from mimo_jax.files import replacing, write_text
from mimo_jax.preparation.accounts import Account
from mimo_jax.preparation.chain import Key, Meter, identity, run_chain
from mimo_jax.preparation.elements import Dropped, Element, Kind, Outcome, Stage
from mimo_jax.preparation.sources.base import Shard, Source

SCHEMA_VERSION = 2
_TIMES = ".times.json"


class Sink(Protocol):
    """Writes the elements that came out of a shard."""

    @property
    def folder(self) -> pathlib.Path:
        """Where the shards lie."""
        ...

    def files(self, name: str, elements: Sequence[Element]) -> tuple[list[pathlib.Path], dict[str, Any]]:
        """Writes the shard's files atomically; returns them, and facts for the shard's ``NAME.json``."""
        ...

    def slim(self, outcome: Outcome) -> Outcome:
        """The outcome without what the sink does not need: what runners may have to send between machines."""
        ...


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a source. Picklable: workers get it whole.

    Attributes:
        name: in progress bars and tables.
        source: gives the items.
        stages: what each item goes through, in order; their names must differ.
        sink: writes what comes out.
    """

    name: str
    source: Source
    stages: tuple[Stage, ...]
    sink: Sink

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"pass {self.name}: stages {names} need names of their own")

    def key(self, shard: Shard) -> str:
        """Fingerprint of all that the shard's files depend on."""
        return fingerprint(SCHEMA_VERSION, self.name, identity(self.stages), identity(self.sink), shard.fingerprint)

    def setup(self) -> None:
        """Loads what the stages need, once per worker."""
        for stage in self.stages:
            stage.setup()

    def finished(self, shard: Shard) -> dict[str, Any] | None:
        """The content of the shard's ``NAME.json`` if the shard is done."""
        path = side_path(self.sink.folder, shard.name)
        if not path.is_file():
            return None
        side = json.loads(path.read_text(encoding="utf-8"))
        there = all((self.sink.folder / name).is_file() for name in side["sha256"])
        return side if side["key"] == self.key(shard) and there else None

    def run(self, shard: Shard) -> None:
        """Everything of one shard, in this process."""
        meters = {stage.name: Meter() for stage in self.stages}
        outcomes = list(self._slim(run_chain(self.stages, self.source.read(shard), meters)))
        self.write(shard, outcomes, meters)

    def _slim(self, stream: Iterator[tuple[Key, Outcome]]) -> Iterator[tuple[Key, Outcome]]:
        for key, outcome in stream:
            yield key, self.sink.slim(outcome)

    def write(self, shard: Shard, outcomes: Sequence[tuple[Key, Outcome]], meters: Mapping[str, Meter]) -> None:
        """Writes a shard's files; ``outcomes`` in any order."""
        folder, name = self.sink.folder, shard.name
        ordered = sorted(outcomes, key=lambda pair: pair[0])
        files, facts = self.sink.files(name, [o for _, o in ordered if isinstance(o, Element)])
        dropped = [o for _, o in ordered if isinstance(o, Dropped)]
        listed = folder / f"{name}.dropped.jsonl"
        write_text(listed, "".join(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in dropped))
        times = {stage: dataclasses.astuple(meter) for stage, meter in meters.items()}
        write_text(folder / f"{name}{_TIMES}", json.dumps(times))
        side = {
            "schema_version": SCHEMA_VERSION,
            "key": self.key(shard),
            "account": Account.of(ordered).to_json(),
            "sha256": {p.name: file_hash(p) for p in [*files, listed]},
            **facts,
        }
        write_text(side_path(folder, name), to_json(side))

    def remove_others(self, shards: Sequence[Shard]) -> None:
        """Removes files of shards that the source no longer has."""
        wanted = {shard.name for shard in shards}
        for side in self.sink.folder.glob("*.json"):
            name = side.name.removesuffix(".json")
            if name in wanted or side.name.endswith(_TIMES):
                continue
            for path in self.sink.folder.glob(f"{name}.*"):
                path.unlink()


def side_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file that says that a shard is finished, and with what."""
    return folder / f"{name}.json"


def read_side(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Content of a finished shard's ``NAME.json``."""
    return json.loads(side_path(folder, name).read_text(encoding="utf-8"))


def read_dropped(folder: pathlib.Path, name: str) -> Iterator[Dropped]:
    """What a shard's pass dropped, in order."""
    with open(folder / f"{name}.dropped.jsonl", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            yield Dropped(**json.loads(line))


def first_dropped(folder: pathlib.Path, names: Sequence[str], kind: Kind = "quarantined") -> str:
    """The first of its kind that passes over these shards dropped, in words; empty if there is none."""
    for name in names:
        if (folder / f"{name}.dropped.jsonl").is_file():
            for one in read_dropped(folder, name):
                if one.kind == kind:
                    return f"{one.detail or one.reason} (record {one.id})"
    return ""


def read_times(folder: pathlib.Path, names: Sequence[str]) -> dict[str, Meter]:
    """Stage -> what it took, over the shards."""
    total: dict[str, Meter] = {}
    for name in names:
        path = folder / f"{name}{_TIMES}"
        if path.is_file():
            for stage, values in json.loads(path.read_text(encoding="utf-8")).items():
                total.setdefault(stage, Meter()).add(Meter(*values))
    return total


def speed_table(times: Mapping[str, Meter]) -> str:
    """One line per stage: hours of audio, core-seconds, hours of audio per core-hour."""
    lines = [f"{'stage':<16}{'elements':>10}{'audio h':>10}{'core s':>10}{'audio h / core h':>18}"]
    for stage, meter in times.items():
        speed = f"{meter.audio_seconds / meter.core_seconds:.0f}" if meter.core_seconds and meter.audio_seconds else "-"
        lines.append(
            f"{stage:<16}{meter.elements:>10}{meter.audio_seconds / 3600:>10.3f}{meter.core_seconds:>10.1f}{speed:>18}"
        )
    return "\n".join(lines)


def write_lines(path: pathlib.Path, lines: Sequence[str]) -> pathlib.Path:
    """Writes lines atomically; returns the path."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def total_account(folder: pathlib.Path, names: Sequence[str]) -> Account:
    """The account over finished shards."""
    return Account.total(Account.from_json(read_side(folder, name)["account"]) for name in names)
