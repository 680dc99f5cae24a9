"""Sending the requests all at once, reading what comes, and finding what is wrong with it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from .cases import SPEECH, Case, Reply


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
