"""The endpoint under a crowd, and as OpenAI's own client sees it."""

import asyncio
import base64
import io
import json
import socket
import time

import httpx
import numpy as np
import openai
import pytest
import soundfile

from benchmarks.crowd.cases import audio_part, bad_cases, good_case, leaving_case, voice_codes
from benchmarks.crowd.sending import faults, idle, round_of
from benchmarks.crowd.tiny_model import NAME, RATE, file_of, wave_of
from mimo_jax.inference.sampling import Sampling
from mimo_jax.inference.tasks import Message, Speech
from mimo_jax.serving import sound
from mimo_jax.serving.schema import Recording
from tests.serving.conftest import LONGEST, SECONDS, running


def samples(wave):
    return np.frombuffer(sound.encode(wave, RATE, "pcm"), np.int16)


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_a_crowd_is_answered_and_nobody_gets_anothers_answer(served, alone):
    good = [good_case(i, LONGEST, SECONDS) for i in range(24)]
    cases = [*good, *map(leaving_case, range(4)), *bad_cases()]
    cases = [cases[i] for i in np.random.default_rng(1).permutation(len(cases))]
    expected = [None if case.alone is None else case.alone(alone) for case in cases]
    assert sum(len(e.sound) for e in expected if e is not None and e.sound is not None) > 10_000
    replies = asyncio.run(round_of(served.url, cases))
    assert faults(cases, replies, expected) == []
    assert idle(served.url)["status"] == "ok"


def test_chat(client, alone):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    made = client.chat.completions.create(
        model=NAME, messages=messages, seed=5, temperature=1, max_completion_tokens=12, reasoning_effort="low"
    )
    [job] = alone.jobs.text_dialogue([[Message("user", "the cat")]], thinking=True, seeds=[5])
    assert made.object == "chat.completion" and made.choices[0].message.role == "assistant"
    assert made.choices[0].finish_reason in ("stop", "length") and made.usage.completion_tokens <= 12
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    # The system prompt is in the first user turn.
    led = len(alone.tokenizer.encode("Be brief.")) + len(alone.tokenizer.encode("\n\n"))
    assert made.usage.prompt_tokens == len(alone.request(job).text) + led
    # An answer that never closes its thought is all thought.
    thought = getattr(made.choices[0].message, "reasoning_content", "")
    assert thought or made.choices[0].message.content


def test_streamed_chat_with_sound_and_a_second_turn(client, alone):
    part, wave = audio_part(0.7, 3, "flac")
    user = {"role": "user", "content": [part]}
    options = {
        "model": NAME,
        "modalities": ["text", "audio"],
        "audio": {"voice": "ben", "format": "pcm16"},
        "max_tokens": 14,
    }
    chunks = list(
        client.chat.completions.create(
            messages=[user], stream=True, seed=9, stream_options={"include_usage": True}, **options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.prompt_tokens_details.audio_tokens > 0
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) == {None}
    told = [chunk.choices[0].delta.to_dict().get("audio") or {} for chunk in chunks[:-1]]
    heard = np.frombuffer(b"".join(base64.b64decode(t.get("data") or "") for t in told), np.int16)
    [job] = alone.jobs.spoken_dialogue([[Message("user", wave)]], voice=voice_codes("ben"), seeds=[9])
    pieces = list(alone.stream(job, max_new=14))
    answer = pieces[-1].answer
    assert "".join(t.get("transcript") or "" for t in told) == "".join(piece.text for piece in pieces)
    assert len(heard) == len(answer.wave) > 0
    assert np.abs(heard - samples(answer.wave).astype(int)).max() <= 1

    # The next turn names the answer by its id.
    [ident] = {t["id"] for t in told if t}
    turns = [user, {"role": "assistant", "audio": {"id": ident}}, {"role": "user", "content": "and then"}]
    made = client.chat.completions.create(messages=turns, seed=4, **options).choices[0].message
    dialogue = [
        Message("user", wave),
        Message("assistant", Speech(answer.text, answer.codes)),
        Message("user", "and then"),
    ]
    [job] = alone.jobs.spoken_dialogue([dialogue], voice=voice_codes("ben"), seeds=[4])
    [answer] = alone.answer([job], max_new=14)
    assert (made.content, made.audio.transcript) == (None, answer.text)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(made.audio.data), np.int16), samples(answer.wave))
    assert made.audio.expires_at > time.time()
    with pytest.raises(openai.BadRequestError, match="no answer that is still known"):
        turns[1] = {"role": "assistant", "audio": {"id": "audio_0"}}
        client.chat.completions.create(messages=turns, **options)


@pytest.mark.parametrize("kind", ["mp3", "opus", "flac", "wav", "pcm"])
def test_speech(client, alone, kind):
    more = {"seed": 3, "max_tokens": 14}
    with client.audio.speech.with_streaming_response.create(
        model=NAME, input="the cat", voice="default", response_format=kind, extra_body=more
    ) as response:
        data = response.read()
    [job] = alone.jobs.tts(["the cat"], seeds=[3])
    if kind in ("wav", "pcm"):
        wave = list(alone.stream(job, max_new=14))[-1].answer.wave
    else:
        wave = alone.answer([job], max_new=14)[0].wave
    assert len(wave)
    if kind == "pcm":
        heard = np.frombuffer(data, np.int16)
    else:
        heard, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate == RATE
    if kind in ("mp3", "opus"):
        assert abs(len(heard) - len(wave)) < 3000
    else:
        assert len(heard) == len(wave) and np.abs(heard - samples(wave).astype(int)).max() <= 1


