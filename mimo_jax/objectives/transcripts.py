"""Transcripts as the recogniser and the error rates see them: normalised words, and words as classes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from mimo_jax.files import write_text
from mimo_jax.models.recogniser import BLANK, FIRST_BYTE, FIRST_WORD

VOCABULARY_FILE = "recogniser_vocabulary.json"


def is_cjk(character: str) -> bool:
    """Whether the character is a Chinese (or shared CJK) ideograph."""
    code = ord(character)
    return (
        0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
    )


def normalise_text(text: str) -> str:
    """Text as error rates compare it: NFKC, lower case, punctuation and symbols but ``'`` to spaces, single spaces.

    Chinese characters are set apart by spaces, so that a word error rate counts each of them. Same convention as the
    evaluation of the MiMo-Audio report (lower case, punctuation but the apostrophe removed, Chinese per character).
    """
    out = []
    for character in unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower():
        if is_cjk(character):
            out.append(f" {character} ")
        elif character == "'" or unicodedata.category(character)[0] in "LNM":
            out.append(character)
        else:
            out.append(" ")
    return " ".join("".join(out).split())


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words that are one class each; every other word is spelled in UTF-8 bytes, led by a space byte."""

    words: tuple[str, ...] = ()

    @classmethod
    def from_texts(cls, texts: Iterable[str], num_words: int = 1024, min_count: int = 20) -> Vocabulary:
        """The most frequent words (ties in alphabetical order) that occur at least ``min_count`` times."""
        counts = collections.Counter(word for text in texts for word in normalise_text(text).split())
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls(tuple(word for _, word in frequent[:num_words]))

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {word: FIRST_WORD + i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Class ids of a text (normalised here); empty for a text without words."""
        ids: list[int] = []
        for word in normalise_text(text).split():
            if word in self._index:
                ids.append(self._index[word])
            else:
                ids += [byte + FIRST_BYTE for byte in b" " + word.encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of class ids. Blanks and word slots that hold no word are skipped; broken UTF-8 is dropped."""
        out = bytearray()
        spelling = False
        for value in ids:
            if FIRST_BYTE <= value < FIRST_WORD:
                out += b"" if spelling else b" "
                out.append(value - FIRST_BYTE)
                spelling = True
            elif FIRST_WORD <= value < FIRST_WORD + len(self.words):
                out += b" " + self.words[value - FIRST_WORD].encode()
                spelling = False
            elif value != BLANK:
                spelling = False
        return " ".join(out.decode(errors="ignore").split())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the words as JSON, atomically."""
        write_text(path, json.dumps({"words": self.words}, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
          ValueError: the file holds no list of words.
        """
        words = json.loads(Path(path).read_text()).get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f'{path}: not a recogniser vocabulary, which is {{"words": ["...", ...]}}')
        return cls(tuple(words))
