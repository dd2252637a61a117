"""Whether this machine gives a committed run's digits: it is run again, and compared with that run.

    here, there = again("smoke", Path("."))         # papermill_runs/check_smoke, papermill_runs/reference_smoke
    misses(here, there)                             # [] where all agree
    surroundings(here, there)                       # what else is different: a guess at the reason

From a reference it needs `metrics.json`, `manifest.json` and the tables of its training, `sft/sft.csv` and
`grpo/grpo.csv`. It runs with the reference's pins (see `mmsr.gpu.device`) and the same seed; a check that was killed
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsr.files import read_table
from mmsr.results import METRICS, read_metrics
from mmsr.runs import UsageError, refusing
from mmsr.runs.compare import compare
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.runner import MANIFEST, State, code_sha256, run

REFERENCES = {"smoke": "reference_smoke", "tiny": "reference"}
TABLES = ("sft/sft.csv", "grpo/grpo.csv")
CLOCKS = {"seconds", "step_time"}  # columns of a table that hold times
COSTS = {"seconds", "peak_gb", "started", "ended", "metrics_sha256", "finished"}  # of a manifest: no surroundings
NAMED = 4  # numbers of a row that are named


def again(preset: str, root: Path) -> tuple[Path, Path]:
    """Run a preset again into a folder that is replaced once it is whole; returns it and the committed run's folder.

    Raises UsageError, before anything starts, where the latter is not whole, and as `run` does.
    """
    there = root / "papermill_runs" / REFERENCES[preset]
    if lacking := [name for name in (METRICS, MANIFEST, *TABLES) if not (there / name).exists()]:
        remedy = f"make it with: mmsr run --preset {preset} --name {there.name} --fresh"
        raise UsageError(f"there is no run to check against in {there} (no {lacking[0]}): {remedy}.")
    with refusing(ValueError):
        read_metrics(there)
        for name in TABLES:
            _rows(there / name)
    with refusing(ValueError, TypeError, saying=f"{there / MANIFEST} is broken"):
        manifest = _manifest(there)
        pins, seed = {**manifest.get("pins", {})}, int(manifest.get("seed", 0))
    name = f"check_{preset}"
    return run([], preset, name, seed, {}, root, not _was_killed(root, root / "papermill_runs" / name), pins), there


def _was_killed(root: Path, here: Path) -> bool:
    """Whether a check with these very sources has begun and is not whole."""
    with contextlib.suppress(UsageError, OSError, ValueError):  # what cannot be read is not kept
        if (state := State.load(here)) and not (here / MANIFEST).exists():
            sources = {name: read_notebook(root / "notebooks" / f"{name}.ipynb").sha256 for name in state.notebooks}
            code = code_sha256()
            return all((known.sha256, known.code) == (sources[name], code) for name, known in state.notebooks.items())
    return False


def misses(here: Path, there: Path) -> list[str]:
    """Where the digits of two runs differ, here first: each metric, and of each table the first row that differs."""
    return compare(here, there) + [line for name in TABLES for line in _first_difference(here / name, there / name)]


def _first_difference(here: Path, there: Path) -> Iterator[str]:
    """The first row of two tables in which a number other than a time differs, in words; nothing where none does."""
    for step, (x, y) in enumerate(itertools.zip_longest(_rows(here), _rows(there)), 1):
        names = [name for name in {**(x or {}), **(y or {})} if (x or {}).get(name) != (y or {}).get(name)]
        if x is None or y is None:
            yield f"{here.name}, row {step}: only in {(there if x is None else here).parents[1].name}"
            return
        if names:
            told = [f"{name} {x.get(name)} and {y.get(name)}" for name in names[:NAMED]]
            more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
            yield f"{here.name}, row {step}: {', '.join(told)}{more}"
            return


def _rows(path: Path) -> list[dict[str, str]]:
    table = read_table(path, ["step"], "make that run again")
    return [{name: x for name, x in row.items() if name not in CLOCKS} for row in table]


def surroundings(here: Path, there: Path) -> list[str]:
    """What differs in the manifests of two runs, here first, once each: versions, device, pins, commit, hashes."""
    first, second = (dict(_flat(_manifest(folder))) for folder in (here, there))
    told: dict[str, str] = {}  # by what is said: five notebooks have one code
    for name in first | second:
        if first.get(name) != second.get(name):
            told.setdefault(f"{first.get(name)!r} and {second.get(name)!r}", name)
    return [f"{name}: {values}" for values, name in told.items()]


def _manifest(folder: Path) -> dict[str, Any]:
    return {**json.loads((folder / MANIFEST).read_text(encoding="utf-8"))}


def _flat(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries, each with the path to it: "packages.torch"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}{key}.")
        elif key not in COSTS:
            yield f"{name}{key}", value
