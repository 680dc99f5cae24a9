"""Few-shot questions in the voices of the built-in corpus, each held out by its text.

    arithmetic_t2t, _s2t, _t2s, _s2s   "what is three plus four": which of four numbers, question and answer written (t)
                                       or spoken (s); the neutral prompt lacks the question
    voice                              a phrase in one voice after examples of another: said by which of four speakers
    style                              after examples in a low, high, flat or lively voice: in which of the four
    rate                               after examples said slowly, fast or as usual: at which of the three rates
    denoising                          a noisy phrase after examples of noisy and clean: clean, or with which of three
                                       noises

Conversions have the form of `prompts.few_shot_speech_to_speech` with an instruction that does not say what to do; their
neutral prompt lacks the examples. Spoken answers are streamed with their words, as in the released evaluation. Texts of
queries belong to the split "validation" of the corpus, those of examples to "train" (`texts.text_split`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.corpus import questions, texts
from mimo_jax.data.corpus.build import synthesise
from mimo_jax.data.corpus.plan import Noise, Utterance, generator, utterance_of
from mimo_jax.data.corpus.voices import TRAIN_VOICES, Voice
from mimo_jax.data.sequence import Segment
from mimo_jax.evaluation.few_shot.choices import Choice

INSTRUCTION = "Convert the speech as in the examples."
PAIRS = ("t2t", "s2t", "t2s", "s2s")
TASKS = (*(f"arithmetic_{pair}" for pair in PAIRS), "voice", "style", "rate", "denoising")
_CANDIDATES = 4
_SNR_DB = 5
_STYLES = ({"pitch": "low"}, {"pitch": "high"}, {"intonation": "flat"}, {"intonation": "lively"})
_RATES = ({"rate": "slow"}, {"rate": "normal"}, {"rate": "fast"})
_NOISES = ("white", "pink", "hum")


@dataclasses.dataclass(frozen=True)
class Options:
    """How many questions.

    Attributes:
      tasks: of `TASKS`.
      questions: of each task.
      shots: worked examples of arithmetic.
      conversion_shots: example pairs of a conversion.
      seed: of everything random.
    """

    tasks: Sequence[str] = TASKS
    questions: int = 64
    shots: int = 5
    conversion_shots: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.tasks) - set(TASKS):
            raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}: there are {', '.join(TASKS)}")
        if min(self.questions, self.shots, self.conversion_shots) < 1:
            raise ValueError(f"{self}: give at least one question and one example")


def build(options: Options, encode: Callable[[list[np.ndarray]], Sequence[np.ndarray]]) -> list[Choice]:
    """The questions, a function of the options and of `encode` (waves float32 [samples], 24 kHz -> codes [frames, C]).

    Every utterance is synthesised and encoded once, all of them together.
    """
    planned: dict[str, Utterance] = {}

    def note(utterance: Utterance) -> np.ndarray:
        planned.setdefault(repr(utterance), utterance)
        return np.zeros((1, 1), np.int32)

    # Once to see what is said, once with the codes: the same draws.
    _choices(options, note)
    waves = [synthesise(utterance) for utterance in planned.values()]
    codes = dict(zip(planned, encode(waves), strict=True))
    return _choices(options, lambda utterance: codes[repr(utterance)])


def facts(options: Options) -> dict[str, dict[str, Any]]:
    """Task -> what a set tells of it."""
    return {
        task: {"shots": options.shots if task.startswith("arithmetic") else options.conversion_shots}
        for task in options.tasks
    }


def _choices(options: Options, say: Callable[[Utterance], np.ndarray]) -> list[Choice]:
    made = []
    for task in options.tasks:
        for number in range(options.questions):
            rng = generator(options.seed, TASKS.index(task), number)
            if task.startswith("arithmetic"):
                # The same questions in all four: what differs is how they are put.
                rng = generator(options.seed, len(TASKS), number)
                made.append(_arithmetic(task, rng, options.shots, say))
            else:
                made.append(_conversion(task, rng, options.conversion_shots, say))
    return made


def _arithmetic(task: str, rng: np.random.Generator, shots: int, say: Callable[[Utterance], np.ndarray]) -> Choice:
    asks_aloud, answers_aloud = task[-3] == "s", task[-1] == "s"
    asker, answerer = (TRAIN_VOICES[i] for i in rng.choice(len(TRAIN_VOICES), 2, replace=False))

    def asked(operation: str) -> str | np.ndarray:
        text = f"what is {operation}"
        return say(utterance_of(asker, text)) if asks_aloud else text

    def answered(word: str) -> str | prompts.SpokenText:
        return prompts.SpokenText(word, say(utterance_of(answerer, word))) if answers_aloud else word

    shown: list[tuple[str, str]] = []
    while len(shown) < shots:
        pair = _operation(rng, "train")
        if pair not in shown:
            shown.append(pair)
    operation, right = _operation(rng, "validation")
    wrong = [word for word in questions.NUMBERS if word != right]
    words = [right, *rng.choice(wrong, _CANDIDATES - 1, replace=False)]
    order = rng.permutation(_CANDIDATES)
    examples = [(asked(example), answered(word)) for example, word in shown]
    prompt = prompts.few_shot_question_answering("", examples, asked(operation), answers_aloud)
    query = -3 if answers_aloud else -2  # the segment with the question, before a new line and where speech begins
    without = [*prompt[:query], *prompt[query + 1 :]]
    candidates = [answered(words[i]) for i in order]
    return Choice(
        task,
        [_completed(prompt, candidate) for candidate in candidates],
        [_completed(without, candidate) for candidate in candidates],
        int(np.flatnonzero(order == 0)[0]),
    )


def _operation(rng: np.random.Generator, split: str) -> tuple[str, str]:
    return texts.draw(split, lambda: questions.sum_or_difference(rng), lambda made: (f"what is {made[0]}",))


def _conversion(task: str, rng: np.random.Generator, shots: int, say: Callable[[Utterance], np.ndarray]) -> Choice:
    """Pairs (input, output) that show a conversion, and an input whose output is one of the candidates."""
    voices = [TRAIN_VOICES[i] for i in rng.choice(len(TRAIN_VOICES), 1 + _CANDIDATES, replace=False)]
    speaker, outputs = voices[0], _outputs(task, voices)
    answer = 0 if task == "denoising" else int(rng.integers(len(outputs)))
    order = rng.permutation(len(outputs))
    noises = [Noise(kind, _SNR_DB) for kind in _NOISES]
    noise = noises[int(rng.integers(len(noises)))] if task == "denoising" else None

    def phrase(split: str) -> str:
        return texts.draw(split, lambda: " ".join(texts.core_text(rng).split()[:3]), lambda made: (made,))

    def source(text: str) -> np.ndarray:
        return say(utterance_of(speaker, text, noise))

    def target(text: str, index: int) -> prompts.SpokenText:
        return prompts.SpokenText(text, say(outputs[index](text)))

    shown: list[str] = []
    while len(shown) < shots:
        text = phrase("train")
        if text not in shown:
            shown.append(text)
    query = phrase("validation")
    examples = [prompts.FewShotExample(source(text), target(text, answer)) for text in shown]
    prompt = prompts.few_shot_speech_to_speech(INSTRUCTION, examples, source(query))
    without = prompts.few_shot_speech_to_speech(INSTRUCTION, [], source(query))
    candidates = [target(query, int(index)) for index in order]
    return Choice(
        task,
        [_completed(prompt, candidate) for candidate in candidates],
        [_completed(without, candidate) for candidate in candidates],
        int(np.flatnonzero(order == answer)[0]),
    )


def _outputs(task: str, voices: Sequence[Voice]) -> list[Callable[[str], Utterance]]:
    """What an output may be, given its text; of denoising the first is the right one."""
    speaker, others = voices[0], voices[1:]
    if task == "voice":
        return [partial(utterance_of, voice) for voice in others]
    if task == "denoising":
        noises = [None, *(Noise(kind, _SNR_DB) for kind in _NOISES)]
        return [partial(utterance_of, speaker, noise=noise) for noise in noises]
    levels = _STYLES if task == "style" else _RATES
    return [partial(utterance_of, speaker, noise=None, **level) for level in levels]


def _completed(prompt: Sequence[Segment], candidate: str | prompts.SpokenText) -> list[Segment]:
    if isinstance(candidate, str):
        # The end counts: without it "seven" would be as likely as all that begins with it.
        return prompts.complete_with_text(prompt, candidate, end=prompts.FEW_SHOT_GAP)
    return prompts.complete_with_speech(prompt, candidate, end="")
