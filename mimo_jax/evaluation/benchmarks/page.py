"""Scores as HTML: a page of their own, and a section for a chain's report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mimo_jax.evaluation import report_page
from mimo_jax.evaluation.benchmarks import tables


def section(folder: Path) -> str:
    """The scores in a folder of `mimo_jax.evaluate`: all tasks in a table, subgroups of each to unfold; "" = none."""
    path = folder / "scores.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        "<h2>Benchmarks</h2><p class='note'>Values with 95 % bootstrap intervals over items; published figures are "
        "those of arXiv 2512.23808.</p>",
        _table(tables.OVERVIEW, tables.overview(summary)),
    ]
    for name in summary["tasks"]:
        scores = json.loads((folder / name / "scores.json").read_text(encoding="utf-8"))
        parts.append(_task(name, scores))
    return "".join(parts)


def page(folder: Path) -> str:
    """The whole page."""
    return report_page.page("Benchmarks", str(folder.name), "", section(folder))


def _task(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"<p>{escape(scores['description'])}.</p>"]
    for grouping in scores["groups"]:
        parts.append(f"<h3>By {escape(grouping)}</h3>{_table(*tables.subgroups(scores, grouping))}")
    decided = json.dumps(scores["decided by"], ensure_ascii=False, indent=1)
    parts.append(f"<h3>Decided by</h3><pre>{escape(decided)}</pre>")
    return f"<details><summary>{escape(name)}</summary>{''.join(parts)}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="card scroll"><table><tr>{titles}</tr>{body}</table></div>'
