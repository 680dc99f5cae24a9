"""What runs on the device when a batch is generated: its state, and two compiled programs per shape, both loops.

- `prefill` runs the prompts through the LLM in pieces of `chunk` positions, as many as the longest needs;
- `decode` makes one position per row and turn: the LLM on the newest position, the text token, and where that is
  `<|empty|>` the 11-step patch decoder. Whether a row speaks or writes, stops or must go on is decided row by row.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.inference import sampling
from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute, LayerCaches

Array = jax.Array
Params = dict[str, Any]


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
class Programs:
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

    def speak(self, params: Params, hidden: Array, speaks: Array, chosen: sampling.Settings, bits: Array) -> Array:
        """Patches [B, G, C] of the rows that speak [B] bool, from hidden [B, D] and bits [B, G * C]; else empty."""
        config, batch = self.config, len(speaks)
        shape = (batch, config.group_size, config.audio_channels)
        empty = jnp.broadcast_to(jnp.asarray(config.speech_zeroemb_idx, jnp.int32), shape)

        def patches() -> Array:
            local_hidden = self.apply(params, hidden, method="local_hidden")
            return jnp.where(
                speaks[:, None, None], self.patch(params, local_hidden, chosen, bits.reshape(shape)), empty
            )

        return jax.lax.cond(speaks.any(), patches, lambda: empty)

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
        bits = sampling.choice_bits(rows.seed, state.length, 1 + config.group_size * config.audio_channels)

        scores = self.apply(params, hidden, method="text_logits")
        forbidden = stop_mask & (state.length < rows.min_length)[:, None]
        token = sampling.choose(scores, forbidden, rows.text, bits[:, 0])
        is_last = state.length + 1 >= rows.max_length
        is_stop = (token[:, None] == rows.stop_tokens).any(-1)
        token = jnp.where(is_last & ~is_stop & (rows.forced_end >= 0), rows.forced_end, token)

        speaks = (token == config.empty_token_id) & ~state.done
        codes = self.speak(params, hidden, speaks, rows.audio, bits[:, 1:])
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
def prefill(programs: Programs, params: Params, state: State) -> State:
    """`Programs.prefill`, compiled; the state given is used up."""
    return programs.prefill(params, state)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(programs: Programs, params: Params, state: State, rows: Rows, steps: Array) -> State:
    """`Programs.decode`, compiled; the state given is used up."""
    return programs.decode(params, state, rows, steps)


def more_slots(state: State) -> State:
    """`state` with twice the slots."""

    def double(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return state._replace(
        caches=[(double(keys, 2), double(values, 2)) for keys, values in state.caches],
        text=double(state.text, 1),
        audio=double(state.audio, 1),
    )
