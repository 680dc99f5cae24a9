"""What a scaling ladder found: laws, predictions of held-back runs, as a table and as a page with charts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from mimo_jax.evaluation import charts, report_page
from mimo_jax.evaluation.scaling_law import Fit, fit_with_uncertainty


@dataclasses.dataclass(frozen=True)
class Rung:
    """A finished run.

    Attributes:
      size: name.
      parameters: without tables that are looked up.
      tokens: seen, text positions and patches.
      losses: held-out, nats, by name.
      held_back: not part of the fit.
    """

    size: str
    parameters: int
    tokens: int
    losses: Mapping[str, float]
    held_back: bool


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Runs, and the law of each loss."""

    rungs: Sequence[Rung]
    fits: Mapping[str, Fit]

    @classmethod
    def of(cls, rungs: Sequence[Rung], losses: Sequence[str], resamples: int = 200, seed: int = 0) -> Ladder:
        """Fits each loss. Raises ValueError: too few runs."""
        fitted = [rung for rung in rungs if not rung.held_back]
        n, d = (np.array([getattr(rung, name) for rung in fitted], float) for name in ("parameters", "tokens"))
        return cls(
            rungs,
            {
                name: fit_with_uncertainty(n, d, np.array([r.losses[name] for r in fitted]), resamples, seed)
                for name in losses
            },
        )

    def predictions(self) -> list[dict[str, Any]]:
        """Of each loss of each held-back run: predicted, its 95 % interval, measured, relative error.

        `last_best`: the lowest loss among the fitted runs, what a prediction has to beat.
        """
        rows = []
        for rung in (rung for rung in self.rungs if rung.held_back):
            for name, fit in self.fits.items():
                predicted, measured = float(fit.law(rung.parameters, rung.tokens)), rung.losses[name]
                low, high = fit.interval(rung.parameters, rung.tokens)
                best = min(other.losses[name] for other in self.rungs if not other.held_back)
                rows.append(
                    {
                        "loss": name,
                        "size": rung.size,
                        "parameters": rung.parameters,
                        "tokens": rung.tokens,
                        "predicted": predicted,
                        "low": low,
                        "high": high,
                        "measured": measured,
                        "relative_error": predicted / measured - 1,
                        "within": low <= measured <= high,
                        "last_best": best,
                    }
                )
        return rows

    def exponents(self, name: str) -> dict[str, tuple[float, float, float]]:
        """Value, low and high (95 %) of alpha, beta and the floor of a loss's law."""
        fit = self.fits[name]
        found = {}
        for field in ("alpha", "beta", "floor"):
            values = [getattr(law, field) for law in fit.resampled]
            low, high = np.quantile(values, [0.025, 0.975])
            found[field] = (getattr(fit.law, field), float(low), float(high))
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": [dataclasses.asdict(rung) for rung in self.rungs],
            "laws": {
                name: dataclasses.asdict(fit.law) | {"spread": fit.spread, "intervals": self.exponents(name)}
                for name, fit in self.fits.items()
            },
            "predictions": self.predictions(),
        }


def table(ladder: Ladder) -> str:
    """The held-back runs' predictions as text."""
    lines = [
        f"{'loss':<14} {'predicted':>9} {'95 % interval':>18} {'measured':>9} {'error':>7} {'best fitted run':>16}"
    ]
    for row in ladder.predictions():
        interval = f"{row['low']:.4f}..{row['high']:.4f}"
        lines.append(
            f"{row['loss']:<14} {row['predicted']:>9.4f} {interval:>18} {row['measured']:>9.4f} "
            f"{row['relative_error']:>+7.2%} {row['last_best']:>16.4f}"
        )
    return "\n".join(lines)


def render(ladder: Ladder, seconds: Mapping[str, float]) -> str:
    """The page: a chart of each loss, laws, predictions, runs."""
    cards = [_chart(ladder, name) for name in ladder.fits]
    body = (
        f'<h2>Loss against tokens</h2><p class="note">Points: runs, joined by size; dashed: the law. The run that was '
        f'held back is the end of the line marked with its size and "held back"; beside it the prediction with its '
        f'95 % interval.</p><div class="grid2">{"".join(cards)}</div>'
        f"<h2>Held-back runs</h2>{_predictions(ladder)}<h2>Laws</h2>{_laws(ladder)}"
        f"<h2>Runs</h2>{_runs(ladder, seconds)}"
    )
    lead = f"{len(ladder.rungs)} runs of {len({rung.size for rung in ladder.rungs})} sizes"
    return report_page.page("Scaling ladder", lead, "", body)


def _chart(ladder: Ladder, name: str) -> str:
    fit, lines = ladder.fits[name], []
    sizes = list(dict.fromkeys(rung.size for rung in ladder.rungs))
    for number, size in enumerate(sizes):
        mine = sorted((rung for rung in ladder.rungs if rung.size == size), key=lambda rung: rung.tokens)
        colour = f"c{number % 8}"
        held = " (held back)" if any(rung.held_back for rung in mine) else ""
        points = tuple((float(rung.tokens), rung.losses[name]) for rung in mine)
        lines.append(charts.Line(f"{size}{held}", points, colour))
        tokens = np.geomspace(mine[0].tokens, mine[-1].tokens, 12)
        law = tuple(zip(tokens.tolist(), fit.law(mine[0].parameters, tokens).tolist(), strict=True))
        lines.append(charts.Line("", law, colour, dashed=True))
    for rung in (rung for rung in ladder.rungs if rung.held_back):
        low, high = fit.interval(rung.parameters, rung.tokens)
        lines.append(charts.Line("95 %", ((float(rung.tokens), low), (rung.tokens * 1.0001, high)), "c8"))
    chart = charts.line_chart(lines, "tokens seen (text + audio)", "nats")
    return f'<div class="card"><h3>{escape(name)}</h3>{chart}</div>'


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"


def _predictions(ladder: Ladder) -> str:
    head = ("loss", "run", "predicted", "95 % interval", "measured", "error", "within", "best fitted run")
    rows = [
        (
            row["loss"],
            f"{row['size']}, {charts.short(row['parameters'])} parameters, {charts.short(row['tokens'])} tokens",
            f"{row['predicted']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            f"{row['measured']:.4f}",
            f"{row['relative_error']:+.2%}",
            "yes" if row["within"] else "no",
            f"{row['last_best']:.4f}",
        )
        for row in ladder.predictions()
    ]
    return _html_table(head, rows)


def _laws(ladder: Ladder) -> str:
    rows = []
    for name, fit in ladder.fits.items():
        cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in ladder.exponents(name).values()]
        rows.append((name, *cells, f"{fit.spread:.2%}"))
    return _html_table(("loss", "alpha (parameters)", "beta (tokens)", "floor, nats", "scatter of runs"), rows)


def _runs(ladder: Ladder, seconds: Mapping[str, float]) -> str:
    names = list(ladder.fits)
    rows = [
        (
            f"{rung.size}{' (held back)' if rung.held_back else ''}",
            charts.short(rung.parameters),
            charts.short(rung.tokens),
            *(f"{rung.losses[name]:.4f}" for name in names),
        )
        for rung in ladder.rungs
    ]
    total = f"<p class='note'>All runs together took {sum(seconds.values()) / 60:.0f} minutes.</p>"
    return _html_table(("size", "parameters", "tokens", *names), rows) + total
