"""Runs beside each other: the table of their results, whether they agree, and what a change did.

    print(table(Path("papermill_runs/a"), Path("papermill_runs/b")))        # the mean of the two, and their range
    compare(Path("papermill_runs/a"), Path("papermill_runs/reference"))     # [] where they agree
    print(contrast([Path("papermill_runs/priced")], [Path("papermill_runs/tiny")]))

Two accuracies with overlapping intervals may yet differ, for their questions are the same: so `contrast` takes the
difference on each question and resamples its interval by country, as notebook 4 does within a run. An interval
covers other questions, not another training run: so give it several pairs of runs, each with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmsr.files import read_rows, undamaged
from mmsr.results import CROPS, DASH, DETECTOR, TOLERATED, measured_workflows, percent, read_metrics, signed
from mmsr.stats import Interval

PAIRS = ("grpo-sft", "grpo-rag", "grpo-direct", "base-whole")
OUTCOME = ("answer", "correct", "searches", "search_free")  # of a row: where all are equal, nothing has changed

Differences = Mapping[str, Mapping[str, Interval]]  # by workflow and name; none where all outcomes are the same


def compare(a: Path, b: Path) -> list[str]:
    """Where two runs differ, a sentence for each metric but time and memory: to the last digit, interval and n, too."""
    first, second = read_metrics(a), read_metrics(b)
    names = [name for name in sorted(first | second) if not name.startswith(("time/", "memory/"))]
    pairs = [(name, first.get(name), second.get(name)) for name in names]
    return [f"{name}: {_exact(x)} and {_exact(y)}" for name, x, y in pairs if x != y]


def _exact(interval: Interval | None) -> str:
    if interval is None:
        return "missing"
    bounds = "" if interval.low is None else f" [{interval.low!r}, {interval.high!r}]"
    return f"{interval.value!r}{bounds}" + ("" if interval.n is None else f" of {interval.n}")


def table(*run_dirs: Path) -> str:
    """The results of a run as text, or the mean and range of several; raises as `tables`."""
    head = [f"{len(run_dirs)} runs: their mean [their lowest, their highest]"] if len(run_dirs) > 1 else []
    return "\n\n".join([*head, *map(_aligned, tables(*run_dirs))])


def tables(*run_dirs: Path) -> list[list[list[str]]]:
    """The results of a run as cells: workflows, crops, paired differences; a dash for what was not measured.

    Of several runs, which should differ in their seeds alone, it shows the mean of what all of them have measured, with
    the lowest and the highest instead of an interval. Raises FileNotFoundError as `read_metrics` does.
    """
    runs = [read_metrics(folder) for folder in run_dirs]
    known = runs[0]
    if len(runs) > 1:
        shared = [name for name in known if all(name in run for run in runs)]
        known = {name: _mean_and_range([run[name].value for run in runs]) for name in shared}
    played = [["workflow", "accuracy", "supported", "searches", "needless", "valid turns"]]
    for name in measured_workflows(known):
        scores = ("accuracy", "supported", "searches", "needless_search_rate", "valid_turn_rate")
        accuracy, supported, searches, needless, valid = (known.get(f"eval/{name}/{score}") for score in scores)
        number = DASH if searches is None else f"{searches.value:.2f}"
        missing = known.get(f"eval/{name}/judge_unreadable", Interval(0.0))
        unjudged = f" ({percent(missing)} without a verdict)" if missing.value > TOLERATED else ""
        shares = [percent(supported), number, percent(needless), percent(valid)]
        played.append([name, percent(accuracy, True) + unjudged, *shares])
    crops = [["crop", "accuracy", "recall@1"]]
    for name in (*CROPS, *([DETECTOR] if f"ablation/{DETECTOR}/accuracy" in known else [])):
        crops.append([name, *(percent(known.get(f"ablation/{name}/{x}"), True) for x in ("accuracy", "recall_at_1"))])
    pairs = [["paired difference", "accuracy, points"]]
    pairs += [[name.replace("-", " − "), signed(known.get(f"paired/{name}/accuracy"), 100)] for name in PAIRS]
    return [played, crops, pairs]


def _mean_and_range(values: Sequence[float]) -> Interval:
    """The mean of what several runs have measured, between the lowest and the highest; n counts the runs."""
    return Interval(sum(values) / len(values), min(values), max(values), len(values))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


# --- question by question ---------------------------------------------------------------------------------------------


def contrast(variants: Sequence[Path], bases: Sequence[Path]) -> str:
    """The differences of each pair of runs as text, variant minus base, and with several pairs what they say together.

    Raises FileNotFoundError or FileDamaged for `eval/rows.jsonl` of a run, ValueError for runs that cannot be paired.
    """
    if len(variants) != len(bases):
        raise ValueError(f"Runs are paired in order, but there are {len(variants)} and {len(bases)} of them.")
    parts, pairs = [], []
    for variant, base in zip(variants, bases):
        questions, found = difference(variant, base)
        same = ", ".join(name for name in found if not found[name])
        lines = [f"{variant.name} − {base.name}, on the same {questions} questions", _differences(found)]
        lines.append(f"the same outcomes in both: {same}" if same else "")
        parts.append("\n".join(filter(None, lines)))
        pairs.append(found)
    if len(pairs) > 1:
        head = f"{len(pairs)} pairs: the mean of their differences [the lowest, the highest]"
        parts.append(f"{head}\n{_differences(_together(pairs))}")
    return "\n\n".join(parts)


def difference(variant: Path, base: Path) -> tuple[int, Differences]:
    """How many questions two runs share, and the differences of their outcomes. Raises as `contrast` does."""
    from mmsr.evaluate import compare as paired  # loads torch, which tables do without

    first, second = _by_workflow(variant), _by_workflow(base)
    found = {}
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        if [row["question"] for row in a] != [row["question"] for row in b]:
            raise ValueError(
                f"{variant} and {base} were not asked the same questions: pair runs of one preset, seed and benchmark."
            )
        same = all(x[key] == y[key] for x, y in zip(a, b) for key in OUTCOME)
        differences = {} if same else paired({"variant": a, "base": b}, "variant", "base", seed=0)
        found[name] = {key.rpartition("/")[2]: value for key, value in differences.items()}
    if not found:
        raise ValueError(f"{variant} and {base} have no workflow in common: run notebook 04 into both.")
    return len(first[next(iter(found))]), found


def _by_workflow(run: Path) -> dict[str, list[dict]]:
    path, found = run / "eval" / "rows.jsonl", dict[str, list[dict]]()
    with undamaged(path, "run notebook 04 first"):
        for row in read_rows(path, "run notebook 04 first"):
            told = {key: row[key] for key in ("question", "needless", *OUTCOME)}
            found.setdefault(row["workflow"], []).append(told | {"entity": row["question"]["entity"]})
    return found


def _differences(found: Differences) -> str:
    """The table of the workflows that differ; "" where none does."""
    rows = [["workflow", "accuracy, points", "searches", "needless, points", "McNemar p"]]
    for name, by in found.items():
        if by:
            p = f"{by['mcnemar_p'].value:.2g}" if "mcnemar_p" in by else ""
            searches = signed(by["searches"], digits=2)
            rows.append([name, signed(by["accuracy"], 100), searches, signed(by["needless"], 100), p])
    return _aligned(rows) if rows[1:] else ""


def _together(pairs: Sequence[Differences]) -> Differences:
    """Mean, lowest and highest of the pairs' differences; a pair in which nothing changed counts as none."""
    found: dict[str, dict[str, Interval]] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair if pair[name]):
        having = [pair[name] for pair in pairs if name in pair]
        for key in ("accuracy", "searches", "needless"):
            found.setdefault(name, {})[key] = _mean_and_range([by[key].value if by else 0.0 for by in having])
    return found
