"""What a run measures is kept whole, in order, and read back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmsr.results import read_metrics, record_metrics
from mmsr.stats import Interval


def test_metrics_are_merged_in_order(tmp_path: Path) -> None:
    record_metrics(tmp_path / "r", {"b": 1, "c": 2.5})
    record_metrics(tmp_path / "r", {"a": Interval(0.5, 0.1, 0.9, 2), "c": 3})
    written = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert list(written) == ["a", "b", "c"]
    assert written["a"] == {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2}
    assert written["c"] == {"value": 3.0, "low": None, "high": None, "n": None}
    assert read_metrics(tmp_path / "r")["a"] == Interval(0.5, 0.1, 0.9, 2)


def test_metrics_recorded_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: record_metrics(tmp_path, {f"m{i}": i}), range(64)))
    assert len(read_metrics(tmp_path)) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Interval(0.5, float("nan"), 0.9, 3)])
def test_a_number_that_is_none_is_refused(tmp_path: Path, value: float | Interval) -> None:
    record_metrics(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="bad is not finite"):
        record_metrics(tmp_path, {"a": 2, "bad": value})
    assert read_metrics(tmp_path) == {"a": Interval(1.0)}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_metrics(tmp_path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        record_metrics(tmp_path, {"a": 2})
    assert read_metrics(tmp_path) == {"a": Interval(1.0)}


def test_a_folder_without_metrics_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.json"):
        read_metrics(tmp_path)
