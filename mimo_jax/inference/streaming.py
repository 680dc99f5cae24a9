"""Codes to sound while the codes still come: one stream per object, in two ways.

    decoder = StreamingDecoder(config, variables)        # or OverlapDecoder(config, variables)
    for codes in patches:                                # int [frames, codebooks], any number of frames
        play(decoder(codes))                             # float32 [samples], what can be told by now
    play(decoder(last=True))                             # the rest; the object is ready for the next stream

`StreamingDecoder` computes every frame once: keys and values of the causal decoder are kept, and the vocoder waits for
the mel frames that it looks ahead to. It gives what decoding the whole gives, with one exception that no streaming
decoder can avoid: the two GroupNorms of the decoder normalise with statistics of the whole sequence, its future
included. Given these statistics (`statistics=offline_statistics(...)`, of this utterance) the result is that of offline
decoding up to rounding. Given others, such as those of the voice prompt, or those of the frames so far (the default),
it differs as much as the statistics do; the latter settle within the first seconds.

`OverlapDecoder` is the released code's way: each part is decoded together with some frames before it, as if these were
the whole, and what the last frames give is held back until their successors are known. Cheap in memory, but every part
has GroupNorm statistics of its own and forgets what was before its window.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.inference.codec import DECODE_PIECE
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig
from mimo_jax.models.tokenizer.decoder import DecoderStream, GroupStatistics
from mimo_jax.models.transformer import Compute

Array = jax.Array
Variables = dict[str, Any]


def offline_statistics(
    config: TokenizerConfig, variables: Variables, codes: np.ndarray, compute: Compute = Compute()
) -> GroupStatistics:
    """What the decoder's GroupNorms see when codes [F, n] (at most 1500 frames) are decoded as a whole."""
    codes = _checked(config, codes)
    if not 1 <= len(codes) <= DECODE_PIECE:
        raise ValueError(f"{len(codes)} frames: give 1 to {DECODE_PIECE}: longer codes are not decoded as a whole")
    batch, lengths = _padded(codes, _rounded(len(codes)))[None], np.array([len(codes)], np.int32)
    return _statistics(MimoAudioTokenizer(config, compute), variables, batch, lengths)


@functools.partial(jax.jit, static_argnums=0)
def _statistics(model: MimoAudioTokenizer, variables: Variables, codes: Array, lengths: Array) -> GroupStatistics:
    def run(module: MimoAudioTokenizer) -> tuple[Array, Array]:
        return module.decoder(module.quantizer.decode(codes, lengths), lengths)

    _, state = model.apply(variables, method=run, mutable="intermediates")
    seen = state["intermediates"]["decoder"]
    second = seen["dconv2"]["statistics"][0]
    first = seen["dconv1"]["statistics"][0] if "dconv1" in seen else second
    return GroupStatistics(*(jnp.stack(pair, axis=1) for pair in zip(first, second, strict=True)))


