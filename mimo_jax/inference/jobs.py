"""What each task asks of the model: prompts in the released format, the audio in them encoded.

A job is one input of a task, ready to be answered: `MimoAudio.answer` takes a list of them, `MimoAudio.stream` one.
Prompts are those of the released inference code; where that code errs, the user's meaning wins: a dialogue keeps its
system prompt and voice in every turn, and a string is always text (a missing file is an error, not a text).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.sequence import Segment
from mimo_jax.inference.decoding import FEW_SHOT_SPEECH, TASKS, Decoding

Audio = str | os.PathLike[str] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Speech:
    """A spoken utterance with its words."""

    text: str
    audio: Audio


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """One turn of a dialogue: a user's text (str) or audio (path object or array), an assistant's text or `Speech`."""

    role: Literal["user", "assistant"]
    content: str | os.PathLike[str] | np.ndarray | Speech


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A few-shot conversion: what to do, pairs (input, output with its words) that show it, the input to convert."""

    instruction: str
    examples: Sequence[tuple[Audio, Speech]]
    query: Audio


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A question that a base model answers after some that are answered already.

    Attributes:
      query: what is asked: text (str) or audio (path object or array).
      examples: pairs (question, answer); an answer is text (str) or `Speech`, all of them alike.
      beginning: words or recording that the examples follow, such as "The following are questions about law."
      spoken: whether the answer is speech; None = as in the examples (without any: no).
    """

    query: str | os.PathLike[str] | np.ndarray
    examples: Sequence[tuple[str | os.PathLike[str] | np.ndarray, str | Speech]] = ()
    beginning: str | os.PathLike[str] | np.ndarray = ""
    spoken: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One input of a task.

    Attributes:
      segments: the prompt.
      decoding: how the answer is made, unless the caller says otherwise.
      seed: of the random choices.
      thinking: whether the prompt ends inside the think block.
    """

    segments: Sequence[Segment]
    decoding: Decoding
    seed: int = 0
    thinking: bool = False


