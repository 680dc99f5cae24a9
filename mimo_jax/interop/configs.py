"""`config.json` and the files beside it: to our configuration dataclasses and back, model card, generation settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from mimo_jax.data.text_tokenizer import TextTokenizer

Folder = str | os.PathLike[str]

CONFIG = "config.json"
TEXT_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

# Fields of MimoAudioConfig that stand in config.json under the same name.
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "initializer_range",
    "group_size",
    "audio_channels",
    "local_dim",
    "local_layers",
    "local_attn_heads",
    "local_ffn_dim",
    "input_local_layers",
)
_QWEN2_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LISTS = ("delay_pattern", "speech_vocab_size", "speech_zeroemb_idx")
# What the released config.json holds beside the shape.
_QWEN2_CONSTANTS: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "max_position_embeddings": 8192,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
}


def read_config(folder: Folder) -> dict[str, Any]:
    """Contents of a folder's `config.json`.

    Raises:
      UserError: it is not there or not JSON.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: missing; give the folder of a released model, or export again (it is written last)")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); copy or download it again") from error


def kind_of(values: Mapping[str, Any]) -> str:
    """What a `config.json` describes: "tokenizer", "lm" (MiMo-Audio) or "llm" (a plain Qwen2-layout language model)."""
    if "num_quantizers" in values:
        return "tokenizer"
    if "speech_vocab_size" in values:
        return "lm"
    if "num_hidden_layers" in values:
        return "llm"
    raise UserError(
        f"{CONFIG} with model_type {values.get('model_type')!r}: neither an audio tokenizer (num_quantizers) nor "
        "MiMo-Audio (speech_vocab_size) nor a Qwen2-layout language model (num_hidden_layers)"
    )


def tokenizer_config(values: Mapping[str, Any], source: Folder) -> TokenizerConfig:
    """Configuration of an audio tokenizer from its `config.json`; `source` is named in errors."""
    if "num_quantizers" not in values:
        raise UserError(f"{source}: config.json has no num_quantizers: this is no audio tokenizer")
    try:
        return TokenizerConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: config.json: {error}") from error


def lm_config(values: Mapping[str, Any], source: Folder, empty_token_id: int) -> MimoAudioConfig:
    """Configuration of MiMo-Audio from its `config.json`.

    Args:
      values: contents of config.json. Lists may be written "0-1-2", [0, 1, 2] or as one number for all codebooks.
      source: folder, named in errors.
      empty_token_id: id of `<|empty|>`, which config.json does not hold.

    Raises:
      UserError: a field that is missing or that the model cannot compute.
    """
    _check_qwen2(values, source)
    missing = [name for name in (*_LISTS, "local_dim", "local_layers") if name not in values]
    if missing:
        raise UserError(f"{source}: config.json lacks {', '.join(missing)}: this is no MiMo-Audio model")
    known = {name: values[name] for name in _SHARED if values.get(name) is not None}
    channels = known.get("audio_channels", MimoAudioConfig.audio_channels)
    known |= {name: _numbers(values[name], channels) for name in _LISTS}
    # Absent fields: what the released code assumes.
    known.setdefault("num_key_value_heads", known["num_attention_heads"])
    known["input_local_dim"] = values.get("input_local_dim") or known["local_dim"]
    known["input_full_attention"] = bool(values.get("input_full_attention"))
    known["rope_theta"] = _rope_theta(values)
    try:
        return MimoAudioConfig(**known, empty_token_id=empty_token_id)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: config.json: {error}") from error


def empty_token_id(values: Mapping[str, Any], folder: Folder) -> int:
    """Id of `<|empty|>`: from `config.json` (our exports have it there) or from the folder's text tokenizer."""
    known = values.get("empty_token_id")
    return int(known) if known is not None else read_text_tokenizer(folder).special.empty


