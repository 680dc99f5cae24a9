"""Speech on instruction: from recordings with words and known style to requests, and thoughts about how to speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mimo_jax.data import prompts
from mimo_jax.data.manifest import Conversation, Record
from mimo_jax.data.sequence import TextSegment
from mimo_jax.preparation.recipes.base import (
    Beside,
    Recipe,
    Request,
    answer_turn,
    audio_item,
    chosen,
    draw,
    heard,
    is_clean,
    text_item,
)
from mimo_jax.preparation.recipes.forms import Form, Rejected, Section, prompt
from mimo_jax.preparation.recipes.thinking import folded

_STYLE_FACTS = ("gender", "accent", "rate", "pitch", "volume", "intonation", "style", "emotion")
_VOICE_FACTS = ("gender", "accent")
_INSTRUCT = (
    'A recording of speech is described below ("heard"); its words are "text". Write the instruction for a speaker '
    "that would have led to this recording: only how it is said, not the words. Phrase it freely, as people ask for "
    "things; name what stands out and leave out what is ordinary."
)
_NATURAL = (
    'A recording of speech is described below ("heard"); its words are "text". Write the request that would have led '
    "to this recording: one natural sentence or two that ask for the manner of speaking and hold the words to say, "
    "unchanged. Name what stands out in the manner and leave out what is ordinary."
)
_THEN = (
    " Then write the thoughts of the speaker who gets it: what is asked for, what that means for pace, pitch, "
    "loudness, melody and mood, and how these words should sound. Short sentences, no word about having been told. "
    "Write in the language of the text."
)
_GIVEN_VOICE = " The voice itself is given by an example: say nothing of gender, age or accent."


@dataclasses.dataclass(frozen=True)
class InstructTts(Recipe):
    """A conversation for each clean recording with words, and a caption, an instruction or attributes of style.

    Attributes:
        natural_share: of requests that name style and words themselves; the others have the released form
            ``WORDING: TEXT(STYLE)``.
        voice_share: of conversations that begin with another recording of the speaker, where there is one.
        characters: of a thought at most.
    """

    name: ClassVar[str] = "instruct_tts"
    wording: ClassVar[str] = _INSTRUCT + _NATURAL + _THEN + _GIVEN_VOICE
    natural_share: float = 0.5
    voice_share: float = 0.5
    characters: int = 1200

    def __post_init__(self) -> None:
        for name in ("natural_share", "voice_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie within 0 and 1")
        if self.characters < 1:
            raise ValueError(f"characters={self.characters} must be at least 1")

    def requests(self, record: Record, beside: Beside) -> list[Request]:
        """See `Recipe`."""
        known = record.caption or record.instruction or any(record.attributes.get(name) for name in _STYLE_FACTS)
        if not known or not (record.text or "").strip() or not is_clean(record):
            return []
        voice = None
        if chosen(record.id, f"{self.seed} voice_share", self.voice_share):
            voice = beside.voice_for(record, self.seed)
        natural = chosen(record.id, f"{self.seed} natural_share", self.natural_share)
        facts = self._facts(record, given_voice=voice is not None) | {"natural": natural}
        text = record.text or ""
        asked = (
            Section("request", "the request", 400 + 2 * len(text), lines=len(text.splitlines()) > 1)
            if natural
            else Section("style", "the instruction", 400)
        )
        form = Form((asked, Section("thought", "the thoughts of the speaker", self.characters, lines=True)))
        task = (_NATURAL if natural else _INSTRUCT) + _THEN + (_GIVEN_VOICE if voice else "")
        return [
            Request(facts["id"], record, prompt(task, facts, form), form, voice=voice.id if voice is not None else None)
        ]

    def _facts(self, record: Record, given_voice: bool) -> dict[str, Any]:
        known = heard(record)
        known.pop("text", None)
        known |= {"instruction": record.instruction} if record.instruction else {}
        if given_voice and "attributes" in known:
            known["attributes"] = {k: v for k, v in known["attributes"].items() if k not in _VOICE_FACTS}
        request_id = f"{record.id}/{self.name}"
        return {"task": self.name, "id": request_id, "text": record.text, "given_voice": given_voice, "heard": known}

    def conversations(self, request: Request, given: Mapping[str, str]) -> list[Conversation]:
        """See `Recipe`: one, its request in the released form or a free one."""
        record, text = request.record, request.record.text or ""
        if "request" in given:
            if folded(text) not in folded(given["request"]):
                raise Rejected("words_missing", f"{given['request']!r} does not hold {text!r}")
            asked = prompts.natural_instruction_tts(given["request"])
        else:
            if _is_long(text) and folded(text) in folded(given["style"]):
                raise Rejected("words_in_style", f"{given['style']!r} holds {text!r}")
            number = draw(record.id, f"{self.seed} wording", 1 << 30)
            wording = prompts.choose_instruction(prompts.TTS_INSTRUCTIONS, number, prompts.language_of(text))
            asked = prompts.instruct_tts(text, given["style"], wording)
        system = [text_item(prompts.STYLE_LINE)]
        if request.voice is not None:
            system = [text_item(prompts.STYLE_VOICE_LINE), audio_item(request.voice)]
        turns = [
            {"role": "system", "content": system},
            {"role": "user", "content": [text_item(_user_text(asked[-2]))]},
            answer_turn([text_item(text), audio_item(record.id)], True, given["thought"]),
        ]
        return [Conversation(request.id, turns, record.split, record.subset)]


def _is_long(text: str) -> bool:
    """Whether words are too many to stand in a style by chance: more than two, or than five Chinese characters."""
    return len(text.split()) > 2 or sum(prompts.language_of(character) == "zh" for character in text) > 5


def _user_text(segment: Any) -> str:
    """What a user's turn holds, of the segment that a prompt has for it."""
    assert isinstance(segment, TextSegment) and isinstance(segment.text, str)
    return segment.text.removeprefix(prompts.USER).removesuffix(prompts.TURN_END)
