"""Lines of the manifest: one JSON object per utterance, the only thing a user's own folder has to bring.

Only ``audio`` and ``text`` are needed. Everything else feeds further tasks (captions, question answering, style
instructions, interleaved documents, spoken dialogue, conversion pairs); see :class:`Record`. Text-only material and
conversations lie beside it. Here is what a line may hold, with its checks and its JSON; `manifest_files` has the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "validation", "test_voices")
SUBSETS = ("core", "wide", "user")
_VALIDATION_SHARE = 50  # one of 50 = 2 %, where a manifest names no split


class ManifestError(ValueError):
    """Lines that are no records; the message names file and line of each."""


@dataclass(frozen=True)
class Record:
    """One utterance.

    Attributes:
      id: unique name.
      audio: path of the audio file, relative to the manifest's folder (absolute paths work too).
      text: what is said, or None where unknown.
      speaker: name of the voice.
      caption: a description of how it sounds.
      start, end: the part of the file in seconds; None for its beginning and end.
      split: "train", "validation" (texts never seen in training, voices seen) or "test_voices" (voices never seen).
      subset: "core", "wide" (the built-in corpus) or "user".
      attributes: known facts (accent, gender, rate, pitch, volume, noise, snr_db, ...).
      instruction: how it should be said, for text to speech by instruction.
      qa: questions about the sound: {"question", "answer"} and, where it is multiple choice, "choices"; "thought" is
        what is reasoned before the answer, where somebody wrote that down; "kind" says of what kind a question is.
        "instruction/first_word" and the like (`corpus.instructions.KINDS`) are instructions about the words, whose
        answer is right only letter by letter.
      parallel: key shared by utterances of one text that differ in voice, rate or style.
      clean: id of the clean recording of a noisy one.
      document: {"id": str, "index": int}: place in a document of consecutive utterances.
      reply: id of the utterance that answers this one.
      duration: seconds of the part; sample_rate: of the file in Hz.
      words: [word, start, end] each, in seconds of the part, where the alignment is known.
      scores: measured qualities by name (snr_db, loudness_lufs, ...).
      part_of: id of the conversation that the recording belongs to; no example is then made of it alone.
    """

    id: str
    audio: str
    text: str | None = None
    speaker: str | None = None
    caption: str | None = None
    start: float | None = None
    end: float | None = None
    split: str = "train"
    subset: str = "user"
    attributes: dict[str, Any] = field(default_factory=dict)
    instruction: str | None = None
    qa: list[dict[str, Any]] = field(default_factory=list)
    parallel: str | None = None
    clean: str | None = None
    document: dict[str, Any] | None = None
    reply: str | None = None
    duration: float | None = None
    sample_rate: int | None = None
    words: list[list[Any]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    part_of: str | None = None


@dataclass(frozen=True)
class TextRecord:
    """One line of text-only material; ``reply`` is the answer where ``text`` is a question."""

    id: str
    text: str
    split: str = "train"
    subset: str = "user"
    reply: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Turns in the fine-tuning exchange format; ``audio`` items name the id of a record instead of a path."""

    id: str
    turns: list[dict[str, Any]]
    split: str = "train"
    subset: str = "user"


def to_json(record: Record | TextRecord | Conversation) -> str:
    """One line of a manifest, without the line break. Fields in the order of the class, empty ones left out."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return json.dumps({k: v for k, v in fields.items() if v is not None and v != {} and v != []}, ensure_ascii=False)


def from_json(line: str) -> Record:
    """The record of one line of a manifest.

    Raises:
      ManifestError: what is wrong with it.
    """
    return record_of(fields_of(line))


def fields_of(line: str) -> dict[str, Any]:
    """The fields of one line of any kind, without those that are null.

    Raises:
      ManifestError: it is no JSON object.
    """
    try:
        fields = json.loads(line)
        line.encode()  # bytes that are no UTF-8 were read as lone surrogates
    except UnicodeEncodeError as error:
        raise ManifestError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ManifestError(f"a JSON object is needed, found {type(fields).__name__}")
    return {key: value for key, value in fields.items() if value is not None}


def record_of(fields: dict[str, Any]) -> Record:
    """The record of the fields of a line, as :func:`from_json` makes it; fields that are None count as missing.

    Raises:
      ManifestError: what is wrong with them.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    _check_record(given)
    return _record(given)


def text_record_of(fields: dict[str, Any]) -> TextRecord:
    """The text-only record of the fields of a line; without an `id` it gets one of its text (and reply).

    Raises:
      ManifestError: what is wrong with them.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    _check_text_record(given)
    if "id" not in given:
        said = "\0".join([given["text"], *filter(None, [given.get("reply")])])
        given["id"] = "text-" + hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return TextRecord(**{**given, "split": given.get("split") or default_split(given["id"])})


def conversation_of(fields: dict[str, Any]) -> Conversation:
    """The conversation of the fields of a line; whether its turns are sound is not looked at.

    Raises:
      ManifestError: what is wrong with them.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    _check_conversation(given)
    return Conversation(**{**given, "split": given.get("split") or default_split(given["id"])})


