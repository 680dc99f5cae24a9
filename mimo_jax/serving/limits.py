"""How much a request may hold and cost, and how much the endpoint takes on at once."""

from __future__ import annotations

import dataclasses
from typing import Any


def _limit(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the endpoint; each is a flag of `mimo_jax.serve` with its `help`."""

    max_body_bytes: int = _limit(32 << 20, "bytes of a request's body (413 beyond)")
    max_held_bytes: int = _limit(256 << 20, "bytes of all bodies that are being read or decoded (429 beyond)")
    max_audio_seconds: float = _limit(300.0, "seconds of audio in a request, all recordings together")
    max_characters: int = _limit(20_000, "characters of text in a request, all texts together")
    max_messages: int = _limit(128, "messages of a chat")
    max_new: int = _limit(2048, "positions of an answer: text tokens and patches (6.25 patches are a second)")
    max_batch: int = _limit(16, "requests that the model answers together")
    max_positions: int = _limit(8192, "positions of a prompt and its answer together")
    max_requests: int = _limit(256, "requests at a time, those that wait included (429 beyond)")
    max_spoken_streams: int = _limit(16, "spoken answers that are streamed at a time; further ones wait")
    request_seconds: float = _limit(300.0, "seconds from a request's arrival to the end of its answer (504 beyond)")
    header_seconds: float = _limit(10.0, "seconds in which a request's headers must have come")
    body_seconds: float = _limit(60.0, "seconds in which a request's body must have come (408 beyond)")
    stop_seconds: float = _limit(30.0, "seconds that running requests are given after SIGTERM")
    readers: int = _limit(2, "requests whose bodies are parsed and whose recordings are decoded at a time")
    codec_calls: int = _limit(1, "calls of the audio tokenizer that run at a time")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} = {value}: must be above 0")
