"""Requests of OpenAI's API as checked values of ours: pure functions, nothing decoded and nothing looked up yet."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from typing import Literal

from mimo_jax.data.text_tokenizer import CHAT_TOKENS, SPEECH_TOKENS
from mimo_jax.serving.errors import bad
from mimo_jax.serving.fields import Fields, shown
from mimo_jax.serving.limits import Limits

INPUT_FORMATS = ("wav", "mp3", "flac", "ogg", "opus")
CHAT_FORMATS = ("wav", "pcm16", "flac", "mp3", "opus")
SPEECH_FORMATS = ("mp3", "opus", "flac", "wav", "pcm")
DEFAULT_VOICE = "default"
_SEEDS = 2**63
# What changes nothing in an answer, so that it does not matter that nobody reads it.
_IGNORED = ("user", "metadata", "prompt_cache_key", "safety_identifier", "parallel_tool_calls")
# Fields with the values that mean what happens anyway.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "stop": ([],),
    "response_format": ({"type": "text"},),
    "prediction": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
_EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True, "xhigh": True}


@dataclasses.dataclass(frozen=True)
class Recording:
    """An uploaded file. `where`: the field that it came in."""

    data: bytes
    where: str


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
      role: who speaks.
      where: name of the field.
      text: its words; None = none.
      audio: recording of it.
      spoken: id of an earlier answer of this endpoint, instead of text and audio.
    """

    role: Literal["user", "assistant"]
    where: str
    text: str | None = None
    audio: Recording | None = None
    spoken: str | None = None


@dataclasses.dataclass(frozen=True)
class Choices:
    """How an answer is to be made; None = as the task does it.

    Attributes:
      temperature, top_p: of the text; temperature 0 is greedy.
      seed: of the random choices.
      max_new: longest answer in positions.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new: int | None = None


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """`POST /v1/chat/completions`."""

    model: str | None
    turns: tuple[Turn, ...]
    system: str | None
    spoken: bool
    voice: str
    format: str
    thinking: bool
    choices: Choices
    stream: bool
    stream_usage: bool


@dataclasses.dataclass(frozen=True)
class SpeechRequest:
    """`POST /v1/audio/speech`."""

    model: str | None
    text: str
    voice: str
    style: str | None
    format: str
    events: bool
    choices: Choices


@dataclasses.dataclass(frozen=True)
class TranscriptionRequest:
    """`POST /v1/audio/transcriptions`."""

    model: str | None
    audio: Recording
    language: Literal["en", "zh"] | None
    format: str
    stream: bool
    choices: Choices


class _Words:
    """Texts of a request: counted, and without markers of the sequence format, which would end the speaker's turn."""

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0

    def __call__(self, text: str, where: str) -> str:
        self._count += len(text)
        if self._count > self._limit:
            raise bad(
                f"{where}: the texts of the request have more than {self._limit} characters; send less",
                where,
                "string_above_max_length",
            )
        # In any case: the prompts of speech change that of texts in capitals.
        lowered = text.lower()
        found = next((token for token in (*CHAT_TOKENS, *SPEECH_TOKENS) if token.lower() in lowered), None)
        if found:
            raise bad(f"{where} holds {found!r}, a marker of the model's own; take it out", where, "invalid_value")
        return text


def chat(body: object, limits: Limits) -> ChatRequest:
    """Reads a chat request. Raises ApiError, as all of these."""
    fields = Fields(body)
    for key, neutral in _NEUTRAL.items():
        fields.refuse(key, *neutral)
    model, words = fields.text("model"), _Words(limits.max_characters)
    messages = fields.objects("messages")
    if not messages:
        raise fields.error("messages", "is empty; send at least the user's message")
    if len(messages) > limits.max_messages:
        raise fields.error("messages", f"has {len(messages)} entries; at most {limits.max_messages} are taken")
    system, turns = _messages(messages, words)
    spoken = _modalities(fields)
    voice, kind = _audio_output(fields, spoken)
    choices = _choices(fields, limits, ("max_completion_tokens", "max_tokens"))
    stream = bool(fields.flag("stream"))
    options = fields.inner("stream_options")
    usage = False
    if options is not None:
        usage = bool(options.flag("include_usage"))
        options.done(("include_obfuscation",))
    if spoken and stream and kind != "pcm16":
        raise bad(f"audio.format is {kind!r}; a streamed answer is 'pcm16'", "audio.format", "invalid_value")
    thinking = _thinking(fields)
    if thinking and spoken:
        raise bad("reasoning_effort: spoken answers come without thinking; leave it out or ask for text", "modalities")
    fields.done(_IGNORED)
    return ChatRequest(model, turns, system, spoken, voice, kind, thinking, choices, stream, usage)


