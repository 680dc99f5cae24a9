"""The plan of the built-in corpus: every utterance with all that decides its samples, before any is synthesised.

Planning is quick and sequential, so links between utterances (replies, clean versions, documents) are easy;
synthesis of one planned utterance needs nothing but its plan, so it can happen anywhere in any order.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mimo_jax.data.corpus import describe, instructions, questions, texts
from mimo_jax.data.corpus.voices import (
    INTONATIONS,
    NOISES,
    PITCHES,
    RATES,
    SNR_DB,
    VOLUMES,
    Voice,
    assistant_of,
    voices_of,
)
from mimo_jax.data.manifest import SPLITS, Record, TextRecord

_FILES_PER_FOLDER = 500
_REPEAT_SHARE = 0.1  # of core training utterances say a text that another one says too
# Of core training utterances: one to three words alone, where it is plain which word sounds how.
_PHRASE_SHARE = 0.35
_TALKERS = 3
# Shares of the wide utterances; plain sentences fill the rest.
WIDE_SHARES = {"styled": 0.26, "noisy": 0.18, "stories": 0.18, "dialogue": 0.18, "parallel": 0.14}
_LONGEST_STORY = 6
_NORMAL = {"rate": "normal", "pitch": "normal", "volume": "normal", "intonation": "normal"}


@dataclass(frozen=True)
class CorpusConfig:
    """How much of what.

    Numbers are utterances; ``texts`` are text-only training records, with 5 % more to validate. ``wide_shares`` takes
    the place of `WIDE_SHARES` for the kinds of wide utterances that it names. ``instructions`` is the share of all
    utterances of a suitable length that get one instruction about their words (`instructions.instruction`); all else
    in the corpus is the same whatever it is.

    Raises:
        ValueError: a negative number, a kind that there is not, or shares that are no shares.
    """

    seed: int = 0
    core_utterances: int = 9000
    core_validation: int = 240
    core_test_voices: int = 200
    wide_utterances: int = 3000
    wide_validation: int = 240
    wide_test_voices: int = 200
    texts: int = 6000
    wide_shares: Mapping[str, float] = field(default_factory=dict)
    instructions: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 <= self.instructions <= 1:
            raise ValueError(f"instructions: the share must lie in 0..1, got {self.instructions:g}")
        for kind, share in self.wide_shares.items():
            if kind not in WIDE_SHARES:
                raise ValueError(f"wide_shares: no kind {kind!r}; there are {', '.join(WIDE_SHARES)}")
            if not 0 <= share <= 1:
                raise ValueError(f"wide_shares: the share of {kind} must lie in 0..1, got {share:g}")
        if sum(self.shares.values()) > 1:
            given = ", ".join(f"{kind}={share:g}" for kind, share in self.shares.items())
            raise ValueError(f"wide_shares: more than 1 together ({given}); lower some of them")

    @property
    def shares(self) -> dict[str, float]:
        """Share of each kind of the wide utterances."""
        return {**WIDE_SHARES, **self.wide_shares}

    def count(self, subset: str, split: str) -> int:
        """Number of utterances of a part of the corpus."""
        return getattr(self, f"{subset}_{'utterances' if split == 'train' else split}")


@dataclass(frozen=True)
class Noise:
    """A background: kind, signal-to-noise ratio in dB, and for babble who says what."""

    kind: str
    snr_db: int
    talkers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Utterance:
    """A record, and the synthesis that makes its audio: espeak parameters, level, silence at both ends, noise."""

    record: Record
    voice: str
    rate: int
    pitch: int
    pitch_range: int
    level_db: float
    before: float
    after: float
    noise_key: tuple[int, ...] = ()
    noise: Noise | None = None


def plan_corpus(config: CorpusConfig) -> tuple[list[Utterance], list[TextRecord]]:
    """All utterances and all text-only records, a function of ``config`` alone."""
    utterances: list[Utterance] = []
    written: list[TextRecord] = []
    for i, split in enumerate(SPLITS):
        utterances += _plan_core(config.count("core", split), split, generator(config.seed, 1, i))
    for i, split in enumerate(SPLITS):
        plan = _WidePlan(split, config.seed, generator(config.seed, 2, i))
        utterances += plan.make(config.count("wide", split), config.shares)
    if config.instructions:
        utterances = [_instructed(utterance, config) for utterance in utterances]
    if config.texts:
        for i, (split, count) in enumerate((("train", config.texts), ("validation", max(20, config.texts // 20)))):
            written += _plan_texts(count, split, generator(config.seed, 3, i))
    return utterances, written


def _instructed(utterance: Utterance, config: CorpusConfig) -> Utterance:
    """The utterance with an instruction about its words, where its turn comes and its length allows.

    The generator is the utterance's own: what else is planned, and what other shares give it, does not change.
    """
    record = utterance.record
    rng = generator(config.seed, 5, *record.id.encode())
    if rng.random() >= config.instructions:
        return utterance
    asked = instructions.instruction(rng, (record.text or "").split())
    # Behind the other questions: theirs are the same examples, with the same ids, as without.
    return replace(utterance, record=replace(record, qa=[*record.qa, asked])) if asked else utterance


def generator(*key: int) -> np.random.Generator:
    """The random generator of a key of integers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _make(
    rng: np.random.Generator,
    voice: Voice,
    text: str,
    levels: dict[str, str],
    variation: float = 1.0,
    **fields: Any,
) -> Utterance:
    """An utterance without place in the corpus: natural variation (0: none) round the levels of a style."""

    def around(middle: float, spread: float) -> float:
        return middle + variation * spread * rng.uniform(-1.0, 1.0)

    rate = round(RATES[levels["rate"]] * around(1.0, 0.07))
    attributes = {
        "gender": voice.gender,
        "accent": voice.accent,
        **levels,
        "noise": "none",
        "words_per_minute": rate,
    }
    return Utterance(
        record=Record(id="", audio="", text=text, speaker=voice.name, attributes=attributes, **fields),
        voice=voice.espeak,
        rate=rate,
        pitch=int(np.clip(round(around(voice.pitch + PITCHES[levels["pitch"]], 4.5)), 0, 99)),
        pitch_range=int(np.clip(round(around(INTONATIONS[levels["intonation"]], 5.5)), 0, 99)),
        level_db=round(around(VOLUMES[levels["volume"]], 1.5), 2),
        before=round(around(0.065, 0.035), 3),
        after=round(around(0.065, 0.035), 3),
    )


