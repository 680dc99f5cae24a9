"""Writes the report of a run: one self-contained HTML page.

    python -m mimo_jax.report --gin_file=RUN_FILE.gin

The run file binds the arguments of `report` below (`report.out = "report.html"` and so on).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax import cli
from mimo_jax.evaluation.report import ReportInputs, write_report


def report(
    *,
    out: str,
    evaluation_dir: str,
    metrics_file: str | None = None,
    model_dirs: Mapping[str, str] | None = None,
    quarantine: Sequence[str] = (),
    corpus: Mapping[str, Any] | None = None,
    title: str = "mimo_jax",
    lead: str = "",
    command: str = "",
    few_shot: str | None = None,
    benchmarks: str | None = None,
) -> None:
    """Writes `out`.

    Args:
      out: the HTML file.
      evaluation_dir: what `mimo_jax.evaluate_chain` wrote.
      metrics_file: figures; default `evaluation_dir/metrics.json`.
      model_dirs: stage -> MODEL_DIR, in the order of training; their `metrics.jsonl` and `config.gin` are shown.
      quarantine: lists of skipped files.
      corpus: facts about the corpus.
      title, lead: headline and the sentence under it.
      command: the exact command of the run.
      few_shot: file of the few-shot questions that the stages were scored on (`mimo_jax.few_shot make`).
      benchmarks: folder of results of `mimo_jax.evaluate`.
    """
    path = Path(metrics_file or Path(evaluation_dir) / "metrics.json")
    if not path.is_file():
        raise cli.UserError(f"{path}: no such file; run python -m mimo_jax.evaluate_chain first")
    folders = dict(model_dirs or {})
    configs = {name: Path(folder) / "config.gin" for name, folder in folders.items()}
    inputs = ReportInputs(
        title=title,
        lead=lead,
        metrics=json.loads(path.read_text(encoding="utf-8")),
        evaluation_dir=evaluation_dir,
        model_dirs=folders,
        corpus=dict(corpus or {}),
        quarantine=quarantine,
        command=command,
        few_shot=few_shot,
        benchmarks=benchmarks,
        config={name: file.read_text(encoding="utf-8") for name, file in configs.items() if file.is_file()},
    )
    write_report(out, inputs)


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.report import report as configured_report

    cli.run(configured_report)
