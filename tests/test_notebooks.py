"""The notebooks as files; tests/test_end_to_end.py runs them."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_python_and_carry_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "clear the outputs before committing"
            ast.parse(TransformerManager().transform_cell(cell.source))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_files_are_kept_as_nbformat_writes_them(path):
    """So that a diff shows what was changed."""
    assert path.read_text() == nbformat.writes(nbformat.read(path, as_version=4)) + "\n"
    assert set(json.loads(path.read_text())["metadata"]) == {"kernelspec", "language_info"}
