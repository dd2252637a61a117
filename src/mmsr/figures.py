"""The figures of a run, drawn from its CSV and JSON alone and saved under `<run>/figures/`.

    workflows(Path("papermill_runs/reference"))     # figures/workflows.png, and the figure itself for a notebook

| figure | reads | shows |
|---|---|---|
| funnel | data/card.json | what is left after each step of the data building (paper §3.3) |
| sft_curve | sft/sft.csv | loss and token accuracy by step |
| grpo_curves | grpo/grpo.csv | reward, accuracy, searches, crops, valid turns and entropy by step |
| workflows, by_type, halves | metrics.json, eval/rows.jsonl | accuracy with intervals (paper Tables 1 and 2) |
| habits | metrics.json | what the agent decides, before and after GRPO |
| search_behaviour | eval/rows.jsonl | searches per question before and after GRPO (paper §4.3) |
| crops | metrics.json | accuracy and recall by crop (paper §4.3) |
| crops_by_flags, sweeps | ablation/*.jsonl | the same by crowdedness, by padding and by noise of the box |

Each raises FileNotFoundError or ValueError, in a sentence that names the file and the notebook to run, where a run has
not come that far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsr.charts import (
    ACCENT,
    INK,
    MIST,
    MUTED,
    NAVY,
    PALE,
    SLATE,
    SMALL,
    TAN,
    TEXT,
    Bar,
    Metrics,
    bars,
    canvas,
    end_labels,
    key,
    line,
    read_json,
    read_rows,
    sample,
    saved,
)
from mmsr.curves import grpo_curves, sft_curve
from mmsr.habits import HABITS
from mmsr.metrics import Interval, cluster_mean, proportion

DATA, EVALUATE, ABLATION = "01_build_data.ipynb", "04_evaluate.ipynb", "05_crop_ablation.ipynb"
WORKFLOWS = {
    "direct": ("Direct answer", SLATE),
    "rag": ("RAG workflow", SLATE),
    "prompted": ("Prompted agent", SLATE),
    "sft": ("Agent after SFT", TAN),
    "grpo": ("Agent after GRPO", ACCENT),
    "teacher": ("Teacher (ceiling)", INK),
}
TYPES = {"visual": "Visual", "fact": "Fact", "one_hop": "One hop", "two_hop": "Two hops", "hard": "Hard wording"}
HALVES = {"unseen_entity": "Unseen entity", "unseen_question": "Unseen question", "harmonic_mean": "Harmonic mean"}
CROPS = {
    "base": ("Own crop", ACCENT),
    "oracle": ("Oracle crop", INK),
    "coordinates": ("Coordinates", NAVY),
    "whole": ("Whole picture", SLATE),
    "random": ("Random crop", MIST),
}
SCORES = {"accuracy": "Accuracy, %", "recall_at_1": "Recall@1, %", "recall_at_5": "Recall@5, %"}
STEPS = {
    "questions": "Questions played",
    "passed_A": "A  valid tags",
    "passed_B": "B  under ten turns",
    "passed_C": "C  ends in an answer",
    "correct": "Answer right",
}


# --- data and training ----------------------------------------------------------------------------------------------


@saved
def funnel(run_dir: Path) -> Figure:
    """What the data building keeps at each step, with the labels, subjects and types of what is left."""
    card = read_json(run_dir / "data" / "card.json", DATA)
    kept = card["funnel"]
    labels = {"search_required": ("search-required", NAVY), "search_free": ("search-free", SLATE)}
    note = f"preset {card['preset']}, seed {card['seed']}  ·  n = {kept['questions']:,} questions played"
    chart = canvas(
        run_dir, "From questions to training examples", "what is left after each step of building the data", 4.7, note
    )
    left, right = chart.panels(1, 2, left=1.8, right=0.4, top=1.55, bottom=0.5, across=1.85, widths=(1.25, 1))[0]
    key(chart, list(labels.values()))
    rows = [(words, [(kept[step], PALE)]) for step, words in STEPS.items()]
    rows.append(("Usable examples", [(kept[label], colour) for label, (_, colour) in labels.items()]))
    rows.append(("Balanced data set", [(card["labels"].get(label, 0), c) for label, (_, c) in labels.items()]))
    _stacks(left, rows)
    left.set_title("Steps", weight="bold", pad=8)
    taxonomy = sorted(card["taxonomy"].items(), key=lambda item: -item[1])
    _stacks(right, [(subject, [(n, MIST)]) for subject, n in taxonomy])
    right.set_title("Balanced data set by subject", weight="bold", pad=8)
    return chart


def _stacks(ax: Axes, rows: Sequence[tuple[str, Sequence[tuple[int, str]]]]) -> None:
    """Rows of bars made of parts, with the number of each part inside it and the whole at its end."""
    most = max([sum(n for n, _ in parts) for _, parts in rows] or [1]) or 1
    for y, (_, parts) in enumerate(rows):
        start = 0
        for n, colour in parts:
            ax.barh(y, n, left=start, height=0.62, color=colour, zorder=2)
            if len(parts) > 1 and n > 0.12 * most:
                ax.text(start + n / 2, y, f"{n:,}", ha="center", va="center_baseline", size=SMALL, color="white")
            start += n
        ax.text(start + 0.02 * most, y, f"{start:,}", va="center_baseline", size=SMALL, weight="bold")
    ax.set(xlim=(0, most * 1.1), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), xticks=[])
    ax.set_yticklabels([words for words, _ in rows], color=INK, size=TEXT)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)


# --- evaluation -----------------------------------------------------------------------------------------------------


def _rows(measured: Sequence[Interval | None], names: dict[str, tuple[str, str]]) -> list[Bar]:
    return [Bar(words, i, colour, colour == INK) for i, (words, colour) in zip(measured, names.values())]


@saved
def workflows(run_dir: Path) -> Figure:
    """Accuracy of each workflow, searches per question, and the share of searches that were needless."""
    metrics = Metrics(run_dir, EVALUATE)
    columns = {
        "accuracy": ("Accuracy, %", True),
        "searches": ("Searches per question", False),
        "needless_search_rate": ("Needless searches, %", True),
    }
    measured = metrics.table("eval", WORKFLOWS, columns)
    note = f"{sample(measured['accuracy'])} held-out questions  ·  lines: 95 % intervals"
    subtitle = "needless searches: of the questions that need none, the share on which the agent searched"
    chart = canvas(run_dir, "Workflows on held-out questions", subtitle, 3.7, note)
    axes = chart.panels(1, 3, left=1.7, top=1.2, across=0.4, widths=(1.6, 1, 1))[0]
    for index, (ax, (column, (words, percent))) in enumerate(zip(axes, columns.items())):
        bars(ax, _rows(measured[column], WORKFLOWS), percent=percent, labels=index == 0)
        ax.set_title(words, weight="bold", pad=8)
    return chart


def _accuracies(run_dir: Path, groups: dict[str, str], title: str, subtitle: str) -> Figure:
    """Accuracy of each workflow on groups of questions, one panel each."""
    metrics = Metrics(run_dir, EVALUATE)
    measured = metrics.table("eval", WORKFLOWS, [f"accuracy/{group}" for group in groups])
    chart = canvas(run_dir, title, subtitle, 3.5, "held-out questions  ·  lines: 95 % intervals")
    axes = chart.panels(1, len(groups), left=1.7, top=1.35, across=0.22)[0]
    for index, (ax, words, intervals) in enumerate(zip(axes, groups.values(), measured.values())):
        bars(ax, _rows(intervals, WORKFLOWS), percent=True, dots=True, labels=index == 0)
        ax.set_xticks([0, 50, 100])
        ax.set_title(words, weight="bold", pad=20)
        ax.text(0, 1.04, sample(intervals), transform=ax.transAxes, size=SMALL, color=MUTED)
    return chart


@saved
def by_type(run_dir: Path) -> Figure:
    """Accuracy by question type, for each workflow: the world's types, or a benchmark's most frequent kinds."""
    rows = read_rows(run_dir / "eval" / "rows.jsonl", EVALUATE)
    kinds = [kind for kind, _ in Counter(row["question"]["type"] for row in rows).most_common(len(TYPES))]
    types = TYPES if any(kind in TYPES for kind in kinds) else {kind: kind.replace("_", " ") for kind in kinds}
    return _accuracies(run_dir, types, "Accuracy by question type", "per cent of each type's questions answered right")


@saved
def halves(run_dir: Path) -> Figure:
    """Accuracy on InfoSeek's two halves and their harmonic mean, for each workflow."""
    subtitle = "unseen entity: countries held out; unseen question: relations and wordings held out"
    return _accuracies(run_dir, HALVES, "Accuracy on unseen entities and unseen questions, %", subtitle)


