"""The one table official tensor name <-> place in our parameter trees, read in both directions.

A row names an official tensor (PyTorch's state dict, as in the released checkpoints), our path, and how the axes are
ordered: `axes` lists, for each of our axes, the official axis it is (`ours = official.transpose(axes)`). A `{layer}` in
the official name means one tensor per layer, stacked on axis 0 of ours (our layers are scanned).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.tokenizer.config import TokenizerConfig

Path = tuple[str, ...]

LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 1, 0)  # [out, in, size] -> [size, in, out]
CONV_TRANSPOSE = (2, 0, 1)  # [in, out, size] -> [size, in, out]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      official: official name; contains `{layer}` if the tensors of all layers are stacked.
      ours: path in our tree, parts separated by `/`.
      axes: official axis of each of our axes (without the layer axis); None = the same order.
      layers: number of layers of a stacked row.
    """

    official: str
    ours: str
    axes: tuple[int, ...] | None = None
    layers: int | None = None

    @property
    def path(self) -> Path:
        """Our path as keys."""
        return tuple(self.ours.split("/"))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Official names in the order of the layer axis; a single one for rows that are not stacked."""
        if self.layers is None:
            return (self.official,)
        return tuple(self.official.replace("{layer}", str(layer)) for layer in range(self.layers))

    def official_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each official tensor, from the shape of our array."""
        inner = shape if self.layers is None else shape[1:]
        return inner if self.axes is None else tuple(inner[self.axes.index(axis)] for axis in range(len(inner)))

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """One official tensor in our order of axes (a view)."""
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """Our array (one layer of it) in the official order of axes (a view)."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes))

    def official_index(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The part `index` of our array (without the layer axis), as a part of the official tensor."""
        return index if self.axes is None else tuple(index[self.axes.index(axis)] for axis in range(len(index)))


def _linear(official: str, ours: str, bias: bool, layers: int | None = None) -> list[Row]:
    rows = [Row(f"{official}.weight", f"{ours}/kernel", LINEAR, layers)]
    return rows + ([Row(f"{official}.bias", f"{ours}/bias", None, layers)] if bias else [])


def _norm(official: str, ours: str, bias: bool, layers: int | None = None) -> list[Row]:
    rows = [Row(f"{official}.weight", f"{ours}/scale", None, layers)]
    return rows + ([Row(f"{official}.bias", f"{ours}/bias", None, layers)] if bias else [])


# --- language model -------------------------------------------------------------------------------------------------


def _qwen2_stack(official: str, ours: str, layers: int) -> list[Row]:
    """A Qwen2 stack: q, k, v have a bias, nothing else has; RMSNorm."""
    theirs, mine = f"{official}.layers.{{layer}}", f"{ours}/layers"
    rows = _norm(f"{theirs}.input_layernorm", f"{mine}/input_norm", False, layers)
    for name in "qkv":
        rows += _linear(f"{theirs}.self_attn.{name}_proj", f"{mine}/attention/{name}_proj", True, layers)
    rows += _linear(f"{theirs}.self_attn.o_proj", f"{mine}/attention/out_proj", False, layers)
    rows += _norm(f"{theirs}.post_attention_layernorm", f"{mine}/post_attention_norm", False, layers)
    for name in ("gate", "up", "down"):
        rows += _linear(f"{theirs}.mlp.{name}_proj", f"{mine}/{name}_proj", False, layers)
    return rows + _norm(f"{official}.norm", f"{ours}/final_norm", False)


def llm_rows(config: MimoAudioConfig) -> list[Row]:
    """The LLM alone, which is a plain Qwen2 checkpoint (also MiMo-7B-Base)."""
    return [
        Row("model.embed_tokens.weight", "embed_tokens"),
        *_qwen2_stack("model", "llm", config.num_hidden_layers),
        *_linear("lm_head", "lm_head", False),
    ]


def lm_rows(config: MimoAudioConfig) -> list[Row]:
    """MiMo-Audio: the LLM, patch encoder, patch decoder, code embeddings and heads."""
    rows = llm_rows(config)
    for i in range(config.audio_channels):
        rows.append(Row(f"speech_embeddings.{i}.weight", f"speech_embeddings_{i}/embedding"))
    if config.input_local_dim != config.local_dim:
        rows += _linear("speech_embeddings_to_local", "speech_embeddings_to_local", False)
    rows += _qwen2_stack("input_local_transformer", "patch_encoder", config.input_local_layers)
    rows += _linear("speech_group_downcast", "speech_group_downcast", False)
    rows += _linear("hidden_states_downcast", "hidden_states_downcast", False)
    rows += _qwen2_stack("local_transformer", "patch_decoder", config.local_layers)
    for i in range(config.audio_channels):
        rows += _linear(f"local_transformer_lm_heads.{i}", f"local_heads_{i}", False)
    return rows


# Tensors of plain Qwen2-layout checkpoints that have no place here, and why; left out by name, never silently.
IGNORED_OF_LLM = {
    "model.mtp_layers.": "multi-token prediction layers of MiMo-7B, which MiMo-Audio does not have",
    "rotary_emb.inv_freq": "rotary frequencies, which follow from rope_theta",
}

