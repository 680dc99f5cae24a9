"""Generation: many requests in one batch, many positions per dispatch.

A batch lives in a `State` of fixed shape (rows, slots); slot = position of the row's own sequence, so rows of any
length sit side by side. The two compiled programs of a shape are in `programs`.

Rows and slots come in powers of two, and slots grow while a batch runs, so few programs are compiled and nobody
pays for positions that are never generated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mimo_jax.inference import programs, sampling
from mimo_jax.inference.programs import Params, Programs, Rows, State
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute

MAX_POSITIONS = 8192
SMALLEST_SLOTS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One sequence to continue.

    Attributes:
      text: int [n] text ids of the prompt, `<|empty|>` at audio positions; n >= 1.
      audio: int [n, G, C] codes of the prompt (not read at text positions).
      text_sampling, audio_sampling: how text tokens and codes are chosen.
      stop_tokens: text ids that end the answer (the stop token is part of the result).
      min_new: positions that come before a stop token may; stop tokens are forbidden till then.
      max_new: longest answer in positions; the engine's `max_positions` limits prompt and answer together.
      forced_end: text id that takes the last allowed position of an answer that did not stop by itself.
      seed: of the random choices. The same request with the same seed gives the same answer in any batch.
    """

    text: np.ndarray
    audio: np.ndarray
    text_sampling: Sampling = GREEDY
    audio_sampling: Sampling = GREEDY
    stop_tokens: tuple[int, ...] = ()
    min_new: int = 0
    max_new: int = MAX_POSITIONS
    forced_end: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """An answer, without its prompt.

    Attributes:
      text: int32 [n] text ids, `<|empty|>` at audio positions.
      codes: int32 [patches, G, C] codes of the audio positions in their order.
      stop_reason: "stop" (a stop token, the last of `text`) or "length".
    """

    text: np.ndarray
    codes: np.ndarray
    stop_reason: Literal["stop", "length"]


def _power_of_two(at_least: int) -> int:
    return 1 << max(0, at_least - 1).bit_length()


