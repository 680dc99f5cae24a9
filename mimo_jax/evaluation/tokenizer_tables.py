"""The figures of tokenizers in order: columns that are there, rows with labels, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimo_jax.evaluation.tokenizer_comparison import PER_UTTERANCE

# Figure, heading, decimals; columns without any figure are left out.
COLUMNS = (
    ("pesq_nb", "PESQ-NB", 2),
    ("pesq_wb", "PESQ-WB", 2),
    ("stoi", "STOI", 3),
    ("mel_distance", "mel distance", 3),
    ("speaker_similarity", "speaker", 3),
    ("recogniser_wer", "WER", 3),
    ("recogniser_cer", "CER", 3),
)
Row = Mapping[str, Any]


def figure(row: Row, name: str) -> dict[str, Any] | None:
    """A figure of a row; error rates stand there as of the original or of the reconstruction."""
    figures = row["figures"]
    return figures.get(name) or figures.get(f"{name}_reconstruction") or figures.get(f"{name}_original")


def columns(rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """Those of `COLUMNS` for which some row has a figure."""
    return [column for column in COLUMNS if any(figure(row, column[0]) for row in rows)]


def undefined(rows: Sequence[Row], utterances: int) -> list[str]:
    """What the means of a section leave out, a sentence each: without it a row that fails often would look better."""
    reconstructed = [row for row in rows if row["kind"] != "original"]
    sentences = []
    for key, heading, _ in columns(rows):
        if key not in PER_UTTERANCE:
            continue
        missing = {label(row): utterances - (figure(row, key) or {"n": 0})["n"] for row in reconstructed}
        for count in sorted(set(missing.values()) - {0}):
            mine = [name for name, n in missing.items() if n == count]
            where = "every row" if len(mine) == len(missing) else "; ".join(mine)
            sentences.append(
                f"{heading} is undefined for {count} of {utterances} utterances and leaves them out: {where}"
            )
    return sentences


def label(row: Row) -> str:
    """System and number of codebooks."""
    return f"{row['system']}, {row['codebooks']}" if row.get("codebooks") else str(row["system"])


def bit_rates(row: Row) -> tuple[str, str]:
    """(nominal kbit/s, that of the entropy of the codes or of the bits that were made); a dash where there is none."""
    nominal, other = row.get("kbps"), row.get("kbps_entropy") or row.get("kbps_measured")
    return f"{nominal:.3g}" if nominal else "-", f"{other:.3g}" if other else "-"


def section_text(name: str, rows: Sequence[Row], utterances: int) -> str:
    """The table of a section for a terminal; half the 95 % interval behind each figure."""
    shown = columns(rows)
    head = [f"{name} ({utterances} utterances)", "kbit/s", "real", *(heading for _, heading, _ in shown)]
    lines = [
        [label(row), *bit_rates(row), *(_short(figure(row, key), digits) for key, _, digits in shown)] for row in rows
    ]
    return "\n".join([text_table([head, *lines]), *undefined(rows, utterances)])


def difference_text(name: str, rows: Sequence[Row]) -> str:
    """The table of differences of a section."""
    shown = columns(rows)
    head = [f"{name}: differences", *(heading for _, heading, _ in shown)]
    lines = [[label(row), *(_short(figure(row, key), digits + 1) for key, _, digits in shown)] for row in rows]
    return text_table([head, *lines])


def speed_text(tokenizers: Mapping[str, Any]) -> str:
    """Real-time factors and use of the codebooks."""
    head = ["tokenizer", "encode RTF", "decode RTF", "one wave: encode", "decode", "usage of codebooks", "perplexity"]
    lines = []
    for name, about in tokenizers.items():
        speed, use = about.get("speed"), about["use"]["codebooks"]
        factors = (
            [f"{speed[b][f'{d}_rtf']:.4f}" for b in ("batch", "single") for d in ("encode", "decode")]
            if speed
            else ["-"] * 4
        )
        usage = " ".join(f"{u['usage']:.2f}" for u in use)
        lines.append([name, *factors, usage, " ".join(f"{u['perplexity']:.0f}" for u in use)])
    return text_table([head, *lines])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned lines, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        right = (cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


def _short(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None or estimate.get("value") is None:
        return "-"
    low, high = estimate["interval_95"]
    return f"{estimate['value']:.{digits}f} ±{(high - low) / 2:.{digits}f}"