# --- audio tokenizer ------------------------------------------------------------------------------------------------


def _tokenizer_stack(official: str, ours: str, layers: int, layer_norm: bool) -> list[Row]:
    """A stack of encoder, decoder or vocoder with its final norm: bias on q, v and the output, none on k."""
    theirs, mine = f"{official}.layers.{{layer}}", f"{ours}/transformer/layers"
    rows = _norm(f"{theirs}.self_attn_layer_norm", f"{mine}/self_attn_layer_norm", layer_norm, layers)
    for name in ("q", "k", "v", "out"):
        rows += _linear(f"{theirs}.self_attn.{name}_proj", f"{mine}/self_attn/{name}_proj", name != "k", layers)
    rows += _norm(f"{theirs}.final_layer_norm", f"{mine}/final_layer_norm", layer_norm, layers)
    for name in ("fc1", "fc2"):
        rows += _linear(f"{theirs}.{name}", f"{mine}/{name}", True, layers)
    return rows + _norm(f"{official}.layer_norm", f"{ours}/layer_norm", layer_norm)


def _conv(official: str, ours: str, axes: tuple[int, ...], bias: bool) -> list[Row]:
    rows = [Row(f"{official}.weight", f"{ours}/kernel", axes)]
    return rows + ([Row(f"{official}.bias", f"{ours}/bias")] if bias else [])


def tokenizer_rows(config: TokenizerConfig) -> list[Row]:
    """MiMo-Audio-Tokenizer as variables: collections `params`, `codebooks`, `constants`."""
    layer_norm, pooled = config.ln_type == "LayerNorm", config.avg_pooler > 1
    rows = _conv("encoder.conv1", "params/encoder/conv1", CONV, True)
    rows += _conv("encoder.conv2", "params/encoder/conv2", CONV, True)
    rows += _tokenizer_stack("encoder", "params/encoder", config.encoder_layers, layer_norm)
    if pooled:
        rows += _conv("encoder.down_sample_layer.0", "params/encoder/down_sample", CONV, False)
        rows += _norm("encoder.down_sample_norm", "params/encoder/down_sample_norm", layer_norm)
    for i in range(config.num_quantizers):
        for name in ("embed", "embed_avg", "cluster_size", "inited"):
            official = f"encoder.quantizer.vq.layers.{i}._codebook.{name}"
            rows.append(Row(official, f"codebooks/quantizer/layers_{i}/{name}"))
    for name in ("dconv1", "dconv2") if pooled else ("dconv2",):
        rows += _conv(f"decoder.{name}.conv", f"params/decoder/{name}/conv", CONV_TRANSPOSE, True)
        rows += _norm(f"decoder.{name}.norm", f"params/decoder/{name}/norm", True)
    rows += _tokenizer_stack("decoder", "params/decoder", config.decoder_layers, layer_norm)
    rows += _linear("decoder.vocoder.embeddings", "params/vocoder/embeddings", False)
    rows += _tokenizer_stack("decoder.vocoder", "params/vocoder", config.vocoder_num_layers, layer_norm)
    rows += _linear("decoder.vocoder.head.out", "params/vocoder/out", True)
    rows.append(Row("decoder.vocoder.head.istft.window", "constants/vocoder/window"))
    return rows


# --- checks ---------------------------------------------------------------------------------------------------------


def check_table(rows: Iterable[Row], shapes: Mapping[Path, tuple[int, ...]]) -> None:
    """Every array of our tree has exactly one row and the other way round.

    Args:
      rows: the table.
      shapes: shape of every array of our tree.

    Raises:
      ValueError: names the arrays without a row and the rows without an array.
    """
    paths = [row.path for row in rows]
    problems = [f"no official name for {'/'.join(path)}" for path in shapes if path not in paths]
    problems += [f"{'/'.join(path)} is not in the parameters" for path in paths if path not in shapes]
    problems += [f"{'/'.join(path)} has {paths.count(path)} names" for path in set(paths) if paths.count(path) > 1]
    if problems:
        raise ValueError("parameters and configuration do not belong together: " + _listing(problems))


def compare(
    rows: Iterable[Row],
    shapes: Mapping[Path, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Mapping[str, str] | None = None,
) -> list[str]:
    """What stands between official tensors and our tree, one line per tensor; an empty list if nothing does.

    Args:
      rows: the table.
      shapes: shape of every array of our tree.
      found: shape of every official tensor that is there.
      ignored: parts of official names that may be there and are not used.
    """
    expected = {tensor: row.official_shape(shapes[row.path]) for row in rows for tensor in row.tensors}
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [
        f"unknown: {name} {list(found[name])}"
        for name in found
        if name not in expected and not any(part in name for part in ignored or ())
    ]
    problems += [
        f"wrong shape: {name} is {list(found[name])}, the configuration asks for {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    return problems


def _listing(lines: list[str], limit: int = 20) -> str:
    rest = len(lines) - limit
    return "; ".join(lines[:limit]) + (f"; and {rest} more" if rest > 0 else "")
