"""Recordings to codes: the stage that runs the audio tokenizer, the files it fills, and looking codes up by id.

A record of ``codes/NAME.array_record`` is a 4-byte little-endian length, a msgpack header of that length (version, id,
shape), zero bytes up to a multiple of 4, and the codes as little-endian uint16 [frames, codebooks].
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import msgpack
import numpy as np

from mimo_jax.data.records import RecordReader, write_records
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage, StageFault
from mimo_jax.preparation.shards import read_side

SCHEMA_VERSION = 1


class Codec(Protocol):
    """What turns recordings into codes."""

    def encode(self, waves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Float32 waves at 24 kHz -> int codes [frames, quantizers] each."""
        ...


@dataclasses.dataclass(frozen=True)
class Tokenize(Stage):
    """Waves to codes, in batches of fixed shapes, on whatever accelerator the process has.

    Attributes:
        open_codec: gives the codec; called once per worker.
        codebook_sizes: codes of codebook i are below ``codebook_sizes[i]``; their number is how many are kept.
        fingerprint: of the codec: other weights make other codes.
        batch_size: recordings that the codec gets at a time; it sorts them into batches of similar length.

    Raises:
        StageFault: codes that do not fit ``codebook_sizes``.
    """

    name: ClassVar[str] = "tokenize"
    open_codec: Callable[[], Codec] = dataclasses.field(compare=False)
    codebook_sizes: tuple[int, ...]
    fingerprint: str
    batch_size: int = 256

    def setup(self) -> None:
        """Opens the codec."""
        self._codec()

    def _codec(self) -> Codec:
        if "codec" not in self.__dict__:
            object.__setattr__(self, "codec", self.open_codec())
        return self.__dict__["codec"]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "codec"}

    def process_batch(self, elements: Sequence[Element]) -> list[list[Outcome]]:
        """Each element with its codes, without its wave."""
        waves = [element.wave for element in elements]
        if any(wave is None for wave in waves):
            raise StageFault("tokenize needs decoded recordings: put decode.Decode before it")
        made = self._codec().encode([wave for wave in waves if wave is not None])
        return [[self._outcome(element, np.asarray(codes))] for element, codes in zip(elements, made, strict=True)]

    def _outcome(self, element: Element, codes: np.ndarray) -> Outcome:
        channels = len(self.codebook_sizes)
        if codes.ndim != 2 or codes.shape[1] < channels:
            raise StageFault(f"the codec gave codes of shape {codes.shape}; [frames, >= {channels}] is needed")
        kept = codes[:, :channels]
        if len(kept) == 0:
            return Dropped(element.id, "quarantined", "no_frames", "the codec gave no codes")
        if (kept < 0).any() or (kept >= np.asarray(self.codebook_sizes)).any():
            raise StageFault(f"the codec gave codes outside 0..{[n - 1 for n in self.codebook_sizes]}")
        return dataclasses.replace(element, wave=None, codes=kept.astype(np.uint16))


def to_bytes(record_id: str, codes: np.ndarray) -> bytes:
    """Codes [frames, codebooks] as a record; see the top of this file."""
    header = msgpack.packb({"version": SCHEMA_VERSION, "id": record_id, "shape": list(codes.shape)})
    padding = b"\0" * (-len(header) % 4)
    return struct.pack("<I", len(header)) + header + padding + np.ascontiguousarray(codes, "<u2").tobytes()


def from_bytes(data: bytes) -> tuple[str, np.ndarray]:
    """(id, codes uint16 [frames, codebooks], a view).

    Raises:
        ValueError: another schema version.
    """
    (size,) = struct.unpack_from("<I", data)
    header = msgpack.unpackb(data[4 : 4 + size])
    if header["version"] != SCHEMA_VERSION:
        raise ValueError(f"codes of schema version {header['version']}; this program reads {SCHEMA_VERSION}")
    return header["id"], np.frombuffer(data, "<u2", offset=4 + size + (-size % 4)).reshape(header["shape"])


@dataclasses.dataclass(frozen=True)
class CodesSink:
    """Writes the codes of a shard."""

    folder: pathlib.Path = dataclasses.field(compare=False)

    def slim(self, outcome: Outcome) -> Outcome:
        """Without the wave."""
        return dataclasses.replace(outcome, wave=None) if isinstance(outcome, Element) else outcome

    def files(self, name: str, elements: Sequence[Element]) -> tuple[list[pathlib.Path], dict[str, Any]]:
        """``NAME.array_record``; none where nothing has codes."""
        records = [to_bytes(e.id, e.codes) for e in elements if e.codes is not None]
        facts = {"ids": [e.id for e in elements], "frames": [len(e.codes) for e in elements if e.codes is not None]}
        path = self.folder / f"{name}.array_record"
        if not records:
            path.unlink(missing_ok=True)
            return [], facts
        write_records(path, records)
        return [path], facts


class CodesStore:
    """Codes by record id, of some shards; records last read stay in memory up to ``cache_bytes``."""

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str], cache_bytes: int = 512 << 20):
        root = pathlib.Path(folder)
        self._place: dict[str, int] = {}
        paths = []
        for name in names:
            ids = read_side(root, name)["ids"]
            if ids:
                paths.append(root / f"{name}.array_record")
                self._place.update(zip(ids, range(len(self._place), len(self._place) + len(ids)), strict=True))
        self._reader = RecordReader(paths, cache_bytes)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._place

    def __call__(self, record_id: str) -> np.ndarray:
        """Codes uint16 [frames, codebooks].

        Raises:
            KeyError: the recording has no codes.
        """
        found, codes = from_bytes(self._reader.read([self._place[record_id]])[0])
        if found != record_id:
            raise ValueError(f"codes of {found!r} lie where those of {record_id!r} should: prepare the folder again")
        return codes