@saved
def habits(run_dir: Path) -> Figure:
    """What the agent decides before and after GRPO, and the teacher beside it (habits.py)."""
    chosen = {name: WORKFLOWS[name] for name in ("sft", "grpo", "teacher")}
    metrics = Metrics(run_dir, EVALUATE)
    measured = metrics.table("eval", chosen, [f"habit/{name}" for name in HABITS])
    subtitle = "per cent of each type's questions; the teacher rewords only after a search that failed"
    chart = canvas(run_dir, "What GRPO changed", subtitle, 2.5, "held-out questions  ·  lines: 95 % intervals")
    axes = chart.panels(1, len(HABITS), left=1.7, top=1.35, across=0.25)[0]
    for index, (ax, habit, intervals) in enumerate(zip(axes, HABITS.values(), measured.values())):
        bars(ax, _rows(intervals, chosen), percent=True, labels=index == 0)
        ax.set_title(habit.words, weight="bold", pad=20)
        ax.text(0, 1.06, sample(intervals), transform=ax.transAxes, size=SMALL, color=MUTED)
    return chart


@saved
def search_behaviour(run_dir: Path) -> Figure:
    """How many searches a question gets before and after GRPO, by whether the question needs any."""
    rows = read_rows(run_dir / "eval" / "rows.jsonl", EVALUATE)
    pairs = {"sft": ("before GRPO", TAN), "grpo": ("after GRPO", ACCENT)}
    rows = [row for row in rows if row["workflow"] in pairs]
    if not rows:
        raise ValueError(f"{run_dir / 'eval' / 'rows.jsonl'} has no row of sft or grpo: run notebook {EVALUATE} again.")
    n = Counter(row["workflow"] for row in rows)
    note = "n = " + ", ".join(f"{n[w]:,} {words}" for w, (words, _) in pairs.items()) + "  ·  lines: 95 % intervals"
    chart = canvas(
        run_dir,
        "Searches per question before and after GRPO",
        "per cent of questions; a search is needed where neither the picture nor the base has the answer",
        3.9,
        note,
    )
    key(chart, list(pairs.values()))
    axes = chart.panels(1, 3, left=0.6, top=1.7, bottom=0.8, across=0.45)[0]
    groups = [
        ("All questions", rows),
        ("No search needed", [row for row in rows if row["search_free"]]),
        ("A search needed", [row for row in rows if not row["search_free"]]),
    ]
    most = min(max(row["searches"] for row in rows), 6)
    for ax, (words, group) in zip(axes, groups):
        _search_counts(ax, group, pairs, most)
        ax.set_title(words, weight="bold", pad=22)
    return chart


