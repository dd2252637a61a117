"""What a run measures: its numbers in `metrics.json`, and how they are written in words.

    record_metrics(folder, {"eval/grpo/accuracy": cluster_mean(right, countries, 0), "grpo/reward_last": 0.81})
    read_metrics(folder)["eval/grpo/accuracy"].low

Tables of runs, and whether two runs agree, are `runs.compare`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mmsr.files import locked, write_json
from mmsr.stats import Interval

METRICS = "metrics.json"
WORKFLOWS = ("direct", "rag", "prompted", "sft", "grpo", "teacher")
CROPS = ("base", "oracle", "whole", "random", "coordinates")
DASH = "–"


# --- metrics ----------------------------------------------------------------------------------------------------------


def record_metrics(run_dir: Path, values: Mapping[str, Interval | float]) -> None:
    """Merge values into the run's `metrics.json`: name → {"value", "low", "high", "n"}, names in order.

    Several processes may record at once. Raises ValueError, naming the metric, for a number that is not finite; nothing
    is recorded then.
    """
    entries = {name: _entry(name, value) for name, value in values.items()}
    path = run_dir / METRICS
    with locked(path):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, dict(sorted((known | entries).items())))


def _entry(name: str, value: Interval | float) -> dict[str, float | int | None]:
    """The metric in plain numbers of Python, whatever library they come from."""
    interval = value if isinstance(value, Interval) else Interval(value)
    bounds = (None if x is None else float(x) for x in (interval.value, interval.low, interval.high))
    plain = asdict(Interval(*bounds, None if interval.n is None else int(interval.n)))
    if not all(x is None or math.isfinite(x) for x in plain.values()):
        raise ValueError(f"The metric {name} is not finite: {interval}.")
    return plain


def read_metrics(run_dir: Path) -> dict[str, Interval]:
    """What the run has measured. Raises FileNotFoundError where it has measured nothing."""
    path = run_dir / METRICS
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} has no {METRICS}: it is no run, or one that has not measured anything yet.")
    return {name: Interval(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


# --- in words ---------------------------------------------------------------------------------------------------------


def percent(interval: Interval | None, bounds: bool = False) -> str:
    """A share with its bounds, where they are asked for and known: "62.7 % [57.1, 68.4]"."""
    if interval is None:
        return DASH
    value, *ends = _numbers(interval, 100, ".1f")
    return f"{value} % [{', '.join(ends)}]" if bounds and ends else f"{value} %"


def signed(interval: Interval | None, scale: float = 1.0, digits: int = 1) -> str:
    """A difference with its bounds, times `scale`: "+11.5 [+7.2, +16.4]"."""
    if interval is None:
        return DASH
    value, *ends = _numbers(interval, scale, f"+.{digits}f")
    return f"{value} [{', '.join(ends)}]" if ends else value


def _numbers(interval: Interval, scale: float, form: str) -> list[str]:
    """The value and, where they are known, its bounds."""
    return [format(scale * x, form) for x in (interval.value, interval.low, interval.high) if x is not None]
