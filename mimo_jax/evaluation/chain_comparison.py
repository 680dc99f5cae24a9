"""Models measured by `suite.evaluate_chain` on the same items, side by side: figures and paired differences.

Two systems that find the same items hard differ less than their intervals suggest: a difference is estimated from each
item's own (paired bootstrap over items), and its interval tells whether it is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.data.corpus.instructions import KINDS
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.suite import FURTHER_PARTS, METRICS_FILE, PARTS
from mimo_jax.objectives.transcripts import normalise_text

Row = Mapping[str, Any]
Score = tuple[float, float]  # numerator and denominator of one item; a denominator of 0: the item does not count
PLAIN, THINKING, WRITTEN = "audio_questions", "audio_questions_thinking", "written_instructions"


def _errors(field: str) -> Callable[[Row], Score]:
    return lambda item: metrics.word_errors(item["reference"], item[field])


def _same(field: str) -> Callable[[Row], Score]:
    return lambda item: (float(normalise_text(item["reference"]) == normalise_text(item[field])), 1.0)


def _identical(item: Row) -> Score:
    return float(metrics.identical(item["reference"], item["answer"])), 1.0


def _right(field: str) -> Callable[[Row], Score]:
    return lambda item: (float(metrics.ends_with(item[field], item["right"])), 1.0) if item.get("right") else (0.0, 0.0)


def _followed(item: Row) -> Score:
    return float(sum(item["followed"].values())), float(len(item["followed"]))


def _followed_in(dimension: str) -> Callable[[Row], Score]:
    return lambda item: (float(item["followed"].get(dimension, False)), float(dimension in item["followed"]))


# How an item counts in a figure, by part; other figures are shown without a difference.
SCORES: dict[str, dict[str, Callable[[Row], Score]]] = {
    "transcription": {"asr_wer_heldout": _errors("answer")},
    "speech": {"recogniser_wer_tts": _errors("heard")},
    "audio_questions": {"audio_question_accuracy": _same("answer")},
    "audio_questions_thinking": {
        "audio_question_thinking_accuracy": _same("answer"),
        "audio_question_thinking_answered": lambda item: (float(bool(item["answer"])), 1.0),
    },
    "spoken_questions": {
        "spoken_question_accuracy": _same("heard"),
        "spoken_question_right": _right("heard"),
        "spoken_question_wer": _errors("heard"),
    },
    "written_answers": {"written_answer_accuracy": _same("answer"), "written_answer_right": _right("answer")},
    WRITTEN: {
        "written_instruction_accuracy": _identical,
        "written_instruction_followed": lambda item: (float(item["followed"]), 1.0),
        "written_instruction_heard_wer": lambda item: metrics.word_errors(item["text"], item["heard"]),
    },
    "instructed_speech": {
        "recogniser_wer_instructed": _errors("heard"),
        "instruction_followed": _followed,
        "instructed_rate_followed": _followed_in("rate"),
        "instructed_volume_followed": _followed_in("volume"),
    },
}


def compare(folders: Mapping[str, str | os.PathLike[str]]) -> dict[str, Any]:
    """Every figure of every system, and what each has more than the first.

    Args:
        folders: name of a system -> folder that `evaluate_chain` wrote.

    Returns:
        ``rows``: of each section and figure that all systems have, ``values`` and ``differences`` to the first system
        (none for figures that are not made of items) by system, as estimates with 95 % intervals over ``n`` items.
        ``thinking``: of each section and system, questions about recordings answered ``with`` and ``without`` a thought
        and the ``difference``. ``kinds``: of each section and kind of written instruction the accuracy, with ``values``
        and ``differences`` as in ``rows``. ``systems``: the folders, in order.

    Raises:
        UserError: fewer than two systems, a folder without results, or results on other items or settings.
    """
    if len(folders) < 2:
        raise UserError(f"{len(folders)} system given; name two or more to compare, as NAME=DIR")
    names = list(folders)
    _check_settings(folders)
    parts = {name: _read_parts(Path(folder)) for name, folder in folders.items()}
    common = [key for key in parts[names[0]] if all(key in found for found in parts.values())]
    if not common:
        raise UserError(f"{', '.join(map(str, folders.values()))}: no part was measured in all of them")
    rows = [row for key in common for row in _rows(key, {name: parts[name][key] for name in names})]
    thinking = [row for name in names for row in _thinking(name, parts[name])]
    kinds = [
        row for key in common if key[1] == WRITTEN for row in _kinds(key[0], {name: parts[name][key] for name in names})
    ]
    systems = {name: str(folder) for name, folder in folders.items()}
    return {"systems": systems, "rows": rows, "kinds": kinds, "thinking": thinking}


def _check_settings(folders: Mapping[str, str | os.PathLike[str]]) -> None:
    first: dict[str, Any] | None = None
    for folder in folders.values():
        path = Path(folder) / METRICS_FILE
        if not path.is_file():
            raise UserError(f"{path}: no such file; run python -m mimo_jax.evaluate_chain there first")
        # The identity names what is measured, which is what differs.
        settings = {k: v for k, v in json.loads(path.read_text())["settings"].items() if k != "identity"}
        first = first or settings
        other = [key for key in {**first, **settings} if first.get(key) != settings.get(key)]
        if other:
            raise UserError(
                f"{path}: measured with another {', '.join(other)} than {next(iter(folders.values()))}; "
                "evaluate both on one corpus with the same options"
            )


def _read_parts(folder: Path) -> dict[tuple[str, str], Row]:
    """Stored parts by (section, part), sections together and parts in the order of the suite."""
    order = {name: number for number, name in enumerate((*PARTS, *FURTHER_PARTS))}
    found = {}
    for path in sorted((folder / "parts").glob("*/*/*.json")):
        section = "/".join(path.parts[-3:-1])
        found[section, path.stem] = json.loads(path.read_text())["result"]
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0], order.get(entry[0][1], len(order)))))


def _rows(key: tuple[str, str], results: Mapping[str, Row]) -> list[dict[str, Any]]:
    section, part = key
    first = next(iter(results.values()))
    rows = []
    for figure in first["figures"]:
        if not all(figure in result["figures"] for result in results.values()):
            continue
        row: dict[str, Any] = {"section": section, "part": part, "figure": figure}
        score = SCORES.get(part, {}).get(figure)
        if score is None:
            values = {name: result["figures"][figure] for name, result in results.items()}
            rows.append(row | {"n": first["figures"][figure]["n"], "values": values, "differences": {}})
            continue
        scores = _paired([result["items"] for result in results.values()], [score] * len(results))
        if scores:
            rows.append(row | _estimates(list(results), scores))
    return rows


def _paired(items: Sequence[Sequence[Row]], scores: Sequence[Callable[[Row], Score]]) -> list[list[Score]]:
    """Scores of each system on the items that all of them have, in one order; empty if there are none that count."""
    by_id = [{item["id"]: item for item in mine} for mine in items]
    shared = [i for i in by_id[0] if all(i in found for found in by_id)]
    columns = [[score(found[i]) for i in shared] for found, score in zip(by_id, scores, strict=True)]
    counted = [n for n in range(len(shared)) if columns[0][n][1]]
    return [[column[n] for n in counted] for column in columns] if counted else []


def _estimates(names: Sequence[str], scores: Sequence[Sequence[Score]]) -> dict[str, Any]:
    values = {
        name: metrics.ratio_estimate([top for top, _ in mine], [bottom for _, bottom in mine]).as_dict()
        for name, mine in zip(names, scores, strict=True)
    }
    differences = {
        name: metrics.paired_difference(mine, scores[0]).as_dict()
        for name, mine in zip(names[1:], scores[1:], strict=True)
    }
    return {"n": len(scores[0]), "values": values, "differences": differences}


def _kinds(section: str, results: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Accuracy of written instructions, kind by kind."""
    rows = []
    for kind in KINDS:
        mine = [[item for item in result["items"] if item["kind"] == kind] for result in results.values()]
        scores = _paired(mine, [_identical] * len(mine))
        if scores:
            rows.append({"section": section, "kind": kind} | _estimates(list(results), scores))
    return rows


