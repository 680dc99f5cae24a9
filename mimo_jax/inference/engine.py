"""Generation: many requests in one batch, many positions per dispatch.

A batch lives in a `State` of fixed shape (rows, slots); slot = position of the row's own sequence, so rows of any
length sit side by side. Two compiled programs per shape, both loops on the device:

- `prefill` runs the prompts through the LLM in pieces of `chunk` positions, as many as the longest needs;
- `decode` makes one position per row and turn: the LLM on the newest position, the text token, and where that is
  `<|empty|>` the 11-step patch decoder. Whether a row speaks or writes, stops or must go on is decided row by row.

Rows and slots come in powers of two, and slots grow while a batch runs, so few programs are compiled and nobody
pays for positions that are never generated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mimo_jax.inference import sampling
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute, LayerCaches

Array = jax.Array
Params = dict[str, Any]

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


class Rows(NamedTuple):
    """What the requests of a batch ask for, as arrays over the rows."""

    min_length: Array  # positions, prompt included, before which stop tokens are forbidden
    max_length: Array
    stop_tokens: Array  # [B, K], -1 = none
    forced_end: Array  # -1 = none
    seed: Array
    text: sampling.Settings
    audio: sampling.Settings


class State(NamedTuple):
    """A batch in progress: B rows, S slots."""

    caches: LayerCaches
    text: Array  # [B, S] prompt, then answer
    audio: Array  # [B, S, G, C]
    length: Array  # [B] positions that exist
    done: Array  # [B]
    stopped: Array  # [B] done because of a stop token


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The traced functions; hashable, hence a static argument of `jit`."""

    config: MimoAudioConfig
    compute: Compute
    chunk: int

    def apply(self, params: Params, *args: Any, method: str) -> Any:
        return MimoAudio(self.config, self.compute).apply({"params": params}, *args, method=method)

    def embed(self, params: Params, text: Array, audio: Array) -> Array:
        """As the model's `embed`, but the patch encoder runs only if there is any audio."""
        has_audio = (text == self.config.empty_token_id).any()
        return jax.lax.cond(
            has_audio,
            lambda: self.apply(params, text, audio, method="embed"),
            lambda: self.apply(params, text, method="embed_text"),
        )

    def backbone(
        self, params: Params, text: Array, audio: Array, positions: Array, caches: LayerCaches
    ) -> tuple[Array, LayerCaches]:
        x = self.embed(params, text, audio)
        return transformer.decode(self.config.llm, self.compute, params["llm"], x, positions, caches)

    def prefill(self, params: Params, state: State) -> State:
        """Fills the caches from the prompts. The last position is left to `decode`, which needs its output."""
        rows = state.text.shape[0]

        def piece(carry: tuple[Array, LayerCaches]) -> tuple[Array, LayerCaches]:
            start, caches = carry
            text = jax.lax.dynamic_slice_in_dim(state.text, start, self.chunk, axis=1)
            audio = jax.lax.dynamic_slice_in_dim(state.audio, start, self.chunk, axis=1)
            positions = jnp.broadcast_to(start + jnp.arange(self.chunk), (rows, self.chunk))
            return start + self.chunk, self.backbone(params, text, audio, positions, caches)[1]

        last = jnp.where(state.done, 0, state.length - 1).max()
        _, caches = jax.lax.while_loop(lambda carry: carry[0] < last, piece, (jnp.int32(0), state.caches))
        return state._replace(caches=caches)

    def patch(self, params: Params, local_hidden: Array, chosen: sampling.Settings, bits: Array) -> Array:
        """The patch decoder's steps: local_hidden [B, D], bits [B, G, C] -> codes int32 [B, G, C]."""
        config = self.config
        batch, group, channels = bits.shape
        sizes, delay = config.speech_vocab_size, np.asarray(config.delay_pattern)
        empty = jnp.asarray(config.speech_zeroemb_idx, jnp.int32)

        def step(number: Array, carry: tuple[Array, Array, transformer.Cache], books: list[int]) -> Any:
            x, codes, cache = carry
            logits, cache = self.apply(params, x, number, cache, method="patch_step")
            frame = number - delay
            active = (frame >= 0) & (frame < group)
            now = jnp.broadcast_to(empty, (batch, channels))
            # Codebooks of one size are chosen together; those not active at this step are not worth a draw.
            for size in sorted({sizes[c] for c in books}):
                same = np.array([c for c in books if sizes[c] == size])
                forbidden = np.arange(size) == np.asarray(config.speech_zeroemb_idx)[same, None]
                settings = jax.tree.map(lambda a, n=len(same): jnp.tile(a, n), chosen)
                tokens = sampling.choose(
                    jnp.concatenate([logits[c] for c in same]),
                    jnp.repeat(forbidden, batch, axis=0),
                    settings._replace(do_sample=settings.do_sample & jnp.repeat(active[same], batch)),
                    bits[:, jnp.clip(frame[same], 0, group - 1), same].T.reshape(-1),
                )
                now = now.at[:, same].set(tokens.reshape(len(same), batch).T)
            here = (jnp.arange(group)[:, None] == frame) & active
            codes = jnp.where(here, now[:, None], codes)
            return self.apply(params, now, active, method="step_input_from_codes"), codes, cache

        cache = transformer.init_cache(config.patch_decoder, batch, config.patch_steps, self.compute.dtype)
        carry = (local_hidden, jnp.broadcast_to(empty, (batch, group, channels)), cache)
        for steps, books in self._patch_runs():
            carry = jax.lax.fori_loop(steps[0], steps[-1] + 1, partial(step, books=books), carry)
        return carry[1]

    def _patch_runs(self) -> list[tuple[list[int], list[int]]]:
        """Steps of a patch in runs that need the same sizes of codebooks, each with the codebooks it needs.

        A run is one loop: few to compile, and the large codebooks are not evaluated where only small ones are active.
        """
        config = self.config
        runs: list[tuple[list[int], list[int]]] = []
        previous: set[int] = set()
        for step in range(config.patch_steps):
            books = [c for c, delay in enumerate(config.delay_pattern) if 0 <= step - delay < config.group_size]
            sizes = {config.speech_vocab_size[c] for c in books}
            if step == 0 or sizes != previous:
                runs.append(([], []))
            runs[-1][0].append(step)
            runs[-1][1].extend(c for c in books if c not in runs[-1][1])
            previous = sizes
        return runs

    def step(self, params: Params, state: State, rows: Rows, stop_mask: Array) -> State:
        """One more position in every row that is not done."""
        config = self.config
        batch, slots = state.text.shape
        index = jnp.arange(batch)
        newest = state.length - 1
        hidden, caches = self.backbone(
            params,
            state.text[index, newest][:, None],
            state.audio[index, newest][:, None],
            newest[:, None],
            state.caches,
        )
        hidden = hidden[:, 0]
        group, channels = config.group_size, config.audio_channels
        bits = sampling.choice_bits(rows.seed, state.length, 1 + group * channels)

        scores = self.apply(params, hidden, method="text_logits")
        forbidden = stop_mask & (state.length < rows.min_length)[:, None]
        token = sampling.choose(scores, forbidden, rows.text, bits[:, 0])
        is_last = state.length + 1 >= rows.max_length
        is_stop = (token[:, None] == rows.stop_tokens).any(-1)
        token = jnp.where(is_last & ~is_stop & (rows.forced_end >= 0), rows.forced_end, token)

        speaks = (token == config.empty_token_id) & ~state.done
        empty = jnp.broadcast_to(jnp.asarray(config.speech_zeroemb_idx, jnp.int32), (batch, group, channels))

        def speak() -> Array:
            local_hidden = self.apply(params, hidden, method="local_hidden")
            codes = self.patch(params, local_hidden, rows.audio, bits[:, 1:].reshape(batch, group, channels))
            return jnp.where(speaks[:, None, None], codes, empty)

        codes = jax.lax.cond(speaks.any(), speak, lambda: empty)
        slot = jnp.where(state.done, slots, state.length)  # beyond the end: dropped
        return State(
            caches=caches,
            text=state.text.at[index, slot].set(token, mode="drop"),
            audio=state.audio.at[index, slot].set(codes, mode="drop"),
            length=jnp.where(state.done, state.length, state.length + 1),
            done=state.done | is_stop | is_last,
            stopped=state.stopped | (is_stop & ~state.done),
        )

    def decode(self, params: Params, state: State, rows: Rows, steps: Array) -> State:
        """At most `steps` more positions; returns earlier when all rows are done or one needs more slots."""
        slots = state.text.shape[1]
        vocabulary = jnp.arange(self.config.vocab_size)
        stop_mask = (vocabulary == rows.stop_tokens[:, :, None]).any(1)

        def going(carry: tuple[Array, State]) -> Array:
            count, state = carry
            return (count < steps) & ~state.done.all() & (jnp.where(state.done, 0, state.length).max() < slots)

        def turn(carry: tuple[Array, State]) -> tuple[Array, State]:
            return carry[0] + 1, self.step(params, carry[1], rows, stop_mask)

        return jax.lax.while_loop(going, turn, (jnp.int32(0), state))[1]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(programs: _Programs, params: Params, state: State) -> State:
    return programs.prefill(params, state)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(programs: _Programs, params: Params, state: State, rows: Rows, steps: Array) -> State:
    return programs.decode(params, state, rows, steps)


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
        self._programs = _Programs(config, compute, chunk)
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
        state = _prefill(self._programs, self._params, state)
        while True:
            state = _decode(self._programs, self._params, state, rows, np.int32(self.max_positions))
            if bool(state.done.all()):
                break
            state = _more_slots(state)
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


def _more_slots(state: State) -> State:
    """`state` with twice the slots."""

    def double(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return state._replace(
        caches=[(double(keys, 2), double(values, 2)) for keys, values in state.caches],
        text=double(state.text, 1),
        audio=double(state.audio, 1),
    )
