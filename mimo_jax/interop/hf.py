"""Released-layout folders (safetensors, config.json): the one format for weights in use, ours and the official ones.

    config, params = load_lm("MiMo-Audio-7B-Base")          params for MimoAudio(config)
    save_lm("exported", config, params, text_tokenizer_dir="prepared/text_tokenizer")
    config, variables = load_tokenizer("MiMo-Audio-Tokenizer")
    save_tokenizer("exported_tokenizer", config, variables)

Arrays go one by one: our stacked layers are assembled layer by layer, straight into their shards if shardings are
given. Every file is written atomically and config.json last, so a folder without it is an interrupted export.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.interop import configs, names, trees
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.names import Row
from mimo_jax.interop.safetensors_files import (
    DEFAULT_SHARD_BYTES,
    WeightFolder,
    copy_files,
    write_bytes,
    write_folder,
    write_json,
)
from mimo_jax.models.layers import unbox
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig

Tree = dict[str, Any]


# --- shapes ---------------------------------------------------------------------------------------------------------


def lm_shapes(config: MimoAudioConfig) -> Tree:
    """Tree of jax.ShapeDtypeStruct of the language model's parameters; nothing is allocated."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config))


def tokenizer_shapes(config: TokenizerConfig) -> Tree:
    """Tree of jax.ShapeDtypeStruct of the tokenizer's variables (params, codebooks, constants)."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(config: MimoAudioConfig | TokenizerConfig) -> Tree:
    # Tracing a model takes seconds, and every load and save asks for its shapes.
    key = jax.random.key(0)
    if isinstance(config, MimoAudioConfig):
        text = jnp.zeros((1, 1), jnp.int32)
        audio = jnp.zeros((1, 1, config.group_size, config.audio_channels), jnp.int32)
        return unbox(jax.eval_shape(lambda: MimoAudio(config).init(key, text, audio)["params"]))
    frames = 4 * config.stride_size * config.avg_pooler
    mel, lengths = jnp.zeros((1, frames, config.n_mels), jnp.float32), jnp.full((1,), frames, jnp.int32)
    return unbox(jax.eval_shape(lambda: MimoAudioTokenizer(config).init(key, mel, lengths)))


def counts(tree: Tree) -> dict[str, int]:
    """Numbers in each top-level part of a tree of arrays or shapes."""
    total: Counter[str] = Counter()
    for path, leaf in traverse_util.flatten_dict(tree).items():
        total[path[0]] += int(np.prod(leaf.shape, dtype=np.int64))
    return dict(total)


# --- reading --------------------------------------------------------------------------------------------------------


def load_lm(
    folder: Folder,
    *,
    dtype: str | None = None,
    shardings: Tree | None = None,
    empty_token_id: int | None = None,
    lazily: bool = False,
) -> tuple[MimoAudioConfig, Tree]:
    """MiMo-Audio from a released-layout folder.

    Args:
      folder: safetensors files (sharded or not), config.json, text tokenizer files.
      dtype: of the parameters; None = as stored.
      shardings: tree of jax.sharding.Sharding like the parameters; None = the default device.
      empty_token_id: id of `<|empty|>`; None = from config.json (our exports) or the folder's text tokenizer.
      lazily: give a `trees.FolderArray` for each parameter, which is read when it is used, instead of reading it now.

    Returns:
      (configuration, parameters).

    Raises:
      UserError: anything missing, unreadable, unknown or misshapen, named.
    """
    values = configs.read_config(folder)
    config = configs.lm_config(
        values, folder, configs.empty_token_id(values, folder) if empty_token_id is None else empty_token_id
    )
    weights, shapes = WeightFolder(folder), lm_shapes(config)
    return config, trees.read_tree(weights, names.lm_rows(config), shapes, dtype, shardings, lazily=lazily)


def load_llm(
    folder: Folder,
    config: MimoAudioConfig,
    *,
    dtype: str | None = None,
    shardings: Tree | None = None,
    lazily: bool = False,
) -> Tree:
    """The parameters of the LLM (embed_tokens, llm, lm_head) from a plain Qwen2-layout folder such as MiMo-7B-Base.

    Args:
      folder: safetensors files and config.json; tied embeddings (no lm_head) are untied.
      config: the model that they are to become part of; `configs.llm_shape` gives what the folder decides of it.
      dtype, shardings, lazily: as in `load_lm` (shardings of these three parts).

    Raises:
      UserError: the folder's LLM has another shape than `config`, or a tensor is missing, unknown or misshapen.
    """
    values = configs.read_config(folder)
    shape = configs.llm_shape(values, folder)
    if wrong := [f"{k} = {v} (wanted {getattr(config, k)})" for k, v in shape.items() if getattr(config, k) != v]:
        raise UserError(f"{folder}: config.json does not fit the model: {', '.join(wrong)}")
    weights = WeightFolder(folder)
    shapes = {part: tree for part, tree in lm_shapes(config).items() if part in ("embed_tokens", "llm", "lm_head")}
    rows = names.llm_rows(config)
    if values.get("tie_word_embeddings") and "lm_head.weight" not in weights.shapes:
        weights.alias("lm_head.weight", "model.embed_tokens.weight")
    return trees.read_tree(weights, rows, shapes, dtype, shardings, names.IGNORED_OF_LLM, lazily)


def load_tokenizer(
    folder: Folder, *, shardings: Tree | None = None, lazily: bool = False
) -> tuple[TokenizerConfig, Tree]:
    """MiMo-Audio-Tokenizer from a released-layout folder.

    Args:
      folder: safetensors files and config.json.
      shardings: tree of jax.sharding.Sharding like the variables; None = the default device.
      lazily: as in `load_lm`.

    Returns:
      (configuration, variables {params, codebooks, constants} for MimoAudioTokenizer(config)).

    Raises:
      UserError: anything missing, unreadable, unknown or misshapen, named.
    """
    config = configs.tokenizer_config(configs.read_config(folder), folder)
    weights = WeightFolder(folder)
    rows, shapes = names.tokenizer_rows(config), tokenizer_shapes(config)
    return config, trees.read_tree(weights, rows, shapes, None, shardings, lazily=lazily)


# --- writing --------------------------------------------------------------------------------------------------------


def save_lm(
    folder: Folder,
    config: MimoAudioConfig,
    params: Tree,
    *,
    text_tokenizer_dir: Folder | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    base_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes MiMo-Audio as a released-layout folder: weights, config.json, generation_config.json, README.md.

    Args:
      folder: made if needed; an earlier export in it is replaced.
      config: the model.
      params: its parameters.
      text_tokenizer_dir: folder whose tokenizer files are copied.
      dtype: of the stored tensors; None = as they are.
      max_shard_bytes: most bytes of tensors per file.
      base_config: an earlier config.json whose further fields are kept.

    Raises:
      ValueError: parameters that do not belong to the configuration.
    """
    stored = str(jnp.dtype(dtype or params["embed_tokens"].dtype))
    _save(
        folder,
        names.lm_rows(config),
        params,
        lm_shapes(config),
        dtype,
        max_shard_bytes,
        values=configs.lm_values(config, stored, base_config),
        text_tokenizer_dir=text_tokenizer_dir,
        generation=configs.generation_values(text_tokenizer_dir),
        card=configs.model_card(
            "Speech language model (MiMo-Audio layout)",
            counts(params),
            {"LLM layers, width": f"{config.num_hidden_layers}, {config.hidden_size}", "stored as": stored},
            'from mimo_jax.interop import hf\n\nconfig, params = hf.load_lm("this folder")',
        ),
    )


