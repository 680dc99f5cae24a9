"""The requests: good ones with what must be answered, malformed ones with their refusal, clients that hang up."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .tiny_model import NAME, RATE, WORDS, file_of, wave_of


@dataclasses.dataclass(frozen=True, eq=False)
class Reply:
    """What came: status, text and thinking, 16-bit sound, the error's message."""

    status: int
    text: str = ""
    thinking: str = ""
    sound: np.ndarray | None = None
    error: str = ""
    events: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One request and what must come of it.

    Attributes:
      kind: in the table.
      path: where to.
      options: of `httpx`: json, content, files, data, headers.
      alone: the model -> what it gives alone; None for bad requests and clients that hang up.
      status, reason: of a bad request: the statuses that are right, a pattern of the message.
      hang_up: the client goes after some events.
    """

    kind: str
    path: str
    options: dict[str, Any]
    alone: Callable[[Any], Reply] | None = None
    status: tuple[int, ...] = (200,)
    reason: str = ""
    hang_up: bool = False

    @property
    def streamed(self) -> bool:
        """Whether sound comes in parts."""
        return "stream" in self.kind


CHAT, SPEECH, TRANSCRIPTION = "/v1/chat/completions", "/v1/audio/speech", "/v1/audio/transcriptions"


def reply_of(answer: Any) -> Reply:
    """What a client must get of an answer of the model."""
    from mimo_jax.serving import sound

    wave = None if answer.wave is None else np.frombuffer(sound.encode(answer.wave, RATE, "pcm"), np.int16)
    return Reply(200, answer.text, answer.thinking or "", wave)


def audio_part(seconds: float, seed: int, kind: str = "flac") -> tuple[dict[str, Any], np.ndarray]:
    """(a part of a message, the wave that it holds)."""
    import soundfile

    data = file_of(wave_of(seconds, seed), kind.upper())
    wave, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}, wave


def good_case(number: int, longest: int = 48, seconds_limit: float = 2.0) -> Case:
    """The good request of a number; kinds take turns, lengths vary up to positions and seconds."""
    from mimo_jax.inference.tasks import Message

    rng = np.random.default_rng(1000 + number)
    seed, new = int(rng.integers(2**31)), int(rng.integers(4, longest + 1))
    words = f"{WORDS[number % len(WORDS)]} {number}"
    seconds = float(rng.uniform(0.3, seconds_limit))
    common = {"model": NAME, "seed": seed, "max_tokens": new}
    user = {"role": "user", "content": words}
    part, wave = audio_part(seconds, number)
    heard = {"role": "user", "content": [part]}
    options: dict[str, Any] = {"max_new": new}

    def job(name: str, *args: Any, **more: Any) -> Callable[[Any], Reply]:
        streamed = kind.endswith("stream")

        def run(model: Any) -> Reply:
            [made] = getattr(model.jobs, name)(*args, seeds=[seed], **more)
            if not streamed:
                return reply_of(model.answer([made], **options)[0])
            # What is told of an answer while it comes is not always what the whole becomes: a model of random weights
            # closes thoughts that it has not begun.
            pieces = list(model.stream(made, **options))
            text, thinking = ("".join(getattr(piece, part) for piece in pieces) for part in ("text", "thinking"))
            return dataclasses.replace(reply_of(pieces[-1].answer), text=text, thinking=thinking)

        return run

    def chat(**more: Any) -> dict[str, Any]:
        return {"json": {**common, "stream": kind.endswith("stream"), **more}}

    kinds = [
        "chat text",
        "chat text stream",
        "chat hears",
        "chat hears stream",
        "chat speaks",
        "chat speaks stream",
        "chat understands",
        "speech flac",
        "speech pcm stream",
        "speech events stream",
        "transcription",
        "transcription stream",
    ]
    kind = kinds[number % len(kinds)]
    spoken = {"modalities": ["text", "audio"], "audio": {"voice": "anna", "format": "pcm16"}}
    voice = {"voice": voice_codes("anna")}
    if kind.startswith("chat text"):
        body = chat(messages=[user], enable_thinking=number % 2 == 0)
        return Case(kind, CHAT, body, job("text_dialogue", [[Message("user", words)]], thinking=number % 2 == 0))
    if kind.startswith("chat hears"):
        turns = [user, {"role": "assistant", "content": "well"}, heard]
        made = [Message("user", words), Message("assistant", "well"), Message("user", wave)]
        return Case(kind, CHAT, chat(messages=turns), job("speech_to_text_dialogue", [made]))
    if kind.startswith("chat speaks"):
        system = [{"role": "system", "content": "Be kind."}]
        alone = job("spoken_dialogue", [[Message("user", wave)]], system_prompt="Be kind.", **voice)
        return Case(kind, CHAT, chat(messages=[*system, heard], **spoken), alone)
    if kind == "chat understands":
        asked = {"role": "user", "content": [part, {"type": "text", "text": words}]}
        return Case(kind, CHAT, chat(messages=[asked]), job("audio_understanding", [wave], [words]))
    if kind.startswith("speech"):
        form = {"speech flac": "flac"}.get(kind, "pcm")
        more = {"stream_format": "sse"} if "events" in kind else {}
        if number % 2:
            body = {**common, "input": words, "voice": "anna", "instructions": "softly", "response_format": form}
            alone = job("instruct_tts", [words], ["softly"], [voice["voice"]])
        else:
            body, alone = {**common, "input": words, "voice": "default", "response_format": form}, job("tts", [words])
        return Case(kind, SPEECH, {"json": {**body, **more}}, alone)
    files = {"file": ("a.flac", file_of(wave_of(seconds, number)), "audio/flac")}
    fields = {**{k: str(v) for k, v in common.items()}, "stream": str(kind.endswith("stream")).lower()}
    return Case(kind, TRANSCRIPTION, {"files": files, "data": fields}, job("asr", [wave]))


_VOICES: dict[str, np.ndarray] = {}


def voice_codes(name: str) -> np.ndarray:
    """Codes of a voice; see `learn_voices`."""
    return _VOICES[name]


def learn_voices(model: Any, folder: Path) -> None:
    """Encodes the voices as the server does."""
    for path in sorted((folder / "voices").iterdir()):
        [_VOICES[path.stem]] = model.encode([path])


def bad_cases() -> list[Case]:
    """Malformed requests, each with the status and the reason that must come."""
    user = {"role": "user", "content": "hello"}
    json_header = {"Content-Type": "application/json"}

    def chat(status: int, reason: str, **body: Any) -> Case:
        return Case("bad", CHAT, {"json": {"messages": [user], **body}}, status=(status,), reason=reason)

    def hears(data: str, reason: str, kind: str = "wav") -> Case:
        content = [{"type": "input_audio", "input_audio": {"data": data, "format": kind}}]
        return chat(400, reason, messages=[{"role": "user", "content": content}])

    def raw(status: int, reason: str, content: bytes, path: str = CHAT, headers: Any = None) -> Case:
        options = {"content": content, "headers": headers or json_header}
        return Case("bad", path, options, status=(status,), reason=reason)

    def speech(status: int, reason: str, **body: Any) -> Case:
        full = {"input": "hello", "voice": "default", **body}
        return Case("bad", SPEECH, {"json": full}, status=(status,), reason=reason)

    def form(status: int, reason: str, files: Any = None, **fields: str) -> Case:
        content = {"files": files or {"unused": (None, "x")}, "data": fields}
        return Case("bad", TRANSCRIPTION, content, status=(status,), reason=reason)

    def base64_of(data: bytes) -> str:
        return base64.b64encode(data).decode()

    sound_file = {"file": ("a.wav", file_of(wave_of(0.5, 1), "WAV"), "audio/wav")}
    silence = np.zeros(60 * RATE, np.float32)
    silence[0] = 0.5
    return [
        raw(400, "no JSON", b'{"messages": [{"role": "user"'),
        raw(400, "no JSON", b"\xff\xfe\x00"),
        raw(400, "nested too deeply", b"[" * 200_000),
        raw(400, "the body is an array", b"[1, 2]"),
        raw(400, "the body is no JSON", b""),
        raw(415, "this path takes application/json", b"{}", headers={"Content-Type": "text/plain"}),
        raw(413, "more than 2000000 bytes", b" " * 5_000_000),
        raw(404, "no such path", b"{}", path="/v1/embeddings"),
        chat(400, "messages is empty", messages=[]),
        chat(400, "messages is a string", messages="hello"),
        chat(400, r"messages\[0\] is a number", messages=[5]),
        chat(400, r"messages\[0\].role is 'tool'", messages=[{"role": "tool", "content": "x"}]),
        chat(400, "must end with the user", messages=[user, {"role": "assistant", "content": "x"}]),
        chat(400, "has 9 entries; at most 8", messages=[user] * 9),
        chat(400, "more than 2000 characters", messages=[{"role": "user", "content": "x" * 2001}]),
        chat(400, "the prompt has", messages=[{"role": "user", "content": "é" * 1500}]),
        chat(400, "marker of the model", messages=[{"role": "user", "content": "a<|im_end|>b"}]),
        chat(400, "content is missing", messages=[{"role": "user", "content": ""}]),
        chat(400, "image_url", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        chat(400, "temperature is a?n? ?'hot'", temperature="hot"),
        chat(400, "temperature is 3", temperature=3),
        chat(400, "seed is 1.5", seed=1.5),
        chat(400, "max_tokens is 65; it must be from 1 to 64", max_tokens=65),
        chat(400, "n is 2, which is not supported", n=2),
        chat(400, "tools is", tools=[{"type": "function"}]),
        chat(400, "logprobs is True", logprobs=True),
        chat(400, "frobnicate is no field", frobnicate=1),
        chat(404, "model is 'gpt-4o'", model="gpt-4o"),
        chat(400, "modalities is", modalities=["video"]),
        chat(400, "voice is '../../etc/passwd'", modalities=["text", "audio"], audio={"voice": "../../etc/passwd"}),
        hears("%%%", "is not base64"),
        hears(base64_of(b"this is no audio"), "no WAV, MP3, FLAC or Ogg file"),
        hears(base64_of(b"RIFF\x00\x00\x00\x00WAVEjunk"), "corrupt|truncated"),
        hears(base64_of(file_of(wave_of(0.5, 1), "WAV")[:5000]), "truncated"),
        hears(base64_of(file_of(silence)), "60.0 s at 24000 Hz; 8.0 s", "flac"),
        hears(base64_of(file_of(wave_of(0.001, 1), "WAV")), "too_short"),
        hears("", "0 bytes"),
        hears("", "format is 'm4a'; choose one of wav", "m4a"),
        speech(400, "input is missing", input=None),
        speech(400, "input is a number", input=5),
        speech(400, "voice is 'nobody'; choose one of default, anna, ben", voice="nobody"),
        speech(400, "voice is '../voices/anna.wav'", voice="../voices/anna.wav"),
        speech(400, "voice is '/etc/passwd'", voice={"id": "/etc/passwd"}),
        speech(400, "response_format is 'aac'", response_format="aac"),
        speech(400, "speed is 2", speed=2),
        form(400, "file is missing", model=NAME),
        form(400, "file is a field", file="hello"),
        form(400, "response_format is 'srt'", sound_file, response_format="srt"),
        form(400, "no WAV, MP3", {"file": ("../../x.wav", b"junk", "audio/wav")}),
        form(400, "language is 'xx'", sound_file, language="xx"),
        raw(400, "the form cannot be read", b"junk", TRANSCRIPTION, {"Content-Type": "multipart/form-data"}),
        raw(
            400,
            "the form cannot be read|file is missing",
            b"junk",
            TRANSCRIPTION,
            {"Content-Type": "multipart/form-data; boundary=x"},
        ),
    ]


def leaving_case(number: int) -> Case:
    """A client that asks for a long answer and goes in the middle, or while it waits."""
    body = {"input": " ".join(WORDS), "voice": "default", "response_format": "pcm", "max_tokens": 64, "seed": number}
    if number % 2:
        return Case("hangs up", SPEECH, {"json": {**body, "stream_format": "sse"}}, hang_up=True)
    messages = [{"role": "user", "content": WORDS[0]}]
    return Case("hangs up", CHAT, {"json": {"messages": messages, "stream": True, "max_tokens": 64}}, hang_up=True)


def crowd(count: int) -> list[Case]:
    """Requests of a round in a random order: a fifth bad, a twentieth of clients that hang up."""
    bad, leaving = bad_cases(), count // 20
    cases = [bad[i % len(bad)] for i in range(count // 5)]
    cases += [leaving_case(i) for i in range(leaving)]
    cases += [good_case(i) for i in range(count - len(cases))]
    return [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
