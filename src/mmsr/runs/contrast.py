"""What a change did: two runs of the same questions, held against each other question by question.

    print(contrast([Path("papermill_runs/priced")], [Path("papermill_runs/tiny")]))

Two accuracies with overlapping intervals may yet differ, for their questions are the same: so the difference is taken
on each question, and its interval is resampled by country, as notebook 4 does within a run. An interval speaks of other
questions, not of another training: so give several pairs of runs, each of a seed of its own, and see whether they say
the same. Runs are paired in the order given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsr.evaluate import compare
from mmsr.files import read_rows
from mmsr.results import signed
from mmsr.runs.compare import aligned, mean_and_range
from mmsr.stats import Interval

OUTCOME = ("answer", "correct", "searches", "search_free")  # of a row: where all are equal, nothing has changed


@dataclass(frozen=True)
class Contrast:
    """What differs between two runs: for each workflow that does, `evaluate.compare`'s differences by their names."""

    questions: int
    changed: dict[str, dict[str, Interval]]
    same: list[str]


def contrast(variants: Sequence[Path], bases: Sequence[Path]) -> str:
    """The differences of each pair of runs as text, variant minus base, and with several pairs what they say together.

    Raises FileNotFoundError for a run without `eval/rows.jsonl`, ValueError for runs that cannot be paired.
    """
    if len(variants) != len(bases):
        raise ValueError(f"Runs are paired in order, but there are {len(variants)} and {len(bases)} of them.")
    pairs = [difference(*pair) for pair in zip(variants, bases)]
    lines = []
    for variant, base, pair in zip(variants, bases, pairs):
        lines.append(f"{variant.name} − {base.name}, on the same {pair.questions} questions")
        lines += [_table(pair.changed)] if pair.changed else []
        lines += [f"the same outcomes in both: {', '.join(pair.same)}"] if pair.same else []
        lines.append("")
    if len(pairs) > 1:
        lines.append(f"{len(pairs)} pairs: the mean of their differences [the lowest, the highest]")
        lines.append(_table(_together(pairs)))
    return "\n".join(lines).strip()


def difference(variant: Path, base: Path) -> Contrast:
    """The second run's outcomes from the first's, by workflow. Raises as `contrast` does."""
    first, second = _by_workflow(variant), _by_workflow(base)
    changed, same = {}, []
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        if [row["question"] for row in a] != [row["question"] for row in b]:
            raise ValueError(
                f"{variant} and {base} were not asked the same questions: pair runs of one preset, seed and benchmark."
            )
        if all(x[key] == y[key] for x, y in zip(a, b) for key in OUTCOME):
            same.append(name)
        else:
            found = compare({"variant": a, "base": b}, "variant", "base", seed=0)
            changed[name] = {key.rpartition("/")[2]: value for key, value in found.items()}
    return Contrast(len(next(iter(first.values()))), changed, same)


def _by_workflow(run: Path) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for row in read_rows(run / "eval" / "rows.jsonl", "run notebook 04 first"):
        rows.setdefault(row["workflow"], []).append(row)
    return rows


def _table(changed: dict[str, dict[str, Interval]]) -> str:
    rows = [["workflow", "accuracy, points", "searches", "needless, points", "McNemar p"]]
    for name, found in changed.items():
        accuracy, needless = (signed(found[key], 100) for key in ("accuracy", "needless"))
        p = f"{found['mcnemar_p'].value:.2g}" if "mcnemar_p" in found else ""
        rows.append([name, accuracy, signed(found["searches"], digits=2), needless, p])
    return aligned(rows)


def _together(pairs: Sequence[Contrast]) -> dict[str, dict[str, Interval]]:
    """Mean, lowest and highest of the pairs' differences; a pair in which nothing changed counts as none."""
    found: dict[str, dict[str, Interval]] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair.changed):
        having = [pair.changed.get(name) for pair in pairs if name in pair.changed or name in pair.same]
        for key in ("accuracy", "searches", "needless"):
            values = [differences[key].value if differences else 0.0 for differences in having]
            found.setdefault(name, {})[key] = mean_and_range(values)
    return found