def save_llm(
    folder: Folder,
    config: MimoAudioConfig,
    params: Tree,
    *,
    text_tokenizer_dir: Folder | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes the LLM alone in the layout of Qwen2, for `transformers` and what reads its folders. As `save_lm`."""
    stored = str(jnp.dtype(dtype or params["embed_tokens"].dtype))
    parts = ("embed_tokens", "llm", "lm_head")
    _save(
        folder,
        names.llm_rows(config),
        {part: params[part] for part in parts},
        {part: tree for part, tree in lm_shapes(config).items() if part in parts},
        dtype,
        max_shard_bytes,
        values=configs.llm_values(config, stored),
        text_tokenizer_dir=text_tokenizer_dir,
        generation=configs.generation_values(text_tokenizer_dir),
        card=configs.model_card(
            "The LLM of a MiMo-Audio model (Qwen2 layout)",
            counts({part: params[part] for part in parts}),
            {"layers, width": f"{config.num_hidden_layers}, {config.hidden_size}", "stored as": stored},
            'import transformers\n\nmodel = transformers.AutoModelForCausalLM.from_pretrained("this folder")',
        ),
    )


def save_tokenizer(
    folder: Folder, config: TokenizerConfig, variables: Tree, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Writes the audio tokenizer as a released-layout folder: weights, config.json, README.md.

    Args:
      folder: made if needed; an earlier export in it is replaced.
      config: the tokenizer.
      variables: params, codebooks, constants.
      max_shard_bytes: most bytes of tensors per file.

    Raises:
      ValueError: variables that do not belong to the configuration.
    """
    facts = {"codebooks": list(config.codebook_sizes), "frames per second": config.frame_rate}
    _save(
        folder,
        names.tokenizer_rows(config),
        variables,
        tokenizer_shapes(config),
        None,
        max_shard_bytes,
        values=config.to_dict(),
        card=configs.model_card(
            "Audio tokenizer (MiMo-Audio-Tokenizer layout)",
            counts(variables["params"]) | counts({"codebooks": variables["codebooks"]}),
            facts,
            'from mimo_jax.interop import hf\n\nconfig, variables = hf.load_tokenizer("this folder")',
        ),
    )


def _save(
    folder: Folder,
    rows: Sequence[Row],
    tree: Tree,
    shapes: Tree,
    dtype: str | None,
    max_shard_bytes: int,
    *,
    values: Mapping[str, Any],
    card: str,
    text_tokenizer_dir: Folder | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    flat = traverse_util.flatten_dict(unbox(tree))
    wanted = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    names.check_table(rows, {path: array.shape for path, array in flat.items()})
    if wrong := [f"{'/'.join(p)} {flat[p].shape} (wanted {wanted[p]})" for p in flat if flat[p].shape != wanted[p]]:
        raise ValueError(f"parameters do not fit the configuration: {', '.join(wrong[:10])}")

    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: a file of that name exists; name a folder to write")
    target.mkdir(parents=True, exist_ok=True)
    (target / configs.CONFIG).unlink(missing_ok=True)  # comes back last: without it the folder is unfinished
    tensors, fetch = trees.official_tensors(rows, flat, dtype)
    write_folder(target, tensors, fetch, max_shard_bytes)
    if text_tokenizer_dir is not None and Path(text_tokenizer_dir).resolve() != target.resolve():
        copy_files(Path(text_tokenizer_dir), target, configs.TEXT_TOKENIZER_FILES)
    if generation is not None:
        write_json(target / "generation_config.json", generation)
    write_bytes(target / "README.md", card.encode())
    write_json(target / configs.CONFIG, values)
