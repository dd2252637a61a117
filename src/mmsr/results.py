"""What a run leaves: its numbers in `metrics.json`, the table of them, and how two runs compare.

record_metrics(folder, {"eval/grpo/accuracy": cluster_mean(right, countries, 0), "grpo/reward_last": 0.81})
read_metrics(folder)["eval/grpo/accuracy"].low
compare(Path("papermill_runs/a"), Path("papermill_runs/reference"))     # [] where they agree
print(table(Path("papermill_runs/a"), Path("papermill_runs/b")))        # the mean of the two, and their range
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmsr.files import locked, write_json
from mmsr.stats import Interval

METRICS = "metrics.json"
WORKFLOWS = ("direct", "rag", "prompted", "sft", "grpo", "teacher")
CROPS = ("base", "oracle", "whole", "random", "coordinates")
PAIRS = ("grpo-sft", "grpo-rag", "grpo-direct", "base-whole")
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
    plain = Interval(*bounds, None if interval.n is None else int(interval.n)).as_dict()
    if not all(x is None or math.isfinite(x) for x in plain.values()):
        raise ValueError(f"The metric {name} is not finite: {interval}.")
    return plain


def read_metrics(run_dir: Path) -> dict[str, Interval]:
    """What the run has measured. Raises FileNotFoundError where it has measured nothing."""
    path = run_dir / METRICS
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} has no {METRICS}: it is no run, or one that has not measured anything yet.")
    return {name: Interval(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(a: Path, b: Path, costs: bool = False) -> list[str]:
    """Where two runs differ, a sentence for each metric; time and memory only where `costs` is asked for.

    A metric may differ by its tolerance in `a`'s or else `b`'s `tolerances.json`, where there is such a file; without
    one it must be equal to the last digit, interval and n included. Raises ValueError for a tolerance of no metric.
    """
    first, second = read_metrics(a), read_metrics(b)
    files = [folder / "tolerances.json" for folder in (a, b) if (folder / "tolerances.json").exists()]
    tolerances = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    if unknown := sorted(set(tolerances) - set(first) - set(second)):
        raise ValueError(f"There are tolerances for metrics that neither run has: {', '.join(unknown)}.")
    found = []
    for name in sorted(first | second):
        x, y, tolerance = first.get(name), second.get(name), tolerances.get(name)
        near = x and y and tolerance and abs(x.value - y.value) <= tolerance
        if x != y and not near and (costs or not name.startswith(("time/", "memory/"))):
            found.append(f"{name}: {_shown(x)} and {_shown(y)}")
    return found


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
    runs = [read_metrics(folder) for folder in run_dirs]
    known, head = runs[0], []
    if len(runs) > 1:
        shared = [name for name in known if all(name in run for run in runs)]
        known = {name: mean_and_range([run[name].value for run in runs]) for name in shared}
        head = [f"{len(runs)} runs: their mean [their lowest, their highest]"]
    workflows = [["workflow", "accuracy", "searches", "needless", "valid turns"]]
    for name in WORKFLOWS:
        scores = ("accuracy", "searches", "needless_search_rate", "valid_turn_rate")
        accuracy, searches, needless, valid = (known.get(f"eval/{name}/{score}") for score in scores)
        number = DASH if searches is None else f"{searches.value:.2f}"
        workflows.append([name, percent(accuracy, True), number, percent(needless), percent(valid)])
    crops = [["crop", "accuracy", "recall@1"]]
    for name in CROPS:
        accuracy, recall = (known.get(f"ablation/{name}/{score}") for score in ("accuracy", "recall_at_1"))
        crops.append([name, percent(accuracy, True), percent(recall, True)])
    pairs = [["paired difference", "accuracy, points"]]
    pairs += [[name, signed(known.get(f"paired/{name}/accuracy"), 100)] for name in PAIRS]
    return "\n\n".join([*head, *(aligned(rows) for rows in (workflows, crops, pairs))])


def mean_and_range(values: Sequence[float]) -> Interval:
    """The mean of what several runs have measured, between the lowest and the highest; n counts the runs."""
    return Interval(sum(values) / len(values), min(values), max(values), len(values))


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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
