"""The figures of a run, drawn from its CSV and JSON alone and saved under `<run>/figures/`.

    workflows(Path("papermill_runs/reference"))     # figures/workflows.png, and the figure itself for a notebook

| figure | reads | shows |
|---|---|---|
| funnel | data/card.json | what is left after each step of the data building (paper §3.3) |
| sft_curve | sft/sft.csv | loss and token accuracy by step (paper §3.4) |
| grpo_curves | grpo/grpo.csv | reward, accuracy, searches, crops, valid turns and entropy by step (paper §4.3) |
| workflows, by_type, halves | metrics.json, eval/rows.jsonl | accuracy with intervals (paper Tables 1 and 2) |
| habits | metrics.json | what the agent decides, before and after GRPO |
| search_behaviour | eval/rows.jsonl | searches per question before and after GRPO (paper §4.3) |
| crops | metrics.json | accuracy and recall by crop (paper §4.3) |
| crops_by_flags, sweeps | ablation/*.jsonl | the same by crowdedness, by padding and by noise of the box |

Each raises FileNotFoundError or ValueError, in a sentence that names the file and the notebook to run, where a run has
not come that far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsr.evaluate import HABITS, HALVES
from mmsr.results import CROPS, METRICS, WORKFLOWS, read_metrics
from mmsr.show import charts
from mmsr.show.charts import bars, canvas, curve, heading, lines, read, saved, share, stacks, whisker
from mmsr.show.look import ACCENT, INK, MIST, NAVY, PALE, SLATE, TAN, colour, words
from mmsr.stats import Interval
from mmsr.world.questions import TYPES

ALL = charts.ALL
STEPS = {
    "questions": "Questions played",
    "passed_A": "A  valid tags",
    "passed_B": "B  under ten turns",
    "passed_C": "C  ends in an answer",
    "correct": "Answer right",
}
SCORES = {"accuracy": "Accuracy, %", "recall_at_1": "Recall@1, %", "recall_at_5": "Recall@5, %"}
INTERVALS = "lines: 95 % intervals"


@saved
def funnel(run_dir: Path) -> Figure:
    """What the data building keeps at each step, with the subjects of what is left."""
    card = read(run_dir, "data/card.json")
    kept, labels = card["funnel"], card["labels"]
    key = [("search-required", NAVY), ("search-free", SLATE)]
    note = f"preset {card['preset']}, seed {card['seed']}  ·  n = {kept['questions']:,} questions played"
    subtitle = "what is left after each step of building the data"
    chart = canvas(run_dir, "From questions to training examples", subtitle, 4.7, note, key)
    left, right = chart.subplots(1, 2, width_ratios=(1.25, 1))
    parts = [(PALE, [*(kept[step] for step in STEPS), 0, 0])]
    for label, shade in (("search_required", NAVY), ("search_free", SLATE)):
        parts.append((shade, [0] * len(STEPS) + [kept[label], labels.get(label, 0)]))
    stacks(left, [*STEPS.values(), "Usable examples", "Balanced data set"], parts)
    heading(left, "Steps")
    subjects = sorted(card["taxonomy"], key=card["taxonomy"].get, reverse=True)
    stacks(right, subjects, [(MIST, [card["taxonomy"][subject] for subject in subjects])])
    heading(right, "Balanced data set by subject")
    return chart


@saved
def sft_curve(run_dir: Path) -> Figure:
    """Loss and token accuracy of supervised fine-tuning by step."""
    panels = [("loss", "Loss", False), ("mean_token_accuracy", "Token accuracy", True)]
    subtitle = "by optimiser step, on assistant tokens alone"
    return _curves(run_dir, "sft/sft.csv", "Supervised fine-tuning", subtitle, TAN, panels)


@saved
def grpo_curves(run_dir: Path) -> Figure:
    """Reward and behaviour by GRPO step, with the means of the first and the last tenth of the steps."""
    panels = [
        ("reward", "Reward", False),
        ("rewards/accuracy/mean", "Accuracy", True),
        ("rewards/valid_turns/mean", "Valid turns", True),
        ("rewards/searches/mean", "Searches", False),
        ("rewards/crops/mean", "With a crop", True),
        ("entropy", "Entropy", False),
    ]
    subtitle = "means over each step's rollouts; at the right, of the first and the last tenth of the steps"
    return _curves(run_dir, "grpo/grpo.csv", "GRPO training", subtitle, ACCENT, panels)


def _curves(run: Path, file: str, title: str, subtitle: str, shade: str, panels: list[tuple[str, str, bool]]) -> Figure:
    """Columns of a training's CSV by step: (column, title, whether it lies between 0 and 1)."""
    table = read(run, file)
    minutes = table.get("seconds", pd.Series(dtype=float)).max() / 60
    took = "" if np.isnan(minutes) else f"  ·  {minutes:.1f} min"
    meaning = "points: steps; line: running mean over a tenth of them, with its 95 % interval"
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    chart = canvas(run, title, subtitle, 1.6 + 2 * rows, f"n = {len(table):,} steps{took}  ·  {meaning}")
    for ax, (column, name, unit) in zip(chart.subplots(rows, columns).flat, panels):
        curve(ax, table, column, name, shade, file, unit)
    return chart


