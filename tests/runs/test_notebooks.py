"""Notebooks as programs: their parameters, and the shape of the kit's own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from small_notebooks import write

from mmsr.runs.notebooks import NotebookError, read_notebook

KIT = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("True", "false", False),
        ("3", "-4", -4),
        ("0.1", "1e-3", 0.001),
        ("0.1", "2", 2.0),
        ("'a'", "1", "1"),
        ("'a'", "", ""),
    ],
)
def test_values_are_typed_as_the_default_is(tmp_path: Path, default: str, text: str, value: object) -> None:
    typed = read_notebook(write(tmp_path, "01_x", f"a = {default}")).typed("a", text)
    assert typed == value and type(typed) is type(value)


@pytest.mark.parametrize(
    ("default", "value"),
    [
        ("True", "1"),
        ("True", 1),
        ("3", "x"),
        ("3", True),
        ("3", 2.5),
        ("0.1", "inf"),
        ("0.1", True),
        ("'a'", 1),
        ("[]", "[]"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, default: str, value: object) -> None:
    with pytest.raises(NotebookError, match="a of 01_x"):
        read_notebook(write(tmp_path, "01_x", f"a = {default}")).typed("a", value)


@pytest.mark.parametrize("source", ["a = 1\nb = a * 2", "import os", "a.b = 1", "a = b = 1", "print(1)", "a, b = 1, 2"])
def test_a_parameters_cell_holds_literals_only(tmp_path: Path, source: str) -> None:
    with pytest.raises(NotebookError, match="may only set names to literals"):
        read_notebook(write(tmp_path, "01_x", source))


def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "01_x.ipynb"
    broken.write_text("{")
    with pytest.raises(NotebookError, match="cannot be read"):
        read_notebook(broken)
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), broken)
    with pytest.raises(NotebookError, match="one cell tagged `parameters`; it has 0"):
        read_notebook(broken)


# --- the kit's notebooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["01_build_data", "02_sft", "03_grpo", "04_evaluate", "05_crop_ablation"])
def test_notebook_sources_are_clean(name: str) -> None:
    path = KIT / f"{name}.ipynb"
    notebook = read_notebook(path)  # one cell tagged `parameters`, literals only
    assert {"preset", "run_dir", "seed"} <= set(notebook.defaults)
    assert notebook.defaults["preset"] == "tiny" and notebook.defaults["seed"] == 0
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    assert node.metadata.kernelspec.name == "python3"
    assert "papermill" not in node.metadata
    for cell in node.cells:
        assert "papermill" not in cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
