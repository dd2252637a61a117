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

from mmsr.habits import HABITS
from mmsr.show.charts import (
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
    Metrics,
    bars,
    canvas,
    key,
    named,
    read_json,
    read_rows,
    sample,
    saved,
    share,
)
from mmsr.show.crop_figures import crops, crops_by_flags, sweeps
from mmsr.show.curves import grpo_curves, sft_curve

DATA, EVALUATE = "01_build_data.ipynb", "04_evaluate.ipynb"
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
        bars(ax, named(measured[column], WORKFLOWS), percent=percent, labels=index == 0)
        ax.set_title(words, weight="bold", pad=8)
    return chart


def _accuracies(run_dir: Path, groups: dict[str, str], title: str, subtitle: str) -> Figure:
    """Accuracy of each workflow on groups of questions, one panel each."""
    metrics = Metrics(run_dir, EVALUATE)
    measured = metrics.table("eval", WORKFLOWS, [f"accuracy/{group}" for group in groups])
    chart = canvas(run_dir, title, subtitle, 3.5, "held-out questions  ·  lines: 95 % intervals")
    axes = chart.panels(1, len(groups), left=1.7, top=1.35, across=0.22)[0]
    for index, (ax, words, intervals) in enumerate(zip(axes, groups.values(), measured.values())):
        bars(ax, named(intervals, WORKFLOWS), percent=True, dots=True, labels=index == 0)
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
        bars(ax, named(intervals, chosen), percent=True, labels=index == 0)
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
            found = share(mine, [count == number for count in counts])
            ax.bar(number + offset, 100 * found.value, width=0.36, color=colour, zorder=2)
            if found.low is not None:  # the spread of a single cluster is unknown
                ax.plot([number + offset] * 2, [100 * found.low, 100 * found.high], color=INK, lw=1.2, zorder=3)
        means.append(f"{np.mean([row['searches'] for row in mine]):.2f}" if mine else "–")
    n = len({row["question"]["id"] for row in rows})
    ax.text(0, 1.04, f"n = {n:,}  ·  mean {' → '.join(means)}", transform=ax.transAxes, size=SMALL, color=MUTED)
    names = [str(number) for number in range(most + 1)]
    over = any(row["searches"] > most for row in rows)
    ax.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100], xticks=range(most + 1), xlabel="searches")
    ax.set_xticklabels([*names[:-1], f"{most}+"] if over else names)
    ax.grid(axis="x", visible=False)


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
