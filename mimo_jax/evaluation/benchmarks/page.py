"""Scores as HTML: a page of their own, and a section for a chain's report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mimo_jax.evaluation import report_page
from mimo_jax.evaluation.benchmarks.tables import number


def section(folder: Path) -> str:
    """The scores in a folder of `mimo_jax.evaluate`: all tasks in a table, subgroups of each to unfold; "" = none."""
    path = folder / "scores.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        "<h2>Benchmarks</h2><p class='note'>Values with 95 % bootstrap intervals over items; published figures are "
        "those of arXiv 2512.23808.</p>",
        _overview(summary),
    ]
    for name in summary["tasks"]:
        scores = json.loads((folder / name / "scores.json").read_text(encoding="utf-8"))
        parts.append(_task(name, scores))
    return "".join(parts)


def page(folder: Path) -> str:
    """The whole page."""
    return report_page.page("Benchmarks", str(folder.name), "", section(folder))


def _overview(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, scores in summary["tasks"].items():
        for position, (metric, figure) in enumerate(scores["metrics"].items()):
            state = str(figure["items"])
            if not scores["complete"]:
                state += f" ({scores['items'] - scores['scored']} without a score)"
            rows.append([name if not position else "", metric, number(figure), _published(figure), state])
    if "modality gap" in summary:
        figure = summary["modality gap"]
        rows.append(
            ["speech_mmlu", "modality gap (T2T - S2S)", number(figure), _published(figure), str(figure["items"])]
        )
    return _table(["task", "metric", "value (95 % interval)", "published", "items"], rows)


def _task(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"<p>{escape(scores['description'])}.</p>"]
    for grouping, groups in scores["groups"].items():
        metrics = [m for m in scores["metrics"] if any(m in figures for figures in groups.values())]
        rows = []
        for group, figures in groups.items():
            count = max((figure["items"] for figure in figures.values()), default=0)
            rows.append([group, str(count), *(number(figures[m]) if m in figures else "" for m in metrics)])
        parts.append(f"<h3>By {escape(grouping)}</h3>{_table([grouping, 'items', *metrics], rows)}")
    decided = json.dumps(scores["decided by"], ensure_ascii=False, indent=1)
    parts.append(f"<h3>Decided by</h3><pre>{escape(decided)}</pre>")
    return f"<details><summary>{escape(name)}</summary>{''.join(parts)}</details>"


def _published(figure: Mapping[str, Any]) -> str:
    return "" if figure["published"] is None else f"{figure['published']:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="card scroll"><table><tr>{titles}</tr>{body}</table></div>'
