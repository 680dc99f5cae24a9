"""What all reports are made of: the page, tiles, cells with intervals, audio players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mimo_jax.evaluation import report_media
from mimo_jax.evaluation.report_style import SCRIPT, STYLE


def page(title: str, lead: str, tiles: str, body: str) -> str:
    """The whole HTML page; `tiles` and `body` are HTML, the rest is plain text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><header><div><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>{tiles}</div></header><main>{body}'
        f"<footer>Made by mimo_jax. This page is self-contained and makes no request.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Large figures: (value, name, explanation) each."""
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(explanation)}</small></div>'
        for value, name, explanation in values
    )
    return f'<div class="tiles">{"".join(cells)}</div>' if values else ""


def cell(estimate: Mapping[str, Any] | None) -> str:
    """A table cell of `metrics.Estimate.as_dict`, or a dash."""
    if estimate is None or estimate.get("value") is None:
        return "<td>-</td>"
    low, high = estimate["interval_95"]
    return f"<td>{estimate['value']:.4g} <small>[{low:.3g}, {high:.3g}] n={estimate['n']}</small></td>"


def clip(folder: Path, item: Mapping[str, Any], title: str, heard: str | None, seconds: float) -> str:
    """A player of `item["file"]` under `folder`, cut to `seconds`; `heard` is quoted beside the title."""
    quoted = f" <q>{escape(heard)}</q>" if heard is not None else ""
    player = "<span>(nothing)</span>"
    if item.get("file") and (folder / item["file"]).is_file():
        source = report_media.clip(folder / item["file"], seconds)
        player = f'<audio controls preload="metadata" src="{source}"></audio>'
    return f'<div class="clip"><span>{escape(title)}{quoted}</span>{player}</div>'
