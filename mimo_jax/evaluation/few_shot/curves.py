"""Few-shot scores against tokens seen, as in Figure 1 of arXiv 2512.23808, for one run: charts and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mimo_jax.evaluation import charts
from mimo_jax.evaluation.few_shot.choices import ChoiceSet
from mimo_jax.evaluation.few_shot.hook import PREFIX
from mimo_jax.evaluation.few_shot.intervals import wilson

Curve = list[tuple[float, float]]


def curves(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Curve]:
    """Metric of the hook without its prefix -> points (tokens seen over all stages, value).

    `stages`: name -> lines of `metrics.jsonl`, in the order of training.
    """
    found: dict[str, Curve] = {}
    start = last = 0.0
    for records in stages.values():
        start = last
        for record in records:
            if "text_tokens" not in record:
                continue
            last = start + float(record["text_tokens"]) + float(record.get("audio_tokens", 0))
            for key, value in record.items():
                group, _, name = key.partition("/")
                if group == PREFIX:
                    found.setdefault(name, []).append((last, float(value)))
    return found


def section(stages: Mapping[str, Sequence[Mapping[str, Any]]], questions: ChoiceSet) -> str:
    """HTML: a chart for each group of tasks, chance drawn, and a table of the first and last milestone; or nothing."""
    found = curves(stages)
    if not any(name in found for name in questions.tasks):
        return ""
    groups: dict[str, list[str]] = {}
    for name in questions.tasks:
        groups.setdefault("arithmetic" if name.startswith("arithmetic") else "conversion by example", []).append(name)
    cards = []
    for title, names in groups.items():
        lines = [
            charts.Line(name.removeprefix("arithmetic_"), tuple(found[name]), f"c{number % 8}")
            for number, name in enumerate(names)
            if name in found
        ]
        if not lines:
            continue
        span = (min(line.points[0][0] for line in lines), max(line.points[-1][0] for line in lines))
        for chance, label in _levels(questions, names):
            lines.append(charts.Line(label, ((span[0], chance), (span[1], chance)), "c8", dashed=True))
        chart = charts.line_chart(lines, "tokens seen (text + audio)", "share of right choices")
        cards.append(f'<div class="card"><h3>{escape(title)}</h3>{chart}</div>')
    margins = [
        charts.Line(name.removeprefix("arithmetic_"), tuple(found[f"{name}_margin"]), f"c{number % 8}")
        for number, name in enumerate(questions.tasks)
        if f"{name}_margin" in found
    ]
    if margins:
        chart = charts.line_chart(margins, "tokens seen (text + audio)", "nats")
        cards.append(
            f'<div class="card"><h3>What the prompt adds to the right choice, beyond the others</h3>{chart}</div>'
        )
    note = (
        "Few-shot multiple choice by likelihood: the candidate wins whose likelihood examples and query raise most. "
        "Dashed: chance, and the share that guessing exceeds in one of forty tries."
    )
    return (
        f'<h2>Few-shot tasks against tokens seen</h2><p class="note">{note}</p>'
        f'<div class="grid2">{"".join(cards)}</div>{_table(found, questions)}'
    )


def _levels(questions: ChoiceSet, names: Sequence[str]) -> list[tuple[float, str]]:
    """Chance of these tasks, where they have one in common, and what is still likely by chance."""
    levels = {(questions.tasks[name]["chance"], questions.counts[name]) for name in names}
    shown = []
    for chance, count in sorted(levels):
        which = "" if len(levels) == 1 else f" of {round(1 / chance)}"
        shown.append((chance, f"chance{which}"))
        shown.append((chance + 1.96 * math.sqrt(chance * (1 - chance) / count), f"97.5 %{which}"))
    return shown


def rows(found: Mapping[str, Curve], questions: ChoiceSet) -> list[tuple[str, float, float, float, float, float, int]]:
    """(task, first share, last share, low, high, chance, questions); low and high: 95 % interval of the last share."""
    table = []
    for name, about in questions.tasks.items():
        if name in found:
            first, last, count = found[name][0][1], found[name][-1][1], questions.counts[name]
            table.append((name, first, last, *wilson(last, count), about["chance"], count))
    return table


def _table(found: Mapping[str, Curve], questions: ChoiceSet) -> str:
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{first:.3f}</td><td>{last:.3f}</td><td>{low:.3f} to {high:.3f}</td>"
        f"<td>{chance:.3f}</td><td>{'above chance' if low > chance else 'not above chance'}</td><td>{count}</td></tr>"
        for name, first, last, low, high, chance, count in rows(found, questions)
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("task", "first", "last", "95 % interval of the last", "chance", "verdict", "questions")
    )
    return f"<table><tr>{head}</tr>{lines}</table>"
