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
import itertools
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

from mmsr.runs import RunFailed

TICK = 0.5  # seconds between two looks at the kernel's memory
KEEP = 10  # ticks between two reports of the cost so far
ERASE = "\r\x1b[2K"  # the line that a terminal stands on
PathText = Annotated[str, Field(json_schema_extra={"path": True})]  # what a knob that is annotated "Path" holds

logging.getLogger("papermill").setLevel(logging.ERROR)  # its remarks on parameters; ours are checked beforehand


@dataclass(frozen=True)
class Notebook:
    """A notebook's file, what its `parameters` cell sets, as a pydantic model, and the sha256 of its cells' sources."""

    path: Path
    knobs: type[BaseModel]
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its ending: "02_sft"."""
        return self.path.stem


def read_notebook(path: Path) -> Notebook:
    """The notebook at `path`. ValueError where it is none, or has no `parameters` cell of literals."""
    try:
        node = nbformat.read(path, as_version=4)
        inspected = papermill.inspect_notebook(node)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error}") from error
    cells = [c for c in node.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path.name} must have one cell tagged `parameters`; it has {len(cells)}.")
    try:
        defaults = {name: ast.literal_eval(found["default"]) for name, found in inspected.items()}
        whole = len(ast.parse(cells[0].source).body) == len(defaults)  # papermill passes over what it cannot read
    except (ValueError, SyntaxError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path.name}: the `parameters` cell may only set names to literals, one a line and with one '='."
        )
    kinds = {name: _kind(inspected[name]["inferred_type_name"], default) for name, default in defaults.items()}
    knobs = create_model(path.stem, **{name: (kinds[name], default) for name, default in defaults.items()})
    sources = json.dumps([[cell.cell_type, cell.source] for cell in node.cells])
    return Notebook(path, knobs, hashlib.sha256(sources.encode()).hexdigest())


def _kind(annotation: str, default: Any) -> Any:
    """The type of a knob: its default's, but for paths, which are texts, and numbers, which are finite."""
    return PathText if annotation == "Path" else FiniteFloat if isinstance(default, float) else type(default)


# --- running ----------------------------------------------------------------------------------------------------------


def execute(
    notebook: Notebook,
    values: Mapping[str, Any],
    copy: Path,
    environment: Mapping[str, str],
    keep: Callable[[Watch], None],
) -> nbformat.NotebookNode:
    """Run a notebook with these parameters, and return it; `copy` is written as its cells finish.

    Progress goes to standard output. `environment` is added to this process's for the kernel, which runs in the
    notebook's folder. `keep` is told what it has cost so far when the kernel has begun, every few seconds from another
    thread and once more at the end. Raises RunFailed for a cell that raises or a kernel that dies.
    """
    watch = Watch(keep)
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
            stdout_file=watch,
            on_notebook_start=watch.notebook_starts,
            on_cell_execute=watch.cell_starts,
            on_cell_executed=watch.cell_ends,
            kernel_manager_class=_this_python(environment, watch),
            shutdown_kernel="immediate",  # when asked politely in the middle of a cell it dies with a traceback
        )
    except PapermillExecutionError as error:
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        raise RunFailed(f"{notebook.name}, {watch.cell} failed with {said}") from error
    except RuntimeError as error:  # nbclient's, of a kernel that does not start or dies
        raise RunFailed(f"{notebook.name}, {watch.cell} failed: {error} (out of memory?)") from error
    finally:
        watch.end()


def _this_python(environment: Mapping[str, str], watch: Watch) -> type[AsyncKernelManager]:
    """Starts the interpreter that runs this, whichever kernels named python3 are installed, and has it watched."""

    class ThisPython(AsyncKernelManager):
        def __init__(self, **kwargs: Any):
            super().__init__(transport_encryption="auto", **kwargs)  # others on a shared machine could listen in

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict() | {"env": dict(environment)})

        async def start_kernel(self, **kwargs: Any) -> None:
            await super().start_kernel(**kwargs)
            watch.kernel_starts(psutil.Process(self.provisioner.pid))

    return ThisPython


class Watch(threading.Thread):
    """What a notebook costs, and what the terminal shows of it.

    `seconds` pass on the wall; `peak` is the largest resident memory of the kernel and its children, in bytes. Shown
    are a line for each finished cell and what cells print; on a terminal also a clock of the cell that is running.
    """

    def __init__(self, keep: Callable[[Watch], None]):
        super().__init__(daemon=True)
        self.keep, self.kernel, self.seconds, self.peak = keep, None, 0.0, 0
        self.cell, self.title, self.number, self.total = "before its first cell", "", 0, 0
        self.began = self.cell_began = time.monotonic()
        self._over, self._clock = threading.Event(), sys.stdout.isatty()

    def run(self) -> None:
        for tick in itertools.count(1):
            if self._over.wait(TICK):
                return
            self.measure()
            if tick % KEEP == 0:
                self.keep(self)
            if self._clock and self.title:
                clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.cell_began))
                print(f"{ERASE}  {self.title:.90} {clock}", end="", flush=True)

    def measure(self) -> None:
        """Bring the cost up to date."""
        self.seconds, self.peak = time.monotonic() - self.began, max(self.peak, tree_memory(self.kernel))

    def end(self) -> None:
        """Stop the clock and report the cost."""
        self._over.set()
        if self.kernel:
            self.join()
            self.measure()
        self.kernel = None
        self.keep(self)

    def kernel_starts(self, kernel: psutil.Process) -> None:
        self.kernel = kernel
        self.keep(self)
        self.start()

    def notebook_starts(self, notebook: nbformat.NotebookNode) -> None:
        self.total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)

    def cell_starts(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        line = next(line.strip() for line in cell.source.splitlines() if line.strip())
        self.number, self.cell_began = self.number + 1, time.monotonic()
        self.cell, self.title = f"cell [{self.number}] ({line:.70})", f"[{self.number}/{self.total}] {line}"

    def cell_ends(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        self.measure()
        if execute_reply["content"]["status"] == "ok":
            self.say(f"  {time.monotonic() - self.cell_began:7.1f} s  {self.title:.90}")
        self.title = ""

    def write(self, printed: str) -> None:
        """What a cell prints: papermill takes this object for a file."""
        self.say("\n".join(f"             {line}" for line in printed.rstrip("\n").split("\n")))

    def flush(self) -> None:
        """Every line is shown at once."""

    def say(self, lines: str) -> None:
        """Whole lines, in the clock's place."""
        print((ERASE if self._clock else "") + lines, flush=True)


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants; 0 where it is gone."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it ended between the listing and the look
                total += one.memory_info().rss
    return total
