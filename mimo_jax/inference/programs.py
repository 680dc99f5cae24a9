"""What runs on the device while a batch is generated: its state, and a compiled program per shape for each thing to do.

- `prefill` runs prompts through the LLM in pieces of `chunk` positions, into caches of their own;
- `insert` puts them into rows of the batch that are free, whatever the other rows are doing;
- `decode` makes one position per row and turn: the LLM on the newest position, the text token, and where that is
  `<|empty|>` the 11-step patch decoder. Whether a row speaks or writes, stops or must go on is decided row by row.
  Many positions per call: the host hears of them all at once;
- `regroup` moves the batch to another number of rows or slots.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mimo_jax.inference import placement, quantization, sampling
from mimo_jax.inference.requests import MAX_STOP_TOKENS
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


class Prompts(NamedTuple):
    """Prompts on their way into the caches: B rows, S slots."""

    caches: LayerCaches
    text: Array  # [B, S]
    audio: Array  # [B, S, G, C]
    length: Array  # [B]
    start: Array  # positions that are in the caches


class State(NamedTuple):
    """A batch in progress: B rows, S slots. Rows that nobody uses are done."""

    caches: LayerCaches
    text: Array  # [B, S] prompt, then answer
    audio: Array  # [B, S, G, C]
    length: Array  # [B] positions that exist
    done: Array  # [B]
    stopped: Array  # [B] done because of a stop token
    rows: Rows


class News(NamedTuple):
    """What `decode` made, for the host."""

    text: Array  # [B, N] from the first new position on; only as many are meant as the row grew by
    codes: Array  # [B, N, G, C]
    length: Array  # [B]
    done: Array  # [B]
    stopped: Array  # [B]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The traced functions; hashable, hence a static argument of `jit`."""

    config: MimoAudioConfig
    compute: Compute
    chunk: int
    mesh: Mesh | None = None
    int8: bool = False

    def apply(self, params: Params, *args: Any, method: str) -> Any:
        return MimoAudio(self.config, self.compute).apply({"params": params}, *args, method=method)

    def embed(self, params: Params, text: Array, audio: Array) -> Array:
        """As the model's `embed`, but the patch encoder runs only if there is any audio."""

        def patches() -> Array:
            x = self.apply(params, audio.reshape(-1, *audio.shape[2:]), method="patch_encoder_input")
            index = jnp.arange(x.shape[1])[None, :]
            frames, _ = transformer.decode(
                self.config.patch_encoder, self.compute, params["patch_encoder"], x, index, None
            )
            return self.apply(
                params, text, self.apply(params, frames, method="project_patches"), method="embed_encoded"
            )

        has_audio = (text == self.config.empty_token_id).any()
        return jax.lax.cond(has_audio, patches, lambda: self.apply(params, text, method="embed_text"))

    def backbone(
        self, params: Params, text: Array, audio: Array, positions: Array, caches: LayerCaches
    ) -> tuple[Array, LayerCaches]:
        x = self.embed(params, text, audio)
        unpack = {"unpack": partial(quantization.whole, dtype=self.compute.dtype)} if self.int8 else {}
        hidden, caches = transformer.decode(
            self.config.llm, self.compute, params["llm"], x, positions, caches, **unpack
        )
        return hidden, placement.constrained(caches, self.mesh)

    def empty_caches(self, rows: int, slots: int) -> LayerCaches:
        """Caches that hold nothing yet."""
        llm = self.config.llm
        device = placement.cache_sharding(self.mesh, rows, llm.num_kv_heads)
        return transformer.empty_caches(llm, rows, slots, self.compute.dtype, device)

    def empty_state(self, rows: int, slots: int) -> State:
        """A batch that nobody uses yet."""
        config = self.config
        chosen = sampling.settings([sampling.GREEDY] * rows)
        return State(
            caches=self.empty_caches(rows, slots),
            text=jnp.zeros((rows, slots), jnp.int32),
            audio=jnp.zeros((rows, slots, config.group_size, config.audio_channels), jnp.int32),
            length=jnp.ones(rows, jnp.int32),
            done=jnp.ones(rows, bool),
            stopped=jnp.zeros(rows, bool),
            rows=Rows(
                min_length=jnp.zeros(rows, jnp.int32),
                max_length=jnp.zeros(rows, jnp.int32),
                stop_tokens=jnp.full((rows, MAX_STOP_TOKENS), -1, jnp.int32),
                forced_end=jnp.full(rows, -1, jnp.int32),
                seed=jnp.zeros(rows, jnp.uint32),
                text=chosen,
                audio=jax.tree.map(jnp.copy, chosen),  # buffers are given away one by one
            ),
        )

    def prefill(self, params: Params, prompts: Prompts, pieces: Array) -> Prompts:
        """Fills the caches, at most `pieces` more. The last position is left to `decode`, which needs its output."""
        rows = prompts.text.shape[0]

        def piece(carry: tuple[Array, Array, LayerCaches]) -> tuple[Array, Array, LayerCaches]:
            count, start, caches = carry
            text = jax.lax.dynamic_slice_in_dim(prompts.text, start, self.chunk, axis=1)
            audio = jax.lax.dynamic_slice_in_dim(prompts.audio, start, self.chunk, axis=1)
            positions = jnp.broadcast_to(start + jnp.arange(self.chunk), (rows, self.chunk))
            return count + 1, start + self.chunk, self.backbone(params, text, audio, positions, caches)[1]

        last = (prompts.length - 1).max()
        _, start, caches = jax.lax.while_loop(
            lambda carry: (carry[0] < pieces) & (carry[1] < last), piece, (jnp.int32(0), prompts.start, prompts.caches)
        )
        return prompts._replace(caches=caches, start=start)

    def insert(self, state: State, prompts: Prompts, rows: Rows, index: Array) -> State:
        """`state` with the prompts in its rows `index` (those beyond the end: nowhere)."""
        width = prompts.text.shape[1]

        def put(into: Array, new: Array) -> Array:
            return into.at[index].set(new, mode="drop")

        return State(
            caches=placement.constrained(
                jax.tree.map(
                    lambda into, new: into.at[index, :, :width].set(new, mode="drop"), state.caches, prompts.caches
                ),
                self.mesh,
            ),
            text=state.text.at[index, :width].set(prompts.text, mode="drop"),
            audio=state.audio.at[index, :width].set(prompts.audio, mode="drop"),
            length=put(state.length, prompts.length),
            done=put(state.done, jnp.zeros_like(index, bool)),
            stopped=put(state.stopped, jnp.zeros_like(index, bool)),
            rows=jax.tree.map(put, state.rows, rows),
        )

    def patch(self, params: Params, local_hidden: Array, chosen: sampling.Settings, bits: Array) -> Array:
        """The patch decoder's steps: local_hidden [B, D], bits [B, G, C] -> codes int32 [B, G, C]."""
        config = self.config
        batch, group, channels = bits.shape
        sizes, delay = config.speech_vocab_size, np.asarray(config.delay_pattern)
        empty = jnp.asarray(config.speech_zeroemb_idx, jnp.int32)

        def step(number: Array, carry: tuple[Array, Array, LayerCaches], books: list[int]) -> Any:
            x, codes, cache = carry
            positions = jnp.broadcast_to(number, (batch, 1))
            hidden, cache = transformer.decode(
                config.patch_decoder, self.compute, params["patch_decoder"], x[:, None], positions, cache
            )
            logits = self.apply(params, hidden[:, 0], method="code_logits")
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

        cache = transformer.empty_caches(config.patch_decoder, batch, config.patch_steps, self.compute.dtype)
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

    def step(self, params: Params, state: State, stop_mask: Array) -> State:
        """One more position in every row that is not done."""
        config, rows = self.config, state.rows
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

        if self.int8:
            params = {**params, "lm_head": quantization.whole(params["lm_head"], hidden, self.compute.dtype)}
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
            rows=rows,
        )

    def decode(
        self, params: Params, state: State, width: int, most: Array, until_free: Array, until_patches: Array
    ) -> tuple[State, News]:
        """At most `most` more positions, and no more than `width`, for which the news have room.

        Returns earlier when all rows are done or one needs more slots; where `until_free` says so, when a row has
        become free; and when a row has made as many patches as `until_patches` [B] says, if not 0.
        """
        batch, slots = state.text.shape
        index = jnp.arange(batch)
        stops = state.rows.stop_tokens
        stop_mask = jnp.zeros((batch, self.config.vocab_size), bool)
        stop_mask = stop_mask.at[index[:, None], jnp.where(stops < 0, self.config.vocab_size, stops)].set(
            True, mode="drop"
        )
        before = state

        def going(carry: tuple[Array, Array, State]) -> Array:
            count, patches, state = carry
            room = jnp.where(state.done, 0, state.length).max() < slots
            freed = until_free & (state.done & ~before.done).any()
            heard = ((patches == until_patches) & (until_patches > 0)).any()
            return (count < jnp.minimum(most, width)) & ~state.done.all() & room & ~freed & ~heard

        def turn(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
            count, patches, state = carry
            after = self.step(params, state, stop_mask)
            speaks = after.text[index, after.length - 1] == self.config.empty_token_id
            return count + 1, patches + (speaks & (after.length > state.length)), after

        state = jax.lax.while_loop(going, turn, (jnp.int32(0), jnp.zeros(batch, jnp.int32), state))[2]
        new = jnp.clip(before.length[:, None] + jnp.arange(width), 0, slots - 1)
        news = News(
            state.text[index[:, None], new], state.audio[index[:, None], new], state.length, state.done, state.stopped
        )
        return state, news


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(programs: Programs, params: Params, prompts: Prompts, pieces: Array) -> Prompts:
    """`Programs.prefill`, compiled; the prompts given are used up."""
    return programs.prefill(params, prompts, pieces)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def insert(programs: Programs, state: State, prompts: Prompts, rows: Rows, index: Array) -> State:
    """`Programs.insert`, compiled; the state given is used up."""
    return programs.insert(state, prompts, rows, index)


@partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def decode(
    programs: Programs,
    params: Params,
    state: State,
    width: int,
    most: Array,
    until_free: Array,
    until_patches: Array,
) -> tuple[State, News]:
    """`Programs.decode`, compiled; the state given is used up."""
    return programs.decode(params, state, width, most, until_free, until_patches)


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_state(programs: Programs, rows: int, slots: int) -> State:
    """`Programs.empty_state`, compiled."""
    return programs.empty_state(rows, slots)


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_caches(programs: Programs, rows: int, slots: int) -> LayerCaches:
    """`Programs.empty_caches`, compiled."""
    return programs.empty_caches(rows, slots)


@partial(jax.jit, static_argnums=(0, 3))
def regroup(programs: Programs, state: State, index: Array, slots: int) -> State:
    """The rows `index` of `state` (those beyond the end: unused rows) with so many slots."""

    def resized(x: Array, axis: int) -> Array:
        x = jax.lax.slice_in_dim(x, 0, min(slots, x.shape[axis]), axis=axis)
        return jnp.pad(x, [(0, slots - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    sized = state._replace(
        caches=jax.tree.map(lambda x: resized(x, 2), state.caches),
        text=resized(state.text, 1),
        audio=resized(state.audio, 1),
    )
    unused = index >= len(state.done)
    taken: State = jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), sized)
    return taken._replace(done=taken.done | unused, caches=placement.constrained(taken.caches, programs.mesh))
