"""What a run leaves: its numbers in `metrics.json`, the table of them, and how two runs compare.

    record_metrics(folder, {"eval/grpo/accuracy": proportion(outcomes), "grpo/reward_last": 0.81})
    read_metrics(folder)["eval/grpo/accuracy"].low
    compare(Path("papermill_runs/a"), Path("papermill_runs/reference"))     # [] where they agree
    print(table(Path("papermill_runs/a"), Path("papermill_runs/b")))        # the mean of the two, and their range

The runner that fills the folder is `runner.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr.stats import Interval

METRICS = "metrics.json"
WORKFLOWS = ("direct", "rag", "prompted", "sft", "grpo", "teacher")
CROPS = ("base", "oracle", "whole", "random", "coordinates")
PAIRS = ("grpo-sft", "grpo-rag", "grpo-direct", "base-whole")
DASH = "–"


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename: the file is always whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


# --- metrics ----------------------------------------------------------------------------------------------------------


def record_metrics(run_dir: Path, values: Mapping[str, Interval | float]) -> None:
    """Merge values into the run's `metrics.json`: name → {"value", "low", "high", "n"}, names in order.

    Several processes may record at once. Raises ValueError, naming the metric, for a number that is not finite; nothing
    is recorded then.
    """
    entries = {name: _entry(name, value) for name, value in values.items()}
    run_dir.mkdir(parents=True, exist_ok=True)
    with _locked(run_dir):
        path = run_dir / METRICS
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, dict(sorted((known | entries).items())))


def read_metrics(run_dir: Path) -> dict[str, Interval]:
    """What the run has measured. Raises FileNotFoundError where it has measured nothing."""
    path = Path(run_dir) / METRICS
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} has no {METRICS}: it is no run, or one that has not measured anything yet.")
    return {name: Interval(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def _entry(name: str, value: Interval | float) -> dict[str, float | int | None]:
    interval = value if isinstance(value, Interval) else Interval(float(value))
    for number in (interval.value, interval.low, interval.high):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"The metric {name} is not finite: {interval}.")
    low, high = (None if bound is None else float(bound) for bound in (interval.low, interval.high))
    return Interval(float(interval.value), low, high, None if interval.n is None else int(interval.n)).as_dict()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder to oneself; others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(a: Path, b: Path, tolerances: Mapping[str, float] | None = None, costs: bool = False) -> list[str]:
    """Where two runs differ, a sentence for each metric; time and memory only where `costs` is asked for.

    A metric may differ by its tolerance, by default that in `a`'s or else `b`'s `tolerances.json`; without one it must
    be equal to the last digit, interval and n included. Raises ValueError for a tolerance of an unknown metric.
    """
    first, second = read_metrics(a), read_metrics(b)
    tolerances = _tolerances(a, b) if tolerances is None else tolerances
    if unknown := sorted(set(tolerances) - set(first) - set(second)):
        raise ValueError(f"There are tolerances for metrics that neither run has: {', '.join(unknown)}.")
    names = [name for name in sorted(first | second) if costs or not name.startswith(("time/", "memory/"))]
    pairs = ((name, first.get(name), second.get(name), tolerances.get(name, 0.0)) for name in names)
    return [f"{name}: {_shown(x)} and {_shown(y)}" for name, x, y, tolerance in pairs if not _alike(x, y, tolerance)]


def _tolerances(a: Path, b: Path) -> dict[str, float]:
    for folder in (a, b):
        if (folder / "tolerances.json").exists():
            return json.loads((folder / "tolerances.json").read_text(encoding="utf-8"))
    return {}


def _alike(x: Interval | None, y: Interval | None, tolerance: float) -> bool:
    if x is None or y is None or tolerance == 0:
        return x == y
    return abs(x.value - y.value) <= tolerance


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "missing"
    bounds = "" if interval.low is None else f" [{interval.low!r}, {interval.high!r}]"
    return f"{interval.value!r}{bounds}" + ("" if interval.n is None else f" of {interval.n}")


# --- the table --------------------------------------------------------------------------------------------------------


def table(*run_dirs: Path) -> str:
    """The results of a run as text: workflows, crops, paired differences; a dash for what was not measured.

    Of several runs, which should differ in their seeds alone, it shows the mean of what all of them have measured, with
    the lowest and the highest instead of an interval. Raises FileNotFoundError as `read_metrics` does.
    """
    known = read_metrics(run_dirs[0]) if len(run_dirs) == 1 else over_runs(run_dirs)
    workflows = [["workflow", "accuracy", "searches", "needless", "valid turns"]]
    for name in WORKFLOWS:
        get = _getter(known, f"eval/{name}")
        cells = (percent(get("needless_search_rate")), percent(get("valid_turn_rate")))
        workflows.append([name, percent(get("accuracy"), True), _number(get("searches")), *cells])
    crops = [["crop", "accuracy", "recall@1"]]
    for name in CROPS:
        get = _getter(known, f"ablation/{name}")
        crops.append([name, percent(get("accuracy"), True), percent(get("recall_at_1"), True)])
    pairs = [["paired difference", "accuracy, points"]]
    pairs += [[name, signed(known.get(f"paired/{name}/accuracy"), 100)] for name in PAIRS]
    head = [] if len(run_dirs) == 1 else [f"{len(run_dirs)} runs: their mean [their lowest, their highest]"]
    return "\n\n".join([*head, *(aligned(rows) for rows in (workflows, crops, pairs))])


def over_runs(run_dirs: Sequence[Path]) -> dict[str, Interval]:
    """For each metric that all of several runs have: their mean, between their lowest and their highest."""
    runs = [read_metrics(folder) for folder in run_dirs]
    values = {name: [run[name].value for run in runs] for name in runs[0] if all(name in run for run in runs)}
    return {name: mean_and_range(found) for name, found in values.items()}


def mean_and_range(values: Sequence[float]) -> Interval:
    """The mean of what several runs have measured, between the lowest and the highest; n counts the runs."""
    return Interval(sum(values) / len(values), min(values), max(values), len(values))


def _getter(known: Mapping[str, Interval], prefix: str) -> Callable[[str], Interval | None]:
    return lambda name: known.get(f"{prefix}/{name}")


def percent(interval: Interval | None, bounds: bool = False) -> str:
    """A share with its bounds, where they are asked for and known: "62.7 % [57.1, 68.4]"."""
    if interval is None:
        return DASH
    if not bounds or interval.low is None or interval.high is None:
        return f"{100 * interval.value:.1f} %"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _number(interval: Interval | None) -> str:
    return DASH if interval is None else f"{interval.value:.2f}"


def signed(interval: Interval | None, scale: float = 1.0, digits: int = 1) -> str:
    """A difference with its bounds, times `scale`: "+11.5 [+7.2, +16.4]"."""
    if interval is None:
        return DASH
    value = f"{scale * interval.value:+.{digits}f}"
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{scale * interval.low:+.{digits}f}, {scale * interval.high:+.{digits}f}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
