"""Folders of safetensors files, sharded or not: read tensor by tensor, written tensor by tensor.

Writing goes through our own few lines because the library wants all tensors of a file in memory (twice): here the
tensors come in any order and go straight to their places in the files. These are byte for byte what the library writes.
Format: https://github.com/huggingface/safetensors; index files as `transformers` has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mimo_jax.cli import UserError
from mimo_jax.files import replacing

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5_000_000_000
_BLOCK_BYTES = 64 * 2**20

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_WIDTH_ORDER = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class WeightFolder:
    """The tensors of a folder. `shapes` and `dtypes` are known at once, the data is read on demand.

    Raises:
      UserError: no weights, pickled weights, an unreadable file, an index that does not match its files.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._files: dict[str, Path] = {}
        self._names: dict[str, str] = {}
        for path in _weight_files(self.folder):
            self._add(path)
        self._check_index()

    def _add(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, "np") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (the handle is no mapping)
                found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error
        for name, (dtype, shape) in found.items():
            if name in self.shapes:
                raise UserError(f"{path}: tensor {name} is in another file of this folder too; remove one of them")
            if dtype not in _DTYPES:
                raise UserError(f"{path}: {name} has dtype {dtype}; known are {', '.join(_DTYPES)}")
            self.shapes[name], self.dtypes[name], self._files[name] = shape, np.dtype(_DTYPES[dtype]), path

    def _check_index(self) -> None:
        index = self.folder / INDEX
        if not index.is_file():
            return
        found = {name: path.name for name, path in self._files.items()}
        if wrong := sorted(name for name, file in _weight_map(index).items() if found.get(name) != file):
            raise UserError(f"{index}: lists {', '.join(wrong[:5])} ({len(wrong)} in all) in files that lack them")

    def alias(self, name: str, existing: str) -> None:
        """Makes `name` stand for the tensor `existing` too (tied weights are stored once)."""
        self._names[name] = existing
        self.shapes[name], self.dtypes[name] = self.shapes[existing], self.dtypes[existing]

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        out = np.empty(self.shapes[name], self.dtypes[name])
        self.read_into(out, name, (slice(None),) * out.ndim)
        return out

    def read_into(self, out: np.ndarray, name: str, index: tuple[slice, ...]) -> None:
        """Reads the part `index` of a tensor into `out`, which may have any strides and another dtype."""
        name = self._names.get(name, name)
        # Opened for each tensor: an open file stays mapped, and its pages count as ours for as long as it is.
        with safetensors.safe_open(self._files[name], "np") as file:
            if not out.ndim:
                out[...] = file.get_tensor(name)
                return
            part = file.get_slice(name)
            first = index[0].indices(self.shapes[name][0])[0]
            for block in _blocks(out):
                out[block] = part[(slice(first + block.start, first + block.stop), *index[1:])]


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """The first axis of an array in pieces of at most _BLOCK_BYTES."""
    step = max(1, _BLOCK_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
        for path in files:
            if not path.is_file():
                raise UserError(f"{path}: missing, but {INDEX} names it; copy or download it again")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(path for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise UserError(
            f"{pickled[0]}: pickled weights can run code when loaded and are not read here. Convert them once, with "
            'torch installed: python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.clone() for k, v in torch.load('{pickled[0]}', map_location='cpu', "
            f"weights_only=True).items()}}, '{pickled[0].with_suffix('.safetensors')}', metadata={{'format': 'pt'}})\""
        )
    raise UserError(f"{folder}: no .safetensors file in it; give the folder of a released or exported model")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return {str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of safetensors files ({error}); copy or download it again") from error


def write_folder(
    folder: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    fetch: Callable[[str], np.ndarray],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[str]:
    """Writes tensors as `model.safetensors`, or as shards with an index when they are larger than `max_shard_bytes`.

    Args:
      folder: exists; weight files that are there and not written now are removed, when all is written.
      tensors: name -> (shape, dtype).
      fetch: gives a tensor; called once for each, in the order of `tensors` (which decides nothing else).
      max_shard_bytes: most bytes of tensors in a file (a single larger tensor gets a file of its own).

    Returns:
      Names of the files written.
    """
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes is {max_shard_bytes}: give a positive number of bytes")
    shards = _plan(tensors, max_shard_bytes)
    if len(shards) == 1:
        files = [SINGLE]
    else:
        files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for left_over in folder.glob(".model*.partial"):  # of an export that was killed
        left_over.unlink()
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[Path, int]] = {}
        for file, names in zip(files, shards, strict=True):
            partial = stack.enter_context(replacing(folder / file))
            offsets = _write_header(partial, {name: tensors[name] for name in names})
            places |= {name: (partial, offset) for name, offset in offsets.items()}
        for name, (shape, dtype) in tensors.items():
            array = fetch(name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name}: {array.dtype} {array.shape} was announced as {dtype} {shape}")
            partial, offset = places[name]
            with partial.open("r+b") as stream:  # one at a time: there may be more shards than files can be open
                stream.seek(offset)
                for block in _blocks(np.atleast_1d(array)):  # a transposed array is never whole in memory a second time
                    stream.write(np.ascontiguousarray(np.atleast_1d(array)[block]).reshape(-1).view(np.uint8).data)
    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        if old.name not in files and old.is_file():
            old.unlink()
    if len(shards) > 1:
        total = sum(_size(*tensors[name]) for name in tensors)
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
        files.append(INDEX)
    return files


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _plan(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], max_shard_bytes: int) -> list[list[str]]:
    """Names per shard, in natural order (layer 2 before layer 10), each shard filled up to the limit."""
    shards: list[list[str]] = [[]]
    used = 0
    for name in sorted(tensors, key=natural_order):
        size = _size(*tensors[name])
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorting key under which numbers inside names count as numbers."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _write_header(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, int]:
    """Writes the header of a file that is to hold `tensors`; returns where in the file each has its place."""
    # The library's order: wide types first (alignment), then names.
    names = sorted(tensors, key=lambda name: (-_WIDTH_ORDER.index(_NAMES[tensors[name][1]]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        shape, dtype = tensors[name]
        end = offset + _size(shape, dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(stream.tell() + offset)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in names}


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes JSON atomically, indented, with a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def copy_files(source: Path, target: Path, names: Iterable[str]) -> list[str]:
    """Copies those of `names` that exist in `source`; returns them."""
    copied = [name for name in names if (source / name).is_file()]
    for name in copied:
        write_bytes(target / name, (source / name).read_bytes())
    return copied
