"""Byte-level byte-pair text tokenizer in the manner of Qwen2, with the special tokens of the sequence format.

Trained on a corpus, or read from a released folder (``tokenizer.json``, or ``vocab.json`` + ``merges.txt``) whose
missing special tokens are added behind its last id, in the order of the released inference code. What is saved is a
folder that ``transformers.AutoTokenizer`` reads.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mimo_jax.data.sequence import SpecialTokens
from mimo_jax.files import write_text

END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
# The order in which the released inference code adds what a text tokenizer lacks.
SPEECH_TOKENS = (
    "<|sosp|>",
    "<|eosp|>",
    "<|empty|>",
    "<|Human|>",
    "<|SpeechLM|>",
    "<|sostm|>",
    "<|eostm|>",
    "<|eot|>",
)
THINK_TOKENS = ("<think>", "</think>")

# Qwen2's division into words: contractions, letters with one leading mark, single digits, punctuation, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Text <-> ids, special tokens by their spelling. Thread-safe; holds no state beyond the vocabulary."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        missing = [t for t in CHAT_TOKENS if tokenizer.token_to_id(t) is None]
        if missing:
            raise ValueError(f"the text tokenizer lacks {missing}; it is not of the Qwen2 family")
        # Token by token, so that the ids follow this order whatever the library does with a list.
        for token in SPEECH_TOKENS:
            if tokenizer.token_to_id(token) is None:
                tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special(self) -> SpecialTokens:
        """Ids of the tokens of the sequence format."""
        fields = ("im_start", "im_end", "sosp", "eosp", "empty", "sostm", "eostm", "eot")
        return SpecialTokens(
            end_of_text=self.token_id(END_OF_TEXT), **{name: self.token_id(f"<|{name}|>") for name in fields}
        )

    def token_id(self, token: str) -> int:
        """Id of one token by its exact spelling; KeyError where there is none."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(f"the text tokenizer has no token {token!r}")
        return found

    def encode(self, text: str) -> list[int]:
        """Text -> ids; special tokens spelled in the text become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts -> ids each."""
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Ids -> text."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder: tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.json, merges.txt."""
        folder = pathlib.Path(folder)
        for name, content in self._files().items():
            write_text(folder / name, content)

    def _files(self) -> dict[str, str]:
        state = json.loads(self._tokenizer.to_str())
        added = {
            str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
            for t in state["added_tokens"]
        }
        specials = [t["content"] for t in state["added_tokens"] if t["special"] and t["content"] != END_OF_TEXT]
        config: dict[str, Any] = {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": specials,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "errors": "replace",
            "model_max_length": 8192,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        }
        special_map = {"additional_special_tokens": specials, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
        return {
            "tokenizer.json": self._tokenizer.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True),
            "special_tokens_map.json": json.dumps(special_map, ensure_ascii=False, indent=2, sort_keys=True),
            "vocab.json": json.dumps(state["model"]["vocab"], ensure_ascii=False),
            "merges.txt": "#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TextTokenizer":
        """Read a folder written by `save`, or a released one of the Qwen2 family.

        Raises:
            FileNotFoundError: neither ``tokenizer.json`` nor ``vocab.json`` + ``merges.txt`` are there.
            ValueError: a vocabulary without the chat tokens of Qwen2.
        """
        folder = pathlib.Path(folder)
        if (folder / "tokenizer.json").is_file():
            return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(_from_slow_files(folder))
        raise FileNotFoundError(
            f"{folder}: no tokenizer.json, and no vocab.json with merges.txt, to read a text tokenizer from"
        )


def _qwen2(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, tokens: Iterable[tokenizers.AddedToken]) -> None:
    for token in tokens:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _from_slow_files(folder: pathlib.Path) -> tokenizers.Tokenizer:
    tokenizer = _qwen2(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    decoder = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    for number, fields in decoder:
        token = tokenizers.AddedToken(fields["content"], special=fields.get("special", True), normalized=False)
        _add(tokenizer, [token])
        if tokenizer.token_to_id(token.content) != int(number):
            raise ValueError(f"{config_file}: {token.content} has id {number}, but the vocabulary does not end there")
    return tokenizer


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 1024, min_frequency: int = 2) -> TextTokenizer:
    """Train byte-pair merges on ``texts``; the same texts in the same order give the same file, byte for byte.

    Args:
        texts: the training texts.
        vocab_size: size with the special tokens; at least 256 bytes + specials. Texts with fewer frequent
            pairs than that give a smaller vocabulary.
        min_frequency: pairs seen less often are not merged.

    Raises:
        ValueError: a ``vocab_size`` that does not hold all bytes and special tokens.
    """
    specials = len(CHAT_TOKENS) + len(SPEECH_TOKENS) + len(THINK_TOKENS)
    if vocab_size < 256 + specials:
        raise ValueError(f"vocab_size {vocab_size} is below {256 + specials} (256 bytes + {specials} special tokens)")
    tokenizer = _qwen2(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - specials,
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    _add(tokenizer, [tokenizers.AddedToken(t, special=True, normalized=False) for t in CHAT_TOKENS + SPEECH_TOKENS])
    _add(tokenizer, [tokenizers.AddedToken(t, special=False, normalized=False) for t in THINK_TOKENS])
    return TextTokenizer(tokenizer)
