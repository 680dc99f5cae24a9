"""The endpoint under a crowd: requests of all kinds at once, a fifth of them malformed, some clients that hang up.

    python benchmarks/serving.py [--requests 200] [--rounds 2] [--max_batch 16]

A tiny model of random weights that answers with words and speech is served by `python -m mimo_jax.serve` in a process
of its own. All requests of a round are sent at the same time. Every good one must be answered with what the same model
gives alone for the same seed (text and sound of whole answers bit for bit, streamed sound up to one step of 16 bits),
every bad one with 4xx and its reason, after every round nothing may be left running, and memory must not grow from one
round to the next. Prints a table and, as the last line, one JSON object; exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import dataclasses
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

RATE = 24_000
LIMITS = {"max_body_bytes": 2_000_000, "max_audio_seconds": 8.0, "max_characters": 2000, "max_messages": 8}
LIMITS |= {"max_new": 64, "max_positions": 256}
NAME = "tiny"
WORDS = ["the cat sat on the mat", "say it softly", "what do you hear", "good morning to you all", "a long walk home"]


# ----- a model to be served -------------------------------------------------------------------------------------------


def write_model(folder: Path) -> None:
    """Writes `lm`, `tokenizer` and `voices`: tiny, random, about half of each answer speech."""
    import jax
    import soundfile

    from mimo_jax.data import prompts
    from mimo_jax.data.text_tokenizer import train_text_tokenizer
    from mimo_jax.interop import hf
    from mimo_jax.models.mimo_audio import MimoAudioConfig
    from mimo_jax.models.tokenizer import TokenizerConfig

    # Prompts are short where the tokenizer knows their words.
    known = [*WORDS, prompts.STYLE_LINE, prompts.STYLE_VOICE_LINE, prompts.VOICE_LINE, "user\n", "assistant\n"]
    known += [wording for pool in (prompts.ASR_INSTRUCTIONS, prompts.TTS_INSTRUCTIONS) for wording in pool["en"]]
    text = train_text_tokenizer(known * 3, vocab_size=700)
    config = MimoAudioConfig(
        vocab_size=text.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        audio_channels=4,
        delay_pattern=(0, 1, 2, 3),
        speech_vocab_size=(17, 17, 9, 9),
        speech_zeroemb_idx=(16, 16, 8, 8),
        local_dim=16,
        local_layers=1,
        local_attn_heads=2,
        local_ffn_dim=32,
        input_local_layers=1,
        input_local_dim=16,
        empty_token_id=text.special.empty,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), hf.lm_shapes(config))
    # With this one the token `<|empty|>`, which stands for a patch, is the best at about every third position.
    column = np.random.default_rng(8).normal(0, 3, config.hidden_size)
    params["lm_head"]["kernel"][:, config.empty_token_id] = column
    text.save(folder / "text")
    hf.save_lm(folder / "lm", config, params, text_tokenizer_dir=folder / "text")

    tokenizer = TokenizerConfig(
        d_model=32,
        encoder_layers=2,
        encoder_skip_layer_id=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        n_mels=16,
        vocoder_dim=16,
        vocoder_intermediate_dim=64,
        vocoder_num_layers=2,
        vocoder_attention_heads=2,
        vocoder_attn_window_size=(4, 1),
        num_quantizers=4,
        codebook_size=(16, 16, 8, 8),
    )
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), hf.tokenizer_shapes(tokenizer))
    hf.save_tokenizer(folder / "tokenizer", tokenizer, variables)
    (folder / "voices").mkdir()
    for number, name in enumerate(("anna", "ben")):
        soundfile.write(folder / "voices" / f"{name}.wav", wave_of(0.6, number), RATE, subtype="FLOAT")


def wave_of(seconds: float, seed: int) -> np.ndarray:
    """A recording: float32 [samples]."""
    rng = np.random.default_rng(seed)
    time_ = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (120 + 40 * seed % 400) * time_) + 0.05 * rng.standard_normal(len(time_))
    return wave.astype(np.float32)


def file_of(wave: np.ndarray, kind: str = "FLAC") -> bytes:
    """A file of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


# ----- requests -------------------------------------------------------------------------------------------------------


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


# ----- sending --------------------------------------------------------------------------------------------------------