@saved
def workflows(run_dir: Path) -> Figure:
    """Accuracy of each workflow, searches per question, and the share of searches that were needless."""
    panels = {
        "accuracy": "Accuracy, %",
        "searches": "Searches per question",
        "needless_search_rate": "Needless searches, %",
    }
    subtitle = "needless searches: of the questions that need none, the share on which the agent searched"
    return _bars(run_dir, "eval", WORKFLOWS, panels, "Workflows on held-out questions", subtitle)


@saved
def by_type(run_dir: Path) -> Figure:
    """Accuracy by question type, for each workflow: the world's types, or a benchmark's most frequent kinds."""
    kinds = read(run_dir, "eval/rows.jsonl")["type"].value_counts().index[: len(TYPES)]
    panels = {f"accuracy/{kind}": words(kind) for kind in (TYPES if set(kinds) & set(TYPES) else kinds)}
    subtitle = "per cent of each type's questions answered right"
    return _bars(run_dir, "eval", WORKFLOWS, panels, "Accuracy by question type", subtitle)


@saved
def halves(run_dir: Path) -> Figure:
    """Accuracy on InfoSeek's two halves and their harmonic mean, for each workflow."""
    panels = {f"accuracy/{half}": words(half) for half in (*HALVES, "harmonic_mean")}
    title = "Accuracy on unseen entities and unseen questions, %"
    subtitle = "unseen entity: countries held out; unseen question: relations and wordings held out"
    return _bars(run_dir, "eval", WORKFLOWS, panels, title, subtitle)


@saved
def habits(run_dir: Path) -> Figure:
    """What the agent decides before and after GRPO, and the teacher beside it (the habits of notebook 4)."""
    panels = {f"habit/{name}": habit.words for name, habit in HABITS.items()}
    subtitle = "per cent of each type's questions; the teacher rewords only after a search that failed"
    return _bars(run_dir, "eval", ("sft", "grpo", "teacher"), panels, "What GRPO changed", subtitle)