def utterance_of(voice: Voice, text: str, noise: Noise | None = None, **levels: str) -> Utterance:
    """An utterance that is no part of the corpus: levels of style by dimension ("rate": "fast"), else normal."""
    made = _make(generator(0), voice, text, {**_NORMAL, **levels}, variation=0.0)
    return replace(made, noise=noise, noise_key=tuple(text.encode())) if noise else made


def _place(utterance: Utterance, subset: str, split: str, index: int) -> Utterance:
    """Gives an utterance its id, file and split."""
    name = utterance_id(subset, split, index)
    audio = f"audio/{subset}-{split}/{index // _FILES_PER_FOLDER:04d}/{name}.flac"
    return replace(utterance, record=replace(utterance.record, id=name, audio=audio, subset=subset, split=split))


def utterance_id(subset: str, split: str, index: int) -> str:
    """The id of the n-th utterance of a part of the corpus."""
    return f"{subset}-{split}-{index:06d}"


def _plan_core(count: int, split: str, rng: np.random.Generator) -> list[Utterance]:
    """Digit strings and commands. Held-out splits have no text twice; training has some in several voices, and phrases.

    Each voice keeps its own rate, pitch and level here, so that what a small model has to learn is the words; the wide
    part varies all of them.
    """
    said: set[str] = set()
    chosen: list[str] = []
    while len(chosen) < count:
        if split == "train" and chosen and rng.random() < _REPEAT_SHARE:
            chosen.append(chosen[int(rng.integers(len(chosen)))])
            continue
        if split == "train" and rng.random() < _PHRASE_SHARE:
            chosen.append(texts.draw(split, lambda: texts.phrase(rng), lambda made: (made,)))
            continue
        digits = bool(rng.random() < texts.DIGITS_SHARE)  # first: commands repeat more often, and would be dropped
        text = _core_text(rng, split, digits, exclude=() if split == "train" else said)
        said.add(text)
        chosen.append(text)
    speakers = voices_of(split)
    return [
        _place(_make(rng, texts.pick(rng, speakers), text, _NORMAL, variation=0.0), "core", split, i)
        for i, text in enumerate(chosen)
    ]


def _plan_texts(count: int, split: str, rng: np.random.Generator) -> list[TextRecord]:
    """Text-only material: a third of the core grammar, else sentences, stories and questions with replies."""
    records: list[TextRecord] = []
    for index in range(count):
        kind = rng.random()
        subset = "core" if kind < 0.33 else "wide"
        reply = None
        if kind < 0.33:
            text = _core_text(rng, split)
        elif kind < 0.6:
            text = _sentence(rng, split)
        elif kind < 0.75:
            text = ". ".join(texts.story(rng, split))
        else:
            asked = _question(rng, split)
            text, reply = asked.text, asked.reply
        records.append(TextRecord(f"text-{split}-{index:06d}", text, split, subset, reply))
    return records


def _core_text(rng: np.random.Generator, split: str, digits: bool | None = None, exclude: Container[str] = ()) -> str:
    return texts.draw(split, lambda: texts.core_text(rng, digits), lambda made: (made,), exclude)


def _sentence(rng: np.random.Generator, split: str) -> str:
    return texts.draw(split, lambda: texts.sentence(rng), lambda made: (made,))


def _question(rng: np.random.Generator, split: str) -> questions.Question:
    return texts.draw(split, lambda: questions.question(rng), lambda made: (made.text, made.reply))


