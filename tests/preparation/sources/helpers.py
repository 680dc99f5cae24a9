"""Reading sources as runners do, and recordings to put into them."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import soundfile

from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import Shard, Source
from mimo_jax.preparation.sources.base import REASONS


def collect(source: Source) -> list[Element | Dropped]:
    """Everything, shard by shard, by a copy in which shards went through JSON; checks what holds for all sources."""
    shards = source.shards()
    assert source.shards() == shards
    assert len({shard.name for shard in shards}) == len(shards)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", shard.name) for shard in shards)
    copies = [Shard(**json.loads(json.dumps(dataclasses.asdict(shard)))) for shard in shards]
    worker = pickle.loads(pickle.dumps(source))
    # Workers take shards in any order.
    read = {shard.name: list(worker.read(shard)) for shard in reversed(copies)}
    outcomes = [outcome for shard in shards for outcome in read[shard.name]]
    for outcome in outcomes:
        if isinstance(outcome, Dropped):
            assert outcome.kind == "quarantined" and outcome.reason in REASONS and outcome.detail
        else:
            assert outcome.wave is None
            json.dumps(dataclasses.asdict(outcome.record), ensure_ascii=False).encode()
    good = [outcome.id for outcome in outcomes if isinstance(outcome, Element)]
    assert len(set(good)) == len(good)
    return outcomes


def summary(outcomes: list[Element | Dropped]) -> list[tuple[str, str]]:
    """(id, reason or "") of each."""
    return [(o.id, o.reason if isinstance(o, Dropped) else "") for o in outcomes]


def records(outcomes: list[Element | Dropped]) -> list[Record]:
    return [o.record for o in outcomes if isinstance(o, Element) and isinstance(o.record, Record)]


def reasons(outcomes: list[Element | Dropped]) -> dict[str, str]:
    return {o.id: o.reason for o in outcomes if isinstance(o, Dropped)}


def write_wave(path: Path, seed: int = 0, rate: int = 16_000) -> Path:
    """A recording that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * np.random.default_rng(seed).standard_normal(800).clip(-3, 3), rate)
    return path


def upload(folder: Path) -> str:
    """The folder's files behind URLs; names follow from the folder, which pytest makes unique."""
    root = f"memory://{folder.parent.name}-{folder.name}"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with fsspec.open(f"{root}/{path.relative_to(folder)}", "wb") as file:
            file.write(path.read_bytes())
    return root


def fingerprints(source: Source) -> dict[str, str]:
    return {shard.name: shard.fingerprint for shard in source.shards()}
