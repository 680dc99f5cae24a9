"""An offline writer: what a text LLM is asked to write, by rule from the facts in the prompt.

It says only what the facts bear out. Where they do not bear out the answer it says nothing, and the reply counts as
empty. Wordings differ by the request's id alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mimo_jax.preparation.recipes import rules_style, rules_thoughts
from mimo_jax.preparation.recipes.forms import facts_of

_WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "thinking": rules_thoughts.write,
    "instruct_tts": rules_style.write,
}


class Rules:
    """See the module's text, and `llm.TextLlm`."""

    identity = "rules 1"
    quick = True

    def complete(self, prompts: Sequence[str], keep: Callable[[int, str], None] | None = None) -> list[str]:
        """See `llm.TextLlm`."""
        replies = []
        for index, prompt in enumerate(prompts):
            facts = facts_of(prompt)
            replies.append(_WRITERS[facts["task"]](facts))
            if keep is not None:
                keep(index, replies[-1])
        return replies
