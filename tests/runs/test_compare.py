"""Runs beside each other: whether they agree, and their table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmsr.results import WORKFLOWS, record_metrics
from mmsr.runs.compare import compare, table
from mmsr.stats import Interval


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    record_metrics(a, {"x": Interval(0.5, 0.4, 0.6, 10), "y": 1.0, "time/01": 3.0, "memory/peak_gb": 1.0})
    record_metrics(b, {"x": Interval(0.5, 0.4, 0.6, 10), "y": 1.0, "time/01": 4.0, "memory/peak_gb": 2.0})
    return a, b


def test_equal_runs_agree_but_for_their_costs(pair: tuple[Path, Path]) -> None:
    assert compare(*pair) == []


def test_a_difference_in_the_last_digit_or_the_interval_is_found(pair: tuple[Path, Path]) -> None:
    record_metrics(pair[1], {"x": Interval(0.5, 0.4, 0.61, 10), "y": 1.0 + 1e-15, "z": 1})
    assert compare(*pair) == [
        "x: 0.5 [0.4, 0.6] of 10 and 0.5 [0.4, 0.61] of 10",
        "y: 1.0 and 1.000000000000001",
        "z: missing and 1.0",
    ]


def by_name(shown: str) -> dict[str, list[str]]:
    """The cells of a table's rows."""
    return {name: rest.split() for name, rest in re.findall(r"^(\w+(?: − \w+)?) (.*)$", shown, re.M)}


def test_table_shows_a_dash_for_what_is_missing(tmp_path: Path) -> None:
    values = {"eval/grpo/accuracy": Interval(0.875, 0.8, 0.925, 400), "eval/grpo/searches": 1.5}
    values |= {
        "eval/grpo/supported": 0.75,
        "eval/grpo/valid_turn_rate": 1.0,
        "ablation/whole/recall_at_1": Interval(0.02, 0.0, 0.05, 300),
    }
    record_metrics(tmp_path, values)
    rows = by_name(table(tmp_path))
    assert [name for name in rows if name in WORKFLOWS] == list(WORKFLOWS)
    assert rows["grpo"] == ["87.5", "%", "[80.0,", "92.5]", "75.0", "%", "1.50", "–", "100.0", "%"]
    assert rows["direct"] == ["–"] * 5
    assert rows["whole"] == ["–", "2.0", "%", "[0.0,", "5.0]"]
    assert rows["coordinates"] == ["–"] * 2


def test_table_of_several_runs_shows_their_mean_and_range(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.50, 0.60, 0.70)):
        values = {"eval/grpo/accuracy": Interval(accuracy, 0.4, 0.8, 400), "eval/grpo/searches": 1.0 + seed}
        values |= {"paired/grpo-sft/accuracy": Interval(0.1 * seed - 0.05, -0.1, 0.1, 400)}
        record_metrics(tmp_path / str(seed), values | ({"eval/sft/accuracy": 0.5} if seed else {}))
    shown = table(*(tmp_path / str(seed) for seed in range(3)))
    assert shown.startswith("3 runs: their mean [their lowest, their highest]\n")
    rows = by_name(shown)
    assert rows["grpo"] == ["60.0", "%", "[50.0,", "70.0]", "–", "2.00", "–", "–"]
    assert rows["sft"] == ["–"] * 5  # one of the runs has not measured it
    assert rows["grpo − sft"] == ["+5.0", "[-5.0,", "+15.0]"]
    assert rows["grpo − rag"] == ["–"]


@pytest.mark.parametrize(("missing", "told"), [(0.05, ""), (0.125, " (12.5 % without a verdict)")])
def test_verdicts_that_are_missing_stand_in_the_table(missing: float, told: str, tmp_path: Path) -> None:
    record_metrics(tmp_path, {"eval/rag/accuracy": 0.5, "eval/rag/judge_unreadable": missing})
    row = next(line for line in table(tmp_path).splitlines() if line.startswith("rag"))
    assert row.removeprefix("rag").strip().partition("  ")[0] == f"50.0 %{told}"
