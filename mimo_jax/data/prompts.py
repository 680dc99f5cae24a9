"""Prompts of every task as lists of segments, ready for inference, and their completion to training examples.

The protocol strings (role markers, think markers, ``[Int]:``, the voice line, the system lines of instructed speech)
are part of the released format and exact; so is where one text segment ends and the next begins, because each is
tokenized on its own. The pools of interchangeable instruction wordings (``ASR_INSTRUCTIONS``, ``TTS_INSTRUCTIONS``) are
ours, and a caller may pass any wording. Prompts named ``base_`` have no chat markup: the forms seen in pretraining.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mimo_jax.data.sequence import AudioSegment, Segment, StreamedSegment, TextSegment

Language = Literal["en", "zh"]

SYSTEM = "<|im_start|>system\n"
USER = "<|im_start|>user\n"
ASSISTANT = "<|im_start|>assistant\n"
TURN_END = "<|im_end|>\n"
NO_THINKING = "<think>\n\n</think>\n"
THINK_START = "<think>\n"
THINK_END = "</think>\n"
SPEECH_START = "<|sostm|>"
END_OF_TEXT = "<|endoftext|>"
VOICE_LINE = "Your voice should be:"
STYLE_LINE = "你需要根据指定的风格指令和文本内容来生成语音。"
STYLE_VOICE_LINE = "你需要根据指定的风格指令和文本内容来生成和语音prompt具有相同音色的语音。你的音色应该是："
FEW_SHOT_PREFIX = "[Int]:"  # text and speech in turns
FEW_SHOT_SPEECH_PREFIX = "<Spe>:"  # nothing but speech
FEW_SHOT_GAP = " \n\n"
# Without chat markup a caption would look like a transcript: this lead tells them apart.
CAPTION_LEAD = "\nCaption: "

ASR_INSTRUCTIONS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Write out the words of this recording",
        "What is being said here? Give me the words",
        "Type up the speech you hear",
        "Give a transcript of this clip",
        "Please note down every word of this recording",
        "Put this spoken passage into writing",
        "I need the text of what is said in this clip",
        "Listen and type what the speaker says",
    ),
    "zh": (
        "请写出这段录音里说的话",
        "听一听，把听到的内容打成文字",
        "请给出这段音频的文字稿",
        "这段录音说了什么？请逐字写下来",
        "把说话人的话记录成文字",
        "请把听到的每句话写出来",
    ),
}
TTS_INSTRUCTIONS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Say the following aloud",
        "Speak these words",
        "Please read out this sentence",
        "Give voice to this passage",
        "Let me hear this text",
        "Turn the following into a spoken recording",
        "Read this to me",
        "Pronounce the following",
    ),
    "zh": (
        "请说出下面的话",
        "请把下面这句话念给我听",
        "用语音说出以下内容",
        "请读一读下面的文字",
        "把下面的文字变成声音",
        "我想听这段话的朗读",
    ),
}


@dataclasses.dataclass(frozen=True)
class SpokenText:
    """A spoken utterance with its words: content of an assistant turn in a spoken dialogue. Codes are [frames, C]."""

    text: str
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a dialogue: a user's text or codes [frames, C], an assistant's text or spoken text."""

    role: Literal["user", "assistant"]
    content: str | np.ndarray | SpokenText


@dataclasses.dataclass(frozen=True)
class FewShotExample:
    """One shown conversion: codes [frames, C] of the input, and of the output with its words."""

    source: np.ndarray
    target: SpokenText


