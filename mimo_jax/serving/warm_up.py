"""The first of everything is compiled before the first request comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from mimo_jax.inference.requests import RequestError
from mimo_jax.inference.tasks import Message, MimoAudio


def warm_up(model: MimoAudio, batch: int, seconds: float, say: Callable[[str], None]) -> float:
    """Runs small requests of the usual shapes: rows by powers of two, speech in and out.

    Args:
      model: the model.
      batch: most requests that are answered together.
      seconds: longest recording that is taken.
      say: gets a line before each step.

    Returns:
      Seconds that it took.
    """
    start, steps = time.monotonic(), list(_steps(model, batch, seconds))
    for number, (name, step) in enumerate(steps):
        say(f"warm-up {number + 1}/{len(steps)}: {name}")
        try:
            step()
        except RequestError as error:
            say(f"left out, as such requests will be refused: {error}")
    return time.monotonic() - start


def _steps(model: MimoAudio, batch: int, seconds: float) -> Iterator[tuple[str, Callable[[], object]]]:
    rate, new = model.sample_rate, 8
    for length in (1.0, 3.0, 10.0, 30.0):
        if length <= seconds:
            wave = 0.1 * np.random.default_rng(0).standard_normal(int(length * rate)).astype(np.float32)
            yield f"a recording of {length:g} s", lambda wave=wave: model.asr([wave], max_new=new)  # type: ignore[misc]
    yield "sound in parts", lambda: list(model.stream(*model.jobs.tts(["One, two, three."]), max_new=4 * new))
    rows = 1
    while rows <= batch:
        yield f"{rows} requests together", lambda rows=rows: _together(model, rows, new)  # type: ignore[misc]
        rows *= 2


def _together(model: MimoAudio, rows: int, new: int) -> None:
    jobs = model.jobs.tts(["One, two, three."] * rows)
    model.answer(jobs, max_new=new)
    model.answer(model.jobs.text_dialogue([[Message("user", "Hello")]] * rows), max_new=new)