def speech(body: object, limits: Limits) -> SpeechRequest:
    """Reads a request for speech."""
    fields, words = Fields(body), _Words(limits.max_characters)
    model = fields.text("model")
    text = words(fields.text("input", required=True) or "", "input")
    if not text.strip():
        raise fields.error("input", "is empty; send the words to be spoken")
    style = words(fields.text("instructions") or "", "instructions").strip() or None
    kind = fields.choice("response_format", SPEECH_FORMATS) or "mp3"
    events = fields.choice("stream_format", ("audio", "sse")) == "sse"
    fields.refuse("speed", 1, 1.0)
    choices = _choices(fields, limits, ("max_tokens",))
    request = SpeechRequest(model, text, _voice(fields), style, kind, events, choices)
    fields.done(_IGNORED)
    return request


def transcription(form: Mapping[str, object], audio: bytes | None, limits: Limits) -> TranscriptionRequest:
    """Reads the fields of a form, without its file, whose content is `audio`."""
    fields = Fields(form)
    if audio is None:
        raise bad("file is missing; send the recording as a file of a form", "file", "missing_required_parameter")
    model = fields.text("model")
    language = fields.choice("language", ("en", "zh"))
    kind = fields.choice("response_format", ("json", "text", "verbose_json")) or "json"
    stream = bool(fields.flag("stream"))
    if stream and kind != "json":
        raise fields.error("response_format", f"is {kind!r}; events are sent for 'json' alone", "invalid_value")
    for key in ("prompt", "timestamp_granularities[]", "timestamp_granularities", "include[]", "include"):
        fields.refuse(key, "")
    fields.refuse("chunking_strategy", "", "auto")
    choices = _choices(fields, limits, ("max_tokens",))
    fields.done(_IGNORED)
    written: Literal["en", "zh"] | None = None if language is None else "zh" if language == "zh" else "en"
    return TranscriptionRequest(model, Recording(audio, "file"), written, kind, stream, choices)


# ----- parts ----------------------------------------------------------------------------------------------------------


def _choices(fields: Fields, limits: Limits, lengths: tuple[str, ...]) -> Choices:
    temperature, top_p = fields.number("temperature", 0, 2), fields.number("top_p", 0, 1)
    seed = fields.integer("seed", -_SEEDS, _SEEDS - 1)
    given = [fields.integer(key, 1, limits.max_new) for key in lengths]
    return Choices(temperature, top_p, seed, next((value for value in given if value is not None), None))


def _thinking(fields: Fields) -> bool:
    effort, asked = fields.choice("reasoning_effort", tuple(_EFFORTS)), fields.flag("enable_thinking")
    template = fields.inner("chat_template_kwargs")
    if template is not None:
        inner = template.flag("enable_thinking")
        template.done()
        asked = inner if asked is None else asked
    return bool(_EFFORTS[effort] if effort is not None and asked is None else asked)


def _modalities(fields: Fields) -> bool:
    """Whether the answer is spoken."""
    asked = fields.take("modalities")
    if asked is None or asked == ["text"]:
        return False
    if isinstance(asked, list) and len(asked) <= 2 and "audio" in asked and all(m in ("text", "audio") for m in asked):
        return True
    raise fields.error("modalities", f"is {shown(asked)}; give ['text'] or ['text', 'audio']", "invalid_value")


def _voice(fields: Fields) -> str:
    voice = fields.take("voice")
    if isinstance(voice, dict):
        inner = Fields(voice, fields.name("voice"))
        voice = inner.text("id", required=True)
        inner.done()
    if voice is not None and not isinstance(voice, str):
        raise fields.error("voice", f"is {shown(voice)}; it must be a string", "invalid_type")
    return voice or DEFAULT_VOICE


