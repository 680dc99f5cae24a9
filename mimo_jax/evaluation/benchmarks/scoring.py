"""From answers to scores: per item to items.jsonl, over items to scores.json and scores.md."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks import page, statistic, tables
from mimo_jax.evaluation.benchmarks.base import Answered, Benchmark, Item, Metric, Outcome
from mimo_jax.evaluation.benchmarks.store import AnswerStore, dump, read_lines, write_lines
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.evaluation.parts import write_json
from mimo_jax.files import write_text

ITEMS, SCORES, TABLE, PAGE = "items.jsonl", "scores.json", "scores.md", "scores.html"


def check_plugins(benchmark: Benchmark, tools: Tools) -> None:
    """Raises UserError where a plug-in is missing that the task cannot be scored without."""
    for kind in benchmark.needs:
        if not tools.has(kind):
            raise UserError(f"--tasks={benchmark.name}: scoring needs --{kind}=PLUGIN (docs/evaluation.md lists them)")


def score(
    benchmark: Benchmark,
    items: Sequence[Item],
    store: AnswerStore,
    tools: Tools,
    *,
    seed: int = 0,
    draws: int = statistic.DRAWS,
) -> dict[str, Any]:
    """Scores the answers of the items and writes the three files.

    Args:
      benchmark, items: the task; all its items, or those that were asked for.
      store: where the answers are.
      tools: plug-ins.
      seed, draws: of the bootstrap.

    Returns:
      The content of scores.json; "unscored" names the items without a score, with the reason.

    Raises:
      UserError: a missing plug-in, no answers at all.
    """
    check_plugins(benchmark, tools)
    lines = store.merge([item.id for item in items])
    answered = [Answered(item, lines[item.id], store.folder) for item in items if item.id in lines]
    reasons = store.failures()
    if not answered:
        tried = next((f"{item.id}: {reasons[item.id]}" for item in items if item.id in reasons), "")
        raise UserError(f"{store.folder}: no answers; {tried or 'run with --phase=generate first'}")
    made = dict(zip([a.item.id for a in answered], benchmark.score(answered, tools), strict=True))
    outcomes = {
        item.id: made.get(item.id) or Outcome(failure=f"no answer: {reasons.get(item.id, 'not generated yet')}")
        for item in items
    }
    write_lines(store.folder / ITEMS, [_line(item, outcomes[item.id]) for item in items])
    scored = [item for item in items if outcomes[item.id].failure is None]
    scores = {
        "task": benchmark.name,
        "description": benchmark.description,
        "items": len(items),
        "scored": len(scored),
        "complete": len(scored) == len(items),
        "unscored": {i: outcome.failure for i, outcome in outcomes.items() if outcome.failure is not None},
        "metrics": _figures(benchmark, scored, outcomes, seed, draws),
        "groups": {
            grouping: {
                group: _figures(benchmark, chosen, outcomes, seed, draws)
                for group, chosen in _grouped(scored, grouping).items()
            }
            for grouping in dict.fromkeys(name for item in items for name in item.groups)
        },
        "decided by": {
            **_decided_by(benchmark, store, tools),
            "bootstrap": {"seed": seed, "draws": draws, "interval": "percentile, 95 %, over items"},
            "answers": hashlib.sha256(dump([a.line for a in answered])).hexdigest()[:16],
        },
    }
    write_json(store.folder / SCORES, scores)
    write_text(store.folder / TABLE, tables.of_task(scores))
    return scores


def _decided_by(benchmark: Benchmark, store: AnswerStore, tools: Tools) -> dict[str, Any]:
    return {
        "run": store.settings(),
        "parser": benchmark.parser,
        "plug-ins": tools.identities([*benchmark.needs, *benchmark.optional]),
        "packages": _versions("jiwer", "sacrebleu", "pesq", "pystoi", "numpy"),
    }


def _grouped(items: Sequence[Item], grouping: str) -> dict[str, list[Item]]:
    """Group -> its items, sorted by the group's name."""
    groups = sorted({item.groups[grouping] for item in items if grouping in item.groups})
    return {group: [item for item in items if item.groups.get(grouping) == group] for group in groups}


def _versions(*packages: str) -> dict[str, str]:
    """Versions of those that measures are made with, as far as they are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _line(item: Item, outcome: Outcome) -> dict[str, Any]:
    line: dict[str, Any] = {"id": item.id, "groups": dict(item.groups), "values": dict(outcome.values)}
    if outcome.failure is not None:
        line["failure"] = outcome.failure
    return line | {"details": dict(outcome.details)}


def _figures(
    benchmark: Benchmark, items: Sequence[Item], outcomes: Mapping[str, Outcome], seed: int, draws: int
) -> dict[str, Any]:
    out = {}
    for metric in benchmark.metrics:
        shares = [outcomes[item.id].values[metric.name] for item in items if metric.name in outcomes[item.id].values]
        if shares and (metric.statistic != "ratio" or sum(share[1] for share in shares) > 0):
            out[metric.name] = figure(metric, shares, seed, draws)
    return out


def figure(metric: Metric, shares: Sequence[Sequence[float]], seed: int, draws: int) -> dict[str, Any]:
    """A metric over items in its shown unit, as it stands in scores.json."""
    found = statistic.estimate(shares, metric.statistic, seed, draws)
    factor = 100.0 if metric.unit == "%" else 1.0
    value, low, high = (round(factor * x, 6) for x in (found.value, found.low, found.high))
    return {
        "value": value,
        "interval_95": [low, high],
        "items": found.n,
        "unit": metric.unit,
        "better": metric.better,
        "published": metric.published,
    }


# ----- over tasks -----------------------------------------------------------------------------------------------------

GAP = Metric("modality gap", better="lower", published=3.4)
_GAP_TASKS = ("speech_mmlu_t2t", "speech_mmlu_s2s")


def summarise(out: Path, order: Sequence[str], seed: int = 0, draws: int = statistic.DRAWS) -> dict[str, Any]:
    """scores.json, scores.md and scores.html of all tasks in a folder, whenever they were scored.

    With text-to-text and speech-to-speech SpeechMMLU, their difference over the items that both scored.
    """
    import json

    found = {}
    for name in order:
        path = out / name / SCORES
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    summary: dict[str, Any] = {
        "tasks": {
            name: {key: scores[key] for key in ("metrics", "items", "scored", "complete")}
            for name, scores in found.items()
        },
    }
    if all(name in found for name in _GAP_TASKS):
        text, speech = (_accuracies(out / name / ITEMS) for name in _GAP_TASKS)
        both = [name for name in text if name in speech]
        if both:
            shares = [(text[name] - speech[name], 1.0) for name in both]
            summary["modality gap"] = figure(GAP, shares, seed, draws)
    write_json(out / SCORES, summary)
    write_text(out / TABLE, tables.of_all(summary))
    write_text(out / PAGE, page.page(out))
    return summary


def _accuracies(path: Path) -> dict[str, float]:
    return {line["id"]: line["values"]["accuracy"][0] for line in read_lines(path) if "accuracy" in line["values"]}
