"""Runs beside each other: the table of their results, and whether one came out as the other did.

    print(table(Path("papermill_runs/a"), Path("papermill_runs/b")))        # the mean of the two, and their range
    compare(Path("papermill_runs/a"), Path("papermill_runs/reference"))     # [] where they agree

What a change did, question by question, is `runs.contrast`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmsr.results import CROPS, DASH, WORKFLOWS, percent, read_metrics, signed
from mmsr.stats import Interval

PAIRS = ("grpo-sft", "grpo-rag", "grpo-direct", "base-whole")


def compare(a: Path, b: Path) -> list[str]:
    """Where two runs differ, a sentence for each metric but time and memory.

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
        if x != y and not near and not name.startswith(("time/", "memory/")):
            found.append(f"{name}: {_shown(x)} and {_shown(y)}")
    return found


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "missing"
    bounds = "" if interval.low is None else f" [{interval.low!r}, {interval.high!r}]"
    return f"{interval.value!r}{bounds}" + ("" if interval.n is None else f" of {interval.n}")


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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
