"""Notebooks as programs: their parameters, and the shape of the kit's own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from small_notebooks import write

from mmsr.presets import read_settings
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.parameters import marked

KIT = Path(__file__).parents[2] / "notebooks"


def typed(root: Path, parameters: str, value: object) -> object:
    """What the knob `a` of a notebook becomes."""
    notebook = read_notebook(write(root, "01_x", parameters))
    return read_settings(notebook.knobs, {"a": value}, notebook.name).a


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("True", "false", False),
        ("3", "-4", -4),
        ("0.1", "1e-3", 0.001),
        ("0.1", "2", 2.0),
        ("'a'", "1", "1"),
        ("'a'", "", ""),
        ("{}", {"b": 1}, {"b": 1}),
    ],
)
def test_values_are_typed_as_the_default_is(tmp_path: Path, default: str, text: object, value: object) -> None:
    found = typed(tmp_path, f"a = {default}", text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("default", "value"),
    [
        ("True", "maybe"),
        ("True", 2),
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
    with pytest.raises(ValueError, match="01_x: a must be"):
        typed(tmp_path, f"a = {default}", value)


def test_a_knob_may_be_annotated_as_a_path(tmp_path: Path) -> None:
    cell = 'a: "Path" = "../b"  # a folder\n\n# of the rest\nc = 1\nsizes = {}  # such as {"grpo_steps": 128}'
    knobs = read_notebook(write(tmp_path, "01_x", cell)).knobs
    assert knobs().model_dump() == {"a": "../b", "c": 1, "sizes": {}} and marked(knobs, "path") == {"a"}


@pytest.mark.parametrize(
    "source",
    [
        *(
            "a = 1\nb = a * 2",
            "import os",
            "a.b = 1",
            "a = b = 1",
            "print(1)",
            "a, b = 1, 2",
            "a = 1\nprint(1)",
            "a = (",
        ),
        *(
            "%matplotlib inline\na = 1",
            "%%time\na = 1",
            "!ls",
            "a = %pwd",
            "a?",
            "a = {[]: 1}",
            "a = " + "(" * 5000,
            "a = \0",
        ),
    ],
)
def test_a_parameters_cell_holds_literals_only(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        ValueError, match=r"01_x\.ipynb: the `parameters` cell may only set names to literals"
    ) as refused:
        read_notebook(write(tmp_path, "01_x", source))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "01_x.ipynb"
    for text in (
        "",
        "{",
        "[]",
        "{}",
        '{"nbformat": 4, "nbformat_minor": 5, "cells": [3]}',
        '{"nbformat": 4, "cells": 3}',
        "\0",
    ):
        broken.write_text(text)
        with pytest.raises(ValueError, match=r"cannot be read as a notebook: .+\.$") as refused:
            read_notebook(broken)
        assert "\n" not in str(refused.value)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")], metadata={"kernelspec": kernel}), broken)
    with pytest.raises(ValueError, match="one cell tagged `parameters`; it has 0"):
        read_notebook(broken)


# --- the kit's notebooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["01_build_data", "02_sft", "03_grpo", "04_evaluate", "05_crop_ablation"])
def test_notebook_sources_are_clean(name: str) -> None:
    path = KIT / f"{name}.ipynb"
    knobs = read_notebook(path).knobs  # one cell tagged `parameters`, literals only
    defaults = knobs().model_dump()
    assert {"preset": "tiny", "seed": 0, "sizes": {}, "outside": {}}.items() <= defaults.items()
    folders = {"run_dir", "adapters", "data_dir", "train_dir"} & defaults.keys()
    assert "run_dir" in folders and marked(knobs, "path") == folders
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    assert node.metadata.kernelspec.name == "python3"
    assert "papermill" not in node.metadata
    for cell in node.cells:
        assert "papermill" not in cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
