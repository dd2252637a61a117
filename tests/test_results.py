"""What a run measures is kept whole, in order, and read back; its adapters are found, and checked."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import DAMAGES, damage
from safetensors.numpy import save_file

from mmsr.files import FileDamaged, seal
from mmsr.results import check_adapter, find_adapter, read_metrics, record_metrics
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


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_metrics_are_named_and_left_alone(how: str, tmp_path: Path) -> None:
    record_metrics(tmp_path, {"a": 1, "b": Interval(0.5, 0.1, 0.9, 2)})
    damage(tmp_path / "metrics.json", how)
    before = (tmp_path / "metrics.json").read_bytes()
    for use in (lambda: read_metrics(tmp_path), lambda: record_metrics(tmp_path, {"c": 1})):
        with pytest.raises(FileDamaged, match=r"metrics\.json is damaged: delete it and the executed notebooks"):
            use()
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("wrong", ['{"a": 3}', '{"a": {"value": "much"}}', '{"a": {"low": 1}}'])
def test_metrics_of_another_shape_are_damaged(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(wrong)
    with pytest.raises(FileDamaged, match=r"metrics\.json is damaged"):
        read_metrics(tmp_path)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder of weights, as a training leaves it, but not sealed."""
    folder = tmp_path / "run" / "sft" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": np.arange(60, dtype=np.float32), "b": np.ones(3)}, folder / "adapter_model.safetensors", {"x": "y"})
    return folder


def test_an_adapter_is_found_in_the_first_run_that_has_it(adapter: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert find_adapter("sft", [other, run]) == find_adapter("sft", [run, ""]) == check_adapter(adapter) == adapter
    with pytest.raises(FileNotFoundError, match="adapter is not there: run notebook 03 first, or give adapters=RUN"):
        find_adapter("grpo", [run, other])
    with pytest.raises(FileNotFoundError, match=f"or give adapters=RUN, such as {re.escape(str(run))}\\."):
        find_adapter("sft", [other])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_adapter_is_named(how: str, adapter: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        for sealed in (False, True):
            if (how, name, sealed) == ("zeroed", "adapter_model.safetensors", False):
                continue  # zeros among the weights are found by the seal alone
            folder = shutil.copytree(adapter, tmp_path / f"{name} {sealed}")
            if sealed:
                seal(folder)
            damage(folder / name, how)
            with pytest.raises(FileDamaged, match=f"{re.escape(str(folder / name))} is damaged: train it again, or"):
                check_adapter(folder)
            (folder / name).unlink()
            with pytest.raises(FileNotFoundError, match=f"{re.escape(str(folder / name))} is not there"):
                check_adapter(folder)
