"""The sequence format: segments of text and audio, the arrays a model reads, and the exchange grid.

A sequence has T positions. Each is a text token or an audio *patch* of G frames x C codebooks. Inside the program it is

    text  int32 [T]         token id; ``<|empty|>`` at audio positions
    audio int32 [T, G, C]   codes; the codebooks' empty ids at text positions

The exchange grid of the released code holds the same as int32 [1 + C, T * G]: row 0 the text ids (in the first of a
position's G columns, -100 in the others), rows 1..C the codes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

GRID_FILL = -100

Role = Literal["system", "user", "assistant"]
Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Text ids of the tokens with a meaning in the sequence format."""

    end_of_text: int
    im_start: int
    im_end: int
    sosp: int
    eosp: int
    empty: int
    sostm: int
    eostm: int
    eot: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything that decides how segments become arrays.

    Attributes:
        special: ids of the special tokens.
        empty_codes: per codebook the empty id (the last id of that codebook's vocabulary); its length is C.
        group_size: G, frames per patch.
        stream_text: text tokens per block of a streamed answer.
        stream_patches: patches per block of a streamed answer.
    """

    special: SpecialTokens
    empty_codes: tuple[int, ...] = (1024, 1024, 128, 128, 128, 128, 128, 128)
    group_size: int = 4
    stream_text: int = 5
    stream_patches: int = 5

    @property
    def channels(self) -> int:
        """C, the number of codebooks."""
        return len(self.empty_codes)


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """Text, as a string or as ready ids. Each segment is tokenized on its own: no token spans two segments."""

    text: str | Sequence[int]
    loss: bool = False
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class AudioSegment:
    """Codes int [frames, C]; wrapped in ``<|sosp|>`` ... ``<|eosp|>`` where ``delimited``."""

    codes: np.ndarray
    delimited: bool = True
    loss: bool = False
    role: Role | None = None


@dataclasses.dataclass(frozen=True)
class StreamedSegment:
    """Spoken answer: ``<|sostm|>``, blocks of text and patches in turn, ``<|eostm|>``.

    The text ends with ``<|eot|>``; codes are int [frames, C].
    """

    text: str | Sequence[int]
    codes: np.ndarray
    loss: bool = False
    role: Role | None = None


Segment = TextSegment | AudioSegment | StreamedSegment


@dataclasses.dataclass(frozen=True)
class Sequenced:
    """Arrays of a list of segments, in the compact form that is written to disk.

    Attributes:
        text: int32 [T].
        patches: int32 [P, G, C], the codes of the P audio positions in their order.
        loss: bool [T], whether the position is a training target.
        borders: int32 [S], the position where each (non-empty) segment starts.
    """

    text: np.ndarray
    patches: np.ndarray
    loss: np.ndarray
    borders: np.ndarray

    @property
    def audio_positions(self) -> int:
        """P, the number of patches."""
        return len(self.patches)


def pad_frames(codes: np.ndarray, group_size: int) -> np.ndarray:
    """Codes [F, C] -> [ceil(F / group_size) * group_size, C] by repeating the last frame."""
    missing = -len(codes) % group_size
    return np.concatenate([codes, np.repeat(codes[-1:], missing, axis=0)]) if missing else codes


def to_patches(codes: np.ndarray, layout: Layout) -> np.ndarray:
    """Codes int [F, C] -> int32 [ceil(F / G), G, C].

    Raises:
        ValueError: wrong rank or number of codebooks, or codes outside 0 .. empty id.
    """
    codes = np.asarray(codes, np.int32)
    if codes.ndim != 2 or codes.shape[1] != layout.channels:
        raise ValueError(f"codes have shape {codes.shape}; expected [frames, {layout.channels}]")
    if codes.size and (codes.min() < 0 or (codes > np.asarray(layout.empty_codes, np.int32)).any()):
        raise ValueError(f"codes outside 0..{layout.empty_codes} (range {codes.min()}..{codes.max()})")
    return pad_frames(codes, layout.group_size).reshape(-1, layout.group_size, layout.channels)


def _ids(text: str | Sequence[int], encode: Encode) -> list[int]:
    return list(encode(text)) if isinstance(text, str) else [int(i) for i in text]


def _streamed_ids(text_ids: list[int], patches: int, layout: Layout) -> list[int]:
    """Text row of a streamed answer.

    ``<|eot|>`` belongs to the last text block, which may therefore be one token longer than the others.
    """
    size = layout.stream_text
    blocks = [text_ids[i : i + size] for i in range(0, len(text_ids), size)] or [[]]
    blocks[-1] = [*blocks[-1], layout.special.eot]
    row = [layout.special.sostm]
    for block in blocks:
        here = min(layout.stream_patches, patches)
        row += block + [layout.special.empty] * here
        patches -= here
    return row + [layout.special.empty] * patches + [layout.special.eostm]


def _render_one(segment: Segment, encode: Encode, layout: Layout) -> tuple[list[int], np.ndarray]:
    special = layout.special
    if isinstance(segment, TextSegment):
        return _ids(segment.text, encode), np.zeros((0, layout.group_size, layout.channels), np.int32)
    patches = to_patches(segment.codes, layout)
    if isinstance(segment, StreamedSegment):
        return _streamed_ids(_ids(segment.text, encode), len(patches), layout), patches
    row = [special.empty] * len(patches)
    return ([special.sosp, *row, special.eosp] if segment.delimited else row), patches


def render(segments: Sequence[Segment], encode: Encode, layout: Layout) -> Sequenced:
    """Segments -> arrays. ``encode`` maps a string to token ids and knows the special tokens by their spelling.

    Raises:
        ValueError: codes of a wrong shape or range, or a text that spells ``<|empty|>`` (it would be read as audio).
    """
    rows: list[int] = []
    loss: list[bool] = []
    borders: list[int] = []
    patches: list[np.ndarray] = [np.zeros((0, layout.group_size, layout.channels), np.int32)]
    for segment in segments:
        ids, audio = _render_one(segment, encode, layout)
        if ids.count(layout.special.empty) != len(audio):
            raise ValueError("a text segment holds <|empty|>, which marks audio positions; remove it from the text")
        if ids:
            borders.append(len(rows))
        rows += ids
        loss += [segment.loss] * len(ids)
        patches.append(audio)
    return Sequenced(
        text=np.asarray(rows, np.int32),
        patches=np.concatenate(patches),
        loss=np.asarray(loss, bool),
        borders=np.asarray(borders, np.int32),
    )


def empty_audio(shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """int32 [*shape, G, C] filled with the empty ids."""
    fill = np.asarray(layout.empty_codes, np.int32)
    return np.broadcast_to(fill, (*shape, layout.group_size, layout.channels)).copy()


def expand_audio(text: np.ndarray, patches: np.ndarray, layout: Layout) -> np.ndarray:
    """Text ids [T] and patches [P, G, C] -> audio int32 [T, G, C], P being the number of ``<|empty|>`` in ``text``."""
    audio = empty_audio(text.shape, layout)
    audio[text == layout.special.empty] = patches
    return audio


def arrays(segments: Sequence[Segment], encode: Encode, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments -> (text int32 [T], audio int32 [T, G, C], loss bool [T])."""
    out = render(segments, encode, layout)
    return out.text, expand_audio(out.text, out.patches, layout), out.loss


def to_grid(text: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """(text [T], audio [T, G, C]) -> exchange grid int32 [1 + C, T * G]."""
    positions, group, channels = audio.shape
    grid = np.full((1 + channels, positions, group), GRID_FILL, np.int32)
    grid[0, :, 0] = text
    grid[1:] = np.moveaxis(audio, -1, 0)
    return grid.reshape(1 + channels, positions * group)


def from_grid(grid: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Exchange grid [1 + C, T * G] -> (text int32 [T], audio int32 [T, G, C]).

    Only the first text slot of a position counts.

    Raises:
        ValueError: a width that is no multiple of ``group_size``.
    """
    rows, width = grid.shape
    if width % group_size:
        raise ValueError(f"grid width {width} is no multiple of the group size {group_size}")
    cells = np.asarray(grid, np.int32).reshape(rows, width // group_size, group_size)
    return cells[0, :, 0].copy(), np.moveaxis(cells[1:], 0, -1).copy()


def flatten_grid(grid: np.ndarray) -> np.ndarray:
    """Grid [1 + C, L] -> [1, L * (1 + C)], time major: the flat order of the released code."""
    return np.ascontiguousarray(grid.T).reshape(1, -1)


def label_grid(text: np.ndarray, audio: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Training labels as a grid int32 [1 + C, T * G]: the input grid, with -100 in all rows where ``loss`` is false."""
    keep = np.repeat(np.asarray(loss, bool), audio.shape[1])
    return np.where(keep[None, :], to_grid(text, audio), GRID_FILL).astype(np.int32)