def default_split(record_id: str) -> str:
    """The split of a record that names none: the same for ever for one id, about 2 % validation."""
    digest = hashlib.sha256(record_id.encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % _VALIDATION_SHARE == 0 else "train"


def audio_path(record: Record, root: str | os.PathLike[str]) -> str:
    """Where the record's audio is: a path below ``root`` (the manifest's folder), an absolute one, or a URL."""
    return record.audio if "://" in record.audio else os.path.join(root, record.audio)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "audio", "text", "speaker", "caption", "split", "subset", "instruction"), (str,)),
    **dict.fromkeys(("parallel", "clean", "reply"), (str,)),
    **dict.fromkeys(("start", "end", "duration"), (int, float)),
    "sample_rate": (int,),
    "attributes": (dict,),
    "qa": (list,),
    "document": (dict,),
    "words": (list,),
    "scores": (dict,),
    "part_of": (str,),
}


def _check_types(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        types = _TYPES.get(name)
        if types and (not isinstance(value, types) or isinstance(value, bool)):
            raise ManifestError(f"`{name}` must be {' or '.join(t.__name__ for t in types)}, found {value!r}")
        if types == (int, float) and (not math.isfinite(value) or value < 0):
            raise ManifestError(f"`{name}` must be a number of seconds >= 0, found {value!r}")
    if fields.get("split", "train") not in SPLITS:
        raise ManifestError(f"`split` is {fields['split']!r}, known are {', '.join(SPLITS)}")
    if fields.get("subset", "user") not in SUBSETS:
        raise ManifestError(f"`subset` is {fields['subset']!r}, known are {', '.join(SUBSETS)}")


def _check_record(fields: dict[str, Any]) -> None:
    _check_types(fields)
    if not fields.get("audio"):
        raise ManifestError("`audio`, the path of the audio file, is missing")
    if "end" in fields and fields["end"] <= fields.get("start", 0.0):
        raise ManifestError(f"`end` ({fields['end']} s) must be after `start` ({fields.get('start', 0.0)} s)")
    for item in fields.get("qa", []):
        if not isinstance(item, dict) or not isinstance(item.get("question"), str):
            raise ManifestError(f'each of `qa` must be {{"question": ..., "answer": ...}}, found {item!r}')
        if not isinstance(item.get("answer"), str) or item["answer"] not in item.get("choices", [item["answer"]]):
            raise ManifestError(f"`answer` of a question must be a string and one of its `choices`, found {item!r}")
        if not isinstance(item.get("kind", ""), str):
            raise ManifestError(f"`kind` of a question must be a string, found {item!r}")
        if not isinstance(item.get("thought", ""), str) or "</think>" in item.get("thought", ""):
            raise ManifestError(f"`thought` of a question must be a string without </think>, found {item!r}")
    for word in fields.get("words", []):
        if not _is_timed_word(word):
            raise ManifestError(f'each of `words` must be ["word", start, end] in seconds, found {word!r}')
    document = fields.get("document")
    if document is not None and not (isinstance(document.get("id"), str) and isinstance(document.get("index"), int)):
        raise ManifestError(f'`document` must be {{"id": string, "index": number}}, found {document!r}')


def _is_timed_word(word: Any) -> bool:
    """Whether it is [text, start, end] with 0 <= start <= end."""
    if not isinstance(word, list) or len(word) != 3 or not isinstance(word[0], str):
        return False
    times = word[1:]
    numbers = all(isinstance(t, (int, float)) and not isinstance(t, bool) and math.isfinite(t) for t in times)
    return numbers and 0 <= times[0] <= times[1]


def _check_text_record(fields: dict[str, Any]) -> None:
    _check_types(fields)
    if not fields.get("text") or not fields.get("id", "-"):
        raise ManifestError("`text` is missing, or the `id` is empty")
    unknown = set(fields) - {f.name for f in dataclasses.fields(TextRecord)}
    if unknown:
        raise ManifestError(f"unknown fields: {', '.join(sorted(unknown))}")


def _check_conversation(fields: dict[str, Any]) -> None:
    _check_types(fields)
    if not isinstance(fields.get("turns"), list) or not fields.get("id"):
        raise ManifestError("`id` and `turns` (a list) are needed")
    unknown = set(fields) - {f.name for f in dataclasses.fields(Conversation)}
    if unknown:
        raise ManifestError(f"unknown fields: {', '.join(sorted(unknown))}")


def _record(fields: dict[str, Any]) -> Record:
    known = {f.name for f in dataclasses.fields(Record)}
    values = {name: value for name, value in fields.items() if name in known}
    others = {name: value for name, value in fields.items() if name not in known}
    if others:
        values["attributes"] = {**values.get("attributes", {}), **others}
    if "id" not in values:
        span = f"@{values.get('start', 0)}-{values.get('end', '')}" if "start" in values or "end" in values else ""
        values["id"] = values["audio"] + span
    values.setdefault("split", default_split(values["id"]))
    return Record(**values)