async def ask(client: httpx.AsyncClient, case: Case) -> Reply:
    """Sends a request and reads its response."""
    async with client.stream("POST", case.path, **case.options) as response:
        if response.status_code != 200:
            error = json.loads(await response.aread())["error"]
            assert set(error) == {"message", "type", "param", "code"}, error
            return Reply(response.status_code, error=error["message"])
        if case.hang_up:
            async for _ in response.aiter_raw():
                break
            return Reply(200)
        if response.headers["content-type"].startswith("text/event-stream"):
            return _of_events([line[6:] async for line in response.aiter_lines() if line.startswith("data: ")])
        data = await response.aread()
    if response.headers["content-type"] == "application/json":
        return _of_json(json.loads(data))
    if response.headers["content-type"].startswith("audio/pcm"):
        return Reply(200, sound=np.frombuffer(data, np.int16))
    import soundfile

    return Reply(200, sound=soundfile.read(io.BytesIO(data), dtype="int16")[0] if data else np.zeros(0, np.int16))


def _of_json(values: dict[str, Any]) -> Reply:
    if "choices" not in values:
        return Reply(200, values["text"])
    message = values["choices"][0]["message"]
    if message.get("audio"):
        sound = np.frombuffer(base64.b64decode(message["audio"]["data"]), np.int16)
        return Reply(200, message["audio"]["transcript"], message.get("reasoning_content", ""), sound)
    return Reply(200, message["content"], message.get("reasoning_content", ""))


def _of_events(lines: Sequence[str]) -> Reply:
    text, thinking, sound, ended, failed = "", "", b"", False, ""
    heard = False
    for line in lines:
        if line == "[DONE]":
            ended = True
            continue
        values = json.loads(line)
        kind = values.get("type", "")
        failed = failed or values.get("error", {}).get("message", "")
        text += values.get("delta", "") if kind == "transcript.text.delta" else ""
        if kind == "speech.audio.delta":
            sound, heard = sound + base64.b64decode(values["audio"]), True
        ended |= kind.endswith(".done")
        for choice in values.get("choices", ()):
            delta = choice["delta"]
            text += delta.get("content") or ""
            thinking += delta.get("reasoning_content") or ""
            audio = delta.get("audio", {})
            text += audio.get("transcript", "")
            if "data" in audio:
                sound, heard = sound + base64.b64decode(audio["data"]), True
    if failed or not ended:
        return Reply(500, error=failed or "the events have no end")
    return Reply(200, text, thinking, np.frombuffer(sound, np.int16) if heard else None, events=len(lines))


def wrong(case: Case, reply: Reply, expected: Reply | None) -> str:
    """What is wrong with a reply; empty = nothing."""
    if reply.status not in case.status:
        return f"status {reply.status} instead of {case.status}: {reply.error}"
    if case.reason and not re.search(case.reason, reply.error):
        return f"reason {reply.error!r} instead of {case.reason!r}"
    if expected is None:
        return ""
    if case.path != SPEECH and (reply.text, reply.thinking) != (expected.text, expected.thinking):
        return f"text {reply.text!r}, {reply.thinking!r} instead of {expected.text!r}, {expected.thinking!r}"
    sound = np.zeros(0, np.int16) if reply.sound is None else reply.sound
    should = np.zeros(0, np.int16) if expected.sound is None else expected.sound
    if sound.shape != should.shape:
        return f"{len(sound)} samples instead of {len(should)}"
    off = int(np.abs(sound.astype(int) - should.astype(int)).max(initial=0))
    return f"sound is off by {off}" if off > (1 if case.streamed else 0) else ""


async def round_of(url: str, cases: Sequence[Case]) -> list[tuple[Reply | Exception, float]]:
    """Sends all requests at once: (reply, seconds) of each."""
    limits = httpx.Limits(max_connections=len(cases), max_keepalive_connections=0)

    async def timed(case: Case) -> tuple[Reply | Exception, float]:
        start = time.perf_counter()
        try:
            reply: Reply | Exception = await ask(client, case)
        except Exception as error:  # noqa: BLE001  (a lost request is a result)
            reply = error
        return reply, time.perf_counter() - start

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        return list(await asyncio.gather(*map(timed, cases)))