def language_of(text: str) -> Language:
    """``zh`` where any character is a CJK unified ideograph (U+4E00..U+9FFF), else ``en``."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"


def normalize_case(text: str) -> str:
    """Text wholly in upper or in lower case gets one leading capital, as the released speech prompts do."""
    return text.capitalize() if text.isupper() or text.islower() else text


def _text(text: str, role: Literal["system", "user", "assistant"] | None = None) -> TextSegment:
    return TextSegment(text, role=role)


def _assistant_start(thinking: bool) -> list[Segment]:
    return [_text(ASSISTANT, "assistant"), _text(THINK_START if thinking else NO_THINKING, "assistant")]


def _user_turn(content: str | np.ndarray, lead: Sequence[Segment] = ()) -> list[Segment]:
    body: Segment = _text(content, "user") if isinstance(content, str) else AudioSegment(content, role="user")
    return [_text(USER, "user"), *lead, body, _text(TURN_END, "user")]


def _assistant_turn(content: str | SpokenText) -> list[Segment]:
    if isinstance(content, str):
        body: Segment = _text(content, "assistant")
    else:
        body = StreamedSegment(content.text, content.codes, role="assistant")
    return [_text(ASSISTANT, "assistant"), body, _text(TURN_END, "assistant")]


def _voice_turn(line: str, voice: np.ndarray | None) -> list[Segment]:
    spoken: list[Segment] = [] if voice is None else [AudioSegment(voice, role="system")]
    return [_text(SYSTEM, "system"), _text(line, "system"), *spoken, _text(TURN_END, "system")]


def asr(codes: np.ndarray, instruction: str) -> list[Segment]:
    """Transcription: codes [frames, C] and an instruction; the model goes on with the transcript."""
    return [
        _text(USER, "user"),
        AudioSegment(codes, role="user"),
        _text(instruction, "user"),
        _text(TURN_END, "user"),
        *_assistant_start(thinking=False),
    ]


def tts(text: str, instruction: str) -> list[Segment]:
    """Speech of ``text``; the model goes on inside a streamed answer. Text in one case only is capitalised."""
    return [
        _text(f"{USER}{instruction}: {normalize_case(text)}{TURN_END}", "user"),
        _text(ASSISTANT + SPEECH_START, "assistant"),
    ]


def instruct_tts(text: str, style: str, instruction: str, voice: np.ndarray | None = None) -> list[Segment]:
    """Speech of ``text`` in a described style, after reasoning about it; ``voice`` (codes) sets the speaker."""
    return [
        *_voice_turn(STYLE_LINE if voice is None else STYLE_VOICE_LINE, voice),
        _text(f"{USER}{instruction}: {normalize_case(text)}({style}){TURN_END}", "user"),
        _text(ASSISTANT + THINK_START, "assistant"),
    ]


def natural_instruction_tts(request: str, voice: np.ndarray | None = None) -> list[Segment]:
    """Speech for a request that itself names style and words ("Say softly: Good night")."""
    return [
        *_voice_turn(STYLE_LINE if voice is None else STYLE_VOICE_LINE, voice),
        _text(f"{USER}{normalize_case(request)}{TURN_END}", "user"),
        _text(ASSISTANT + THINK_START, "assistant"),
    ]


def audio_understanding(codes: np.ndarray, question: str, thinking: bool = False) -> list[Segment]:
    """A question about a recording (codes [frames, C])."""
    return [
        _text(USER, "user"),
        AudioSegment(codes, role="user"),
        _text(question, "user"),
        _text(TURN_END, "user"),
        *_assistant_start(thinking),
    ]


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "user":
        raise ValueError("a dialogue prompt needs messages and must end with the user's turn")
    for message in messages:
        if message.role not in ("user", "assistant"):
            raise ValueError(f"invalid role {message.role!r}: a dialogue message is by 'user' or 'assistant'")


def _turns(messages: Sequence[Message], first_lead: Sequence[Segment] = ()) -> list[Segment]:
    """Segments of all turns; ``first_lead`` goes to the start of the first user turn."""
    _check_messages(messages)
    out: list[Segment] = []
    lead = first_lead
    for message in messages:
        if message.role == "user":
            if isinstance(message.content, SpokenText):
                raise ValueError("a user's message is text or codes, not SpokenText")
            out += _user_turn(message.content, lead)
            lead = ()
        else:
            if isinstance(message.content, np.ndarray):
                raise ValueError("an assistant's spoken message needs its words: pass SpokenText(text, codes)")
            out += _assistant_turn(message.content)
    return out


def text_answer_dialogue(messages: Sequence[Message], thinking: bool = False) -> list[Segment]:
    """Dialogue with a text answer; user turns are text (text dialogue) or codes (speech-to-text dialogue).

    Raises:
        ValueError: an invalid role, or a dialogue that does not end with the user.
    """
    return [*_turns(messages), *_assistant_start(thinking)]


def spoken_dialogue(
    messages: Sequence[Message], system_prompt: str | None = None, voice: np.ndarray | None = None
) -> list[Segment]:
    """Dialogue with a streamed spoken answer; ``system_prompt`` leads the first user turn, ``voice`` (codes) the whole.

    Raises:
        ValueError: an invalid role, or a dialogue that does not end with the user.
    """
    lead = [] if system_prompt is None else [_text(system_prompt, "user"), _text("\n\n", "user")]
    return [
        *([] if voice is None else _voice_turn(VOICE_LINE, voice)),
        *_turns(messages, lead),
        _text(ASSISTANT + SPEECH_START, "assistant"),
    ]


def few_shot_speech_to_speech(instruction: str, examples: Sequence[FewShotExample], query: np.ndarray) -> list[Segment]:
    """Conversion shown by examples to a base model (no chat markup); the model goes on inside a streamed answer."""
    out: list[Segment] = [_text(f"{FEW_SHOT_PREFIX}{instruction}\n")]
    for example in examples:
        out += [
            AudioSegment(example.source),
            _text("\n"),
            StreamedSegment(example.target.text, example.target.codes),
            _text(FEW_SHOT_GAP),
        ]
    return [*out, AudioSegment(query), _text("\n"), _text(SPEECH_START)]


def few_shot_question_answering(
    beginning: str | np.ndarray,
    examples: Sequence[tuple[str | np.ndarray, str | SpokenText]],
    query: str | np.ndarray,
    spoken: bool,
) -> list[Segment]:
    """Question answering shown by examples to a base model (no chat markup), as in SpeechMMLU.

    Args:
        beginning: what the examples follow, text or codes [frames, C]; empty = nothing.
        examples: (question as text or codes, answer as text or spoken text).
        query: the question to answer.
        spoken: the model goes on inside a streamed answer; else with text.
    """
    heard, said = isinstance(query, np.ndarray), spoken
    prefix = {(False, False): "", (True, True): FEW_SHOT_SPEECH_PREFIX}.get((heard, said), FEW_SHOT_PREFIX)

    def segment(content: str | np.ndarray | SpokenText) -> Segment:
        if isinstance(content, str):
            return _text(content)
        return (
            AudioSegment(content) if isinstance(content, np.ndarray) else StreamedSegment(content.text, content.codes)
        )

    out: list[Segment] = [_text(prefix)] if prefix else []
    if len(beginning):
        out += [segment(beginning), _text("\n")]
    for question, answer in examples:
        if isinstance(answer, SpokenText) != spoken:
            raise ValueError("answers of the examples must all be spoken, or all be text, like the one asked for")
        out += [segment(question), _text("\n"), segment(answer), _text(FEW_SHOT_GAP)]
    return [*out, segment(query), _text("\n"), *([_text(SPEECH_START)] if spoken else [])]


def base_asr(codes: np.ndarray) -> list[Segment]:
    """Transcription by a base model: the recording, a new line, then the transcript."""
    return [AudioSegment(codes), _text("\n")]


def base_captioning(codes: np.ndarray) -> list[Segment]:
    """Caption by a base model."""
    return [AudioSegment(codes), _text(CAPTION_LEAD)]


def base_tts(text: str) -> list[Segment]:
    """Speech by a base model: the words, a new line, then a streamed answer."""
    return [_text(text), _text("\n"), _text(SPEECH_START)]


def base_instruct_tts(text: str, style: str) -> list[Segment]:
    """Speech in a described style by a base model: the style, the words, then a streamed answer."""
    return [_text(style), _text("\n"), _text(text), _text("\n"), _text(SPEECH_START)]


def base_continuation(codes: np.ndarray) -> list[Segment]:
    """Speech continuation: an audio segment that is not closed."""
    return [_text("<|sosp|>"), AudioSegment(codes, delimited=False)]


def _without_speech_start(prompt: Sequence[Segment]) -> list[Segment]:
    """The prompt without its closing ``<|sostm|>``, which a streamed segment brings itself (and is trained on)."""
    last = prompt[-1]
    if not isinstance(last, TextSegment) or not isinstance(last.text, str):
        raise ValueError("the prompt does not end with text")
    if not last.text.endswith(SPEECH_START):
        return list(prompt)
    rest = last.text.removesuffix(SPEECH_START)
    return [*prompt[:-1], *([dataclasses.replace(last, text=rest)] if rest else [])]


def complete_with_text(
    prompt: Sequence[Segment], answer: str, thought: str | None = None, end: str = TURN_END
) -> list[Segment]:
    """Prompt + answer (+ the thought that comes first), the loss on what is added."""
    thinking = (
        [] if thought is None else [TextSegment(thought, True, "assistant"), TextSegment(THINK_END, True, "assistant")]
    )
    return [*prompt, *thinking, TextSegment(answer, True, "assistant"), TextSegment(end, True, "assistant")]


def complete_with_speech(
    prompt: Sequence[Segment], answer: SpokenText, thought: str | None = None, end: str = TURN_END
) -> list[Segment]:
    """Prompt + streamed answer (+ the thought that comes first), the loss on what is added."""
    thinking = (
        [] if thought is None else [TextSegment(thought, True, "assistant"), TextSegment(THINK_END, True, "assistant")]
    )
    return [
        *_without_speech_start(prompt),
        *thinking,
        StreamedSegment(answer.text, answer.codes, True, "assistant"),
        TextSegment(end, True, "assistant"),
    ]


def choose_instruction(pool: dict[Language, tuple[str, ...]], index: int, language: Language | None = None) -> str:
    """The ``index``-th wording of a pool (modulo its size); of all languages together where none is given."""
    wordings = pool[language] if language else tuple(w for group in pool.values() for w in group)
    return wordings[index % len(wordings)]
