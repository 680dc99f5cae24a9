"""The demo: a web page with a tab per task, for people; programs use the HTTP endpoint.

    build(model, voices).launch(**OPTIONS)
    gradio.mount_gradio_app(app, build(model, voices), path="/demo", **OPTIONS)

Here is only the layout, of parts from `demo_parts`; what the tabs do stands in `demo_tasks`. The model must be usable
from several threads, which is what `Service` is for. Nothing on the page comes from other hosts. Speech is played while
it is generated where the program ffmpeg is installed (gradio encodes the stream with it), else once it is whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

# Before gradio is imported, which would report its use otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402

from mimo_jax.cli import UserError  # noqa: E402
from mimo_jax.inference.decoding import TASKS  # noqa: E402
from mimo_jax.inference.jobs import Job  # noqa: E402
from mimo_jax.inference.service import ClosedError, OverloadedError  # noqa: E402
from mimo_jax.inference.tasks import MimoAudio  # noqa: E402
from mimo_jax.serving import demo_tasks as tasks  # noqa: E402
from mimo_jax.serving.demo_parts import Updates, View, player, uploads_only  # noqa: E402
from mimo_jax.serving.demo_tasks import Inputs, Limits, Settings, Shown, Turn  # noqa: E402

OPTIONS: dict[str, Any] = {
    "allowed_paths": [],
    "max_file_size": f"{Limits.megabytes}mb",
    "footer_links": [],
    "run_history": False,
    "show_error": False,
    "enable_monitoring": False,
    "mcp_server": False,
    "pwa": False,
    "ssr_mode": False,
    # The players in a dialogue would offer to send the recording to a public host.
    "css": "button[aria-label='Share'], button[title='Share'] {display: none}",
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
}
"""For `launch` and `mount_gradio_app`: no files but uploaded ones, nothing recorded, nothing from elsewhere."""

_HOUR = 3600
_MAX_SEED = 2**32 - 1


def build(model: MimoAudio, voices: Mapping[str, np.ndarray], limits: Limits = Limits()) -> gr.Blocks:
    """The page.

    Args:
      model: answers; used from several threads at a time.
      voices: float32 [samples] at the model's sample rate by name, offered as voices of answers.
      limits: what is accepted.
    """
    # Files that were uploaded or made go after some hours, and so do dialogues.
    with gr.Blocks(title="MiMo-Audio", analytics_enabled=False, delete_cache=(_HOUR, 6 * _HOUR)) as page:
        gr.Markdown("# MiMo-Audio\nSpeech and text in, speech and text out.")
        tabs = _Tabs(model, voices, limits)
        for name, fill in (
            ("Transcribe", tabs.transcribe),
            ("Speak", tabs.speak),
            ("Talk", tabs.talk),
            ("Understand", tabs.understand),
            ("Chat", tabs.chat),
            ("Continue", tabs.continue_speech),
            ("Convert", tabs.convert),
        ):
            with gr.Tab(name):
                fill()
    page.queue(max_size=limits.waiting)
    return page


def _shown_to_the_user(work: Callable[..., Iterator[Updates]]) -> Callable[..., Generator[Updates, None, None]]:
    """Errors that the user can do something about, as messages on the page."""

    @functools.wraps(work)
    def guarded(*inputs: Any) -> Generator[Updates, None, None]:
        try:
            yield from work(*inputs)
        except TimeoutError as error:
            raise gr.Error("The answer took longer than a request may", print_exception=False) from error
        except (UserError, ValueError, OverloadedError, ClosedError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return guarded


class _Tabs:
    """Lays out the tabs."""

    def __init__(self, model: MimoAudio, voices: Mapping[str, np.ndarray], limits: Limits):
        self._model, self._voices, self._limits = model, voices, limits
        self._rate = model.sample_rate
        self._inputs = Inputs(model, voices, limits)

    # ----- tabs ------------------------------------------------------------------------------------------------------

    def transcribe(self) -> None:
        """Speech to text."""
        with gr.Row(), gr.Column():
            recording = self._recording("Recording")
            settings = self._settings("asr")
            start, stop = self._buttons("Transcribe")
        view = View("Transcript", False, self._rate)
        self._single("asr", self._inputs.transcribe, [recording], settings, view, start, stop)

    def speak(self) -> None:
        """Text to speech."""
        with gr.Row():
            with gr.Column():
                text = self._textbox("Text", 4)
                style = self._textbox("Style", 1, "such as: whispering, a little out of breath")
                natural = gr.Checkbox(label='The text itself says how (as in "Say softly: Good night")')
                voice = self._voice()
                settings = self._settings("tts")
                start, stop = self._buttons("Speak")
            with gr.Column():
                view = View("Spoken text", True, self._rate)
        self._single("tts", self._inputs.speak, [text, style, natural, *voice], settings, view, start, stop)

    def understand(self) -> None:
        """Questions about recordings."""
        with gr.Row():
            with gr.Column():
                recording = self._recording("Recording")
                question = self._textbox("Question", 2)
                thinking = gr.Checkbox(label="Think before answering")
                settings = self._settings("audio_understanding")
                start, stop = self._buttons("Answer")
            with gr.Column():
                view = View("Answer", False, self._rate)
        inputs = [recording, question, thinking]
        self._single("audio_understanding", self._inputs.understand, inputs, settings, view, start, stop)

    def continue_speech(self) -> None:
        """Speech continuation."""
        gr.Markdown("For base models: goes on where the recording ends.")
        with gr.Row():
            with gr.Column():
                recording = self._recording("Recording")
                settings = self._settings("continue_speech")
                start, stop = self._buttons("Continue")
            with gr.Column():
                view = View("Words", True, self._rate)
        self._single("continue_speech", self._inputs.continue_speech, [recording], settings, view, start, stop)

    def convert(self) -> None:
        """Few-shot speech to speech."""
        gr.Markdown("For base models: pairs of recordings show what shall be done to the last one.")
        with gr.Row():
            with gr.Column(scale=2):
                instruction = self._textbox("Instruction", 1, "such as: Turn the speech into a whisper.")
                cells: list[Any] = []
                for number in range(1, self._limits.examples + 1):
                    with gr.Row():
                        cells.append(self._recording(f"Example {number}: source"))
                        cells.append(self._recording(f"Example {number}: target"))
                        cells.append(self._textbox(f"Example {number}: words of the target", 3))
                query = self._recording("Recording to convert")
                settings = self._settings("speech_to_speech")
                start, stop = self._buttons("Convert")
            with gr.Column():
                view = View("Words", True, self._rate)
        inputs = [instruction, query, *cells]
        self._single("speech_to_speech", self._inputs.convert, inputs, settings, view, start, stop)

    def talk(self) -> None:
        """Spoken dialogue."""
        with gr.Row():
            with gr.Column():
                recording = self._recording("Your turn")
                system = self._textbox("System prompt", 2)
                voice = self._voice()
                settings = self._settings("spoken_dialogue")
                start, stop = self._buttons("Send")
                clear = gr.Button("New dialogue")
            with gr.Column():
                view = View("Dialogue", True, self._rate, chat=True)

        def job(turns: list[Turn], seed: int, *inputs: Any) -> Job:
            return self._inputs.talk(seed, turns, *inputs)

        inputs = [system, *voice]
        self._dialogue("spoken_dialogue", job, recording, None, inputs, settings, view, start, stop, clear)

    def chat(self) -> None:
        """Written answers to what is written or said."""
        with gr.Row():
            with gr.Column():
                text = self._textbox("Message", 2)
                recording = self._recording("or say it")
                thinking = gr.Checkbox(label="Think before answering")
                settings = self._settings("text_dialogue")
                start, stop = self._buttons("Send")
                clear = gr.Button("New dialogue")
            with gr.Column():
                view = View("Dialogue", False, self._rate, chat=True)

        def job(turns: list[Turn], seed: int, *inputs: Any) -> Job:
            return self._inputs.chat(seed, turns, *inputs)

        self._dialogue("text_dialogue", job, recording, text, [thinking], settings, view, start, stop, clear)

    # ----- parts of tabs ---------------------------------------------------------------------------------------------

    def _recording(self, label: str) -> gr.Audio:
        return uploads_only(player(label, sources=["upload", "microphone"], type="filepath"))

    def _textbox(self, label: str, lines: int, placeholder: str | None = None) -> gr.Textbox:
        return gr.Textbox(label=label, lines=lines, placeholder=placeholder, max_length=self._limits.characters)

    def _voice(self) -> list[Any]:
        with gr.Accordion("Voice", open=False):
            name = gr.Dropdown(["", *self._voices], value="", label="Voice", visible=bool(self._voices))
            own = self._recording("Voice of your own")
        return [name, own]

    def _buttons(self, label: str) -> tuple[gr.Button, gr.Button]:
        with gr.Row():
            return gr.Button(label, variant="primary"), gr.Button("Stop", variant="stop")

    def _own(self, task: str) -> Settings:
        return Settings.of(TASKS[task], min(self._limits.positions, self._model.engine.max_positions))

    def _settings(self, task: str) -> list[Any]:
        """Widgets in the order of `Settings`, as the task has them."""
        own, longest = self._own(task), self._model.engine.max_positions
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                seed = gr.Number(own.seed, label="Seed", precision=0, minimum=0, maximum=_MAX_SEED)
                max_new = gr.Slider(1, longest, own.max_new, step=1, label="Longest answer (text tokens and patches)")
            parts = []
            for name, numbers in (("Text", own[2:5]), ("Speech", own[5:8])):
                with gr.Row(visible=name == "Text" or TASKS[task].spoken):
                    temperature, top_p, top_k = numbers
                    parts += [
                        gr.Slider(0, 2, temperature, step=0.05, label=f"{name}: temperature (0 = best token)"),
                        gr.Slider(0, 1, top_p, step=0.01, label=f"{name}: top-p (1 = all)"),
                        gr.Slider(0, 200, top_k, step=1, label=f"{name}: top-k (0 = all)"),
                    ]
        return [seed, max_new, *parts]

    # ----- what happens ----------------------------------------------------------------------------------------------

    def _follow(self, job: Job, settings: Settings, task: str) -> Iterator[Shown]:
        """The answer as it comes; when this is closed, so is the model's stream."""
        options = settings.options(self._own(task))
        with contextlib.closing(self._model.stream(job, **options)) as pieces:  # type: ignore[type-var]
            yield from tasks.follow(pieces, self._rate)

    def _single(
        self,
        task: str,
        make: Callable[..., Job],
        inputs: Sequence[Any],
        settings: Sequence[Any],
        view: View,
        start: gr.Button,
        stop: gr.Button,
    ) -> None:
        """One input, one answer."""

        def work(*values: Any) -> Iterator[Updates]:
            chosen = Settings(*values[-len(settings) :])
            yield view.empty()
            job = make(_seed(chosen), *values[: -len(settings)])
            for shown in self._follow(job, chosen, task):
                yield view.update(shown)

        event = self._on(start, work, [*inputs, *settings], view.outputs)
        self._end(stop.click, lambda: {**view.silent(), view.status: "Stopped"}, [], view.outputs, event)

    def _dialogue(
        self,
        task: str,
        make: Callable[..., Job],
        recording: gr.Audio,
        text: gr.Textbox | None,
        inputs: Sequence[Any],
        settings: Sequence[Any],
        view: View,
        start: gr.Button,
        stop: gr.Button,
        clear: gr.Button,
    ) -> None:
        """Turns; the dialogue grows when an answer is whole: after an error or a stop, the turn can be tried again."""
        history = gr.State([], time_to_live=6 * _HOUR)
        said = [recording] if text is None else [recording, text]

        def work(before: list[Turn], *values: Any) -> Iterator[Updates]:
            chosen = Settings(*values[-len(settings) :])
            turns = self._inputs.turn(before, *values[: len(said)])
            yield view.empty(turns)
            job = make(turns, _seed(chosen), *values[len(said) : -len(settings)])
            for shown in self._follow(job, chosen, task):
                updates = view.update(shown, turns)
                if shown.answer is not None:
                    after = tasks.answered(turns, shown.answer, view.saved(shown.answer))
                    updates |= {history: after, view.chat: tasks.messages(after), recording: None}
                    if text is not None:
                        updates[text] = ""
                yield updates

        outputs = [*view.outputs, history, *said]
        event = self._on(start, work, [history, *said, *inputs, *settings], outputs)
        self._end(
            stop.click,
            lambda turns: {**view.silent(), view.chat: tasks.messages(turns), view.status: "Stopped"},
            [history],
            outputs,
            event,
        )
        self._end(
            clear.click, lambda: {**view.silent(), view.chat: [], view.status: "", history: []}, [], outputs, event
        )
        # The chat has a button of its own for this.
        assert view.chat is not None
        self._end(view.chat.clear, lambda: {history: []}, [], [history], event)

    def _end(
        self, trigger: Callable[..., Any], work: Callable[..., Updates], inputs: Any, outputs: Any, event: Any
    ) -> None:
        """A trigger that ends what runs: gradio closes the generator, that closes the model's stream."""
        trigger(work, inputs, outputs, cancels=[event], queue=False, api_visibility="private")

    def _on(self, start: gr.Button, work: Callable[..., Iterator[Updates]], inputs: Any, outputs: Any) -> Any:
        # One limit for all tabs: they share a device.
        return start.click(
            _shown_to_the_user(work),
            inputs,
            outputs,
            show_progress="minimal",
            concurrency_limit=self._limits.running,
            concurrency_id="model",
            api_visibility="private",
        )


def _seed(settings: Settings) -> int:
    return int(settings.seed or 0)
