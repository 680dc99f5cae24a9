"""Comparisons of measured chains whose items, and so whose differences, are known."""

import json
from pathlib import Path

import pytest

from mimo_jax import compare_chain
from mimo_jax.cli import UserError
from mimo_jax.evaluation import chain_comparison, metrics
from mimo_jax.evaluation.parts import figures_of, write_json

SECTION = "wide/validation"
SETTINGS = {"limit": 4, "seed": 0, "material": "m", "identity": {"language_model": "one"}}
COUNT = 40


def questions(right):
    items = [
        {"id": f"q{i}", "reference": "slow", "answer": "Slow." if right(i) else "fast", "thought": "hm"}
        for i in range(COUNT)
    ]
    return items, metrics.mean_estimate([right(i) for i in range(COUNT)])


def write(folder, right, right_thinking, settings=SETTINGS, spoken=True):
    """Results of a system that is right about the questions for which `right` says so."""
    items, estimate = questions(right)
    thinking, with_thought = questions(right_thinking)
    parts = {
        "audio_questions": {
            "figures": figures_of(audio_question_accuracy=estimate, audio_question_accuracy_commonest=estimate),
            "items": items,
        },
        "audio_questions_thinking": {
            "figures": figures_of(audio_question_thinking_accuracy=with_thought),
            "items": list(reversed(thinking)),
        },
    }
    if spoken:
        said = [
            {"id": "s0", "reference": "it is two", "right": "two", "heard": "two"},
            {"id": "s1", "reference": "it is red", "right": None, "heard": "it is blue"},
        ]
        figure = metrics.mean_estimate([1.0])
        parts["spoken_questions"] = {"figures": figures_of(spoken_question_right=figure), "items": said}
    for name, result in parts.items():
        write_json(folder / "parts" / SECTION / f"{name}.json", {"settings": settings, "result": result})
    write_json(folder / "parts/losses/joint.json", {"settings": settings, "result": {"figures": {}}})
    write_json(folder / "metrics.json", {"settings": settings})
    return folder


@pytest.fixture
def folders(tmp_path):
    other = SETTINGS | {"identity": {"language_model": "another"}}
    base = write(tmp_path / "base", lambda i: i % 2 == 0, lambda i: False)
    tuned = write(tmp_path / "tuned", lambda i: i % 2 == 0 or i < 20, lambda i: True, other)
    return {"base": str(base), "tuned": str(tuned)}


def test_differences_are_paired_by_item(folders):
    found = chain_comparison.compare(folders)
    rows = {row["figure"]: row for row in found["rows"]}
    accuracy = rows["audio_question_accuracy"]
    assert accuracy["values"]["base"]["value"] == 0.5 and accuracy["values"]["tuned"]["value"] == 0.75
    difference = accuracy["differences"]["tuned"]
    assert difference["value"] == 0.25 and difference["interval_95"][0] > 0 and accuracy["n"] == COUNT
    # Unpaired, the two intervals overlap: the pairing is what shows the difference.
    assert accuracy["values"]["base"]["interval_95"][1] > accuracy["values"]["tuned"]["interval_95"][0]
    assert rows["audio_question_accuracy_commonest"]["differences"] == {}
    assert rows["spoken_question_right"]["n"] == 1 and rows["spoken_question_right"]["values"]["base"]["value"] == 1


def test_thinking_is_compared_on_the_same_questions_within_each_system(folders):
    base, tuned = chain_comparison.compare(folders)["thinking"]
    assert (base["system"], base["difference"]["value"]) == ("base", -0.5)
    assert (tuned["system"], tuned["difference"]["value"]) == ("tuned", 0.25)
    assert tuned["with"]["value"] == 1 and tuned["without"]["value"] == 0.75


def add_instructions(folder, right):
    """Written instructions of two kinds in turn; an answer that is not right lacks its capitals."""
    items = [
        {
            "id": f"w{i}",
            "kind": ("capitals", "over")[i % 2],
            "text": "one two",
            "reference": "ONE TWO" if i % 2 == 0 else "one two over",
            "answer": ("ONE TWO" if i % 2 == 0 else "one two over ") if right(i) else "one two",
            "heard": "one two" if right(i) else "one",
            "followed": right(i),
        }
        for i in range(COUNT)
    ]
    figure = metrics.mean_estimate([right(i) for i in range(COUNT)])
    names = ("accuracy", "accuracy_other_kinds", "followed", "heard_wer")
    figures = figures_of(**{f"written_instruction_{name}": figure for name in names})
    result = {"figures": figures, "items": items}
    write_json(folder / "parts" / SECTION / "written_instructions.json", {"settings": SETTINGS, "result": result})


def test_written_instructions_are_compared_letter_by_letter_and_kind_by_kind(folders):
    assert chain_comparison.compare(folders)["kinds"] == []
    add_instructions(Path(folders["base"]), lambda i: False)
    add_instructions(Path(folders["tuned"]), lambda i: i % 2 == 0 or i < 20)
    found = chain_comparison.compare(folders)
    rows = {row["figure"]: row for row in found["rows"] if row["part"] == "written_instructions"}
    for figure in ("accuracy", "followed"):
        row = rows[f"written_instruction_{figure}"]
        assert row["values"]["base"]["value"] == 0 and row["differences"]["tuned"]["value"] == 0.75
    assert rows["written_instruction_heard_wer"]["differences"]["tuned"]["value"] == 0.5 * -0.75
    assert rows["written_instruction_accuracy_other_kinds"]["differences"] == {}
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert list(kinds) == ["capitals", "over"] and kinds["over"]["n"] == COUNT // 2
    assert kinds["capitals"]["values"]["tuned"]["value"] == 1
    assert kinds["over"]["differences"]["tuned"]["value"] == 0.5
    table = chain_comparison.markdown(found)
    assert "## Written instructions by kind" in table
    assert "| section | kind | n | base | tuned | tuned - base |" in table
    assert "| wide/validation | over | 20 | 0.000 [0.000, 0.000] | 0.500 [" in table


def test_command_writes_table_and_numbers(folders, tmp_path, capsys):
    arguments = [f"{name}={folder}" for name, folder in folders.items()]
    assert compare_chain.main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    table = (tmp_path / "out/comparison.md").read_text()
    assert table in capsys.readouterr().out
    assert "| figure | n | base | tuned | tuned - base |" in table
    assert "| audio_question_accuracy | 40 | 0.500 [" in table and "| +0.250 [" in table
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert written["systems"] == folders and len(written["thinking"]) == 2


def test_what_cannot_be_compared(folders, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert compare_chain.main([f"base={folders['base']}", out]) == 2
    assert "two or more" in capsys.readouterr().err
    assert compare_chain.main([f"a={folders['base']}", f"a={folders['tuned']}", out]) == 2
    assert "a name of its own" in capsys.readouterr().err
    assert compare_chain.main([folders["base"], out]) == 2
    assert "NAME=DIR" in capsys.readouterr().err
    assert compare_chain.main([f"a={folders['base']}", f"b={tmp_path}", out]) == 2
    assert "metrics.json: no such file" in capsys.readouterr().err
    other = write(tmp_path / "other", bool, bool, SETTINGS | {"material": "n"})
    with pytest.raises(UserError, match="another material"):
        chain_comparison.compare({"a": folders["base"], "b": other})


def test_parts_that_one_system_lacks_are_left_out(folders, tmp_path):
    fewer = write(tmp_path / "fewer", bool, bool, spoken=False)
    figures = {row["figure"] for row in chain_comparison.compare({"a": folders["base"], "b": fewer})["rows"]}
    assert "audio_question_accuracy" in figures and "spoken_question_right" not in figures
