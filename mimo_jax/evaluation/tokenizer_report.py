"""The report of tokenizers: one HTML page without any request: players side by side, curves, tables."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mimo_jax.evaluation import charts, report_page
from mimo_jax.evaluation import tokenizer_tables as tables
from mimo_jax.evaluation.tokenizer_suite import part_name
from mimo_jax.files import write_text

_PLAYED = (1, 2, 4, 8, 12, 16, 20)  # numbers of codebooks that get a player, beside the largest
_KBPS_SHOWN = 32  # baselines above are no codecs, and would squeeze the axis of bit rates
_CURVES = ("pesq_wb", "pesq_nb", "stoi", "mel_distance", "speaker_similarity", "recogniser_wer")
_BASELINE_COLOUR = "c0"


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """What the page is made of.

    Attributes:
        result: content of ``metrics.json`` (`tokenizer_suite.evaluate_tokenizers`).
        evaluation_dir: folder with ``parts/`` and ``samples/``.
        title, lead: headline and the sentence under it.
        command: the exact command.
        clip_seconds: cuts each player.
    """

    result: Mapping[str, Any]
    evaluation_dir: str | os.PathLike[str]
    title: str = "Audio tokenizers"
    lead: str = ""
    command: str = ""
    clip_seconds: float = 8.0


def write_report(path: str | os.PathLike[str], report: TokenizerReport) -> None:
    """Writes the page, atomically."""
    write_text(path, render(report))


def render(report: TokenizerReport) -> str:
    """The whole page."""
    result = report.result
    parts = [_notes(result)]
    for section, rows in result["sections"].items():
        parts.append(f"<h2>{escape(section)}: {escape(_meaning(section))}</h2>")
        compared = _differences(result["differences"][section])
        table = _table(rows, result["utterances"][section])
        parts += [_curves(rows), table, compared, _players(report, section, rows)]
    parts += [_codebooks(result["tokenizers"]), _speed(result["tokenizers"]), _made(report)]
    return report_page.page(report.title, report.lead, _tiles(result), "".join(parts))


def _meaning(section: str) -> str:
    return "held-out voices" if section.endswith("test_voices") else "held-out texts, voices of the training split"


def _tiles(result: Mapping[str, Any]) -> str:
    """The first tokenizer with all its codebooks, in the first section."""
    section, rows = next(iter(result["sections"].items()))
    row = [r for r in rows if r["system"] == next(iter(result["tokenizers"]))][-1]
    values = [(tables.bit_rates(row)[0], "kbit/s", f"{row['system']}, {row['codebooks']} codebooks")]
    for key, heading, digits in tables.columns([row]):
        estimate = tables.figure(row, key) or {}
        if estimate.get("value") is not None:
            values.append((f"{estimate['value']:.{digits}f}", heading, section))
    return report_page.tiles(values)


def _notes(result: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(name)}</b> ({b['kbps']:.3g} kbit/s): {escape(b['note'])}."
        for name, b in result["baselines"].items()
    ]
    if any(row["kind"] == "random" for rows in result["sections"].values() for row in rows):
        lines.append(
            "<b>Random codebooks</b>: the same encoder and decoder around Gaussian vectors with the mean and the "
            "covariance of what each codebook has to quantise, at the scale that leaves the smallest residual."
        )
    lines += [escape(note) for note in result["notes"]]
    return "<h2>What is compared</h2>" + "".join(f"<p class='note'>{line}</p>" for line in lines) if lines else ""


def _curves(rows: Sequence[tables.Row]) -> str:
    """Each measure against the number of codebooks, and the first against the bit rate."""
    names = {key: heading for key, heading, _ in tables.columns(rows)}
    cards = []
    for key in (key for key in _CURVES if key in names):
        lines = _lines(rows, key, "codebooks")
        most = max((x for line in lines for x, _ in line.points), default=1.0)
        flat = [
            charts.Line(row["system"], ((1.0, value), (most, value)), _BASELINE_COLOUR, dashed=True)
            for row in rows
            if row["kind"] in ("baseline", "original") and (value := _value(row, key)) is not None
        ]
        chart = charts.line_chart([*lines, *flat], "number of codebooks", names[key])
        cards.append(f'<div class="card"><h3>{escape(names[key])}</h3>{chart}</div>')
    for key in (key for key in ("pesq_wb", "stoi") if key in names):
        points = [
            charts.Line(row["system"], ((row["kbps"], value),), _BASELINE_COLOUR)
            for row in rows
            if row["kind"] == "baseline" and row["kbps"] < _KBPS_SHOWN and (value := _value(row, key)) is not None
        ]
        chart = charts.line_chart([*_lines(rows, key, "kbps"), *points], "kbit/s, nominal", names[key])
        cards.append(f'<div class="card"><h3>{escape(names[key])} against bit rate</h3>{chart}</div>')
    return f'<div class="grid2">{"".join(cards)}</div>'


def _lines(rows: Sequence[tables.Row], key: str, x: str) -> list[charts.Line]:
    """One line per tokenizer, dashed with random codebooks, in the colour of the tokenizer."""
    order = list(dict.fromkeys(row["tokenizer"] for row in rows if "tokenizer" in row))
    lines = []
    for system in dict.fromkeys(row["system"] for row in rows if "tokenizer" in row):
        mine = [row for row in rows if row["system"] == system]
        points = tuple((float(row[x]), value) for row in mine if (value := _value(row, key)) is not None)
        random = mine[0]["kind"] == "random"
        colour = f"c{1 + 3 * order.index(mine[0]['tokenizer']) % 8}"
        lines.append(charts.Line("random" if random else system, points, colour, dashed=random))
    return lines


def _value(row: tables.Row, key: str) -> float | None:
    return (tables.figure(row, key) or {}).get("value")


def _table(rows: Sequence[tables.Row], utterances: int) -> str:
    shown = tables.columns(rows)
    head = "".join(
        f"<th>{escape(h)}</th>" for h in ("system", "codebooks", "kbit/s", "real kbit/s", *(h for _, h, _ in shown))
    )
    body = "".join(
        f"{_named(row)}{''.join(f'<td>{rate}</td>' for rate in tables.bit_rates(row))}"
        f"{''.join(report_page.cell(tables.figure(row, key)) for key, _, _ in shown)}</tr>"
        for row in rows
    )
    return (
        "<p class='note'>With 95 % bootstrap intervals over utterances. Real kbit/s: from the entropy of each "
        "codebook's codes; of public codecs, what their packets hold.</p>"
        f'<div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'
        + "".join(f"<p class='note'>{escape(sentence)}.</p>" for sentence in tables.undefined(rows, utterances))
    )


def _named(row: tables.Row) -> str:
    """The beginning of a line: what it is about, and the number of codebooks."""
    return f"<tr><td>{escape(row['system'])}</td><td>{row.get('codebooks') or '-'}</td>"


def _differences(rows: Sequence[tables.Row]) -> str:
    if not rows:
        return ""
    shown = tables.columns(rows)
    head = "".join(f"<th>{escape(h)}</th>" for h in ("difference", "codebooks", *(h for _, h, _ in shown)))
    body = "".join(
        f"{_named(row)}{''.join(report_page.cell(tables.figure(row, key)) for key, _, _ in shown)}</tr>" for row in rows
    )
    return (
        "<h3>Differences over the same utterances</h3><p class='note'>The first minus the second, mean and 95 % "
        f'interval of the paired bootstrap.</p><div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'
    )


def _players(report: TokenizerReport, section: str, rows: Sequence[tables.Row]) -> str:
    folder = Path(report.evaluation_dir) / "samples" / section
    clips: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for system, kind in {row["system"]: row["kind"] for row in rows}.items():
        stored = Path(report.evaluation_dir) / "parts" / f"{part_name(section, system)}.json"
        found = json.loads(stored.read_text(encoding="utf-8"))["result"]["rows"]
        wanted = [r for r in found[:-1] if r["codebooks"] in _PLAYED and kind != "random"]  # clips are most of the page
        for row in (*wanted, found[-1]):
            n = row.get("codebooks")
            title = f"{system}, {n} codebook{'s' if n > 1 else ''}" if n else system
            for item in (item for item in row["items"] if item.get("file")):
                texts[item["id"]] = item["reference"] or item["id"]
                clip = report_page.clip(folder, item, title, item["heard"], report.clip_seconds)
                clips.setdefault(item["id"], []).append(clip)
    cards = "".join(
        f'<div class="card"><h3>{escape(texts[record_id])}</h3><div class="side">{"".join(players)}</div></div>'
        for record_id, players in clips.items()
    )
    return f"<h3>Listen</h3>{cards}" if cards else ""


def _codebooks(tokenizers: Mapping[str, Any]) -> str:
    rows = []
    for name, about in tokenizers.items():
        use = about["use"]
        for number, u in enumerate(use["codebooks"], start=1):
            rows.append(
                f"<tr><td>{escape(name)}</td><td>{number}</td><td>{u['size']}</td><td>{u['usage']:.1%}</td>"
                f"<td>{u['perplexity']:.1f}</td><td>{u['entropy_bits']:.2f}</td><td>{use['frames']}</td></tr>"
            )
    head = "".join(
        f"<th>{h}</th>"
        for h in ("tokenizer", "codebook", "size", "codes in use", "perplexity", "bits per code", "frames")
    )
    return (
        "<h2>Use of the codebooks</h2><p class='note'>Over held-out speech; with few frames per code, use and entropy "
        f'come out too low.</p><div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _speed(tokenizers: Mapping[str, Any]) -> str:
    rows = []
    for name, about in tokenizers.items():
        for s in (about["speed"][way] for way in ("batch", "single") if "speed" in about):
            rows.append(
                f"<tr><td>{escape(name)}</td><td>{s['waves']} waves, {s['seconds']:.1f} s</td>"
                f"<td>{s['encode_rtf']:.4f} ({1 / s['encode_rtf']:.0f} x real time)</td>"
                f"<td>{s['decode_rtf']:.4f} ({1 / s['decode_rtf']:.0f} x)</td>"
                f"<td>{escape(about['speed']['device'])}</td></tr>"
            )
    head = "".join(f"<th>{h}</th>" for h in ("tokenizer", "at once", "encode RTF", "decode RTF", "device"))
    return (
        "<h2>Speed</h2><p class='note'>Seconds of computing per second of audio, all codebooks, warm, median.</p>"
        f'<div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def _made(report: TokenizerReport) -> str:
    settings = json.dumps(report.result["settings"], indent=1)
    out = f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>"
    if report.command:
        out += f"<details><summary>Command</summary><pre>{escape(report.command)}</pre></details>"
    return f"<h2>How it was made</h2>{out}"