def llm_shape(values: Mapping[str, Any], source: Folder) -> dict[str, Any]:
    """The fields of MimoAudioConfig that a plain Qwen2-layout `config.json` decides."""
    _check_qwen2(values, source)
    heads = values["num_attention_heads"]
    return {
        "vocab_size": values["vocab_size"],
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["intermediate_size"],
        "num_hidden_layers": values["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or values["hidden_size"] // heads,
        "rope_theta": _rope_theta(values),
        "rms_norm_eps": values.get("rms_norm_eps", 1e-6),
    }


def _check_qwen2(values: Mapping[str, Any], source: Folder) -> None:
    missing = [name for name in _QWEN2_REQUIRED if name not in values]
    if missing:
        raise UserError(f"{source}: config.json lacks {', '.join(missing)}")
    if values.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: config.json: hidden_act is {values['hidden_act']!r}; only 'silu' is supported")
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise UserError(f"{source}: config.json: scaled rotary positions ({scaling}) are not supported")
    if values.get("use_sliding_window"):
        raise UserError(f"{source}: config.json: use_sliding_window is true; only full attention is supported")


def _rope_theta(values: Mapping[str, Any]) -> float:
    # transformers 5 moved it into rope_parameters.
    return float(values.get("rope_theta") or (values.get("rope_parameters") or {}).get("rope_theta") or 10000.0)


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [int(part) for part in value.split("-")]
    numbers = tuple(value) if isinstance(value, list | tuple) else (int(value),)
    return numbers * count if len(numbers) == 1 else numbers


def lm_values(config: MimoAudioConfig, dtype: str, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Contents of the `config.json` of MiMo-Audio.

    Args:
      config: the model.
      dtype: name of the stored dtype, as in "bfloat16".
      base: an earlier config.json whose further fields are kept.
    """
    values = {name: getattr(config, name) for name in (*_SHARED, "input_local_dim", "input_full_attention")}
    values |= {name: "-".join(map(str, getattr(config, name))) for name in _LISTS}
    values |= {"rope_theta": _plain(config.rope_theta), "torch_dtype": dtype}
    constants = {**_QWEN2_CONSTANTS, "architectures": ["MiMoAudioForCausalLM"], "local_attn_dropout": 0.0}
    # Not a field of the released code, which ignores it: spares a reader without the text tokenizer the guess.
    return dict(sorted((constants | dict(base or {}) | values | {"empty_token_id": config.empty_token_id}).items()))


def llm_values(config: MimoAudioConfig, dtype: str) -> dict[str, Any]:
    """Contents of the `config.json` of the LLM alone, as `transformers` reads it (Qwen2ForCausalLM)."""
    shape = {name: getattr(config, name) for name in _SHARED[: _SHARED.index("group_size")]}
    values = {"architectures": ["Qwen2ForCausalLM"], "rope_theta": _plain(config.rope_theta), "torch_dtype": dtype}
    return dict(sorted((_QWEN2_CONSTANTS | shape | values).items()))


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def read_text_tokenizer(folder: Folder) -> TextTokenizer:
    """The text tokenizer of a folder; a UserError where there is none."""
    from mimo_jax.data.text_tokenizer import TextTokenizer

    try:
        return TextTokenizer.load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder}: no usable text tokenizer ({error}); put its files there") from error


def has_text_tokenizer(folder: Folder) -> bool:
    """Whether a folder holds text tokenizer files."""
    return any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def generation_values(text_tokenizer_dir: Folder | None) -> dict[str, Any]:
    """Contents of `generation_config.json`: where generation ends, from the text tokenizer if there is one."""
    values: dict[str, Any] = {"_from_model_config": False, "do_sample": True, "temperature": 0.6, "top_p": 0.95}
    if text_tokenizer_dir is not None:
        tokenizer = read_text_tokenizer(text_tokenizer_dir)
        end, turn = tokenizer.token_id("<|endoftext|>"), tokenizer.token_id("<|im_end|>")
        values |= {"bos_token_id": end, "eos_token_id": [end, turn], "pad_token_id": end}
    return values


def model_card(title: str, counts: Mapping[str, int], facts: Mapping[str, Any], usage: str) -> str:
    """README.md of an exported folder.

    Args:
      title: first line.
      counts: parameters per component.
      facts: further lines of the table.
      usage: how to load it, as code.
    """
    rows = [(name, f"{count:,}") for name, count in counts.items()]
    rows += [("all parameters", f"{sum(counts.values()):,}"), *((name, str(value)) for name, value in facts.items())]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        "---\nlibrary_name: mimo_jax\ntags:\n- speech\n- mimo-audio\n---\n\n"
        f"# {title}\n\nWritten by mimo_jax in the released MiMo-Audio layout (arXiv 2512.23808).\n\n"
        f"| | |\n|---|---|\n{table}\n\n```python\n{usage}\n```\n"
    )
