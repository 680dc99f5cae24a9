"""Models by name: a folder in the released layout, a training run, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError, is_repository
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.models.mimo_audio import MimoAudioConfig

Name = str | os.PathLike[str]


def found(name: Name) -> Path:
    """The folder that `name` means; one of the hub ("owner/name") is downloaded, or taken from the hub's cache.

    Raises:
      UserError: neither a folder nor a repository that can be had, with the reason.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, str) and is_repository(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name))
        except Exception as error:  # its own, of HTTP, of the network: whatever it is, the name led nowhere
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{name}: no such folder, and the hub does not give it: {reason}") from error
    raise UserError(f"{name}: no such folder; give a folder in the released layout, a training run, or owner/name")


def language_model(name: Name, text_tokenizer: Name | None = None) -> tuple[MimoAudioConfig, Any, TextTokenizer]:
    """(configuration, parameters that are read when used, text tokenizer) of a language model.

    Args:
      name: see above.
      text_tokenizer: folder of the text tokenizer; None = beside the weights, which training runs do not have.

    Raises:
      UserError: a name that leads nowhere, a model of another kind, anything missing.
    """
    from mimo_jax.interop import configs, hf, trained

    folder = found(name)
    text = None if text_tokenizer is None else configs.read_text_tokenizer(found(text_tokenizer))
    if not trained.is_run(folder):
        empty = None
        if text is None:
            text = configs.read_text_tokenizer(folder)
        elif configs.read_config(folder).get("empty_token_id") is None and not configs.has_text_tokenizer(folder):
            empty = text.special.empty  # else the folder knows its own, which must be the same
        config, params = hf.load_lm(folder, lazily=True, empty_token_id=empty)
        return config, params, text
    kind, config, params = trained.load_run(folder)
    if kind != "lm":
        raise UserError(f"{folder}: a run of an audio tokenizer, not of a language model")
    if text is None:
        raise UserError(f"{folder}: a training run has no text tokenizer; text_tokenizer = PREPARED/text_tokenizer")
    return config, params, text


def codec(name: Name) -> AudioCodec:
    """The audio tokenizer of a folder, run or repository.

    Raises:
      UserError: a name that leads nowhere, a model of another kind, anything missing.
    """
    import jax
    import numpy as np

    from mimo_jax.interop import trained

    folder = found(name)
    if not trained.is_run(folder):
        return AudioCodec.load(folder)
    kind, config, variables = trained.load_run(folder)
    if kind != "tokenizer":
        raise UserError(f"{folder}: a run of a language model, not of an audio tokenizer")
    return AudioCodec(config, jax.tree.map(np.asarray, variables))