class StreamingDecoder:
    """Decodes a stream of codes; see the top of this file.

    Streams longer than 1500 frames (60 s) are cut there, as offline decoding does.

    Args:
      config: the tokenizer; its decoder must be causal.
      variables: `params`, `codebooks` and `constants` of the tokenizer.
      statistics: of the GroupNorms; None = those of the frames so far.
      chunk: code frames computed at a time; fewer are padded to it, more are cut into parts of it.
      lookahead: mel frames that the vocoder waits for. None = all that it can see: layers x right window (160 mel
        frames or 1.6 s with the published model) and what an inverse STFT overlaps. Less answers sooner, and is no
        longer exact.
      history: mel frames before a part that the vocoder computes again; None = all that it can see.
      compute: dtypes and attention.

    Raises:
      ValueError: a decoder that is not causal; a vocoder without window if lookahead or history is None; a chunk below
        1, a lookahead or history below 0.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        variables: Variables,
        *,
        statistics: GroupStatistics | None = None,
        chunk: int = 8,
        lookahead: int | None = None,
        history: int | None = None,
        compute: Compute = Compute(),
    ):
        if not config.decoder_causal:
            raise ValueError("decoder_causal is false: every frame depends on the whole; use OverlapDecoder")
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}: give at least one frame")
        if min(lookahead or 0, history or 0) < 0:
            raise ValueError(f"lookahead = {lookahead}, history = {history}: give 0 or more mel frames")
        self.config = config
        self._variables = jax.device_put(variables)
        self._programs = _Programs(
            MimoAudioTokenizer(config, compute),
            chunk,
            _reach(config, 0) if history is None else history,
            _reach(config, 1) if lookahead is None else lookahead,
        )
        self._statistics = statistics
        self._begin()

    @property
    def latency(self) -> int:
        """Samples between the newest code frame and what has been given back."""
        return self._programs.lookahead * self.config.hop_length

    def _begin(self) -> None:
        self._frames, self._books = 0, 0
        self._state: State | None = None

    def __call__(self, codes: np.ndarray | None = None, last: bool = False) -> np.ndarray:
        """Waveform float32 [samples] that the next codes [F, n] make certain; with `last`, all that is left.

        Raises:
          ValueError: codes that are no integers [F, n] within the codebooks.
        """
        parts: list[np.ndarray] = []
        new = _checked(self.config, codes, self._books) if codes is not None else None
        while new is not None and len(new):
            count = min(len(new), self._programs.chunk, DECODE_PIECE - self._frames)
            ended = self._frames + count == DECODE_PIECE or (last and count == len(new))
            parts.append(self._advance(new[:count], ended))
            new = new[count:]
        if last and self._state is not None:
            parts.append(self._advance(np.zeros((0, self._books), np.int32), True))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _advance(self, codes: np.ndarray, ended: bool) -> np.ndarray:
        programs = self._programs
        if self._state is None:
            self._state = programs.open(self._variables, DECODE_PIECE, self._statistics)
        batch, lengths = _padded(codes, programs.chunk)[None], np.array([len(codes)], np.int32)
        wave, span, self._state = _advance(programs, self._variables, self._state, batch, lengths, ended)
        start, stop = np.asarray(span)
        self._frames, self._books = self._frames + len(codes), codes.shape[1]
        if ended:
            self._begin()
        return np.asarray(wave[start:stop])


class State(NamedTuple):
    """A stream between two parts."""

    decoder: DecoderStream
    mel: Array  # [1, history + lookahead, n_mels], the newest mel frames, at the right
    known: Array  # mel frames so far
    given: Array  # mel frames whose samples were given back


class _Programs(NamedTuple):
    """Static part of the compiled functions."""

    model: MimoAudioTokenizer
    chunk: int
    history: int
    lookahead: int

    def open(self, variables: Variables, slots: int, statistics: GroupStatistics | None) -> State:
        statistics = jax.tree.map(jnp.copy, statistics)  # every part uses up the state that it is given
        decoder = self.model.apply(
            variables, 1, slots, statistics, method=lambda module, *args: module.decoder.open_stream(*args)
        )
        mel = jnp.zeros((1, self.history + self.lookahead, self.model.config.n_mels), self.model.compute.dtype)
        return State(decoder, mel, jnp.int32(0), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    programs: _Programs, variables: Variables, state: State, codes: Array, lengths: Array, ended: Array
) -> tuple[Array, Array, State]:
    """One part: (samples of the vocoder's window [S], the span of it that is new and certain [2], the next state)."""
    model, config = programs.model, programs.model.config

    def decode(module: MimoAudioTokenizer) -> tuple[Array, Array, DecoderStream]:
        return module.decoder.stream(module.quantizer.decode(codes, lengths), lengths, state.decoder)

    new, count, decoder = model.apply(variables, method=decode)
    size = state.mel.shape[1]
    kept = jnp.minimum(state.known, size)
    frames = jnp.concatenate([state.mel, new.astype(state.mel.dtype)], axis=1)
    mel = jax.lax.dynamic_slice_in_dim(frames, count[0], size, axis=1)
    # The vocoder's window: what is kept, then the new frames, at the left of a fixed shape.
    window = jnp.roll(frames, kept - size, axis=1)
    wave = model.apply(variables, window, kept + count, method="vocode")[0]
    first, known = state.known - kept, state.known + count[0]
    until = jnp.where(ended, known, jnp.maximum(state.given, known - programs.lookahead))
    span = (jnp.stack([state.given, until]) - first) * config.hop_length
    return wave, span, State(decoder, mel, known, until)


def _reach(config: TokenizerConfig, side: int) -> int:
    """Mel frames to one side (0 = left, 1 = right) that a sample of the vocoder depends on."""
    window = config.vocoder_attn_window_size[side]
    if window < 0:
        raise ValueError(
            f"vocoder_attn_window_size is {list(config.vocoder_attn_window_size)}: without a limit on both sides give "
            "history and lookahead (the result is then not exact)"
        )
    overlap = -(-(config.nfft - config.hop_length) // (2 * config.hop_length))  # of the inverse STFT
    return config.vocoder_num_layers * window + overlap


class OverlapDecoder:
    """Decodes a stream of codes in overlapping windows as the released code does; see the top of this file.

    Args:
      config: the tokenizer.
      variables: `params`, `codebooks` and `constants` of the tokenizer.
      left_overlap: newest frames that are kept for the next window, the `right_overlap` ones among them; None = all.
      right_overlap: newest frames whose sound is held back.
      compute: dtypes and attention.

    Raises:
      ValueError: left_overlap <= right_overlap (frames that were held back would be forgotten).
    """

    def __init__(
        self,
        config: TokenizerConfig,
        variables: Variables,
        *,
        left_overlap: int | None = 60,
        right_overlap: int = 10,
        compute: Compute = Compute(),
    ):
        if right_overlap < 0 or (left_overlap is not None and left_overlap <= right_overlap):
            raise ValueError(
                f"left_overlap = {left_overlap}, right_overlap = {right_overlap}: left_overlap counts the frames that "
                "are held back too, so it must be larger; right_overlap at least 0"
            )
        self.config = config
        self._variables = jax.device_put(variables)
        self._left, self._right = left_overlap, right_overlap
        self._model = MimoAudioTokenizer(config, compute)
        self._begin()

    @property
    def kept(self) -> np.ndarray:
        """Codes [F, n] of the frames kept for the next window."""
        return self._kept

    @property
    def processed(self) -> int:
        """How many of the kept frames have been given back as sound."""
        return self._processed

    def _begin(self) -> None:
        self._kept = np.zeros((0, 0), np.int32)
        self._processed = 0

    def __call__(self, codes: np.ndarray | None = None, last: bool = False) -> np.ndarray:
        """Waveform float32 [samples] after the next codes [F, n]; with `last`, nothing is held back.

        Raises:
          ValueError: codes that are no integers [F, n] within the codebooks.
        """
        window = self._kept
        if codes is not None:
            new = _checked(self.config, codes, window.shape[1])
            window = np.concatenate([window, new]) if len(window) else new
        until = len(window) - (0 if last else self._right)
        wave = np.zeros(0, np.float32)
        if until > self._processed:
            codes, length = _padded(window, _rounded(len(window)))[None], np.array([len(window)], np.int32)
            waves = _decode(self._model, self._variables, codes, length)
            unit = self.config.samples_per_frame
            wave = np.asarray(waves[0, self._processed * unit : until * unit])
        if last:
            self._begin()
        else:
            dropped = max(0, len(window) - self._left) if self._left is not None else 0
            self._kept, self._processed = window[dropped:], max(0, max(until, self._processed) - dropped)
        return wave


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: MimoAudioTokenizer, variables: Variables, codes: Array, lengths: Array) -> Array:
    return model.apply(variables, codes, lengths, method="decode")[0]


def _checked(config: TokenizerConfig, codes: np.ndarray, books: int = 0) -> np.ndarray:
    """int32 codes [F, n]; n is `books` if the stream has begun (0 = it has not)."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype} {codes.shape}: give integers [frames, codebooks]")
    if not 1 <= codes.shape[1] <= config.num_quantizers:
        raise ValueError(f"codes have {codes.shape[1]} codebooks: this tokenizer has 1..{config.num_quantizers}")
    if books and codes.shape[1] != books:
        raise ValueError(f"codes have {codes.shape[1]} codebooks, this stream has {books}")
    limits = np.array(config.codebook_sizes[: codes.shape[1]])
    if ((codes < 0) | (codes >= limits)).any():
        frame, book = np.argwhere((codes < 0) | (codes >= limits))[0]
        raise ValueError(f"frame {frame} of codebook {book + 1} is {codes[frame, book]}, not in 0..{limits[book] - 1}")
    return codes.astype(np.int32)


def _padded(codes: np.ndarray, size: int) -> np.ndarray:
    return np.pad(codes, ((0, size - len(codes)), (0, 0)))


def _rounded(length: int) -> int:
    """A few sizes for all lengths: each is a compilation."""
    return max(32, 2 ** (length - 1).bit_length())
