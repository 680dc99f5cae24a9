"""MiMo-Audio's language model: patch encoder, LLM, patch decoder."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.reference import ops
from tests.reference.ops import Array


class Forward(NamedTuple):
    """What one sequence of T positions gives."""

    embedded: Array  # [T, H]
    layers: list[Array]
    hidden: Array  # [T, H]
    text_logits: Array  # [T, V]
    local_hidden: Array  # [T, D]


class Patch(NamedTuple):
    """The steps of the patch decoder for one patch."""

    step_in: Array  # [S, D]
    step_hidden: Array  # [S, D]
    logits: list[Array]  # per channel [G, V_c]
    tokens: Array  # [G, C]
    margin: Array  # [G, C], best minus second best logit without the empty code


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("-")]


class LanguageModel:
    """The model of official tensors, a `config.json` and the id of `<|empty|>`."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Array], empty_id: int):
        self.config, self.tensors, self.empty_id = config, ops.double(tensors), empty_id
        self.delays = numbers(config["delay_pattern"])
        self.empty_codes = numbers(config["speech_zeroemb_idx"])
        self.group, self.channels = config["group_size"], config["audio_channels"]

    def stack(self, x: Array, name: str, heads: int, kv_heads: int, causal: bool) -> tuple[Array, list[Array]]:
        """A Qwen2 stack on x [T, D]: (output of the final norm, output of every layer)."""
        tensors, eps, theta = self.tensors, self.config["rms_norm_eps"], self.config["rope_theta"]
        window, outputs = (-1, 0 if causal else -1), []
        for n in range(ops.layers_of(tensors, name)):
            layer = f"{name}.layers.{n}"
            h = ops.rms_norm(x, tensors[f"{layer}.input_layernorm.weight"], eps)
            h = ops.self_attention(h, tensors, f"{layer}.self_attn", heads, kv_heads, theta, window)
            x = x + ops.linear(h, tensors, f"{layer}.self_attn.o_proj")
            h = ops.rms_norm(x, tensors[f"{layer}.post_attention_layernorm.weight"], eps)
            gate = ops.silu(ops.linear(h, tensors, f"{layer}.mlp.gate_proj"))
            x = x + ops.linear(gate * ops.linear(h, tensors, f"{layer}.mlp.up_proj"), tensors, f"{layer}.mlp.down_proj")
            outputs.append(x)
        return ops.rms_norm(x, tensors[f"{name}.norm.weight"], eps), outputs

    def frames(self, codes: Array) -> Array:
        """Codes of a patch [G, C] -> [G, D]: embeddings summed over channels, empty codes counting nothing."""
        total = np.zeros((len(codes), self.config["input_local_dim"]))
        for g, frame in enumerate(codes):
            for c, code in enumerate(frame):
                if code != self.empty_codes[c]:
                    total[g] += self.tensors[f"speech_embeddings.{c}.weight"][code]
        return total

    def encoded(self, frames: Array) -> Array:
        """Patch encoder on the frames [G, D] of one patch."""
        heads = self.config["local_attn_heads"]
        return self.stack(frames, "input_local_transformer", heads, heads, not self.config["input_full_attention"])[0]

    def embed(self, text: int, codes: Array) -> Array:
        """Input embedding [H] of one position."""
        if text != self.empty_id:
            return self.tensors["model.embed_tokens.weight"][text]
        return ops.linear(self.encoded(self.frames(codes)).reshape(-1), self.tensors, "speech_group_downcast")

    def forward(self, text: Array, audio: Array) -> Forward:
        """text [T], audio [T, G, C]."""
        config = self.config
        embedded = np.stack([self.embed(t, codes) for t, codes in zip(text, audio, strict=True)])
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        hidden, layers = self.stack(embedded, "model", heads, kv_heads, True)
        logits = ops.linear(hidden, self.tensors, "lm_head")
        return Forward(embedded, layers, hidden, logits, ops.linear(hidden, self.tensors, "hidden_states_downcast"))

    def patch(self, local_hidden: Array, targets: Array | None = None) -> Patch:
        """The patch driven by local_hidden [D]: forced to targets [G, C], or greedy.

        Channel c makes frame t - d_c at step t; the next step's input is the sum of the embeddings of what was made.
        """
        steps, heads = self.group + max(self.delays), self.config["local_attn_heads"]
        sizes = [len(self.tensors[f"local_transformer_lm_heads.{c}.weight"]) for c in range(self.channels)]
        logits = [np.zeros((self.group, size)) for size in sizes]
        tokens, margin = np.zeros((self.group, self.channels), int), np.zeros((self.group, self.channels))
        inputs = [np.asarray(local_hidden, np.float64)]
        for step in range(steps):
            hidden, _ = self.stack(np.stack(inputs), "local_transformer", heads, heads, True)
            total = np.zeros(self.config["input_local_dim"])
            for c, delay in enumerate(self.delays):
                frame = step - delay
                if 0 <= frame < self.group:
                    scores = ops.linear(hidden[-1], self.tensors, f"local_transformer_lm_heads.{c}")
                    logits[c][frame] = scores
                    scores = np.delete(scores, self.empty_codes[c])
                    best = int(scores.argmax())
                    margin[frame, c] = scores[best] - np.delete(scores, best).max(initial=-np.inf)
                    greedy = best + (best >= self.empty_codes[c])
                    tokens[frame, c] = greedy if targets is None else targets[frame, c]
                    total += self.tensors[f"speech_embeddings.{c}.weight"][tokens[frame, c]]
            if self.config["input_local_dim"] != self.config["local_dim"]:
                total = ops.linear(total, self.tensors, "speech_embeddings_to_local")
            inputs.append(total)
        return Patch(np.stack(inputs[:steps]), hidden, logits, tokens, margin)

    def generate(self, text: Array, audio: Array, count: int) -> tuple[Array, Array]:
        """Greedy: the next `count` text ids [count] and patches [count, G, C] (empty codes at text positions)."""
        text, audio = list(text), list(audio)
        for _ in range(count):
            last = self.forward(np.array(text), np.stack(audio))
            text.append(int(last.text_logits[-1].argmax()))
            codes = np.tile(self.empty_codes, (self.group, 1))
            audio.append(self.patch(last.local_hidden[-1]).tokens if text[-1] == self.empty_id else codes)
        return np.array(text[-count:]), np.stack(audio[-count:])
