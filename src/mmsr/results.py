"""What a run measures and trains: its numbers in `metrics.json`, how they are written in words, its adapters.

    record_metrics(folder, {"eval/grpo/accuracy": cluster_mean(right, countries, 0), "grpo/reward_last": 0.81})
    read_metrics(folder)["eval/grpo/accuracy"].low
    check_adapter(find_adapter("grpo", [folder, other]))

Tables of runs, and whether two runs agree, are `runs.compare`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mmsr.files import check_seal, locked, read_json, undamaged, write_json
from mmsr.stats import Interval

METRICS = "metrics.json"
WORKFLOWS = ("direct", "rag", "prompted", "sft", "grpo", "teacher")
CROPS = ("base", "oracle", "whole", "random", "coordinates")
DETECTOR = "detector"  # one more crop, on benchmarks alone
STAGES = {"sft": "02", "grpo": "03"}  # that train an adapter, and the number of their notebook
DASH = "–"
TOLERATED = 0.05  # of a judge's verdicts may be missing before a table of results says so


# --- metrics ----------------------------------------------------------------------------------------------------------


def workflows(named: Iterable[str]) -> list[str]:
    """All of ours, then the rivals' (`outside`) among `named`."""
    return [*WORKFLOWS, *(name for name in dict.fromkeys(named) if name not in WORKFLOWS)]


def measured_workflows(metrics: Iterable[str]) -> list[str]:
    """`workflows` by the names of a run's metrics."""
    return workflows(name.split("/")[1] for name in metrics if name.startswith("eval/"))


def record_metrics(run_dir: Path, values: Mapping[str, Interval | float]) -> None:
    """Merge values into the run's `metrics.json`: name → {"value", "low", "high", "n"}, names in order.

    Several processes may record at once. Raises ValueError, naming the metric, for a number that is not finite, and
    FileDamaged; nothing is recorded then.
    """
    entries = {name: _entry(name, value) for name, value in values.items()}
    path = run_dir / METRICS
    with locked(path):
        known = read_metrics(run_dir) if path.exists() else {}
        write_json(path, dict(sorted(({name: asdict(kept) for name, kept in known.items()} | entries).items())))


def _entry(name: str, value: Interval | float) -> dict[str, float | int | None]:
    """The metric in plain Python numbers, whatever library they come from."""
    interval = value if isinstance(value, Interval) else Interval(value)
    bounds = (None if x is None else float(x) for x in (interval.value, interval.low, interval.high))
    plain = asdict(Interval(*bounds, None if interval.n is None else int(interval.n)))
    if not all(x is None or math.isfinite(x) for x in plain.values()):
        raise ValueError(f"The metric {name} is not finite: {interval}.")
    return plain


def read_metrics(run_dir: Path) -> dict[str, Interval]:
    """What the run has measured. Raises FileNotFoundError where it has measured nothing, and FileDamaged."""
    path = run_dir / METRICS
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} has no {METRICS}: it is not a run, or has not measured anything yet.")
    remedy = "delete it and the executed notebooks beside it, and run these again; what they trained is kept"
    return read_json(path, dict[str, Interval], remedy)


# --- adapters ---------------------------------------------------------------------------------------------------------


def find_adapter(stage: str, runs: Sequence[str | Path]) -> Path:
    """Where a stage's adapter lies, in the first run that has it. Raises FileNotFoundError, saying what to do."""
    places = [Path(run) / stage / "adapter" for run in runs if str(run)]
    for place in places:
        if place.is_dir():
            return place
    place = places[-1] if places else Path(stage, "adapter")
    known = [run.parents[1] for run in sorted(place.parents[2].glob(f"*/{stage}/adapter"))] if places else []
    such = f", such as {known[0]}" if known else ""
    raise FileNotFoundError(f"{place} is not there: run notebook {STAGES[stage]} first, or give adapters=RUN{such}.")


def check_adapter(folder: Path) -> Path:
    """The folder, if its LoRA weights are complete and as they were saved; else FileNotFoundError or FileDamaged."""
    remedy = "train it again, or give another"
    read_json(folder / "adapter_config.json", dict, remedy)
    weights = folder / "adapter_model.safetensors"
    with undamaged(weights, remedy), weights.open("rb") as file:
        size = weights.stat().st_size
        head = int.from_bytes(file.read(8), "little")  # bytes of the JSON that says where each tensor lies
        tensors = json.loads(file.read(head if head < size else 0))
        if 8 + head + max(t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__") != size:
            raise ValueError("a part of the tensors is missing")
    check_seal(folder, remedy)
    return folder


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