def _audio_output(fields: Fields, spoken: bool) -> tuple[str, str]:
    """(voice, format) of a spoken answer."""
    audio = fields.inner("audio")
    if audio is None:
        return DEFAULT_VOICE, "wav"
    if not spoken:
        raise bad("audio is given, but modalities has no 'audio'; ask for ['text', 'audio']", "modalities")
    made = _voice(audio), audio.choice("format", CHAT_FORMATS) or "wav"
    audio.done()
    return made


def _messages(messages: list[object], words: _Words) -> tuple[str | None, tuple[Turn, ...]]:
    """(system prompt, turns)."""
    system: list[str] = []
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        fields = Fields(message, f"messages[{number}]")
        fields.refuse("tool_calls", [])
        fields.refuse("function_call")
        fields.refuse("refusal", "")
        role = fields.choice("role", ("system", "developer", "user", "assistant"))
        if role is None:
            raise fields.error("role", "is missing", "missing_required_parameter")
        if role in ("system", "developer"):
            if turns:
                raise fields.error("role", f"is {role!r} after a turn; such a message must come first")
            text, audio = _content(fields, words, hears=False)
            system += [text] if text else []
        elif role == "user":
            text, audio = _content(fields, words, hears=True)
            if text is None and audio is None:
                raise fields.error("content", "is missing or empty", "missing_required_parameter")
            turns.append(Turn("user", fields.where, text, audio))
        else:
            turns.append(_assistant(fields, words))
        fields.done(("name", "reasoning_content", "reasoning", "annotations"))
    if not turns or turns[-1].role != "user":
        raise bad("messages must end with the user's message, which is to be answered", "messages")
    return "\n".join(system) or None, tuple(turns)


def _assistant(fields: Fields, words: _Words) -> Turn:
    audio = fields.inner("audio")
    text, _ = _content(fields, words, hears=False)
    if audio is None:
        if text is None:
            raise fields.error("content", "is missing or empty", "missing_required_parameter")
        return Turn("assistant", fields.where, text)
    ident, data = audio.text("id"), audio.text("data")
    audio.take("expires_at")
    if data is None:
        if ident is None:
            raise audio.error("id", "is missing; name an answer, or give data and transcript")
        audio.done(("transcript",))
        return Turn("assistant", fields.where, spoken=ident)
    transcript = words(audio.text("transcript") or text or "", audio.name("transcript"))
    if not transcript:
        raise audio.error("transcript", "is missing; speech of the assistant needs its words")
    audio.choice("format", INPUT_FORMATS)
    audio.done()
    return Turn("assistant", fields.where, transcript, Recording(_bytes(data, audio.name("data")), audio.name("data")))


def _content(fields: Fields, words: _Words, hears: bool) -> tuple[str | None, Recording | None]:
    """(text, recording) of a message; an empty text is none."""
    content, where = fields.take("content"), fields.name("content")
    if content is None:
        return None, None
    if isinstance(content, str):
        text = Fields({"content": content}, fields.where).text("content")
        return words(text or "", where) or None, None
    if not isinstance(content, list):
        raise fields.error("content", f"is {shown(content)}; it must be a string or an array", "invalid_type")
    texts: list[str] = []
    audio: Recording | None = None
    for number, values in enumerate(content):
        part = Fields(values, f"{where}[{number}]")
        kind = part.choice("type", ("text", "input_audio") if hears else ("text",))
        if kind == "text":
            texts.append(words(part.text("text", required=True) or "", part.name("text")))
        elif kind == "input_audio":
            if audio is not None:
                raise bad(f"{part.where}: a message holds at most one recording; send one message each", part.where)
            inner = part.inner("input_audio")
            if inner is None:
                raise part.error("input_audio", "is missing", "missing_required_parameter")
            inner.choice("format", INPUT_FORMATS)
            name = inner.name("data")
            audio = Recording(_bytes(inner.text("data", required=True) or "", name), name)
            inner.done()
        else:
            raise part.error("type", "is missing", "missing_required_parameter")
        part.done()
    return "\n".join(t for t in texts if t) or None, audio


def _bytes(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise bad(f"{where} is not base64 ({error})", where, "invalid_base64") from None
