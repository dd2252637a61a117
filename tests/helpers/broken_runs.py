"""For the fault bench: a small run as a user makes it, kept as it was before each notebook, to kill and to damage."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr.results import read_metrics
from mmsr.runs.check import CLOCKS
from mmsr.runs.compare import compare

KIT = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in KIT.glob("0*.ipynb"))
SIZES = ("-p", "sft_epochs=1", "-p", "eval_questions=8")  # of the smoke preset, so that the bench takes an hour
END = "end"


@dataclass(frozen=True)
class Bench:
    """A clone; the run as it was before each notebook and at its end; the seconds that each notebook took."""

    root: Path
    kept: Mapping[str, Path]
    seconds: Mapping[str, float]

    def begin(self, name: str, notebook: str) -> Path:
        """A run of this name, as it was before a notebook."""
        folder = self.root / "papermill_runs" / name
        shutil.copytree(self.kept[notebook], folder)
        return folder

    def after(self, notebook: str) -> Path:
        """The run as it was after a notebook."""
        return self.kept[follows(notebook)]


def follows(notebook: str) -> str:
    """The notebook after this one, or the end."""
    return [*NOTEBOOKS, END][NOTEBOOKS.index(notebook) + 1]


def make_bench(root: Path) -> Bench:
    """The run that is not disturbed, notebook by notebook."""
    shutil.copytree(KIT, root / "notebooks")
    whole, kept = root / "papermill_runs" / "whole", {}
    whole.mkdir(parents=True)
    for notebook in NOTEBOOKS:
        kept[notebook] = shutil.copytree(whole, root / "kept" / notebook)
        done = mmsr(root, *asked("whole", notebook))
        assert done.returncode == 0, done.stderr
    kept[END] = shutil.copytree(whole, root / "kept" / END)
    metrics = read_metrics(whole)
    return Bench(root, kept, {notebook: metrics[f"time/{notebook}"].value for notebook in NOTEBOOKS})


def asked(name: str, notebook: str) -> list[str]:
    """The words of the command that runs a notebook of a run."""
    return ["run", notebook, "--preset", "smoke", "--name", name, *SIZES]


def mmsr(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run([sys.executable, "-m", "mmsr", *words], cwd=root, capture_output=True, text=True)


def started(root: Path, *words: str, **environment: str) -> subprocess.Popen:
    """A command that goes on by itself."""
    command = [sys.executable, "-m", "mmsr", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=root, env=os.environ | environment, **quiet)


def wait_for_kernel(folder: Path, runner: subprocess.Popen) -> None:
    """Until the runner has started a notebook's kernel, or has ended."""
    while runner.poll() is None:
        state = folder / "state.json"
        if state.exists() and "kernel" in json.loads(state.read_text(encoding="utf-8")):
            return
        time.sleep(0.05)


def differences(here: Path, there: Path) -> list[str]:
    """In which metrics, rows, tables and adapters two runs differ, times left out."""
    found = compare(here, there)
    for path in sorted(path for path in there.rglob("*") if path.suffix in (".jsonl", ".csv", ".safetensors")):
        name = path.relative_to(there)
        if not {"checkpoints", "funnel"} & {*name.parts}:  # what is gone on from, and is no result
            same = (here / name).is_file() and _content(here / name) == _content(path)
            found += [] if same else [f"{name.as_posix()} is not the same"]
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return path.read_bytes()
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Any] = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return _timeless(rows)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in CLOCKS}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
