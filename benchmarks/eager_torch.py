"""MiMo-Audio's generation in PyTorch eager: what an engine is compared with, in tokens and in time.

    model = EagerMimoAudio.load("exported", config)
    text, codes = model.generate(prompt_text, prompt_audio, max_new=60, audio_sampling=Sampling(True, 0.9, None, 0.95))

The three Transformers are `transformers`' Qwen2 with its cache and PyTorch's fused attention; the loop around them is
one position after the other, as PyTorch code for this model is written, with the care of somebody who wants it fast:
rows in one batch, no attention masks where none is needed, codebooks of one size chosen together and only where they
are active, the patch decoder for rows that speak, top-p in one sort, draws without a check that waits for the device.

Parameters bear the names of the released checkpoints (`mimo_jax.interop.names`), so an exported folder loads strictly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.models.mimo_audio import MimoAudioConfig

# Whole sequences and single queries over a cache need no mask; given as a mapping, none is built.
NO_MASK: dict[str, None] = {"full_attention": None}


class EagerMimoAudio(nn.Module):
    """The model with its generation loop; parameters are random until loaded.

    Args:
      config: shape of the model.
    """

    empty: torch.Tensor  # [C] id of the empty code of each codebook
    steps: torch.Tensor  # [steps, 1, 1] positions in the patch decoder

    def __init__(self, config: MimoAudioConfig) -> None:
        super().__init__()
        self.config = config
        self.model = qwen2(
            config,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        width, heads = config.input_local_dim, config.local_attn_heads
        self.speech_embeddings = nn.ModuleList(
            nn.Embedding(size, width, padding_idx=empty)
            for size, empty in zip(config.speech_vocab_size, config.speech_zeroemb_idx, strict=True)
        )
        self.input_local_transformer = qwen2(
            config, width, 4 * width, config.input_local_layers, heads, heads, width // heads
        )
        for layer in self.input_local_transformer.layers:
            layer.self_attn.is_causal = not config.input_full_attention
        self.speech_group_downcast = nn.Linear(config.group_size * width, config.hidden_size, bias=False)
        self.hidden_states_downcast = nn.Linear(config.hidden_size, config.local_dim, bias=False)
        if width != config.local_dim:
            self.speech_embeddings_to_local = nn.Linear(width, config.local_dim, bias=False)
        width = config.local_dim
        self.local_transformer = qwen2(
            config, width, config.local_ffn_dim, config.local_layers, heads, heads, width // heads
        )
        self.local_transformer_lm_heads = nn.ModuleList(
            nn.Linear(width, size, bias=False) for size in config.speech_vocab_size
        )
        self.register_buffer("empty", torch.tensor(config.speech_zeroemb_idx), persistent=False)
        self.register_buffer("steps", torch.arange(config.patch_steps)[:, None, None], persistent=False)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        config: MimoAudioConfig,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> EagerMimoAudio:
        """From a folder in the released layout.

        Raises:
          RuntimeError: tensors of the folder that have no place here, or parameters without a tensor.
        """
        before = torch.get_default_dtype()
        # Not `.to(dtype)` afterwards: rotary frequencies stay float32.
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = cls(config)
        finally:
            torch.set_default_dtype(before)
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            tensors |= load_file(file, device=device)
        model.load_state_dict(tensors)
        return model.eval()

    # ----- model -----------------------------------------------------------------------------------------------------

    def embed(self, text: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Input embeddings [B, T, hidden_size] of text ids [B, T] and codes [B, T, G, C]."""
        x = self.model.embed_tokens(text)
        is_audio = text == self.config.empty_token_id
        if is_audio.any():
            codes = audio[is_audio]
            frames = self.embed_codes(codes, range(self.config.audio_channels), zero_empty=True)
            frames = run(self.input_local_transformer, frames)
            x[is_audio] = self.speech_group_downcast(frames.flatten(1))
        return x

    def embed_codes(self, codes: torch.Tensor, books: range | list[int], zero_empty: bool = False) -> torch.Tensor:
        """Sum over codebooks of the embeddings of codes [..., C] -> [..., input_local_dim]."""
        total = None
        for book in books:
            vectors = self.speech_embeddings[book](codes[..., book])
            if zero_empty:
                vectors = vectors * (codes[..., book, None] != self.config.speech_zeroemb_idx[book])
            total = vectors if total is None else total + vectors
        assert total is not None
        return total

    def patch(self, local_hidden: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """The patch decoder's steps: local_hidden [N, local_dim] -> codes [N, G, C]."""
        config, rows = self.config, len(local_hidden)
        codes = self.empty.repeat(rows, config.group_size, 1)
        cache, x = DynamicCache(config=self.local_transformer.config), local_hidden
        for step in range(config.patch_steps):
            hidden = run(self.local_transformer, x[:, None], self.steps[step], cache)[:, 0]
            active = [c for c, d in enumerate(config.delay_pattern) if 0 <= step - d < config.group_size]
            now = self.empty.repeat(rows, 1)
            for size in {config.speech_vocab_size[c]: None for c in active}:
                books = [c for c in active if config.speech_vocab_size[c] == size]
                logits = torch.stack([self.local_transformer_lm_heads[c](hidden) for c in books], 1)
                now[:, books] = self.choose(logits, self.empty[books, None], sampling)
            for c in active:
                codes[:, step - config.delay_pattern[c], c] = now[:, c]
            if step + 1 < config.patch_steps:
                x = self.embed_codes(now, active)
                if config.input_local_dim != config.local_dim:
                    x = self.speech_embeddings_to_local(x)
        return codes

    # ----- choice ----------------------------------------------------------------------------------------------------

    def choose(self, logits: torch.Tensor, forbidden: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
        """Tokens [...] of logits [..., V]; the id `forbidden` [..., 1] is removed after the filters.

        Drawn by an exponential race (the largest of weight / exponential variate).
        """
        logits = logits.float()
        if not sampling.do_sample:
            if forbidden is not None:
                logits = logits.scatter(-1, forbidden.expand(*logits.shape[:-1], 1), -torch.inf)
            return logits.argmax(-1)
        scores = logits if sampling.temperature is None else logits / sampling.temperature
        if sampling.top_k:
            kth = scores.topk(min(sampling.top_k, scores.shape[-1]), -1).values[..., -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        weights, ids = scores.softmax(-1), None
        if sampling.top_p and sampling.top_p <= 1:
            weights, ids = weights.sort(-1, descending=True)
            weights = weights * (weights.cumsum(-1) - weights < sampling.top_p)
        if forbidden is not None:
            weights = weights * (
                (torch.arange(weights.shape[-1], device=weights.device) if ids is None else ids) != forbidden
            )
        place = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
        return (place if ids is None else ids.gather(-1, place))[..., 0]

    # ----- generation ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def stream(
        self,
        text: np.ndarray,
        audio: np.ndarray,
        max_new: int,
        text_sampling: Sampling = GREEDY,
        audio_sampling: Sampling = GREEDY,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The answer's positions one by one: text ids [B] and codes [B, G, C], empty where a row does not speak.

        Args:
          text: int [B, T] prompts of one length, `<|empty|>` at audio positions.
          audio: int [B, T, G, C] their codes.
          max_new: positions to make; nothing ends an answer earlier.
          text_sampling, audio_sampling: how tokens and codes are chosen; draws come from PyTorch's global generator.
        """
        device, empty_id = self.empty.device, self.config.empty_token_id
        ids = torch.as_tensor(text, dtype=torch.long, device=device)
        codes = torch.as_tensor(audio, dtype=torch.long, device=device)
        cache = DynamicCache(config=self.model.config)
        positions = torch.arange(ids.shape[1] + max_new, device=device)[None]
        start = 0
        for _ in range(max_new):
            end = start + ids.shape[1]
            hidden = run(self.model, self.embed(ids, codes), positions[:, start:end], cache)[:, -1]
            token, start = self.choose(self.lm_head(hidden), None, text_sampling), end
            speaks = token == empty_id
            patch = self.empty.repeat(len(ids), self.config.group_size, 1)
            if speaks.any():
                patch[speaks] = self.patch(self.hidden_states_downcast(hidden[speaks]), audio_sampling)
            yield token, patch
            ids, codes = token[:, None], patch[:, None]

    def generate(
        self,
        text: np.ndarray,
        audio: np.ndarray,
        max_new: int,
        text_sampling: Sampling = GREEDY,
        audio_sampling: Sampling = GREEDY,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Text ids [B, max_new] and codes [B, max_new, G, C]; arguments as of `stream`."""
        tokens, patches = zip(*self.stream(text, audio, max_new, text_sampling, audio_sampling), strict=True)
        return torch.stack(tokens, 1).cpu().numpy(), torch.stack(patches, 1).cpu().numpy()


def qwen2(
    config: MimoAudioConfig, width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int
) -> Qwen2Model:
    """A Qwen2 stack without an embedding table."""
    stack = Qwen2Model(
        Qwen2Config(
            vocab_size=1,
            hidden_size=width,
            intermediate_size=ffn,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="sdpa",
        )
    )
    stack.embed_tokens = None
    return stack


def run(
    stack: Qwen2Model, x: torch.Tensor, positions: torch.Tensor | None = None, cache: DynamicCache | None = None
) -> torch.Tensor:
    """Output [N, T, width] of a stack for inputs x [N, T, width]; with a cache, x follows what is in it."""
    return stack(
        inputs_embeds=x,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        attention_mask=NO_MASK,
    ).last_hidden_state