class Jobs:
    """Makes the jobs of each task from lists of inputs. `seeds`: one integer per input (default: 0, 1, 2, ...).

    Args:
      encode: recordings -> their codes int32 [frames, C].
      group_size: frames of a patch.
    """

    def __init__(self, encode: Callable[[Sequence[Audio]], list[np.ndarray]], group_size: int):
        self._encode, self._group_size = encode, group_size

    def asr(
        self,
        audios: Sequence[Audio],
        *,
        instruction: str | None = None,
        language: prompts.Language | None = "en",
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """Transcription.

        `instruction`: wording of the request; by default one of the known ones, by the seed, in `language` (None = any
        of them: only for a model that was trained on requests in all).
        """
        seeds = _seeds(seeds, len(audios))
        made = [
            prompts.asr(codes, instruction or prompts.choose_instruction(prompts.ASR_INSTRUCTIONS, seed, language))
            for codes, seed in zip(self._encode(audios), seeds, strict=True)
        ]
        return _jobs("asr", made, seeds)

    def tts(
        self, texts: Sequence[str], *, instruction: str | None = None, seeds: Sequence[int] | None = None
    ) -> list[Job]:
        """Speech of texts."""
        seeds = _seeds(seeds, len(texts))
        return _jobs("tts", list(map(prompts.tts, texts, _read_aloud(texts, instruction, seeds))), seeds)

    def instruct_tts(
        self,
        texts: Sequence[str],
        styles: Sequence[str],
        voices: Sequence[Audio] | None = None,
        *,
        instruction: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """Speech of texts in described styles, after reasoning about them; `voices`: how the speakers shall sound."""
        seeds = _seeds(seeds, len(texts))
        wordings = _read_aloud(texts, instruction, seeds)
        rows = zip(texts, styles, wordings, self._voices(voices, len(texts)), strict=True)
        return _jobs("instruct_tts", [prompts.instruct_tts(*row) for row in rows], seeds, thinking=True)

    def natural_instruction_tts(
        self, requests: Sequence[str], voices: Sequence[Audio] | None = None, *, seeds: Sequence[int] | None = None
    ) -> list[Job]:
        """Speech for requests that name style and words themselves ("Say softly: Good night")."""
        rows = zip(requests, self._voices(voices, len(requests)), strict=True)
        made = [prompts.natural_instruction_tts(*row) for row in rows]
        return _jobs("natural_instruction_tts", made, seeds, thinking=True)

    def audio_understanding(
        self,
        audios: Sequence[Audio],
        questions: Sequence[str],
        *,
        thinking: bool = False,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """One question per recording."""
        rows = zip(self._encode(audios), questions, strict=True)
        made = [prompts.audio_understanding(*row, thinking) for row in rows]
        return _jobs("audio_understanding", made, seeds, thinking=thinking)

    def spoken_dialogue(
        self,
        dialogues: Sequence[Sequence[Message]],
        *,
        system_prompt: str | None = None,
        voice: Audio | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """Spoken answers to dialogues that end with the user's turn; `voice`: how the model shall sound."""
        codes = None if voice is None else self._encode([voice])[0]
        made = [prompts.spoken_dialogue(m, system_prompt, codes) for m in self._messages(dialogues)]
        return _jobs("spoken_dialogue", made, seeds)

    def speech_to_text_dialogue(
        self, dialogues: Sequence[Sequence[Message]], *, thinking: bool = False, seeds: Sequence[int] | None = None
    ) -> list[Job]:
        """Written answers to dialogues in which the user speaks."""
        made = [prompts.text_answer_dialogue(m, thinking) for m in self._messages(dialogues)]
        return _jobs("speech_to_text_dialogue", made, seeds, thinking=thinking)

    def text_dialogue(
        self, dialogues: Sequence[Sequence[Message]], *, thinking: bool = False, seeds: Sequence[int] | None = None
    ) -> list[Job]:
        """Written answers to written dialogues."""
        made = [prompts.text_answer_dialogue(m, thinking) for m in self._messages(dialogues)]
        return _jobs("text_dialogue", made, seeds, thinking=thinking)

    def speech_to_speech(self, requests: Sequence[Conversion], *, seeds: Sequence[int] | None = None) -> list[Job]:
        """Few-shot conversions by a base model: the query converted as the examples show."""
        flat = [audio for r in requests for source, target in r.examples for audio in (source, target.audio)]
        shown, queries = iter(self._encode(flat)), self._encode([r.query for r in requests])
        made = []
        for request, query in zip(requests, queries, strict=True):
            examples = [
                prompts.FewShotExample(next(shown), prompts.SpokenText(target.text, next(shown)))
                for _, target in request.examples
            ]
            made.append(prompts.few_shot_speech_to_speech(request.instruction, examples, query))
        return _jobs("speech_to_speech", made, seeds)

    def few_shot_question_answering(
        self, questions: Sequence[Question], *, seeds: Sequence[int] | None = None
    ) -> list[Job]:
        """Answers by a base model that has seen some in its prompt; written or spoken, see `Question`."""
        jobs = []
        for question, seed in zip(questions, _seeds(seeds, len(questions)), strict=True):
            examples = [
                (self._content(asked), answer if isinstance(answer, str) else self._spoken_text(answer))
                for asked, answer in question.examples
            ]
            spoken = question.spoken
            if spoken is None:
                spoken = any(isinstance(answer, Speech) for _, answer in question.examples)
            prompt = prompts.few_shot_question_answering(
                self._content(question.beginning), examples, self._content(question.query), spoken
            )
            decoding = FEW_SHOT_SPEECH if spoken else TASKS["few_shot_question_answering"]
            jobs.append(Job(prompt, decoding, seed))
        return jobs

    def continue_speech(self, audios: Sequence[Audio], *, seeds: Sequence[int] | None = None) -> list[Job]:
        """What a base model says after each recording; the answer is the continuation alone."""
        group = self._group_size
        # A patch filled up with copies of its last frame would be heard in the middle of the speech.
        made = [prompts.base_continuation(c[: max(len(c) // group * group, 1)]) for c in self._encode(audios)]
        return _jobs("continue_speech", made, seeds)

    def pretrain_asr(self, audios: Sequence[Audio], *, seeds: Sequence[int] | None = None) -> list[Job]:
        """Transcription by a base model, in the format of pretraining."""
        return _jobs("pretrain_asr", list(map(prompts.base_asr, self._encode(audios))), seeds)

    def pretrain_tts(self, texts: Sequence[str], *, seeds: Sequence[int] | None = None) -> list[Job]:
        """Speech by a base model, in the format of pretraining."""
        return _jobs("pretrain_tts", list(map(prompts.base_tts, texts)), seeds)

    # ----- parts ---------------------------------------------------------------------------------------------------

    def _voices(self, voices: Sequence[Audio] | None, count: int) -> Sequence[np.ndarray | None]:
        return [None] * count if voices is None else self._encode(voices)

    def _content(self, content: str | os.PathLike[str] | np.ndarray) -> str | np.ndarray:
        return content if isinstance(content, str) else self._encode([content])[0]

    def _spoken_text(self, speech: Speech) -> prompts.SpokenText:
        return prompts.SpokenText(speech.text, self._encode([speech.audio])[0])

    def _messages(self, dialogues: Sequence[Sequence[Message]]) -> list[list[prompts.Message]]:
        """The dialogues with their audio encoded, all recordings together."""
        audios = []
        for message in (m for messages in dialogues for m in messages):
            content = message.content.audio if isinstance(message.content, Speech) else message.content
            if not isinstance(content, str) or isinstance(message.content, Speech):
                audios.append(content)
        codes = iter(self._encode(audios))

        def encoded(message: Message) -> prompts.Message:
            content = message.content
            if isinstance(content, str):
                return prompts.Message(message.role, content)
            if isinstance(content, Speech):
                return prompts.Message(message.role, prompts.SpokenText(content.text, next(codes)))
            return prompts.Message(message.role, next(codes))

        return [[encoded(message) for message in messages] for messages in dialogues]


def _jobs(
    task: str, made: Sequence[Sequence[Segment]], seeds: Sequence[int] | None, *, thinking: bool = False
) -> list[Job]:
    return [
        Job(segments, TASKS[task], seed, thinking)
        for segments, seed in zip(made, _seeds(seeds, len(made)), strict=True)
    ]


def _seeds(seeds: Sequence[int] | None, count: int) -> Sequence[int]:
    if seeds is not None and len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} inputs")
    return range(count) if seeds is None else seeds


def _read_aloud(texts: Sequence[str], instruction: str | None, seeds: Sequence[int]) -> list[str]:
    """The wording of the request for each text: the caller's, or one in the language of the text, by the seed."""
    return [
        instruction or prompts.choose_instruction(prompts.TTS_INSTRUCTIONS, seed, prompts.language_of(text))
        for text, seed in zip(texts, seeds, strict=True)
    ]
