"""The stage that asks a text LLM about the recordings of a shard, and makes conversations of its replies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

from mimo_jax.cli import UserError
from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.endpoints import CallError, RefusedError
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage, StageFault
from mimo_jax.preparation.recipes.base import Beside, Recipe, Request
from mimo_jax.preparation.recipes.forms import Rejected
from mimo_jax.preparation.recipes.llm import TextLlm, open_llm, remembering
from mimo_jax.preparation.stages.plugins import LoadsOnce


@dataclasses.dataclass(frozen=True)
class Write(LoadsOnce, Stage):
    """Recordings -> conversations; everything else is filtered as "no_recording", what a recipe has no use for as
    "nothing_to_write". Bad replies are quarantined for the reasons in `forms.REASONS`.

    Attributes:
        recipe: what is written.
        llm: a spec for `llm.open_llm`, or the LLM itself.
        replies: file that keeps its replies.
        model: what decides its replies.
        batch_size: a shard, so that recordings find each other.
    """

    name: ClassVar[str] = "write"
    takes: ClassVar[tuple[type, ...]] = (Record, TextRecord, Conversation)
    recipe: Recipe
    llm: str | TextLlm = dataclasses.field(compare=False)
    replies: str = dataclasses.field(compare=False)
    model: str
    batch_size: int = 1 << 30

    @functools.cached_property
    def _writer(self) -> TextLlm:
        return remembering(open_llm(self.llm) if isinstance(self.llm, str) else self.llm, self.replies)

    def setup(self) -> None:
        """Opens the LLM and the store of its replies."""
        try:
            self._writer  # noqa: B018
        except UserError as error:
            raise StageFault(str(error)) from error

    def process_batch(self, elements: Sequence[Element]) -> list[list[Outcome]]:
        """See `Stage`.

        Raises:
            StageFault: the LLM does not reply, or its settings are wrong; what it replied is kept.
        """
        beside = Beside([e.record for e in elements if isinstance(e.record, Record)])
        asked = [self.recipe.requests(e.record, beside) if isinstance(e.record, Record) else [] for e in elements]
        replies = iter(self._replies([request.prompt for requests in asked for request in requests]))
        made: list[list[Outcome]] = []
        for element, requests in zip(elements, asked, strict=True):
            outcomes = [one for request in requests for one in self._outcomes(request, next(replies))]
            made.append(outcomes or [_unused(element)])
        return made

    def _replies(self, prompts: Sequence[str]) -> list[str | RefusedError]:
        """Of each prompt its reply, or why the endpoint refuses it."""
        try:
            return list(self._writer.complete(prompts))
        except CallError as error:
            others = [one for one in error.failures.values() if not isinstance(one, RefusedError)]
            if others or len(error.finished) + len(error.failures) < len(prompts):
                raise StageFault(
                    f"{error}; its replies so far are kept in {self.replies}: start again to go on"
                ) from error
            known = {**error.finished, **error.failures}
            return [known[i] for i in range(len(prompts))]
        except UserError as error:
            raise StageFault(str(error)) from error

    def _outcomes(self, request: Request, reply: str | RefusedError) -> list[Outcome]:
        if isinstance(reply, RefusedError):
            return [Dropped(request.id, "quarantined", "refused", str(reply))]
        try:
            made = self.recipe.conversations(request, request.form.parse(reply))
        except Rejected as error:
            return [Dropped(request.id, "quarantined", error.reason, error.detail)]
        return [Element(conversation) for conversation in made]


def _unused(element: Element) -> Dropped:
    if isinstance(element.record, Record):
        return Dropped(element.id, "filtered", "nothing_to_write")
    return Dropped(element.id, "filtered", "no_recording")