def _search_counts(ax: Axes, rows: Sequence[dict], pairs: dict[str, tuple[str, str]], most: int) -> None:
    """Share of questions by number of searches, one bar for each workflow side by side, and the means above."""
    means = []
    for offset, (workflow, (_, colour)) in zip((-0.2, 0.2), pairs.items()):
        mine = [row for row in rows if row["workflow"] == workflow]
        counts = [min(row["searches"], most) for row in mine]
        for number in range(most + 1) if counts else ():
            share = _share(mine, [count == number for count in counts])
            ax.bar(number + offset, 100 * share.value, width=0.36, color=colour, zorder=2)
            if share.low is not None:  # the spread of a single cluster is unknown
                ax.plot([number + offset] * 2, [100 * share.low, 100 * share.high], color=INK, lw=1.2, zorder=3)
        means.append(f"{np.mean([row['searches'] for row in mine]):.2f}" if mine else "–")
    n = len({row["question"]["id"] for row in rows})
    ax.text(0, 1.04, f"n = {n:,}  ·  mean {' → '.join(means)}", transform=ax.transAxes, size=SMALL, color=MUTED)
    names = [str(number) for number in range(most + 1)]
    over = any(row["searches"] > most for row in rows)
    ax.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100], xticks=range(most + 1), xlabel="searches")
    ax.set_xticklabels([*names[:-1], f"{most}+"] if over else names)
    ax.grid(axis="x", visible=False)


# --- crops ----------------------------------------------------------------------------------------------------------


@saved
def crops(run_dir: Path) -> Figure:
    """Accuracy and retrieval of the trained agent by where its crop comes from."""
    metrics = Metrics(run_dir, ABLATION)
    measured = metrics.table("ablation", CROPS, SCORES)
    note = f"{sample(measured['accuracy'])} held-out questions  ·  lines: 95 % intervals"
    subtitle = (
        "the trained policy with its crop exchanged; recall: the right country among the picture search's results"
    )
    chart = canvas(run_dir, "Where the crop comes from", subtitle, 3.4, note)
    axes = chart.panels(1, 3, left=1.5, top=1.2, across=0.35)[0]
    for index, (ax, (score, words)) in enumerate(zip(axes, SCORES.items())):
        bars(ax, _rows(measured[score], CROPS), percent=True, labels=index == 0)
        ax.set_title(words, weight="bold", pad=8)
    return chart


