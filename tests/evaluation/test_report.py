"""The report: complete, self-contained, safe with any text, and drawn to scale."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.audio import write_wav
from mimo_jax.evaluation import charts
from mimo_jax.evaluation.report import ReportInputs, read_curve, render, write_report

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Checker(HTMLParser):
    """Collects tags and addresses, and that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _estimate(value):
    return {"value": value, "n": 20, "interval_95": [value * 0.9, value * 1.1]}


@pytest.fixture
def inputs(tmp_path):
    section = "core/validation"
    figures = {"asr_wer_heldout": _estimate(0.08), "recogniser_wer_tts": _estimate(0.3)}
    metrics = {
        "section": section,
        "sections": {section: figures, "wide/validation": {"asr_wer_heldout": _estimate(0.4)}},
        "asr_wer_heldout": 0.08,
        "recogniser_wer_tts": 0.3,
        "recogniser_wer_tts_chance": 1.1,
        "codebook_loss": [2.0, 4.0, 4.2, 4.3, 4.3, 4.3, 4.3, 4.3],
        "codebook_unigram_entropy": [6.2, 5.6, 4.6, 4.5, 4.5, 4.5, 4.5, 4.5],
        "pesq_wb": 2.1,
        "stage_seconds": {"corpus": 60.0, "joint <stage>": 400.0},
        "wall_seconds": 1000.0,
    }
    samples = tmp_path / "eval/samples" / section
    parts = tmp_path / "eval/parts" / section
    samples.mkdir(parents=True)
    parts.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("original", "reconstruction", "speech"):
        write_wav(samples / f"{part}.wav", rng.normal(0, 0.1, 12_000).astype(np.float32), 24_000)
        item = {"id": "a", "reference": "<script>alert(1)</script> & co", "heard": "co", "file": f"{part}.wav"}
        (parts / f"{part}.json").write_text(json.dumps({"result": {"items": [item]}}))
    stage = tmp_path / "joint"
    stage.mkdir()
    lines = [
        {"step": i, "text_tokens": 100 * i, "audio_tokens": 50 * i, "train/loss": 5 - i, "heldout/text_loss": 4 - i}
        | {f"heldout/codebook_loss_{c}": 6 - i / c for c in range(1, 9)}
        for i in range(1, 4)
    ]
    (stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "tra')
    quarantine = tmp_path / "quarantine.jsonl"
    quarantine.write_text(json.dumps({"audio": "bad.wav", "reason": "silent", "detail": "peak 0"}) + "\n")
    return ReportInputs(
        title="A run",
        metrics=metrics,
        evaluation_dir=tmp_path / "eval",
        model_dirs={"joint": str(stage)},
        corpus={"voices": 8},
        quarantine=[quarantine],
        command="./launch/quickstart.sh",
        config={"joint": "train.seed = 0"},
    )


def test_page_is_complete_and_makes_no_request(inputs, tmp_path):
    write_report(tmp_path / "out/report.html", inputs)
    page = (tmp_path / "out/report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert checker.tags.count("audio") == 3 and checker.tags.count("img") == 2
    assert all(address.startswith("data:") for address in checker.addresses)
    assert not re.search(r"https?://|@import|url\(", page)
    for text in (
        "8.0 %",
        "chance 110.0 %",
        "16.7 min",
        "bad.wav",
        "silent: 1",
        "voices",
        "train.seed = 0",
        "quickstart.sh",
    ):
        assert text in page
    assert "<script>alert" not in page and "joint &lt;stage&gt;" in page
    assert page.count("<polyline") == 8 + 1 + 1


def test_players_hold_audio(inputs):
    data = re.search(r"data:audio/flac;base64,([^\"]+)", render(inputs)).group(1)
    assert base64.b64decode(data)[:4] == b"fLaC"


def test_page_is_the_same_twice(inputs):
    assert render(inputs) == render(inputs)


def test_page_of_nothing():
    checker = Checker()
    checker.feed(render(ReportInputs(title="empty")))
    assert not checker.open


def test_cut_line_of_a_curve_is_left_out(inputs):
    assert [record["step"] for record in read_curve(inputs.model_dirs["joint"])] == [1, 2, 3]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range(low, size):
    values = charts.ticks(low, low + size)
    step = values[1] - values[0]
    assert values[0] <= low + 1e-6 * step and values[-1] >= low + size - 1e-6 * step
    assert 2 <= len(values) <= 12


def test_line_is_drawn_to_scale():
    svg = charts.line_chart([charts.Line("a", ((0, 0.0), (5, 5.0), (10, 10.0)), "c0")], "x", "y")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg).group(1).split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y2


def test_chart_without_numbers():
    assert "Nothing recorded" in charts.line_chart([charts.Line("a", ((0, float("nan")),), "c0")], "x", "y")
