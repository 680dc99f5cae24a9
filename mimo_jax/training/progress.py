"""How fast a run is and how far: step time, tokens per second, utilisation, goodput, memory, time left; one line."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mimo_jax.training.host_memory import resident_bytes
from mimo_jax.training.schedule import PATCH_SECONDS
from mimo_jax.training.utilization import peak_flops

logger = logging.getLogger(__name__)

Flops = Callable[[float, float], tuple[float, float] | None]
"""(text positions, audio patches) -> (causal, full) model FLOPs of training on them, None if unknown."""

# Figures of this many kinds or more, such as one per codebook, share a place in the log line.
_MANY = 5


@dataclasses.dataclass
class _Window:
    """What happened since the last line. Seconds: of the clock, waiting for batches, away from training."""

    start: float
    steps: int = 0
    text: int = 0
    audio: int = 0
    waited: float = 0.0
    away: float = 0.0


class Speed:
    """Measures a run between its log lines.

    Args:
      flops: model FLOPs of positions; see `utilization.model_flops`.
      started: UNIX time at which the stage was first started.
      useful_seconds: seconds of training that led to the restored state.
      progress: share of the budget spent at the start of this process.
    """

    def __init__(self, flops: Flops, started: float, useful_seconds: float, progress: float):
        self._flops, self._started, self._useful = flops, started, useful_seconds
        self._devices, self._peak = jax.device_count(), peak_flops(jax.devices()[0])
        self._window = _Window(time.perf_counter())
        self._first: tuple[float, float] | None = None
        self._progress = progress

    @property
    def useful_seconds(self) -> float:
        """Seconds of training so far, those of the open window included."""
        return self._useful + self._training_seconds()

    def restored(self, useful_seconds: float) -> None:
        """The run went back to a checkpoint with so many useful seconds: what came after it was of no use."""
        self._useful, self._window = useful_seconds, _Window(time.perf_counter())

    def compiled(self) -> None:
        """The first step of the process is compiled: the time until now is not training."""
        self._window = _Window(time.perf_counter())

    def step(self, text: int, audio: int) -> None:
        """One more step on so many positions (all processes together)."""
        self._window.steps += 1
        self._window.text += text
        self._window.audio += audio

    def waited(self, seconds: float) -> None:
        """Seconds the loop waited for a batch."""
        self._window.waited += seconds

    def away(self, seconds: float) -> None:
        """Seconds in which no training happened: evaluation, a checkpoint."""
        self._window.away += seconds

    def _training_seconds(self) -> float:
        return max(time.perf_counter() - self._window.start - self._window.away, 0.0) if self._window.steps else 0.0

    def figures(self, progress: float) -> dict[str, float]:
        """Figures of the window that ends now, by their names in the metrics. progress: share of the budget spent."""
        window, seconds = self._window, self._training_seconds()
        self._useful += seconds
        now = time.perf_counter()
        self._window = _Window(now)
        values = {
            "speed/goodput": min(self._useful / max(time.time() - self._started, 1e-9), 1.0),
            "memory/host_gigabytes": resident_bytes() / 1e9,
        }
        if window.steps and seconds > 0:  # of the first step of a process there is nothing to tell
            values |= {
                "train/step_seconds": seconds / window.steps,
                "speed/input_seconds": window.waited / window.steps,
                "speed/tokens_per_second_per_device": (window.text + window.audio) / seconds / self._devices,
                "speed/audio_seconds_per_second_per_device": window.audio * PATCH_SECONDS / seconds / self._devices,
            }
            spent = self._flops(window.text, window.audio)
            if spent is not None and self._peak is not None:
                available = seconds * self._devices * self._peak
                values |= {"speed/mfu_causal": spent[0] / available, "speed/mfu_full": spent[1] / available}
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            values["memory/device_peak_gigabytes"] = memory["peak_bytes_in_use"] / 1e9
        if self._first is None:
            self._first = (now, progress)
        elif progress > self._first[1]:
            values["speed/seconds_left"] = (1.0 - progress) * (now - self._first[0]) / (progress - self._first[1])
        return values


def line(name: str, step: int, progress: float, values: Mapping[str, Any]) -> str:
    """The log line: stage, step, tokens, losses by head, gradient norm, speed, utilisation, goodput, memory, ETA."""
    parts = [f"{name} step {step} ({100 * progress:.1f} %)"]
    parts.append(f"tokens {_count(values['text_tokens'])} text {_count(values['audio_tokens'])} audio")
    parts.append(f"loss {values['train/loss']:.4f}")
    known = {"train/loss", "train/grad_norm", "train/skipped", "train/step_seconds", "train/loss_limit"}
    parts += _figures({key: value for key, value in values.items() if key.startswith("train/") and key not in known})
    parts.append(f"grad norm {values['train/grad_norm']:.3g}")
    if values["train/skipped"]:
        parts.append(f"skipped {int(values['train/skipped'])}")
    if "train/step_seconds" in values:
        parts.append(f"{values['train/step_seconds']:.3g} s/step")
        parts.append(f"{_count(values['speed/tokens_per_second_per_device'])} tokens/s/device")
        parts.append(f"{_count(values['speed/audio_seconds_per_second_per_device'])} s audio/s/device")
    if "speed/mfu_causal" in values:
        parts.append(f"MFU {values['speed/mfu_causal']:.1%} causal {values['speed/mfu_full']:.1%} full")
    parts.append(f"goodput {values['speed/goodput']:.1%}")
    if "memory/device_peak_gigabytes" in values:
        parts.append(f"device {values['memory/device_peak_gigabytes']:.1f} GB")
    parts.append(f"host {values['memory/host_gigabytes']:.1f} GB")
    if "speed/seconds_left" in values:
        parts.append(f"left {_duration(values['speed/seconds_left'])}")
    return "  ".join(parts)


def _figures(values: Mapping[str, float]) -> list[str]:
    """ "name value" of each; of many that differ by a number at the end only, such as `usage/1`, the range."""
    groups: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        name = key.removeprefix("train/")
        kind, _, last = name.rpartition("/")
        groups.setdefault(f"{kind}/*" if kind and last.isdigit() else name, {})[name] = value
    shown = []
    for kind, found in groups.items():
        if len(found) < _MANY:
            shown += [f"{name} {value:.4g}" for name, value in found.items()]
        else:
            shown.append(f"{kind} {min(found.values()):.4g} to {max(found.values()):.4g}")
    return shown


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    return (f"{days} d " if days else "") + f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"


class Display:
    """The log lines; on a terminal, a bar below them. Only on the first process."""

    def __init__(self, name: str):
        self._name, self._bar = name, None
        self._shown = jax.process_index() == 0
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=1.0, desc=name, bar_format="{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}")

    def update(self, step: int, progress: float, values: Mapping[str, Any]) -> None:
        """Shows the figures of a step."""
        if not self._shown:
            return
        if self._bar is None:
            logger.info("%s", line(self._name, step, progress, values))
        else:
            self._bar.write(line(self._name, step, progress, values), file=sys.stderr)
            self._bar.update(progress - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