def faults(cases: Sequence[Case], replies: Sequence[Any], expected: Sequence[Reply | None]) -> list[str]:
    """What is wrong in a round."""
    found = []
    for number, (case, (reply, _), should) in enumerate(zip(cases, replies, expected, strict=True)):
        what = repr(reply) if isinstance(reply, Exception) else wrong(case, reply, should)
        if what:
            found.append(f"{number} ({case.kind}): {what}")
    return found


def idle(url: str, seconds: float = 30) -> dict[str, Any]:
    """The endpoint's load once nothing runs any more, or after so long."""
    until = time.monotonic() + seconds
    while True:
        load = httpx.get(f"{url}/health", timeout=60).json()
        if not any(load[name] for name in ("requests", "rows_running", "rows_waiting", "held_bytes")):
            return load
        if time.monotonic() > until:
            raise RuntimeError(f"work is left: {load}")
        time.sleep(0.05)


# ----- the benchmark --------------------------------------------------------------------------------------------------


def start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """(the server's process, its address)."""
    flags = [f"--{name}={value}" for name, value in LIMITS.items()]
    command = [sys.executable, "-m", "mimo_jax.serve", f"--lm={folder / 'lm'}", f"--tokenizer={folder / 'tokenizer'}"]
    command += [f"--voices={folder / 'voices'}", f"--model_name={NAME}", "--port=0", *flags, *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"serving \S+ at (http://\S+)", line):
            # Nobody may be stopped by a full pipe.
            threading.Thread(target=lambda: [sys.stderr.write(rest) for rest in process.stderr], daemon=True).start()  # type: ignore[union-attr]
            return process, found[1]
    raise RuntimeError(f"the server did not start:\n{''.join(lines)}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max_batch", type=int, default=16)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import psutil

    result: dict[str, Any] = {"requests": options.requests, "max_batch": options.max_batch}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        begun = time.perf_counter()
        process, url = start(folder, f"--max_batch={options.max_batch}", f"--max_requests={options.requests + 8}")
        try:
            result["start_seconds"] = round(time.perf_counter() - begun, 1)
            from mimo_jax.inference.tasks import MimoAudio

            model = MimoAudio.load(folder / "lm", folder / "tokenizer", max_positions=LIMITS["max_positions"])
            learn_voices(model, folder)
            cases = crowd(options.requests)
            expected = [None if case.alone is None else case.alone(model) for case in cases]
            memory = [psutil.Process(process.pid).memory_info().rss]
            print(f"{'round':<8}{'kind':<24}{'requests':>9}{'wrong':>7}{'median s':>10}{'longest s':>11}")
            found: list[str] = []
            for number in range(1, options.rounds + 1):
                begun = time.perf_counter()
                replies = asyncio.run(round_of(url, cases))
                seconds = time.perf_counter() - begun
                idle(url)
                memory.append(psutil.Process(process.pid).memory_info().rss)
                these = faults(cases, replies, expected)
                found += these
                by_kind: dict[str, list[float]] = collections.defaultdict(list)
                for case, (_, spent) in zip(cases, replies, strict=True):
                    by_kind[case.kind].append(spent)
                for kind, spent in sorted(by_kind.items()):
                    off = sum(f"({kind})" in fault for fault in these)
                    median = statistics.median(spent)
                    print(f"{number:<8}{kind:<24}{len(spent):>9}{off:>7}{median:>10.2f}{max(spent):>11.2f}")
                print(f"round {number}: {seconds:.1f} s, {options.requests / seconds:.1f} requests/s, ", end="")
                print(f"memory {memory[-1] / 1e6:.0f} MB, {len(these)} wrong")
                result[f"round{number}_seconds"], result[f"round{number}_wrong"] = round(seconds, 2), len(these)
            result["bad"] = sum(case.kind == "bad" for case in cases)
            result["hang_ups"] = sum(case.hang_up for case in cases)
            result["sound_samples"] = sum(len(r.sound) for r in expected if r is not None and r.sound is not None)
            result["memory_megabytes"] = [round(size / 1e6, 1) for size in memory]
        finally:
            process.terminate()
            result["exit_code"] = process.wait(60)
    for fault in found:
        print(fault, file=sys.stderr)
    print(json.dumps(result))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
