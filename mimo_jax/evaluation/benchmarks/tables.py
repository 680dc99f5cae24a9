"""Scores as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN_FAILURES = 20


def number(figure: Mapping[str, Any]) -> str:
    """A figure with its interval, such as "61.70 % (60.35 to 63.02)"."""
    digits = 2 if figure["unit"] == "%" else 3
    unit = f" {figure['unit']}" if figure["unit"] else ""
    low, high = figure["interval_95"]
    return f"{figure['value']:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def _published(figure: Mapping[str, Any]) -> str:
    return "" if figure["published"] is None else f"{figure['published']:.2f}"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _arrow(figure: Mapping[str, Any]) -> str:
    return {"higher": " ↑", "lower": " ↓"}.get(figure["better"], "")


def of_task(scores: Mapping[str, Any]) -> str:
    """scores.md of a task."""
    lines = [f"# {scores['task']}", "", f"{scores['description']}.", ""]
    if not scores["complete"]:
        lines += [f"**Not complete: {scores['scored']} of {scores['items']} items have a score.**", ""]
    body = [
        [name + _arrow(figure), number(figure), str(figure["items"]), _published(figure)]
        for name, figure in scores["metrics"].items()
    ]
    lines += [*_table(["metric", "value (95 % interval)", "items", "published"], body), ""]
    for grouping in scores["groups"]:
        lines += [f"## By {grouping}", "", *_table(*subgroups(scores, grouping)), ""]
    if scores["unscored"]:
        lines += ["## Without a score", ""]
        shown = list(scores["unscored"].items())[:_SHOWN_FAILURES]
        lines += [f"- `{identifier}`: {_cell(reason)}" for identifier, reason in shown]
        if len(shown) < len(scores["unscored"]):
            lines.append(f"- and {len(scores['unscored']) - len(shown)} more (scores.json)")
        lines.append("")
    decided = scores["decided by"]
    lines += ["## Decided by", "", f"- parser: {decided['parser']}"]
    lines += [f"- {kind}: {_cell(identity)}" for kind, identity in decided["plug-ins"].items()]
    lines += [f"- {name}: {_cell(value)}" for name, value in (decided["run"] or {}).items()]
    return "\n".join(lines) + "\n"


OVERVIEW = ("task", "metric", "value (95 % interval)", "items", "published")


def overview(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line of `OVERVIEW` for each metric of each task, and the modality gap."""
    body = []
    for task, scores in summary["tasks"].items():
        for position, (name, figure) in enumerate(scores["metrics"].items()):
            state = str(figure["items"])
            if not scores["complete"]:
                state += f" ({scores['items'] - scores['scored']} without a score)"
            body.append(
                [task if not position else "", name + _arrow(figure), number(figure), state, _published(figure)]
            )
    if "modality gap" in summary:
        figure = summary["modality gap"]
        body.append(
            ["speech_mmlu", "modality gap (T2T - S2S) ↓", number(figure), str(figure["items"]), _published(figure)]
        )
    return body


def subgroups(scores: Mapping[str, Any], grouping: str) -> tuple[list[str], list[list[str]]]:
    """(head, lines) of a task's table by one grouping."""
    groups = scores["groups"][grouping]
    names = [name for name in scores["metrics"] if any(name in figures for figures in groups.values())]
    body = []
    for group, figures in groups.items():
        count = max((figure["items"] for figure in figures.values()), default=0)
        body.append([group, str(count), *(number(figures[n]) if n in figures else "" for n in names)])
    return [grouping, "items", *names], body


def of_all(summary: Mapping[str, Any]) -> str:
    """scores.md of all tasks: a line for each metric."""
    return "\n".join(["# Scores", "", *_table(list(OVERVIEW), overview(summary))]) + "\n"
