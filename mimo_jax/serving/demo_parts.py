"""Parts of the demo's page: players that take uploads only and share nothing, and where an answer appears."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before gradio is imported, which would report its use otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402
from gradio import processing_utils  # noqa: E402

from mimo_jax.inference.tasks import Answer  # noqa: E402
from mimo_jax.serving import demo_tasks as tasks  # noqa: E402
from mimo_jax.serving.demo_tasks import Shown, Turn  # noqa: E402

Updates = dict[Any, Any]


def uploads_only(audio: gr.Audio) -> gr.Audio:
    """`audio` that takes uploaded files only: gradio would fetch a URL, and open any file when it is mounted.

    Its method is replaced rather than overridden: gradio writes a file beside every module that derives a component.
    """
    move = audio.async_move_resource_to_block_cache

    async def checked(url_or_file_path: str | Path | None) -> str | None:
        cache = Path(audio.GRADIO_CACHE).resolve()
        if url_or_file_path is not None and not Path(url_or_file_path).resolve().is_relative_to(cache):
            raise gr.Error("Only uploaded recordings can be used", print_exception=False)
        return await move(url_or_file_path)

    setattr(audio, move.__name__, checked)
    return audio


def player(label: str, **options: Any) -> gr.Audio:
    """Without the button that would send the recording to a public host."""
    return gr.Audio(label=label, buttons=["download"], **options)


class View:
    """Where an answer appears: its words, what was thought before, its sound, a line about it."""

    def __init__(self, label: str, spoken: bool, rate: int, chat: bool = False):
        self._rate = rate
        self.chat = gr.Chatbot(label=label, render_markdown=False, buttons=["copy_all"]) if chat else None
        self.text = None if chat else gr.Textbox(label=label, lines=4, interactive=False, buttons=["copy"])
        self.thought = None if chat else gr.Textbox(label="Thought", lines=3, interactive=False, visible=False)
        streams = spoken and shutil.which("ffmpeg") is not None
        self.live = player("While it is spoken", streaming=True, autoplay=True) if streams else None
        # Without a stream the whole starts by itself.
        self.whole = player("Speech", interactive=False, autoplay=not streams) if spoken else None
        self.status = gr.Markdown()

    @property
    def outputs(self) -> list[Any]:
        parts = (self.chat, self.text, self.thought, self.live, self.whole, self.status)
        return [part for part in parts if part is not None]

    def silent(self) -> Updates:
        """No sound, neither new nor what may still be playing."""
        updates: Updates = {} if self.whole is None else {self.whole: None}
        # Taken from the page, else it would go on asking for the rest of a stream that is gone.
        return updates if self.live is None else {**updates, self.live: gr.update(value=None, visible=False)}

    def empty(self, turns: Sequence[Turn] = ()) -> Updates:
        """Before the first piece."""
        updates: Updates = {**self.silent(), self.status: ""}
        if self.live is not None:
            updates[self.live] = gr.update(value=None, visible=True)
        if self.chat is not None:
            return {**updates, self.chat: tasks.messages(turns)}
        return {**updates, self.text: "", self.thought: gr.update(value="", visible=False)}

    def update(self, shown: Shown, turns: Sequence[Turn] = ()) -> Updates:
        """After a piece; `turns`: the dialogue before."""
        updates: Updates = {}
        if self.chat is not None:
            answer = tasks.bubbles("assistant", shown.text, shown.thinking)
            updates[self.chat] = tasks.messages(turns) + answer
        else:
            updates[self.text] = shown.text
            updates[self.thought] = gr.update(value=shown.thinking, visible=bool(shown.thinking))
        if self.live is not None and shown.sound is not None:
            updates[self.live] = shown.sound
        if shown.answer is not None:
            updates[self.status] = tasks.status(shown.answer, self._rate)
            if self.whole is not None and shown.answer.wave is not None and len(shown.answer.wave):
                updates[self.whole] = (self._rate, tasks.pcm(shown.answer.wave))
        return updates

    def saved(self, answer: Answer) -> str | None:
        """Path of a whole answer's sound, for the dialogue; None where nothing was spoken."""
        if self.chat is None or answer.wave is None or not len(answer.wave):
            return None
        return processing_utils.save_audio_to_cache(tasks.pcm(answer.wave), self._rate, "wav", self.chat.GRADIO_CACHE)
