"""The tools that compare two commits: what they call equal, and what they say of what is not."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.fixture
def losses():
    return importlib.import_module("compare_losses")


@pytest.fixture
def hlo():
    return importlib.import_module("compare_hlo")


def record(step, **metrics):
    return {"step": step, "train/step_seconds": step * 0.7, "speed/goodput": step / 9, **metrics}


def test_equal_logs_may_differ_in_time(losses):
    base, other = [record(1, loss=2.5)], [{**record(1, loss=2.5), "train/step_seconds": 9.0, "checkpoint/seconds": 1.0}]
    assert list(losses.differences(base, other)) == []


def test_the_first_figure_that_differs_is_named(losses):
    base = [record(1, loss=2.5), record(2, loss=2.0, norm=float("nan"))]
    other = [record(1, loss=2.5), record(2, loss=2.0 + 1e-12, norm=float("nan"))]
    (found,) = losses.differences(base, other)
    assert (found.step, found.name) == (2, "loss") and "off by 1e-12" in str(found)
    assert list(losses.differences(base, other, tolerance=1e-9)) == []


@pytest.mark.parametrize("shorter", [0, 1])
def test_a_missing_record_or_figure_differs(losses, shorter):
    logs = [[record(1, loss=1.0), record(2, loss=1.0)], [record(1, loss=1.0), record(2, loss=1.0)]]
    logs[shorter].pop()
    assert {(found.step, found.name) for found in losses.differences(*logs)} == {(2, "loss"), (2, "step")}
    assert [found.name for found in losses.differences([record(1)], [record(1, new=0.0)])] == ["new"]


def test_stages_whose_inputs_are_there(losses, tmp_path):
    (tmp_path / "prepared").mkdir()
    assert list(losses.of_quickstart(tmp_path)) == ["understanding"]
    (tmp_path / "understanding").mkdir()
    runs = losses.of_quickstart(tmp_path)
    assert f"--gin.INIT_FROM={tmp_path / 'understanding'}" in runs["joint"]
    for arguments in runs.values():
        assert (ROOT / arguments[0].partition("=")[2]).is_file()


def test_logs_of_two_trees_are_compared(losses, monkeypatch, tmp_path, capsys):
    """With a trainer that writes what it is told; the real one is run by hand, it compiles twice."""
    figures = iter([1.0, 1.0, 1.0, 2.0])

    def train(tree, module, arguments):
        values = dict(argument.removeprefix("--gin.").split("=", 1) for argument in arguments)
        assert module == "mimo_jax.train" and values["Budget.steps"] == "3" and values["Budget.tokens"] == "None"
        assert ("EXPORT_DIR" in values) == ("joint" in arguments[0])
        folder = Path(values["MODEL_DIR"])
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(record(1, **{"train/loss": next(figures)})) + "\n")

    monkeypatch.setattr(losses, "run", train)
    for folder in ("prepared", "understanding"):
        (tmp_path / folder).mkdir()
    arguments = ["HEAD", f"--quickstart={tmp_path}", "--steps=3"]
    monkeypatch.setattr(losses, "checkout", lambda commit: __import__("contextlib").nullcontext(ROOT))
    assert losses.main([*arguments, "--runs=understanding"]) == 0
    assert losses.main([*arguments, "--runs=joint"]) == 1
    printed = capsys.readouterr().out
    assert "understanding: 1 records, equal" in printed and "train/loss 1.0 against 2.0" in printed
    with pytest.raises(SystemExit):
        losses.main([*arguments, "--runs=sft"])
    assert "has not what sft starts from" in capsys.readouterr().err


def test_no_losses_are_not_equal(losses, monkeypatch):
    def train(tree, module, arguments):
        folder = Path(next(each for each in arguments if "MODEL_DIR" in each).partition("=")[2])
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(record(1)) + "\n")

    monkeypatch.setattr(losses, "run", train)
    with pytest.raises(SystemExit, match="no loss was logged in 3 steps"):
        losses.log_of(ROOT, ["--gin_file=x.gin"], 3)


def test_a_misspelt_flag_of_release_is_named():
    ended = subprocess.run(["bash", "tools/release.sh", "--drat"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1 and "--drat: unknown" in ended.stderr


def test_source_positions_do_not_count(hlo):
    base = 'a = add(b, c), metadata={op_name="x/{y}" source_file="/one/f.py" source_line=3}\n#loc1 = loc("f":1:2)\nd'
    other = 'a = add(b, c), metadata={op_name="x/{y}" source_file="/two/f.py" source_line=4}\nd'
    assert hlo.normalised(base) == hlo.normalised(other) == ["a = add(b, c)", "d"]
    tables = (
        'HloModule f\n\nFileNames\n1 "/{}/f.py"\n\nFunctionNames\n1 "f"\n\nStackFrames\n1 {{file_location_id=1}}\n\n\nd'
    )
    assert hlo.normalised(tables.format("one")) == hlo.normalised(tables.format("two"))
    assert [line for line in hlo.normalised(tables) if line] == ["HloModule f", "d"]
    assert hlo.normalised('%1 = stablehlo.add %2 loc("f.py":1:2)') == ["%1 = stablehlo.add %2"]


def test_the_first_line_that_differs_is_shown(hlo):
    base = [f"line {i}" for i in range(100)]
    assert list(hlo.first_differences(base, list(base))) == []
    changed = [*base[:50], "another", *base[51:]]
    shown = "\n".join(hlo.first_differences(base, changed))
    assert "line 51 of 100 and 100" in shown and "-line 50" in shown and "+another" in shown
    assert "line 100 of 100 and 99" in next(hlo.first_differences(base, base[:99]))


def test_an_unknown_commit_is_named():
    run = [sys.executable, "tools/compare_losses.py", "no-such-commit", "--", "--gin_file=x.gin"]
    ended = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1 and "no-such-commit" in ended.stderr