@dataclass
class _WidePlan:
    """Collects the wide utterances of one split, group by group."""

    split: str
    seed: int
    rng: np.random.Generator
    done: list[Utterance] = field(default_factory=list)

    def make(self, count: int, shares: Mapping[str, float]) -> list[Utterance]:
        quota = {name: int(share * count) for name, share in shares.items()}
        for _ in range(quota["styled"]):
            self._styled()
        for _ in range(quota["noisy"] // 2):
            self._clean_and_noisy()
        enough = len(self.done) + quota["stories"]
        while len(self.done) + _LONGEST_STORY <= enough:
            self._story()
        for _ in range(quota["dialogue"] // 2):
            self._dialogue()
        for _ in range(quota["parallel"] // 4):
            self._parallel()
        while len(self.done) < count:
            self._add(self._speak(self._voice(), _sentence(self.rng, self.split)))
        return self.done

    def _next_id(self, ahead: int = 0) -> str:
        return utterance_id("wide", self.split, len(self.done) + ahead)

    def _add(self, utterance: Utterance, ask: int = 0) -> None:
        """Puts an utterance in its place and describes how it sounds, with ``ask`` questions about that."""
        placed = _place(utterance, "wide", self.split, len(self.done))
        described = replace(
            placed.record,
            caption=describe.caption(self.rng, placed.record.attributes),
            qa=describe.questions(self.rng, placed.record.attributes, ask),
        )
        self.done.append(replace(placed, record=described))

    def _voice(self) -> Voice:
        return texts.pick(self.rng, voices_of(self.split))

    def _levels(self) -> dict[str, str]:
        """A style: each dimension is normal half of the time."""
        options: dict[str, dict[str, Any]] = {
            "rate": RATES,
            "pitch": PITCHES,
            "volume": VOLUMES,
            "intonation": INTONATIONS,
        }
        return {
            name: "normal" if self.rng.random() < 0.5 else texts.pick(self.rng, tuple(k for k in o if k != "normal"))
            for name, o in options.items()
        }

    def _speak(self, voice: Voice, text: str, levels: dict[str, str] | None = None, **fields: Any) -> Utterance:
        return _make(self.rng, voice, text, {**_NORMAL, **(levels or {})}, **fields)

    def _styled(self) -> None:
        levels = self._levels()
        fields = {"instruction": describe.instruction(self.rng, levels)}
        self._add(self._speak(self._voice(), _sentence(self.rng, self.split), levels, **fields), ask=3)

    def _clean_and_noisy(self) -> None:
        clean = self._speak(self._voice(), _sentence(self.rng, self.split))
        clean_id = self._next_id()
        self._add(clean, ask=1)
        kind = texts.pick(self.rng, NOISES)
        talkers: tuple[tuple[str, str], ...] = ()
        if kind == "babble":
            others = [v for v in voices_of(self.split) if v.name != clean.record.speaker]
            talkers = tuple(
                (others[i % len(others)].espeak, _sentence(self.rng, self.split))
                for i in self.rng.permutation(len(others))[:_TALKERS].tolist()
            )
        noise = Noise(kind, texts.pick(self.rng, SNR_DB), talkers)
        attributes = {**clean.record.attributes, "noise": kind, "snr_db": noise.snr_db}
        noisy = replace(clean.record, clean=clean_id, attributes=attributes)
        key = (self.seed, 4, SPLITS.index(self.split), len(self.done))
        self._add(replace(clean, record=noisy, noise=noise, noise_key=key), ask=3)

    def _story(self) -> None:
        voice, name = self._voice(), self._next_id().replace("wide", "story", 1)
        for index, text in enumerate(texts.story(self.rng, self.split)):
            self._add(self._speak(voice, text, document={"id": name, "index": index}))

    def _dialogue(self) -> None:
        asked = _question(self.rng, self.split)
        assistant = assistant_of(self.split)
        others = tuple(v for v in voices_of(self.split) if v != assistant)
        question = self._speak(texts.pick(self.rng, others), asked.text, reply=self._next_id(1))
        answer = self._speak(assistant, asked.reply)
        for utterance, role in ((question, "question"), (answer, "answer")):
            facts = {"role": role, "kind": asked.kind, "answer": asked.answer}
            attributes = {**utterance.record.attributes, **facts}
            self._add(replace(utterance, record=replace(utterance.record, attributes=attributes)))

    def _parallel(self) -> None:
        """One text four times: plain, by another voice, at another rate, in another style."""
        voice, text = self._voice(), _sentence(self.rng, self.split)
        other = texts.pick(self.rng, tuple(v for v in voices_of(self.split) if v != voice))
        rate = {"rate": texts.pick(self.rng, ("slow", "fast"))}
        style = texts.pick(self.rng, ({"pitch": "low"}, {"pitch": "high"}, {"volume": "quiet"}, {"volume": "loud"}))
        key = self._next_id().replace("wide", "parallel", 1)
        for variant, speaker, levels in (
            ("base", voice, {}),
            ("voice", other, {}),
            ("rate", voice, rate),
            ("style", voice, style),
        ):
            utterance = self._speak(speaker, text, levels, parallel=key)
            attributes = {**utterance.record.attributes, "variant": variant}
            self._add(replace(utterance, record=replace(utterance.record, attributes=attributes)), ask=1)
