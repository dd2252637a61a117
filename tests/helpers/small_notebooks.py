"""Makes notebooks shaped as the kit's are, for tests of what reads and runs them."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

OURS = 'preset = "smoke"\nrun_dir = "../papermill_runs/lab"\nseed = 7\n'


def write(root: Path, name: str, parameters: str, *cells: str) -> Path:
    """A notebook as the kit's are: a heading, a `parameters` cell, code."""
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    code = [new_code_cell(cell) for cell in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# It"), tagged, *code], metadata={"kernelspec": kernel}), path
    )
    return path
