"""Tokenized examples as bytes, and the ArrayRecord files that hold them.

One record is a 4-byte little-endian length, a msgpack header of that length, zero bytes up to a multiple of 4, and the
raw little-endian arrays text int32 [n], low bytes of the codes uint8 [p, G, C], high bytes of the codebooks that the
header lists under "high" uint8 [H, p, G], loss uint8 [n]. A codebook is listed where the example's codes need it.
"""

import dataclasses
import math
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np

from mimo_jax.data.packing import Span
from mimo_jax.data.sequence import Sequenced
from mimo_jax.files import replacing

SCHEMA_VERSION = 2
# Version 1 has the codes as uint16 [p, G, C].
_READABLE = (1, 2)
# One record per chunk: random access reads what it needs and no more. Uncompressed: zstd would save a sixth of the
# built-in corpus, and make a batch half as slow again.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenized example.

    Attributes:
        id: id of the example within its task.
        task: name of the task.
        text: int32 [n] text ids.
        codes: uint16 [p, G, C] patches of the audio positions, in order.
        loss: uint8 [n], 1 where the position is a target.
        borders: starts of the segments.
    """

    id: str
    task: str
    text: np.ndarray
    codes: np.ndarray
    loss: np.ndarray
    borders: tuple[int, ...] = ()

    @classmethod
    def of(cls, example_id: str, task: str, arrays: Sequenced) -> "Example":
        """The example of rendered segments."""
        borders = tuple(int(b) for b in arrays.borders)
        return cls(
            example_id, task, arrays.text, arrays.patches.astype(np.uint16), arrays.loss.astype(np.uint8), borders
        )


def to_bytes(example: Example) -> bytes:
    """Example -> bytes; the same example gives the same bytes."""
    codes = np.asarray(example.codes).astype("<u2")
    high = np.flatnonzero((codes > 255).any(axis=(0, 1))).tolist()
    header = msgpack.packb(
        {
            "version": SCHEMA_VERSION,
            "id": example.id,
            "task": example.task,
            "positions": len(example.text),
            "codes": list(codes.shape),
            "high": high,
            "borders": list(example.borders),
        }
    )
    padding = b"\0" * (-len(header) % 4)
    arrays = (
        np.ascontiguousarray(example.text, "<i4"),
        codes.astype("u1"),
        np.moveaxis(codes[..., high] >> 8, -1, 0).astype("u1"),
        np.ascontiguousarray(example.loss, "u1"),
    )
    return b"".join([struct.pack("<I", len(header)), header, padding, *(a.tobytes() for a in arrays)])


def from_bytes(data: bytes) -> Example:
    """Bytes -> Example; text and loss are read-only views of ``data``.

    Raises:
        ValueError: another schema version, or fewer bytes than the header says.
    """
    (size,) = struct.unpack_from("<I", data)
    header = msgpack.unpackb(data[4 : 4 + size])
    if header["version"] not in _READABLE:
        raise ValueError(f"record of schema version {header['version']}; this program reads {_READABLE}: prepare again")
    n, shape = header["positions"], header["codes"]
    high = header.get("high", range(shape[-1]))
    frames = math.prod(shape[:-1])
    # Where each array starts; the high bytes are one run of frames for each codebook of them.
    text_start = 4 + size + (-size % 4)
    codes_start = text_start + 4 * n
    high_start = codes_start + frames * shape[-1]
    loss_start = high_start + frames * len(high)
    if len(data) != loss_start + n:
        raise ValueError(f"record {header['id']!r} has {len(data)} bytes, its header asks for {loss_start + n}")
    raw = np.frombuffer(data, np.uint8)
    if header["version"] == 1:
        codes = raw[codes_start:loss_start].view("<u2")
    else:
        codes = raw[codes_start:high_start].astype("<u2")
        in_bytes = codes.view(np.uint8)
        for number, codebook in enumerate(high):
            first = high_start + number * frames
            in_bytes[2 * codebook + 1 :: 2 * shape[-1]] = raw[first : first + frames]
    return Example(
        id=header["id"],
        task=header["task"],
        text=raw[text_start:codes_start].view("<i4"),
        codes=codes.reshape(shape),
        loss=raw[loss_start:],
        borders=tuple(header["borders"]),
    )


def part_of(example: Example, span: Span | None, empty: int) -> Example:
    """A part of an example: what the span repeats without loss, then its positions; None is all of it.

    ``empty`` is the id of ``<|empty|>``. Where the repetition does not end at the part's start, the first position
    after it is no target either: what came before it is missing.
    """
    if span is None:
        return example
    start, stop, context_start, context_stop = span
    index = np.concatenate([np.arange(context_start, context_stop), np.arange(start, stop)])
    is_audio = example.text == empty
    patch = np.cumsum(is_audio) - 1
    loss = example.loss[index]
    repeated = context_stop - context_start
    loss[: repeated + (context_stop != start)] = 0
    codes = example.codes[patch[index[is_audio[index]]]]
    return dataclasses.replace(example, text=example.text[index], codes=codes, loss=loss)


def write_records(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Write an ArrayRecord file; it appears under its name only when complete. Returns the number of records."""
    from array_record.python import array_record_module

    count = 0
    with replacing(path) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
    return count


class RecordReader:
    """Random access to the records of several ArrayRecord files, numbered through in the files' order.

    Thread-safe; a pickled reader opens its files anew. Up to ``cache_bytes`` of records are kept in memory (first come,
    first kept), which for small sets makes every epoch after the first free of reading.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], cache_bytes: int = 0):
        from grain.sources import ArrayRecordDataSource

        self._arguments = ([os.fspath(p) for p in paths], cache_bytes)
        self._source = ArrayRecordDataSource(self._arguments[0]) if paths else None
        self._cache: dict[int, bytes] = {}
        self._room = cache_bytes
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordReader, self._arguments

    def __len__(self) -> int:
        return len(self._source) if self._source else 0

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Bytes of the records, in the order asked for."""
        missing = sorted({int(i) for i in indices if int(i) not in self._cache})
        fresh: dict[int, bytes] = {}
        if missing and self._source:
            # One by one: a bulk read of this source starts a pool of threads for every call.
            fresh = {index: self._source[index] for index in missing}
        with self._lock:
            for index, data in fresh.items():
                if len(data) <= self._room and index not in self._cache:
                    self._cache[index] = data
                    self._room -= len(data)
        return [self._cache[int(i)] if int(i) in self._cache else fresh[int(i)] for i in indices]