class Engine:
    """Generates from one model.

    Args:
      config: shape of the model.
      params: its parameter tree (stacked layers, boxed or not).
      compute: dtypes; parameters are stored in `compute.param_dtype`, the cache in `compute.dtype`.
      max_batch: rows that run together; more requests run in several batches.
      max_positions: limit of prompt and answer together.
      chunk: positions of a prompt that are processed at a time (a power of two).
      room: slots for the answer that a batch starts with; they double when used up.
    """

    def __init__(
        self,
        config: MimoAudioConfig,
        params: Params,
        compute: Compute = Compute(),  # noqa: B008
        *,
        max_batch: int = 64,
        max_positions: int = MAX_POSITIONS,
        chunk: int = 32,
        room: int = 64,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_positions", max_positions), ("room", room)):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if chunk != _power_of_two(chunk) or chunk > SMALLEST_SLOTS:
            raise ValueError(f"chunk = {chunk}: must be a power of two, at most {SMALLEST_SLOTS}")
        self.config = config
        self.max_batch, self.max_positions, self.room = max_batch, max_positions, room
        self._programs = Programs(config, compute, chunk)
        params = jax.tree.map(lambda x: jnp.asarray(x, compute.param_dtype), nn.unbox(params))
        self._params = {**params, "llm": transformer.unstack_layers(params["llm"])}

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that cannot run, saying why."""
        config, length = self.config, len(request.text)
        if length < 1:
            raise ValueError("empty prompt: at least one position is needed")
        if length >= self.max_positions:
            raise ValueError(f"prompt of {length} positions; the limit for prompt and answer is {self.max_positions}")
        expected = (length, config.group_size, config.audio_channels)
        if request.audio.shape != expected:
            raise ValueError(f"audio of the prompt has shape {request.audio.shape}; expected {expected}")
        if request.text.min() < 0 or request.text.max() >= config.vocab_size:
            raise ValueError(
                f"text ids of the prompt reach from {request.text.min()} to {request.text.max()}; "
                f"the vocabulary is 0..{config.vocab_size - 1}"
            )
        if request.max_new < 1 or request.min_new < 0:
            raise ValueError(f"max_new = {request.max_new}, min_new = {request.min_new}: at least 1 and 0")

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Answers to `requests`, in their order. Raises ValueError for a request that cannot run."""
        for number, request in enumerate(requests):
            try:
                self.check(request)
            except ValueError as error:
                raise ValueError(f"request {number}: {error}") from None
        # Similar lengths together: a batch runs as long as its longest row.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_new, len(requests[i].text)))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self.max_batch):
            batch = order[start : start + self.max_batch]
            results.update(zip(batch, self._run([requests[i] for i in batch]), strict=True))
        return [results[i] for i in range(len(requests))]

    def _run(self, requests: Sequence[Request]) -> list[Result]:
        rows = self._rows(requests)
        longest = max(len(r.text) for r in requests)
        state = self._state(requests, slots=longest + min(self.room, max(r.max_new for r in requests)))
        state = programs.prefill(self._programs, self._params, state)
        while True:
            state = programs.decode(self._programs, self._params, state, rows, np.int32(self.max_positions))
            if bool(state.done.all()):
                break
            state = programs.more_slots(state)
        text, audio, length, stopped = jax.device_get((state.text, state.audio, state.length, state.stopped))
        results = []
        for i, request in enumerate(requests):
            answer = slice(len(request.text), int(length[i]))
            codes = audio[i, answer][text[i, answer] == self.config.empty_token_id]
            results.append(Result(text[i, answer].copy(), codes, "stop" if stopped[i] else "length"))
        return results

    def _rows(self, requests: Sequence[Request]) -> Rows:
        count = _power_of_two(len(requests))
        requests = [*requests, *[requests[-1]] * (count - len(requests))]
        length = np.array([len(r.text) for r in requests], np.int32)
        # The width is a shape of the compiled program: rounded up, so that tasks share it.
        stop = np.full((count, -(-max(len(r.stop_tokens) for r in requests) // 4) * 4 or 4), -1, np.int32)
        for i, request in enumerate(requests):
            stop[i, : len(request.stop_tokens)] = request.stop_tokens
        limit = self.max_positions
        min_new = np.array([min(r.min_new, limit) for r in requests], np.int32)
        max_new = np.array([min(r.max_new, limit) for r in requests], np.int32)
        forced_end = np.array([-1 if r.forced_end is None else r.forced_end for r in requests], np.int32)
        return Rows(
            min_length=jnp.asarray(length + min_new),
            max_length=jnp.asarray(np.minimum(length + max_new, limit)),
            stop_tokens=jnp.asarray(stop),
            forced_end=jnp.asarray(forced_end),
            seed=jnp.asarray(np.array([r.seed % 2**32 for r in requests], np.uint32)),
            text=sampling.settings([r.text_sampling for r in requests]),
            audio=sampling.settings([r.audio_sampling for r in requests]),
        )

    def _state(self, requests: Sequence[Request], slots: int) -> State:
        config, compute = self.config, self._programs.compute
        rows, slots = _power_of_two(len(requests)), max(SMALLEST_SLOTS, _power_of_two(slots))
        text = np.zeros((rows, slots), np.int32)
        audio = np.empty((rows, slots, config.group_size, config.audio_channels), np.int32)
        audio[:] = config.speech_zeroemb_idx
        length = np.ones(rows, np.int32)
        for i, request in enumerate(requests):
            length[i] = len(request.text)
            text[i, : length[i]] = request.text
            is_audio = np.flatnonzero(request.text == config.empty_token_id)
            audio[i, is_audio] = request.audio[is_audio]
        llm = config.llm
        shape = (rows, llm.num_kv_heads, slots, llm.head_dim)
        caches = [(jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype)) for _ in range(llm.num_layers)]
        unused = np.arange(rows) >= len(requests)
        return State(caches, *map(jnp.asarray, (text, audio, length, unused, np.zeros(rows, bool))))
