"""The form of a text LLM's replies, and what makes one unusable.

A reply is tagged sections, each once, in the order of the form, and nothing else::

    <thought>
    ...
    </thought>
    <answer>...</answer>
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

REASONS: dict[str, str] = {
    "refused": "the endpoint refuses the prompt (too long, caught by a filter)",
    "empty_reply": "a reply without text",
    "unparsable_reply": "a reply that is not the sections of the form, each once, in order, and nothing else",
    "empty_section": "a section without text",
    "too_long": "a section with more characters than the form allows",
    "several_lines": "a line break in a section of one line",
    "leaks_form": "tags, special tokens or code fences inside a section",
    "leaks_source": "a section that speaks of the given facts as facts (metadata, a caption, a transcript)",
    "other_answer": "the answer that the thought arrives at is not the given one",
    "words_missing": "a request that does not hold the words to say",
    "words_in_style": "a style that holds the words to say",
}
"""Every reason for which a reply is quarantined, with its meaning."""

_EXCERPT = 200
_TAGS = "thought|answer|style|request|facts|think"
_FORM_MARKS = re.compile(rf"<\|.*?\|>|</?\s*({_TAGS})\s*/?>|```", re.IGNORECASE)
_SOURCE_MARKS = re.compile(
    r"\b(metadata|json|(the|given|provided) (caption|transcript|attributes?|facts?|annotations?))\b"
    r"|元数据|给定的(事实|描述)",
    re.IGNORECASE,
)


class Rejected(Exception):
    """A reply that cannot be used. ``reason`` is a key of :data:`REASONS`, ``detail`` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a reply.

    Attributes:
        tag: its name.
        meaning: what it should hold, for the prompt.
        characters: that it may have at most.
        lines: whether it may have line breaks.
    """

    tag: str
    meaning: str
    characters: int
    lines: bool = False


@dataclasses.dataclass(frozen=True)
class Form:
    """The sections of a reply, in order."""

    sections: tuple[Section, ...]

    def described(self) -> str:
        """The end of a prompt: what the reply must look like."""
        shown = "\n".join(f"<{s.tag}>{s.meaning}</{s.tag}>" for s in self.sections)
        limits = ", ".join(
            f"{s.tag} at most {s.characters} characters{'' if s.lines else ' in one line'}" for s in self.sections
        )
        return f"Reply with exactly this, every tag once, and nothing before, between or after:\n{shown}\n({limits}.)"

    def parse(self, reply: str) -> dict[str, str]:
        """Tag -> text without white space at its ends.

        Raises:
            Rejected: the reply is not of this form.
        """
        excerpt = f"{reply[:_EXCERPT]!r}"
        if not reply.strip():
            raise Rejected("empty_reply", excerpt)
        pattern = r"\s*".join(rf"<{s.tag}>(.*?)</{s.tag}>" for s in self.sections)
        found = re.fullmatch(rf"\s*{pattern}\s*", reply, re.DOTALL)
        if found is None:
            raise Rejected("unparsable_reply", excerpt)
        given = {s.tag: text.strip() for s, text in zip(self.sections, found.groups(), strict=True)}
        for section in self.sections:
            _check(section, given[section.tag])
        return given

    def written(self, **given: str) -> str:
        """A reply of this form with these sections: the inverse of `parse`."""
        return "\n".join(f"<{s.tag}>{given[s.tag]}</{s.tag}>" for s in self.sections)


def _check(section: Section, text: str) -> None:
    where = f"{section.tag}: {text[:_EXCERPT]!r}"
    if not text:
        raise Rejected("empty_section", where)
    if mark := _FORM_MARKS.search(text):
        raise Rejected("leaks_form", f"{section.tag} holds {mark[0]!r}")
    if len(text) > section.characters:
        raise Rejected("too_long", f"{section.tag} has {len(text)} characters, at most {section.characters} may be")
    if not section.lines and len(text.splitlines()) > 1:
        raise Rejected("several_lines", where)
    if section.tag != "answer" and (mark := _SOURCE_MARKS.search(text)):
        raise Rejected("leaks_source", f"{section.tag} speaks of {mark[0]!r}")


def prompt(task: str, facts: Mapping[str, Any], form: Form) -> str:
    """A prompt: the task, what is known as JSON (in which no tag can occur), the form of the reply."""
    known = json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True).replace("<", "\\u003c")
    return f"{task}\n\n<facts>\n{known}\n</facts>\n\n{form.described()}"


def facts_of(prompt: str) -> dict[str, Any]:
    """The facts of a prompt.

    Raises:
        ValueError: it is none of ours.
    """
    found = re.search(r"<facts>\n(.*?)\n</facts>", prompt, re.DOTALL)
    if found is None:
        raise ValueError(f"a prompt without <facts>: {prompt[:_EXCERPT]!r}")
    return json.loads(found[1])
