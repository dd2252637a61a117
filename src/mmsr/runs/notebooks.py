"""The notebooks as programs: their knobs, their sources' hash, and one of them run by papermill in a fresh kernel.

    notebook = read_notebook(Path("notebooks/02_sft.ipynb"))
    read_settings(notebook.knobs, {"seed": "3"}, notebook.name).seed        # 3: as the default is typed
    execute(notebook, {"seed": 3}, copy, environment={}, keep=print)

A notebook has one cell tagged `parameters` that assigns literals; papermill puts the chosen values in a cell after it.
The kernel is always the interpreter that runs this, whatever kernels are installed beside it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from pydantic import BaseModel, Field, FiniteFloat, create_model

from mmsr.files import UNREADABLE
from mmsr.runs import RunFailed, reason

TICK = 1.0  # seconds between two looks at what a kernel takes
PathText = Annotated[str, Field(json_schema_extra={"path": True})]  # what a knob that is annotated "Path" holds

Keep = Callable[["Watch"], None]

logging.getLogger("papermill").setLevel(logging.ERROR)  # its remarks on parameters; ours are checked beforehand


@dataclass(frozen=True)
class Notebook:
    """A notebook's file, what its `parameters` cell sets, as a pydantic model, and the sha256 of its cells' sources."""

    path: Path
    knobs: type[BaseModel]
    sha256: str

    @property
    def name(self) -> str:
        return self.path.stem


def read_notebook(path: Path) -> Notebook:
    """The notebook at `path`. ValueError where it is not one, or has no `parameters` cell of literals."""
    try:
        node = nbformat.read(path, as_version=4)
        cells = [c for c in node.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
        sources = json.dumps([[cell.cell_type, cell.source] for cell in node.cells])
    except (OSError, nbformat.ValidationError, *UNREADABLE) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {reason(error)}.") from error
    if len(cells) != 1:
        raise ValueError(f"{path.name} must have one cell tagged `parameters`; it has {len(cells)}.")
    try:
        knobs = dict(_knob(line) for line in ast.parse(cells[0].source).body)
        model = create_model(path.stem, **knobs)
    except (SyntaxError, MemoryError, *UNREADABLE) as error:
        said = f"{path.name}: the `parameters` cell may only set names to literals, one a line"
        raise ValueError(f"{said} ({reason(error)}).") from error
    return Notebook(path, model, hashlib.sha256(sources.encode()).hexdigest())


def _knob(line: ast.stmt) -> tuple[str, tuple[Any, Any]]:
    """A line's name, with its type and default; numbers are finite. ValueError where it sets no name to a literal."""
    match line:
        case ast.AnnAssign(ast.Name(name), ast.Constant("Path"), ast.Constant(str(default))):
            return name, (PathText, default)
        case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
            default = ast.literal_eval(value)
            return name, (FiniteFloat if isinstance(default, float) else type(default), default)
    raise ValueError(f"{ast.unparse(line)} sets no name.")


def execute(
    notebook: Notebook, values: Mapping[str, Any], copy: Path, environment: Mapping[str, str], keep: Keep
) -> nbformat.NotebookNode:
    """Run a notebook with these parameters, and return it; `copy` is written as its cells finish, each with a line.

    `environment` is added to this process's for the kernel, which runs in the notebook's folder. `keep` gets what it
    has cost so far: every second, from another thread, and at the end. Raises RunFailed for a cell that raises or a
    kernel that dies.
    """
    watch = Watch(keep)

    class ThisPython(AsyncKernelManager):
        def __init__(self, **kwargs: Any):
            super().__init__(transport_encryption="auto", **kwargs)  # others on a shared machine could listen in

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict() | {"env": dict(environment)})

        async def start_kernel(self, **kwargs: Any) -> None:
            await super().start_kernel(**kwargs)
            watch.kernel = psutil.Process(self.provisioner.pid)
            keep(watch)
            watch.start()

    try:
        return papermill.execute_notebook(
            str(notebook.path),
            str(copy),
            dict(values),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=180,
            cwd=str(notebook.path.parent),
            stdout_file=sys.stdout,
            on_notebook_start=watch.notebook_starts,
            on_cell_execute=watch.cell_starts,
            on_cell_executed=watch.cell_ends,
            kernel_manager_class=ThisPython,
            shutdown_kernel="immediate",  # when asked politely in the middle of a cell it dies with a traceback
        )
    except PapermillExecutionError as error:
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        raise RunFailed(f"{notebook.name}, {watch.cell} failed with {said}") from error
    except RuntimeError as error:  # nbclient's, of a kernel that does not start or dies
        raise RunFailed(f"{notebook.name}, {watch.cell} failed: {error} (out of memory?)") from error
    finally:
        watch.end()


class Watch(threading.Thread):
    """What a notebook costs: `seconds` on the wall, and the largest resident memory of its kernel in bytes, `peak`."""

    def __init__(self, keep: Keep):
        super().__init__(daemon=True)
        self.keep, self.kernel, self.seconds, self.peak = keep, None, 0.0, 0
        self.cell, self.first_line, self.number, self.total = "before its first cell", "", 0, 0
        self.began = self.cell_began = time.monotonic()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(TICK):
            self.measure()
            with contextlib.suppress(OSError):  # of a full disk, which the notebook's end reports
                self.keep(self)

    def measure(self) -> None:
        """Bring the cost up to date, of the kernel and its descendants."""
        self.seconds = time.monotonic() - self.began
        with contextlib.suppress(psutil.Error):  # one ended between the listing and the look
            family = [self.kernel, *self.kernel.children(recursive=True)]
            self.peak = max(self.peak, sum(one.memory_info().rss for one in family))

    def end(self) -> None:
        self.over.set()
        if self.kernel:
            self.join()
            self.measure()
        self.kernel = None
        self.keep(self)

    def notebook_starts(self, notebook: nbformat.NotebookNode) -> None:
        self.total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)

    def cell_starts(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.number, self.cell_began = self.number + 1, time.monotonic()
        self.first_line = cell.source.strip().partition("\n")[0].strip()
        self.cell = f"cell [{self.number}] ({self.first_line:.70})"

    def cell_ends(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        self.measure()
        if execute_reply["content"]["status"] == "ok":
            took = f"{time.monotonic() - self.cell_began:7.1f} s"
            print(f"  {took}  [{self.number}/{self.total}] {self.first_line:.80}", flush=True)
