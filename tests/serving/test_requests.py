"""Requests and recordings alone, without a server: what is read of them, and what is refused with which words."""

import asyncio
import base64
import gc
import io
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from starlette.responses import Response

from mimo_jax.cli import UserError
from mimo_jax.data.audio import load_audio
from mimo_jax.inference.requests import RequestError
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.serving import schema, sound
from mimo_jax.serving.errors import ApiError
from mimo_jax.serving.history import History, Spoken
from mimo_jax.serving.http import Gate
from mimo_jax.serving.jobs import _sampling
from mimo_jax.serving.limits import Limits
from mimo_jax.serving.metrics import Metrics
from mimo_jax.serving.schema import Choices, Recording
from mimo_jax.serving.voices import load_voices
from mimo_jax.serving.warm_up import warm_up
from mimo_jax.serving.work import Works

LIMITS = Limits(max_audio_seconds=5.0)
USER = {"role": "user", "content": "hello"}


def file_of(wave, rate=24000, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


def tone(seconds, rate=24000, channels=1):
    wave = 0.3 * np.sin(np.arange(int(seconds * rate)) / 9)
    return np.repeat(wave[:, None], channels, axis=1) if channels > 1 else wave


def test_a_chat_is_read():
    audio = base64.b64encode(b"abc").decode()
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": "well", "audio": {"data": audio, "transcript": "yes", "format": "wav"}},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}]},
    ]
    body = {"messages": messages, "modalities": ["audio", "text"], "audio": {"voice": {"id": "anna"}, "format": "flac"}}
    made = schema.chat({**body, "n": 1, "tools": [], "stop": None, "user": "me", "max_tokens": 9}, LIMITS)
    assert (made.system, made.spoken, made.voice, made.format) == ("Be kind.\nBe brief.", True, "anna", "flac")
    assert [(t.role, t.text, t.audio and t.audio.data) for t in made.turns] == [
        ("user", "a\nb", None),
        ("assistant", "yes", b"abc"),
        ("user", None, b"abc"),
    ]
    assert made.choices == Choices(max_new=9)


@pytest.mark.parametrize(
    "asked, thinking",
    [
        ({}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"enable_thinking": True}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
    ],
)
def test_thinking(asked, thinking):
    assert schema.chat({"messages": [USER], **asked}, LIMITS).thinking is thinking


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"stop": ["x"]}, "stop"),
        ({"n": True}, "n"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"modalities": ["audio"], "stream": True, "audio": {"format": "wav"}}, "audio.format"),
        ({"modalities": ["audio"], "reasoning_effort": "low"}, "modalities"),
        ({"audio": {"voice": "anna"}}, "modalities"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages[1].role"),
        ({"messages": [USER, {"role": "assistant", "audio": {}}, USER]}, "messages[1].audio.id"),
        ({"messages": [USER, {"role": "assistant", "audio": {"data": "YWJj"}}, USER]}, "messages[1].audio.transcript"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].input_audio"),
        ({"x" * 500: 1}, "x" * 60),
    ],
)
def test_a_refusal_names_the_field(changes, param):
    with pytest.raises(ApiError) as caught:
        schema.chat({"messages": [USER], **changes}, LIMITS)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 300
    assert caught.value.response().status_code == 400


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|EMPTY|>", "<|SpeechLM|>"])
def test_markers_are_refused_in_capitals_too(marker):
    """A text in capitals alone is spoken with one capital: its markers would become the model's own."""
    with pytest.raises(ApiError, match="a marker of the model's own") as caught:
        schema.speech({"input": f"HELLO {marker}"}, LIMITS)
    assert (caught.value.status, caught.value.param) == (400, "input")


def test_a_body_that_nobody_waits_for_is_let_go():
    works, busy = Works.__new__(Works), threading.Event()
    works._readers, works.limits = ThreadPoolExecutor(1), LIMITS
    works._readers.submit(busy.wait)
    body = np.zeros(1)
    held = weakref.ref(body)

    async def hang_up(body):
        reading = asyncio.create_task(works.read(lambda: body.sum(), time.monotonic() + 60))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(hang_up(body))
    del body
    gc.collect()
    let_go = held() is None
    busy.set()
    works._readers.shutdown()
    assert let_go, "what was cancelled is still in the pool's queue"


def test_a_key_may_hold_any_character():
    """Headers are bytes: clients send the key as UTF-8."""

    async def app(scope, receive, send):
        await Response("in")(scope, receive, send)

    async def status(sent):
        statuses = []

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"authorization", sent)]}
        await Gate(app, None, Metrics(()), "schlüssel")(scope, None, send)
        return statuses[0]

    assert asyncio.run(status("Bearer schlüssel".encode())) == 200
    assert asyncio.run(status(b"Bearer schl\xfcssel")) == 401


def test_sampling_is_that_of_the_task_unless_asked_otherwise():
    usual = Sampling(True, 0.6, None, 0.95)
    assert _sampling(Choices(), usual) is usual
    assert _sampling(Choices(temperature=0), usual) == GREEDY
    assert _sampling(Choices(temperature=0.2), usual) == Sampling(True, 0.2, None, 0.95)
    assert _sampling(Choices(top_p=0.5), usual) == Sampling(True, 0.6, None, 0.5)
    assert _sampling(Choices(top_p=0.5), GREEDY) == GREEDY
    assert _sampling(Choices(temperature=0.7), GREEDY) == Sampling(True, 0.7, None, None)


