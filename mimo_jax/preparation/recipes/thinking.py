"""Questions about recordings, and questions that recordings ask, answered after a chain of thought."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from mimo_jax.data.manifest import Conversation, Record
from mimo_jax.preparation.recipes.base import Beside, Recipe, Request, answer_turn, audio_item, heard, text_item
from mimo_jax.preparation.recipes.forms import Form, Rejected, Section, prompt

Mode = Literal["thinking", "plain", "bare"]
MODES: dict[str, bool | None] = {"thinking": True, "plain": False, "bare": None}
"""Mode -> the field ``thinking`` of the answer's turn: a thought, an empty think block, nothing."""

_ABOUT = (
    'You listen to a recording. What can be heard in it is told below in place of the sound ("heard"), with a '
    "question and its right answer. Write the thoughts of somebody who hears the recording and works the answer out: "
    "what in the sound or in the words matters, what follows from it, which choices it rules out. Short sentences, "
    "nothing that is not known, no word about having been told. Then repeat the right answer."
)
_ASKED = (
    'You listen to somebody who asks a question. What is said is told below in place of the sound ("question"), with '
    "the right answer. Write the thoughts of somebody who hears the question and works the answer out, step by step "
    "and shortly, without a word about having been told. Then repeat the right answer."
)


@dataclasses.dataclass(frozen=True)
class Thinking(Recipe):
    """A conversation for each question about a recording (``qa``) and each recorded question (``reply``).

    Attributes:
        modes: in which each is written; see :data:`MODES`.
        characters: of a thought at most.
    """

    name: ClassVar[str] = "thinking"
    wording: ClassVar[str] = _ABOUT + _ASKED
    modes: tuple[Mode, ...] = ("thinking",)
    characters: int = 1200

    def __post_init__(self) -> None:
        if not self.modes or set(self.modes) - set(MODES) or len(set(self.modes)) < len(self.modes):
            raise ValueError(f"modes {list(self.modes)}: one or more of {', '.join(MODES)}, each once")
        if self.characters < 1:
            raise ValueError(f"characters={self.characters} must be at least 1")

    def requests(self, record: Record, beside: Beside) -> list[Request]:
        """See `Recipe`."""
        return [*self._about(record), *self._asked(record, beside)]

    def _form(self, answer: str) -> Form:
        thought = Section("thought", "the chain of thought", self.characters, lines=True)
        # Twice its length: one that is worded otherwise is "other_answer", whatever it is.
        return Form((thought, Section("answer", "the right answer, word for word", 2 * len(answer) + 100, lines=True)))

    def _about(self, record: Record) -> Iterator[Request]:
        known = heard(record)
        for number, qa in enumerate(record.qa if known else ()):  # nothing known: a thought would be made up
            choices = [str(choice) for choice in qa.get("choices") or ()]
            question = qa["question"] + (f" Choose from: {', '.join(choices)}." if choices else "")
            facts = {"question": qa["question"], "answer": qa["answer"], "heard": known}
            facts |= {"choices": choices} if choices else {}
            yield self._request(record, f"qa{number}", _ABOUT, facts, question)

    def _asked(self, record: Record, beside: Beside) -> Iterator[Request]:
        reply = beside.by_id.get(record.reply or "")
        if reply is None or not reply.text or not record.text or reply.split != record.split:
            return
        facts: dict[str, Any] = {"question": record.text, "answer": reply.text, "asked_aloud": True}
        yield self._request(record, "asked", _ASKED, facts, "")

    def _request(self, record: Record, key: str, task: str, facts: dict[str, Any], question: str) -> Request:
        request_id = f"{record.id}/{self.name}/{key}"
        facts = {"task": self.name, "id": request_id, **facts}
        form = self._form(facts["answer"])
        return Request(request_id, record, prompt(task, facts, form), form, question, facts["answer"])

    def conversations(self, request: Request, given: Mapping[str, str]) -> list[Conversation]:
        """See `Recipe`: one for each mode; the answer is the given one, as it was written."""
        if folded(given["answer"]) != folded(request.answer):
            raise Rejected("other_answer", f"found {given['answer']!r}, the right one is {request.answer!r}")
        record = request.record
        question = [text_item(request.question)] if request.question else []
        user = {"role": "user", "content": [audio_item(record.id), *question]}
        made = []
        for mode in self.modes:
            turn = answer_turn([text_item(request.answer)], MODES[mode], given["thought"])
            made.append(Conversation(f"{request.id}/{mode}", [user, turn], record.split, record.subset))
        return made


def folded(text: str) -> str:
    """Letters and digits only, in lower case, words a space apart: what two writings of one text have in common."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))