def test_speech_in_a_voice(client):
    made = client.audio.speech.create(model=NAME, input="the cat", voice="anna", response_format="wav")
    assert made.read()[:4] == b"RIFF"
    with pytest.raises(openai.BadRequestError, match="choose one of default, anna, ben") as caught:
        client.audio.speech.create(model=NAME, input="x", voice="../voices/anna.wav")
    assert caught.value.param == "voice" and caught.value.code == "unknown_voice"


def test_transcriptions(client, alone):
    wave = wave_of(0.9, 5)
    file = ("a.wav", file_of(wave, "WAV"))
    [job] = alone.jobs.asr([sound.decode(Recording(file[1], "file"), RATE, 9)], seeds=[2])
    [answer] = alone.answer([job], max_new=14, text_sampling=Sampling(True, 1.0))
    assert answer.text
    options = {"model": NAME, "file": file, "temperature": 1, "extra_body": {"seed": 2, "max_tokens": 14}}
    made = client.audio.transcriptions.create(**options)
    assert made.text == answer.text and made.usage.input_token_details.audio_tokens > 0
    assert client.audio.transcriptions.create(**options, response_format="text").rstrip("\n") == answer.text
    verbose = client.audio.transcriptions.create(**options, response_format="verbose_json", language="en")
    assert verbose.text == answer.text and verbose.duration == 0.9
    events = list(client.audio.transcriptions.create(**options, stream=True))
    assert "".join(e.delta for e in events[:-1]) == events[-1].text == answer.text
    assert {e.type for e in events[:-1]} == {"transcript.text.delta"} and events[-1].type == "transcript.text.done"


def test_what_the_endpoint_says_of_itself(served, client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="here it is 'tiny'"):
        client.models.retrieve("gpt-4o")
    assert httpx.get(f"{served.url}/v1/audio/voices").json() == {"voices": ["default", "anna", "ben"]}
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
    text = httpx.get(f"{served.url}/metrics").text
    assert 'mimo_requests_total{path="/v1/models",status="200"} 1' in text and "mimo_rows_running_now" in text
    response = httpx.get(f"{served.url}/v1/chat/completions")
    assert response.status_code == 405 and response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["x-request-id"].startswith("req_")


def test_our_defects_are_told_without_their_trace(served, monkeypatch, caplog):
    monkeypatch.setattr(served.endpoint._maker, "chat", lambda asked: 1 // 0)
    body = {"messages": [{"role": "user", "content": "x"}]}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert "ZeroDivision" not in response.text and "ZeroDivisionError" in caplog.text


def test_key_places_and_time(alone, voices):
    body = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 64}
    with running(
        alone, voices, api_key="secret", max_requests=2, request_seconds=0.5, body_seconds=0.4, header_seconds=1.0
    ) as served:
        url = f"{served.url}/v1/chat/completions"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = httpx.post(url, json=body, headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{served.url}/health").status_code == 200
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{served.url}/v1/models", headers=key).status_code == 200

        # Nothing is answered any more: two requests have the places, and their time runs out.
        service = served.endpoint.works.service
        service._batcher.turn = lambda: time.sleep(0.05) or []

        async def ask(client, **more):
            return await client.post(url, json={**body, **more}, headers=key)

        async def all_of_them():
            async with httpx.AsyncClient(timeout=30) as client:
                first = [asyncio.create_task(ask(client, stream=stream)) for stream in (False, True)]
                while served.endpoint.works.admitted < 2:
                    await asyncio.sleep(0.01)
                return await ask(client), await first[0], await first[1]

        refused, late, late_stream = asyncio.run(all_of_them())
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["type"] == "rate_limit_error"
        for response in (late, late_stream):
            assert response.status_code == 504 and "longer than 0.5 s" in response.json()["error"]["message"]
        assert idle(served.url)["requests"] == 0

        # A body that does not come.
        host, port = served.url[7:].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Authorization: Bearer secret\r\nContent-Length: 1000\r\n\r\n{{".encode())
            said = b""
            while part := slow.recv(65536):
                said += part
        assert b" 408 " in said and json.loads(said.split(b"\r\n\r\n")[1])["error"]["code"] == "timeout"


def test_slow_headers_are_cut_and_the_end_is_graceful(alone, voices):
    with running(alone, voices, header_seconds=0.3) as served:
        host, port = served.url[7:].split(":")
        for sent in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost:"):
            with socket.create_connection((host, int(port)), timeout=10) as slow:
                slow.sendall(sent)
                assert slow.recv(100) == b""
        with httpx.Client(base_url=served.url, timeout=60) as client:
            assert client.get("/health").status_code == 200
            # A stream that has begun is finished after the server was told to stop.
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 64, "seed": 1}
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                served.server.should_exit = True
                assert [line for line in lines if line][-1] == "data: [DONE]"
        served.thread.join(20)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")
