"""A run: a folder of executed notebooks, its numbers in `metrics.json`, and the runner that fills it.

    run(["01", "02"], preset="tiny", name="tiny", seed=0, parameters={}, root=Path("."))
    record_metrics(folder, {"eval/grpo/accuracy": proportion(outcomes), "time/02_sft": 41.5})
    compare(Path("papermill_runs/a"), Path("papermill_runs/reference"))
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsr.metrics import Interval

METRICS = "metrics.json"


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
