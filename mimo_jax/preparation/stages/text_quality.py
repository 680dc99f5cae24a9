"""Texts: normalised, checked, and scored for what gives away a wrong or worthless one."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation.elements import AnyRecord, Dropped, Element, Outcome, Stage
from mimo_jax.preparation.stages.plugins import LoadsOnce, package

# Scripts without spaces count per character, as words of them would need a dictionary.
_TOKEN = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
_NGRAM = 3


def normalised(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def has_control_characters(text: str) -> bool:
    """Whether there are any of ASCII beside tab and line break."""
    return any(ord(c) < 32 and c not in "\t\n" or ord(c) == 127 for c in text)


def letter_share(text: str) -> float:
    """Letters (and the marks that belong to them) over all characters but spaces; 0 for an empty text."""
    characters = [c for c in text if not c.isspace()]
    return sum(unicodedata.category(c)[0] in "LM" for c in characters) / max(1, len(characters))


def repetition(text: str) -> float:
    """Share of the text's word triples that occurred before; 0 for fewer than four words."""
    tokens = _TOKEN.findall(text.lower())
    triples = list(zip(*(tokens[i:] for i in range(_NGRAM)), strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0


@dataclasses.dataclass(frozen=True)
class LanguageIdentifier(LoadsOnce):
    """Language of a text by py3langid (some hundred languages; its model comes with the package)."""

    def setup(self) -> None:
        """Loads the model."""
        self._identifier  # noqa: B018 - loads

    @functools.cached_property
    def _identifier(self) -> Any:
        langid = package("py3langid.langid", "py3langid", "text_quality.TextQuality")
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def __call__(self, text: str) -> dict[str, float]:
        """Probability of each language by ISO 639 code, the likeliest first."""
        return {language: float(probability) for language, probability in self._identifier.rank(text)}


@dataclasses.dataclass(frozen=True)
class TextQuality(LoadsOnce, Stage):
    """Normalises the text of recordings and text-only material, and scores it.

    Scores: ``text_characters``; ``text_letter_share``; ``text_repetition`` (loops of a recogniser, spam);
    ``text_characters_per_second`` of speech, for recordings (plain English lies near 15; far off, the text is of
    something else); ``text_language_confidence``, where the text has enough letters: probability of the language that
    ``attributes["language"]`` names, else of the likeliest one, which a recording then gets as that attribute.

    Control characters: quarantined as ``control_characters``; a text of nothing but space: ``empty_text``. Recordings
    without a text pass.

    Attributes:
        languages: ISO 639 codes to keep; texts in others are filtered as ``other_language``. None: all.
        min_letters: texts with fewer letters are not judged by language; identification fails on them.
        identifier: text -> probability by language, the likeliest first.
    """

    name: ClassVar[str] = "text_quality"
    takes: ClassVar[tuple[type, ...]] = (Record, TextRecord)
    languages: Sequence[str] | None = None
    min_letters: int = 20
    identifier: LanguageIdentifier = LanguageIdentifier()

    def setup(self) -> None:
        self.identifier.setup()

    def process(self, element: Element) -> Iterator[Outcome]:
        record = element.record
        if not isinstance(record, (Record, TextRecord)) or record.text is None:
            yield element
            return
        for text in (record.text, getattr(record, "reply", None) if isinstance(record, TextRecord) else None):
            if (problem := _problem(record, text)) is not None:
                yield problem
                return
        record = _with_normalised(record)
        text = record.text or ""
        scores = {
            "text_characters": float(len(text)),
            "text_letter_share": letter_share(text),
            "text_repetition": repetition(text),
        }
        if isinstance(record, Record) and (seconds := _speech_seconds(element, record)):
            scores["text_characters_per_second"] = len(text.replace(" ", "")) / seconds
        yield self._with_language(dataclasses.replace(element, record=_scored(record, scores)))

    def _with_language(self, element: Element) -> Outcome:
        record = element.record
        assert isinstance(record, (Record, TextRecord)) and record.text
        if sum(c.isalpha() for c in record.text) < self.min_letters:
            return element
        probabilities = self.identifier(record.text)
        attributes = record.attributes if isinstance(record, Record) else {}
        language = str(attributes.get("language") or next(iter(probabilities)))
        if self.languages is not None and language not in self.languages:
            detail = f"{language!r} (probability {probabilities.get(language, 0.0):.2f}): {record.text[:80]!r}"
            return Dropped(record.id, "filtered", "other_language", detail)
        record = _scored(record, {"text_language_confidence": probabilities.get(language, 0.0)})
        if isinstance(record, Record):
            record = dataclasses.replace(record, attributes={**attributes, "language": language})
        return dataclasses.replace(element, record=record)


def _problem(record: AnyRecord, text: str | None) -> Dropped | None:
    if text is not None and not text.strip():
        return Dropped(record.id, "quarantined", "empty_text", "leave `text` out where nothing is known")
    if text is not None and has_control_characters(text):
        return Dropped(record.id, "quarantined", "control_characters", f"text {text!r}")
    return None


def _with_normalised(record: Record | TextRecord) -> Record | TextRecord:
    changes: dict[str, Any] = {"text": normalised(record.text or "")}
    if isinstance(record, TextRecord) and record.reply is not None:
        changes["reply"] = normalised(record.reply)
    return dataclasses.replace(record, **changes)


def _scored(record: Record | TextRecord, scores: dict[str, float]) -> Record | TextRecord:
    rounded = {name: round(float(value), 6) for name, value in scores.items()}
    return dataclasses.replace(record, scores={**record.scores, **rounded})


def _speech_seconds(element: Element, record: Record) -> float:
    """Seconds of speech, as far as known: all of the recording, unless its share of speech was measured."""
    return (element.seconds or record.duration or 0.0) * record.scores.get("speech_share", 1.0)