@pytest.mark.parametrize("kind, subtype", [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", None)])
def test_recordings_are_read_as_from_disk(tmp_path, kind, subtype):
    data = file_of(tone(0.5, 44100, 2), 44100, kind, subtype)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data)
    np.testing.assert_array_equal(sound.decode(Recording(data, "file"), 24000, 1.0), load_audio(path))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "0 bytes are no WAV"),
        (b"MZ" * 50, "no WAV, MP3"),
        (b"ID3" + bytes(300), "not_audio|corrupt"),
        (file_of(tone(0.5), kind="AIFF"), "no WAV, MP3"),
        (file_of(tone(0.2, channels=9)), "9 channels; at most 8"),
        (file_of(np.zeros(6 * 24000), kind="FLAC"), "6.0 s at 24000 Hz; 5.0 s"),
        (file_of(np.zeros(4 * 96000), 96000, "FLAC"), "4.0 s at 96000 Hz; 2.5 s"),
        (file_of(np.zeros(9000)), "silent"),
        (file_of(tone(0.5))[:-300], "truncated"),
    ],
)
def test_recordings_that_cannot_be_used(data, reason):
    with pytest.raises(ApiError, match=reason) as caught:
        sound.decode(Recording(data, "messages[0].audio"), 24000, 5.0)
    assert caught.value.status == 400 and caught.value.param == "messages[0].audio"
    assert caught.value.message.startswith("messages[0].audio")


def test_an_hour_in_a_small_file_is_refused_before_it_is_decoded():
    import resource

    data = file_of(np.zeros(3600 * 8000, np.int16), 8000, "FLAC")
    assert len(data) < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for cut in (data, data[:-10]):
        with pytest.raises(ApiError, match="3600.0 s|truncated"):
            sound.decode(Recording(cut, "file"), 24000, 300.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_flac_that_does_not_say_how_long_it_is():
    """As it comes out of a pipe: not "384307168202282.3 s, send less"."""
    data = bytearray(file_of(tone(1.0), kind="FLAC"))
    data[21] &= 0xF0  # the 36-bit sample count
    data[22:26] = bytes(4)
    with pytest.raises(ApiError, match="write it anew"):
        sound.decode(Recording(bytes(data), "file"), 24000, 5.0)


@pytest.mark.parametrize("kind", ["wav", "pcm", "flac", "mp3", "opus"])
def test_sound_in_parts_is_that_of_the_whole(kind):
    wave = tone(0.5).astype(np.float32)
    encoder = sound.Encoder(kind, 24000)
    parts = b"".join([encoder(wave[:1000]), encoder(wave[1000:]), encoder.end()])
    whole = sound.encode(wave, 24000, kind)
    if kind == "pcm":
        assert parts == whole
    else:
        (a, rate), (b, _) = (soundfile.read(io.BytesIO(data)) for data in (parts, whole))
        np.testing.assert_array_equal(a, b)
        assert rate == 24000 and len(a) >= len(wave)
    assert isinstance(sound.encode(wave[:0], 24000, kind), bytes)


def test_voices(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_voices(tmp_path / "nowhere", 24000)
    with pytest.raises(UserError, match="no recording"):
        load_voices(tmp_path, 24000)
    (tmp_path / "anna.wav").write_bytes(file_of(tone(0.2)))
    (tmp_path / "notes.txt").write_text("x")
    assert list(load_voices(tmp_path, 24000)) == ["anna"]
    (tmp_path / "anna.flac").write_bytes(file_of(tone(0.2), kind="FLAC"))
    with pytest.raises(UserError, match="'anna' is taken"):
        load_voices(tmp_path, 24000)
    (tmp_path / "anna.flac").write_bytes(b"junk")
    (tmp_path / "anna.wav").unlink()
    with pytest.raises(UserError, match="anna.flac: not_audio"):
        load_voices(tmp_path, 24000)


def test_history_forgets():
    history = History(most=2)
    idents = [history.reserve()[0] for _ in range(3)]
    for number, ident in enumerate(idents):
        history.keep(ident, Spoken(str(number), np.full((4, 2), number, np.int32)))
    assert history.find(idents[0]) is None and history.find("audio_") is None
    found = history.find(idents[2])
    assert found.text == "2" and found.codes.max() == 2
    short = History(seconds=-1)
    short.keep("a", Spoken("a", np.zeros((1, 1), np.int32)))
    assert short.find("a") is None


def test_the_warm_up_leaves_out_what_does_not_fit():
    """Such as recordings of 30 s where --max_positions is small."""
    said = []

    class Model:
        sample_rate, jobs = 100, SimpleNamespace(tts=lambda texts: texts, text_dialogue=lambda dialogues: dialogues)

        def asr(self, waves, max_new):
            if len(waves[0]) > 1000:
                raise RequestError("too long")

        def stream(self, job, max_new):
            return []

        def answer(self, jobs, max_new):
            said.append(f"answered {len(jobs)}")

    warm_up(Model(), 2, 60.0, said.append)
    assert sum("too long" in line for line in said) == 1 and said[-1] == "answered 2"


def test_limits_are_positive():
    with pytest.raises(ValueError, match="max_new = 0"):
        Limits(max_new=0)
