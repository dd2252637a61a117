"""The notebooks as programs: their parameters, their sources' hash, and one of them run in a fresh kernel.

    notebook = read_notebook(Path("notebooks/02_sft.ipynb"))
    notebook.defaults                                  # {"preset": "tiny", "run_dir": "…", "seed": 0}
    notebook.typed("seed", "3")                        # 3: as the default is typed
    execute(notebook, {"seed": 3}, copy, Launch(dict(os.environ), Path("notebooks")), keep=print)

A notebook has one cell tagged `parameters` that assigns literals; papermill puts the chosen values in a cell after it.
The kernel is always the interpreter that runs this, whatever kernels are installed beside it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError

TICK = 0.5  # seconds between two looks at the kernel's memory
KEEP = 10  # ticks between two reports of the cost so far
ENGINE = "mmsr"

logging.getLogger("papermill").setLevel(logging.ERROR)  # its remarks on parameters; ours are checked beforehand


class NotebookError(ValueError):
    """A notebook, or a value for one of its parameters, cannot be used."""


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died; the message says which cell and how."""


# --- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notebook:
    """A notebook's file, the literals of its `parameters` cell, and the sha256 of its cells' sources."""

    path: Path
    defaults: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its ending: "02_sft"."""
        return self.path.stem

    def typed(self, key: str, value: Any) -> Any:
        """The value as this notebook's default for `key` is typed; text is read. NotebookError where that fails."""
        default = self.defaults[key]
        kind = type(default)
        if kind not in (bool, int, float, str):
            raise NotebookError(f"{key} of {self.name} is a {kind.__name__} and cannot be set from outside.")
        try:
            return read_value(kind, value)
        except ValueError:
            raise NotebookError(
                f"{key} of {self.name} must be {KINDS[kind]}, like its default {default!r}: got {value!r}."
            ) from None


KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def read_value(kind: type, value: Any) -> Any:
    """`value` as a `kind`; ValueError where it is none."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is int and isinstance(value, str):
        return int(value)
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(value)
    return value


def read_notebook(path: Path) -> Notebook:
    """The notebook at `path`. NotebookError where it is none, or has no `parameters` cell of literals."""
    try:
        node = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise NotebookError(f"{path} cannot be read as a notebook: {error}") from error
    cells = [c for c in node.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{path.name} must have one cell tagged `parameters`; it has {len(cells)}.")
    sources = json.dumps([[cell.cell_type, cell.source] for cell in node.cells])
    return Notebook(path, _literals(path, cells[0].source), hashlib.sha256(sources.encode()).hexdigest())


def _literals(path: Path, source: str) -> dict[str, Any]:
    values = {}
    for statement in ast.parse(source).body:
        try:
            [target] = statement.targets
            values[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            line = source.splitlines()[statement.lineno - 1]
            raise NotebookError(
                f"{path.name}: the `parameters` cell may only set names to literals, not {line!r}."
            ) from None
    return values


def tidy(copy: Path, source: Path, target: Path) -> None:
    """Let papermill's note in an executed copy name these two paths, relative to the repository, and no others."""
    node = nbformat.read(copy, as_version=4)
    node.metadata.papermill |= {"input_path": source.as_posix(), "output_path": target.as_posix()}
    nbformat.write(node, copy)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How a kernel is started: its environment, its folder, and open files that stay open in it."""

    environment: dict[str, str]
    cwd: Path
    files: tuple[int, ...] = ()


@dataclass
class Cost:
    """Seconds on the wall and the largest memory of the kernel and its children, in bytes of resident memory."""

    seconds: float = 0.0
    peak: int = 0


def execute(
    notebook: Notebook, values: dict[str, Any], copy: Path, launch: Launch, keep: Callable[[Cost], None]
) -> None:
    """Run a notebook with these parameters; `copy` is written as its cells finish. Progress goes to standard output.

    `keep` is told what it has cost so far, every few seconds from another thread and once more at the end. Raises
    NotebookFailed for a cell that raises or a kernel that dies.
    """
    progress = Progress(keep)
    progress.start()
    try:
        papermill.execute_notebook(
            str(notebook.path),
            str(copy),
            values,
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            launch=launch,
            progress=progress,
        )
    except PapermillExecutionError as error:
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookFailed(f"{notebook.name}, {progress.cell} failed with {said}") from error
    except RuntimeError as error:  # nbclient's, of a kernel that does not start or dies
        raise NotebookFailed(f"{notebook.name}, {progress.cell} failed: {error} (out of memory?)") from error
    finally:
        progress.end()


class Progress(threading.Thread):
    """What the terminal shows of a notebook, and what the notebook costs.

    A line for each finished cell and what the cells print; on a terminal also a clock of the cell that is running.
    """

    def __init__(self, keep: Callable[[Cost], None]):
        super().__init__(daemon=True)
        self.keep, self.cost, self.began = keep, Cost(), time.monotonic()
        self.pid: int | None = None
        self.cell, self.title, self.cell_began = "before its first cell", "", self.began
        self._over, self._writing = threading.Event(), threading.RLock()
        self._clock = sys.stdout.isatty()

    def run(self) -> None:
        ticks = 0
        while not self._over.wait(TICK):
            ticks += 1
            self.measure()
            if ticks % KEEP == 0:
                self.keep(self.cost)
            if self._clock and self.title:
                clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.cell_began))
                self.write(f"\r\x1b[2K  {self.title:.90} {clock}")

    def measure(self) -> None:
        """Bring the cost up to date."""
        memory = tree_memory(self.pid) if self.pid is not None else 0
        self.cost = Cost(time.monotonic() - self.began, max(self.cost.peak, memory))

    def end(self) -> None:
        """Stop the clock and report the cost."""
        self._over.set()
        self.join()
        self.measure()
        self.keep(self.cost)
        if self._clock:
            self.write("\r\x1b[2K")

    def write(self, text: str) -> None:
        with self._writing:
            sys.stdout.write(text)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """Whole lines, in the clock's place."""
        self.write(("\r\x1b[2K" if self._clock else "") + text.rstrip("\n") + "\n")

    def cell_starts(self, number: int, total: int, source: str) -> None:
        line = next((line.strip() for line in source.splitlines() if line.strip()), "")
        self.cell = f"cell [{number}] ({line:.70})"
        self.title, self.cell_began = f"[{number}/{total}] {line}", time.monotonic()

    def cell_ends(self) -> None:
        self.measure()
        self.say(f"  {time.monotonic() - self.cell_began:7.1f} s  {self.title:.90}")
        self.title = ""


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and its descendants; 0 where it is gone."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # it ended between the listing and the look
    except psutil.NoSuchProcess:
        return 0
    return total


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this, whichever kernels named python3 are installed."""

    def __init__(self, **kwargs: Any):
        super().__init__(transport_encryption="auto", **kwargs)  # others on a shared machine could listen in

    @property
    def kernel_spec(self) -> KernelSpec:
        spec = get_kernel_dict()
        return KernelSpec(**{key: spec[key] for key in ("argv", "display_name", "language", "metadata")})


class Client(PapermillNotebookClient):
    """Papermill's client, telling a `Progress` what goes on."""

    progress: Progress

    def execute_cell(self, cell: Any, cell_index: int, **kwargs: Any) -> Any:
        code = [c for c in self.nb.cells if c.cell_type == "code" and c.source.strip()]
        if not any(cell is c for c in code):
            return super().execute_cell(cell, cell_index, **kwargs)
        self.progress.pid = self.km.provisioner.pid
        number = next(i for i, c in enumerate(code, 1) if c is cell)
        self.progress.cell_starts(number, len(code), cell.source)
        done = super().execute_cell(cell, cell_index, **kwargs)
        self.progress.cell_ends()
        return done

    def process_message(self, *args: Any, **kwargs: Any) -> Any:
        output = super().process_message(*args, **kwargs)
        if output and output.output_type == "stream" and output.name == "stdout":
            self.progress.say("\n".join(f"             {line}" for line in output.text.rstrip("\n").split("\n")))
        return output


class KernelEngine(Engine):
    """Papermill's engine for `execute`."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, kernel_name: str, launch: Launch, progress: Progress, **_: Any
    ) -> None:
        client = Client(
            nb_man,
            kernel_name=kernel_name,
            kernel_manager_class=ThisPython,
            startup_timeout=180,
            shutdown_kernel="immediate",  # when asked politely in the middle of a cell it dies with a traceback
        )
        client.progress = progress
        client.execute(env=launch.environment, cwd=str(launch.cwd), pass_fds=launch.files)


papermill_engines.register(ENGINE, KernelEngine)
