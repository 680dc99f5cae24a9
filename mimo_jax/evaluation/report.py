"""The report: one HTML page without any request, from the figures, curves and samples that a run left behind."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mimo_jax.evaluation import charts, report_media, report_page
from mimo_jax.evaluation.benchmarks import page
from mimo_jax.evaluation.few_shot import curves
from mimo_jax.evaluation.few_shot.choices import ChoiceSet
from mimo_jax.files import write_text

_CURVES_FILE = "metrics.jsonl"
_QUARANTINE_ROWS = 100
_MAX_POINTS = 300


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """What a report is made of; what is missing leaves its section out.

    Attributes:
        title, lead: headline and the sentence under it.
        metrics: content of ``metrics.json`` (`suite.evaluate_chain`, with ``stage_seconds`` and ``wall_seconds``).
        evaluation_dir: folder with ``parts/`` and ``samples/``.
        model_dirs: stage name -> MODEL_DIR with ``metrics.jsonl``, in the order of training.
        corpus: facts about the corpus, name -> value.
        quarantine: ``quarantine.jsonl`` files.
        command: the exact command of the run.
        config: resolved gin text of each stage.
        few_shot: file of the few-shot questions that the stages were scored on.
        benchmarks: folder of results of `mimo_jax.evaluate`.
        listen: items with players; clip_seconds cuts each.
    """

    title: str = "mimo_jax"
    lead: str = ""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluation_dir: str | os.PathLike[str] | None = None
    model_dirs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    corpus: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quarantine: Sequence[str | os.PathLike[str]] = ()
    command: str = ""
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    few_shot: str | os.PathLike[str] | None = None
    benchmarks: str | os.PathLike[str] | None = None
    listen: int = 6
    clip_seconds: float = 8.0


def write_report(path: str | os.PathLike[str], inputs: ReportInputs) -> None:
    """Writes the page, atomically."""
    write_text(path, render(inputs))


def render(inputs: ReportInputs) -> str:
    """The whole page."""
    body = "".join(
        (
            _listen(inputs),
            _spectrograms(inputs),
            _curves(inputs),
            _few_shot(inputs),
            "" if inputs.benchmarks is None else page.section(Path(inputs.benchmarks)),
            _codebooks(inputs.metrics),
            _figures(inputs.metrics),
            _facts(inputs),
            _quarantine(inputs.quarantine),
            _command(inputs),
        )
    )
    return report_page.page(inputs.title, inputs.lead, _tiles(inputs.metrics), body)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def _tiles(metrics: Mapping[str, Any]) -> str:
    """The verdict figures."""
    tiles: list[tuple[str, str, str]] = []

    def add(name: str, key: str, explanation: str, form=_percent) -> None:
        if isinstance(metrics.get(key), int | float):
            tiles.append((form(metrics[key]), name, explanation))

    chance = _percent(metrics.get("recogniser_wer_tts_chance"))
    floor = _percent(metrics.get("recogniser_wer_original"))
    add("Transcription errors", "asr_wer_heldout", "word error rate on texts never seen")
    add("Spoken-text errors", "recogniser_wer_tts", f"its speech, read back by the recogniser; chance {chance}")
    add("Codec errors", "recogniser_wer_reconstruction", f"reconstructions, read back; originals {floor}")
    loss, entropy = metrics.get("codebook_loss") or [], metrics.get("codebook_unigram_entropy") or []
    if loss and entropy and entropy[0]:
        tiles.append((_percent(loss[0] / entropy[0]), "Codebook 1", "held-out loss as a share of its unigram entropy"))
    add("PESQ", "pesq_wb", "wide band, reconstructions (1 to 4.6)", "{:.2f}".format)
    add("STOI", "stoi", "intelligibility, reconstructions (0 to 1)", "{:.3f}".format)
    add("Wall time", "wall_seconds", "everything, from corpus to report", lambda s: f"{s / 60:.1f} min")
    return report_page.tiles(tiles)


def _first_section(inputs: ReportInputs) -> str | None:
    sections = list(inputs.metrics.get("sections", {}))
    return inputs.metrics.get("section") or (sections[0] if sections else None)


def _part_items(inputs: ReportInputs, section: str, part: str) -> list[dict[str, Any]]:
    path = Path(inputs.evaluation_dir or "") / "parts" / section / f"{part}.json"
    if inputs.evaluation_dir is None or not path.is_file():
        return []
    return json.loads(path.read_text(encoding="utf-8"))["result"]["items"]


def _listen(inputs: ReportInputs) -> str:
    section = _first_section(inputs)
    if section is None:
        return ""
    folder = Path(inputs.evaluation_dir or "") / "samples" / section
    parts = {
        name: {item["id"]: item for item in _part_items(inputs, section, name)}
        for name in ("original", "reconstruction", "speech", "continuation", "transcription")
    }
    cards = []
    heard = [(record_id, item) for record_id, item in parts["original"].items() if item.get("file")]
    for record_id, item in heard[: inputs.listen]:
        clips = [report_page.clip(folder, item, "Original", None, inputs.clip_seconds)]
        for name, title in (("reconstruction", "Reconstruction"), ("speech", "Spoken by the model")):
            if other := parts[name].get(record_id):
                clips.append(report_page.clip(folder, other, title, other["heard"], inputs.clip_seconds))
        if other := parts["continuation"].get(record_id):
            title = "First half, continued by the model"
            clips.append(report_page.clip(folder, other, title, other["heard"], inputs.clip_seconds))
        answer = parts["transcription"].get(record_id)
        written = f'<p class="note">Transcribed as <q>{escape(answer["answer"])}</q></p>' if answer else ""
        cards.append(f'<div class="card"><h3>{escape(item["reference"])}</h3>{written}{"".join(clips)}</div>')
    others = _other_clips(inputs)
    if not cards and not others:
        return ""
    return (
        f"<h2>Listen</h2><p class='note'>Held-out utterances ({escape(section)}). Quoted: what the independent "
        f"recogniser hears.</p><div class='listen'>{''.join(cards)}{others}</div>"
    )


def _other_clips(inputs: ReportInputs) -> str:
    """Conversions and spoken answers, of whatever section has them."""
    cards = []
    for part, title in (("conversion", "Converted by example"), ("spoken_questions", "Spoken answer")):
        for section in inputs.metrics.get("sections", {}):
            items = [item for item in _part_items(inputs, section, part) if item.get("file")]
            folder = Path(inputs.evaluation_dir or "") / "samples" / section
            for item in items[:2]:
                asked = item.get("question") or f"{item['kind']}: {item['reference']}"
                player = report_page.clip(folder, item, title, item["heard"], inputs.clip_seconds)
                cards.append(f'<div class="card"><h3>{escape(asked)}</h3>{player}</div>')
    return "".join(cards)


def _spectrograms(inputs: ReportInputs, count: int = 3) -> str:
    section = _first_section(inputs)
    if section is None:
        return ""
    folder = Path(inputs.evaluation_dir or "") / "samples" / section
    rebuilt = {item["id"]: item for item in _part_items(inputs, section, "reconstruction")}
    cards: list[str] = []
    for item in _part_items(inputs, section, "original"):
        other = rebuilt.get(item["id"], {})
        files = [folder / name for name in (item.get("file"), other.get("file")) if name]
        if len(cards) == count or len(files) < 2 or not all(file.is_file() for file in files):
            continue
        waves = [report_media.read_wave(file) for file in files]
        frames = int(100 * max(len(wave) / rate for wave, rate in waves)) + 1
        pictures = "".join(
            f'<figure><figcaption>{name}</figcaption><img alt="{name}: {escape(item["reference"])}" '
            f'src="{report_media.spectrogram(wave, rate, frames)}"></figure>'
            for name, (wave, rate) in zip(("Original", "Reconstruction, 8 codebooks"), waves, strict=True)
        )
        cards.append(f'<div class="card spec"><h3>{escape(item["reference"])}</h3>{pictures}</div>')
    if not cards:
        return ""
    return (
        "<h2>Spectrograms</h2><p class='note'>Mel scale, 0 to 12 kHz from bottom to top, 61 dB range.</p>"
        f'<div class="listen">{"".join(cards)}</div>'
    )


def read_curve(model_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a stage's ``metrics.jsonl``; a last line that a kill cut short is left out."""
    path = Path(model_dir) / _CURVES_FILE
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _thin(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    every = max(1, -(-len(points) // _MAX_POINTS))
    return tuple(points[i] for i in range(len(points)) if i % every == 0 or i == len(points) - 1)


def _positions(records: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """x of each record: tokens seen where the stage counts tokens, else steps."""
    if records and (records[-1].get("text_tokens", 0) or records[-1].get("audio_tokens", 0)):
        return [r.get("text_tokens", 0) + r.get("audio_tokens", 0) for r in records], "tokens seen (text + audio)"
    return [r["step"] for r in records], "steps"


def _curves(inputs: ReportInputs) -> str:
    stages = {name: read_curve(folder) for name, folder in inputs.model_dirs.items()}
    stages = {name: records for name, records in stages.items() if records}
    if not stages:
        return ""
    cards = _held_out_cards(stages)
    for name, records in stages.items():
        places, label = _positions(records)
        points = [(x, float(r["train/loss"])) for x, r in zip(places, records, strict=True) if "train/loss" in r]
        chart = charts.line_chart([charts.Line("train", _thin(points), "c0")], label, "loss")
        cards.append(f'<div class="card"><h3>{escape(name)}: training loss</h3>{chart}</div>')
    return f'<h2>Learning curves</h2><div class="grid2">{"".join(cards)}</div>'


def _few_shot(inputs: ReportInputs) -> str:
    if inputs.few_shot is None:
        return ""
    stages = {name: read_curve(folder) for name, folder in inputs.model_dirs.items()}
    return curves.section(stages, ChoiceSet.load(inputs.few_shot))


def _held_out_cards(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Held-out loss by modality and codebook against tokens, the token-counting stages end to end."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    marks: list[tuple[float, str]] = []
    start = 0.0
    for name, records in stages.items():
        places, label = _positions(records)
        if label == "steps":
            continue
        marks.append((start, name))
        for x, record in zip(places, records, strict=True):
            for key, value in record.items():
                source, _, metric = key.rpartition("/")
                if source and source != "train" and (metric == "text_loss" or metric.startswith("codebook_loss_")):
                    series.setdefault((source, metric), []).append((start + x, float(value)))
        start += places[-1]
    cards = []
    for source in dict.fromkeys(source for source, _ in series):
        lines = [
            charts.Line(f"codebook {metric[-1]}", _thin(points), f"c{metric[-1]}")
            for (s, metric), points in sorted(series.items())
            if s == source and metric.startswith("codebook")
        ]
        text = series.get((source, "text_loss"))
        where = escape(source)
        if lines:
            chart = charts.line_chart(lines, "tokens seen (text + audio)", "nats per code", marks)
            cards.append(f'<div class="card"><h3>Held-out loss by codebook ({where})</h3>{chart}</div>')
        if text:
            line = [charts.Line("text", _thin(text), "c0")]
            chart = charts.line_chart(line, "tokens seen (text + audio)", "nats per token", marks)
            cards.append(f'<div class="card"><h3>Held-out text loss ({where})</h3>{chart}</div>')
    return cards


def _codebooks(metrics: Mapping[str, Any]) -> str:
    loss, entropy = metrics.get("codebook_loss"), metrics.get("codebook_unigram_entropy")
    if not loss or not entropy or len(loss) != len(entropy):
        return ""
    names = ("held-out loss", "unigram entropy of the same codes")
    chart = charts.paired_bars([str(i + 1) for i in range(len(loss))], loss, entropy, names, "nats per code")
    return (
        "<h2>What the model knows of each codebook</h2><p class='note'>Below 100 % it predicts better than frequencies "
        f"alone. The first codebooks carry the words, the last ones the fine detail.</p><div class='card'>{chart}</div>"
    )


def _figures(metrics: Mapping[str, Any]) -> str:
    sections = metrics.get("sections") or {}
    if not sections:
        return ""
    names = list(dict.fromkeys(name for figures in sections.values() for name in figures))
    head = "".join(f"<th>{escape(section)}</th>" for section in sections)
    cells = {name: [report_page.cell(figures.get(name)) for figures in sections.values()] for name in names}
    rows = "".join(f"<tr><td>{escape(name)}</td>{''.join(row)}</tr>" for name, row in cells.items())
    return (
        "<h2>All figures</h2><p class='note'>With 95 % bootstrap intervals over items. validation: held-out texts, "
        "voices seen in training; test_voices: held-out voices.</p>"
        f'<div class="card scroll"><table><tr><th>figure</th>{head}</tr>{rows}</table></div>'
    )


def _facts(inputs: ReportInputs) -> str:
    seconds = inputs.metrics.get("stage_seconds") or {}
    cards = []
    if seconds:
        bars = charts.horizontal_bars([(name, float(value)) for name, value in seconds.items()], "s")
        cards.append(f'<div class="card"><h3>Seconds per stage</h3>{bars}</div>')
    if inputs.corpus:
        rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in inputs.corpus.items())
        cards.append(f'<div class="card scroll"><h3>Corpus</h3><table>{rows}</table></div>')
    return f'<h2>The run</h2><div class="grid2">{"".join(cards)}</div>' if cards else ""


def _quarantine(files: Sequence[str | os.PathLike[str]]) -> str:
    records = []
    for file in map(Path, files):
        if file.is_file():
            records += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not records:
        return ""
    counts = Counter(str(record.get("reason", "unknown")) for record in records)
    total = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
    rows = "".join(
        f"<tr><td>{escape(str(r.get('audio') or r.get('path') or r.get('id') or ''))}</td>"
        f"<td>{escape(str(r.get('reason', '')))}</td><td>{escape(str(r.get('detail', '')))}</td></tr>"
        for r in records[:_QUARANTINE_ROWS]
    )
    more = (
        f"<p class='note'>The first {_QUARANTINE_ROWS} of {len(records)}.</p>"
        if len(records) > _QUARANTINE_ROWS
        else ""
    )
    return (
        f"<h2>Skipped files</h2><p class='note'>{len(records)} in all ({escape(total)}).</p>"
        f'<div class="card scroll"><table><tr><th>file</th><th>reason</th><th>what was found</th></tr>{rows}</table>'
        f"{more}</div>"
    )


def _command(inputs: ReportInputs) -> str:
    out = []
    if inputs.command:
        out.append(f"<details><summary>Command</summary><pre>{escape(inputs.command)}</pre></details>")
    for name, text in inputs.config.items():
        out.append(f"<details><summary>Resolved gin of {escape(name)}</summary><pre>{escape(text)}</pre></details>")
    return f"<h2>How it was made</h2>{''.join(out)}" if out else ""