def _bars(run: Path, folder: str, rows: Sequence[str], panels: dict[str, str], title: str, subtitle: str) -> Figure:
    """A panel for each metric `<folder>/<row>/<name>` (name → title), a bar in it for each workflow or crop."""
    read(run, METRICS, folder)
    metrics, needed = read_metrics(run), [f"{folder}/{row}/accuracy" for row in rows]
    if not any(name in metrics for name in needed):
        raise ValueError(f"{run / METRICS} has no {needed[0]}: run notebook {charts.NOTEBOOKS[folder]} first.")
    chart = canvas(run, title, subtitle, 1.9 + 0.29 * len(rows), f"held-out questions  ·  {INTERVALS}")
    for ax, (metric, name) in zip(chart.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        found = [metrics.get(f"{folder}/{row}/{metric}") for row in rows]
        bars(ax, rows, found, percent=metric != "searches")
        heading(ax, name, sample(found))
    return chart


def sample(intervals: Sequence[Interval | None]) -> str:
    """How many items are behind these intervals: "n = 600", or "n = 85 to 180" where they differ."""
    counts = sorted({i.n for i in intervals if i and i.n is not None})
    if not counts:
        return "n unknown"
    return f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")


@saved
def search_behaviour(run_dir: Path) -> Figure:
    """How many searches a question gets before and after GRPO, by whether the question needs any."""
    rows = read(run_dir, "eval/rows.jsonl")
    rows = rows[rows["workflow"].isin(["sft", "grpo"])]
    if rows.empty:
        raise ValueError(f"{run_dir}/eval/rows.jsonl has no row of sft or grpo: run notebook 04_evaluate.ipynb again.")
    n = rows["workflow"].value_counts()
    note = f"n = {n.get('sft', 0):,} before GRPO, {n.get('grpo', 0):,} after GRPO  ·  {INTERVALS}"
    subtitle = "per cent of questions; a search is needed where neither the picture nor the base has the answer"
    key = [("before GRPO", TAN), ("after GRPO", ACCENT)]
    chart = canvas(run_dir, "Searches per question before and after GRPO", subtitle, 3.9, note, key)
    free = rows["search_free"].astype(bool)
    groups = {"All questions": rows, "No search needed": rows[free], "A search needed": rows[~free]}
    most = min(rows["searches"].max(), 6)
    for ax, (name, group) in zip(chart.subplots(1, 3), groups.items()):
        means = _search_counts(ax, group, most)
        heading(ax, name, f"n = {group['id'].nunique():,}  ·  mean {' → '.join(means)}")
    return chart


def _search_counts(ax: Axes, rows: pd.DataFrame, most: int) -> list[str]:
    """The share of questions by number of searches, a bar for each workflow side by side. Returns the means."""
    means = []
    for workflow, offset in (("sft", -0.2), ("grpo", 0.2)):
        mine = rows[rows["workflow"] == workflow]
        means.append("–" if mine.empty else f"{mine['searches'].mean():.2f}")
        for number in range(0 if mine.empty else most + 1):
            found = share(mine["searches"].clip(upper=most) == number, mine["entity"])
            ax.bar(number + offset, 100 * found.value, width=0.36, color=colour(workflow), zorder=2)
            whisker(ax, number + offset, found, color=INK, zorder=3)
    last = f"{most}+" if (rows["searches"] > most).any() else str(most)
    ax.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100], xlabel="searches")
    ax.set_xticks(range(most + 1), [*map(str, range(most)), last])
    ax.grid(axis="x", visible=False)
    return means


@saved
def crops(run_dir: Path) -> Figure:
    """Accuracy and retrieval of the trained agent by where its crop comes from."""
    subtitle = "the trained policy with its crop exchanged; recall: the right country is among the pictures found"
    return _bars(run_dir, "ablation", CROPS, SCORES, "Where the crop comes from", subtitle)


@saved
def crops_by_flags(run_dir: Path) -> Figure:
    """Accuracy and recall@1 by crop and by the number of flags in the scene."""
    rows = read(run_dir, "ablation/rows.jsonl")
    note = f"n = {rows['id'].nunique():,} held-out questions  ·  {INTERVALS}"
    subtitle = "the trained policy with its crop exchanged"
    chart = canvas(run_dir, "Crops by the number of flags in the scene", subtitle, 4.0, note)
    by_crop = {crop: rows[rows["crop"] == crop] for crop in CROPS if (rows["crop"] == crop).any()}
    for ax, (score, field) in zip(chart.subplots(1, 2), {"accuracy": "correct", "recall_at_1": "recall_at_1"}.items()):
        lines(ax, "flags", [(words(crop), colour(crop), chosen, field) for crop, chosen in by_crop.items()])
        ax.set(xticks=sorted(rows["flags"].unique()), xlabel="flags in the scene")
        heading(ax, SCORES[score])
    return chart


@saved
def sweeps(run_dir: Path) -> Figure:
    """Accuracy and recall when the gold box is padded and when it is shaken."""
    rows = read(run_dir, "ablation/sweeps.jsonl")
    note = f"n = {rows['id'].nunique():,} held-out questions a level  ·  {INTERVALS}"
    subtitle = "the trained policy with the gold box enlarged (below 0: trimmed) or shaken"
    chart = canvas(run_dir, "Padding and noise of the crop's box", subtitle, 4.0, note)
    scores = [("Accuracy", ACCENT, "correct"), ("Recall@1", NAVY, "recall_at_1"), ("Recall@5", SLATE, "recall_at_5")]
    for ax, sweep in zip(chart.subplots(1, 2), ("padding", "noise")):
        chosen = rows[rows["sweep"] == sweep]
        heading(ax, f"{sweep.capitalize()}, %")
        lines(ax, "level", [(name, shade, chosen, field) for name, shade, field in scores])
        ax.set_xlabel(f"{sweep}, share of the box's side")
    return chart