def _thinking(name: str, parts: Mapping[tuple[str, str], Row]) -> list[dict[str, Any]]:
    """The same questions without and with a thought, section by section."""
    rows = []
    for section in dict.fromkeys(section for section, _ in parts):
        if (section, PLAIN) not in parts or (section, THINKING) not in parts:
            continue
        items = [parts[section, PLAIN]["items"], parts[section, THINKING]["items"]]
        scores = _paired(items, [_same("answer"), _same("answer")])
        if scores:
            made = _estimates(["without", "with"], scores)
            values = {"with": made["values"]["with"], "without": made["values"]["without"]}
            rows.append(
                {
                    "section": section,
                    "system": name,
                    "n": made["n"],
                    **values,
                    "difference": made["differences"]["with"],
                }
            )
    return rows


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: a table for each section, one of written instructions by kind, and one of thinking.

    95 % intervals are in brackets.
    """
    names = list(comparison["systems"])
    lines = []
    for section in dict.fromkeys(row["section"] for row in comparison["rows"]):
        mine = [row for row in comparison["rows"] if row["section"] == section]
        lines += [f"## {section}", "", *_table(names, ("figure",), mine)]
    if comparison["kinds"]:
        lines += ["## Written instructions by kind", "", *_table(names, ("section", "kind"), comparison["kinds"])]
    if comparison["thinking"]:
        lines += ["## Thinking: the same questions about recordings", ""]
        lines += [_line("section", "system", "n", "without", "with", "with - without"), _line(*["---"] * 6)]
        for row in comparison["thinking"]:
            figures = (_spelled(row["without"]), _spelled(row["with"]), _spelled(row["difference"], "+.3f"))
            lines.append(_line(row["section"], row["system"], row["n"], *figures))
        lines.append("")
    return "\n".join(lines)


def _table(names: Sequence[str], labels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Rows with values of all systems and differences to the first, labelled by some of their fields."""
    lines = [_line(*labels, "n", *names, *(f"{name} - {names[0]}" for name in names[1:]))]
    lines.append(_line(*["---"] * (len(labels) + 2 * len(names))))
    for row in rows:
        values = [_spelled(row["values"][name]) for name in names]
        differences = [_spelled(row["differences"].get(name), "+.3f") for name in names[1:]]
        lines.append(_line(*(row[label] for label in labels), row["n"], *values, *differences))
    return [*lines, ""]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _spelled(estimate: Row | None, form: str = ".3f") -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    low, high = estimate["interval_95"]
    return f"{estimate['value']:{form}} [{low:{form}}, {high:{form}}]"