@saved
def crops_by_flags(run_dir: Path) -> Figure:
    """Accuracy and recall@1 by crop and by the number of flags in the scene."""
    rows = read_rows(run_dir / "ablation" / "rows.jsonl", ABLATION)
    numbers = sorted({row["flags"] for row in rows})
    present = [crop for crop in CROPS if any(row["crop"] == crop for row in rows)]
    note = f"n = {len({row['id'] for row in rows}):,} held-out questions  ·  lines: 95 % intervals"
    chart = canvas(
        run_dir, "Crops by the number of flags in the scene", "the trained policy with its crop exchanged", 4.0, note
    )
    axes = chart.panels(1, 2, left=0.6, right=1.35, top=1.2, bottom=0.85, across=1.45)[0]
    for ax, score in zip(axes, ("accuracy", "recall_at_1")):
        field = "correct" if score == "accuracy" else score
        ax.set(ylim=(-3, 103), xlim=(numbers[0] - 0.2, numbers[-1] + 0.2), xticks=numbers, xlabel="flags in the scene")
        ends = []
        for index, crop in enumerate(present):
            x, intervals = _shares([r for r in rows if r["crop"] == crop], "flags", field)
            words, colour = CROPS[crop]
            line(
                ax, [place + 0.035 * (index - (len(present) - 1) / 2) for place in x], intervals, colour, crop == "base"
            )
            ends.append((words, 100 * intervals[-1].value, colour))
        end_labels(ax, numbers[-1] + 0.26, ends, 7)
        ax.set_title(SCORES[score], weight="bold", pad=8)
    return chart


@saved
def sweeps(run_dir: Path) -> Figure:
    """Accuracy and recall when the gold box is padded and when it is shaken."""
    rows = read_rows(run_dir / "ablation" / "sweeps.jsonl", ABLATION)
    note = f"n = {len({row['id'] for row in rows}):,} held-out questions a level  ·  lines: 95 % intervals"
    chart = canvas(
        run_dir,
        "Padding and noise of the crop's box",
        "the trained policy with the gold box enlarged (below 0: trimmed) or shaken",
        4.0,
        note,
    )
    axes = chart.panels(1, 2, left=0.6, right=1.1, top=1.2, bottom=0.85, across=1.2)[0]
    lines = {"correct": ("Accuracy", ACCENT), "recall_at_1": ("Recall@1", NAVY), "recall_at_5": ("Recall@5", SLATE)}
    for ax, (sweep, words) in zip(axes, {"padding": "Padding", "noise": "Noise"}.items()):
        ax.set_title(f"{words}, %", weight="bold", pad=8)
        ax.set(ylim=(-3, 103), xlabel=f"{sweep}, share of the box's side")
        chosen, ends = [row for row in rows if row["sweep"] == sweep], []
        if not chosen:
            ax.text(0.5, 0.5, f"no {sweep} in\nablation/sweeps.jsonl", transform=ax.transAxes, ha="center", color=MUTED)
            continue
        for field, (name, colour) in lines.items():
            x, intervals = _shares(chosen, "level", field)
            line(ax, x, intervals, colour, field == "correct")
            ends.append((name, 100 * intervals[-1].value, colour))
        end_labels(ax, x[-1] + 0.05 * (x[-1] - x[0] or 1), ends, 7)
    return chart


def _shares(rows: Sequence[dict], by: str, field: str) -> tuple[list[float], list[Interval]]:
    """The share of rows where `field` is true at each value of `by`."""
    places = sorted({row[by] for row in rows})
    groups = [[row for row in rows if row[by] == place] for place in places]
    return places, [_share(group, [row[field] for row in group]) for group in groups]


def _share(rows: Sequence[dict], outcomes: Sequence[bool]) -> Interval:
    """The share of True, resampled by country as the run's metrics are; Wilson's where all outcomes are the same."""
    if len(set(outcomes)) == 1:
        return proportion(outcomes)
    countries = [row["question"]["entity"] if "question" in row else row.get("entity", row["id"]) for row in rows]
    return cluster_mean([float(outcome) for outcome in outcomes], countries, seed=0)


ALL = (
    funnel,
    sft_curve,
    grpo_curves,
    workflows,
    by_type,
    halves,
    habits,
    search_behaviour,
    crops,
    crops_by_flags,
    sweeps,
)
