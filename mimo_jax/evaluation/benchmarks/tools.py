"""Plug-ins as scoring uses them: each result is kept on disk, a call that fails costs only the items that it was for.

Results go to calls.jsonl as they come, keyed by the plug-in's identity and the input, so that a further run of scoring
asks only for what failed. What fails becomes a `Failure`, never a value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks.store import append, read_lines

_BATCH = 16
_BATCHES = {"translation_scorer": 256}  # each call of it loads a model

T = TypeVar("T")
Wave = tuple[np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why something has no value yet; a further run of scoring tries again."""

    reason: str


class Tools:
    """The plug-ins of a run of scoring.

    Args:
      plugins: kind -> plug-in.
      cache: file of results that are there already; None = keep none.
    """

    def __init__(self, plugins: Mapping[str, Any], cache: Path | None = None):
        self._plugins, self._cache = dict(plugins), cache
        self._known = {line["key"]: line["result"] for line in (read_lines(cache) if cache else [])}

    def has(self, kind: str) -> bool:
        """Whether a plug-in of the kind was given."""
        return kind in self._plugins

    def identities(self, kinds: Sequence[str]) -> dict[str, str]:
        """What decides the results of the plug-ins of some kinds, as far as they are given."""
        return {kind: str(self._plugins[kind].identity) for kind in kinds if kind in self._plugins}

    def transcribe(
        self, waves: Sequence[Wave | Failure], languages: Sequence[str], progress: str = ""
    ) -> list[str | Failure]:
        """Texts of recordings; of an empty one "" without a call."""
        plugin = self._plugin("transcriber")
        out: list[str | Failure | None] = [
            wave if isinstance(wave, Failure) else None if len(wave[0]) else "" for wave in waves
        ]
        kinds: dict[tuple[str, int], list[int]] = {}
        for i, (wave, language) in enumerate(zip(waves, languages, strict=True)):
            if out[i] is None and not isinstance(wave, Failure):
                kinds.setdefault((language, wave[1]), []).append(i)
        for (language, rate), chosen in kinds.items():
            inputs = [waves[i][0] for i in chosen]  # type: ignore[index]
            keys = [f"{language} {rate} {_digest(wave)}" for wave in inputs]
            made = self._call(
                "transcriber", inputs, keys, lambda batch, r=rate, n=language: plugin.transcribe(batch, r, n)
            )
            for i, text in zip(chosen, made, strict=True):
                out[i] = text
        return [text if text is not None else Failure("not transcribed") for text in out]

    def ask(self, prompts: Sequence[str], parse: Callable[[str], T]) -> list[tuple[T, str] | Failure]:
        """(what `parse` reads out of it, reply) of a judge; a reply that `parse` refuses is a failure, and not kept."""
        plugin = self._plugin("judge")
        return self._parsed("judge", prompts, prompts, plugin.ask, parse)

    def listen(
        self, prompts: Sequence[str], waves: Sequence[Wave | Failure], parse: Callable[[str], T]
    ) -> list[tuple[T, str] | Failure]:
        """Likewise of a judge that hears a recording with each prompt."""
        plugin = self._plugin("listener")
        inputs = list(zip(prompts, waves, strict=True))
        good = [i for i, (_, wave) in enumerate(inputs) if not isinstance(wave, Failure)]
        keys = [f"{inputs[i][0]} {_digest(inputs[i][1][0])}" for i in good]  # type: ignore[index]

        def call(batch: Sequence[tuple[str, Wave]]) -> list[str]:
            return plugin.ask([prompt for prompt, _ in batch], [wave for _, wave in batch])

        made = iter(self._parsed("listener", [inputs[i] for i in good], keys, call, parse))
        return [wave if isinstance(wave, Failure) else next(made) for _, wave in inputs]

    def embed_texts(self, texts: Sequence[str]) -> list[np.ndarray | Failure]:
        """Unit vectors [D] of texts."""
        plugin = self._plugin("text_embedder")
        return _vectors(self._call("text_embedder", texts, texts, lambda batch: _lists(plugin.embed(batch))))

    def embed_speakers(self, waves: Sequence[Wave | Failure]) -> list[np.ndarray | Failure]:
        """Unit vectors [D] of voices."""
        plugin = self._plugin("speaker_embedder")
        out: list[Any] = list(waves)
        for rate in sorted({wave[1] for wave in waves if not isinstance(wave, Failure)}):
            chosen = [i for i, wave in enumerate(waves) if not isinstance(wave, Failure) and wave[1] == rate]
            inputs = [waves[i][0] for i in chosen]  # type: ignore[index]
            keys = [f"{rate} {_digest(wave)}" for wave in inputs]
            made = self._call("speaker_embedder", inputs, keys, lambda batch, r=rate: _lists(plugin.embed(batch, r)))
            for i, vector in zip(chosen, _vectors(made), strict=True):
                out[i] = vector
        return out

    def translation_scores(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
    ) -> list[float | Failure]:
        """Scores of translations."""
        plugin = self._plugin("translation_scorer")
        inputs = list(zip(sources, hypotheses, references, strict=True))

        def call(batch: Sequence[tuple[str, str, str]]) -> list[float]:
            return [float(score) for score in plugin.score(*map(list, zip(*batch, strict=True)))]

        def unusable(score: float) -> str | None:
            return None if math.isfinite(score) else f"a score that is not finite: {score}"

        return self._call("translation_scorer", inputs, [json.dumps(i) for i in inputs], call, unusable)

    def _plugin(self, kind: str) -> Any:
        if kind not in self._plugins:
            raise UserError(f"scoring needs a {kind}; give --{kind}=PLUGIN (docs/evaluation.md lists them)")
        return self._plugins[kind]

    def _parsed(
        self, kind: str, inputs: Sequence[Any], keys: Sequence[str], call: Callable[..., Any], parse: Callable[[str], T]
    ) -> list[tuple[T, str] | Failure]:
        def usable(reply: Any) -> str | None:
            try:
                parse(reply)
            except ValueError as error:
                return str(error)
            return None

        replies = self._call(kind, inputs, keys, call, usable)
        return [reply if isinstance(reply, Failure) else (parse(reply), reply) for reply in replies]

    def _call(
        self,
        kind: str,
        inputs: Sequence[Any],
        keys: Sequence[str],
        call: Callable[..., Sequence[Any]],
        refused: Callable[[Any], str | None] = lambda result: None,
    ) -> list[Any]:
        """Results of a plug-in by batches, a failed batch item by item; `refused`: why a result is none."""
        from mimo_jax.evaluation.plugins.base import PluginError

        who = str(self._plugins[kind].identity)
        full = [
            hashlib.sha256(f"{kind}\x1f{who}\x1f{key}".encode("utf-8", "surrogateescape")).hexdigest() for key in keys
        ]
        failures: dict[str, Failure] = {}

        def attempt(names: Sequence[str]) -> list[str]:
            """Keeps what succeeds; of what fails, what is worth another try by itself."""
            finished, told, reason = {}, {}, ""
            try:
                results = list(call([waiting[name] for name in names]))
                finished = dict(enumerate(results)) if len(results) == len(names) else {}
                reason = f"gave {len(results)} results for {len(names)} inputs"
            except PluginError as error:
                finished, told, reason = error.finished, error.failures, str(error)
            again = []
            for i, name in enumerate(names):
                problem = refused(finished[i]) if i in finished else str(told.get(i, reason))
                if problem is None:
                    self._keep(kind, who, name, finished[i])
                    failures.pop(name, None)
                else:
                    failures[name] = Failure(f"{kind}: {problem}")
                    again += [] if i in told else [name]  # a call of its own failed: it was tried often enough
            return again

        def is_known(name: str) -> bool:  # what was kept by an earlier version may be refused by now
            return name in self._known and refused(self._known[name]) is None

        waiting = {name: thing for name, thing in zip(full, inputs, strict=True) if not is_known(name)}
        order, size = list(waiting), _BATCHES.get(kind, _BATCH)
        for start in range(0, len(order), size):
            for name in attempt(order[start : start + size]):
                attempt([name])
        return [failures[name] if name in failures else self._known[name] for name in full]

    def _keep(self, kind: str, plugin: str, key: str, result: Any) -> None:
        self._known[key] = result
        if self._cache:
            append(self._cache, [{"kind": kind, "plugin": plugin, "key": key, "result": result}])


def recorded(paths: Sequence[str], sample_rate: int) -> list[Wave | Failure]:
    """Recordings of the benchmark's own, float32 [samples] at a sample rate (Hz)."""
    from mimo_jax.data.audio import AudioError, load_audio

    out: list[Wave | Failure] = []
    for path in paths:
        try:
            out.append((load_audio(path, sample_rate), sample_rate))
        except AudioError as error:
            out.append(Failure(str(error)))
    return out


def _digest(wave: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(wave, "<f4").tobytes()).hexdigest()


def _lists(vectors: np.ndarray) -> list[list[float]]:
    return [[float(value) for value in vector] for vector in vectors]


def _vectors(made: Sequence[Any]) -> list[np.ndarray | Failure]:
    return [vector if isinstance(vector, Failure) else np.asarray(vector, np.float32) for vector in made]
