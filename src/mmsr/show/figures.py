"""The figures of a run, drawn from its CSV and JSON alone and saved under `<run>/figures/`.

    workflows(Path("papermill_runs/reference"))     # figures/workflows.png, and the figure itself for a notebook

Each raises FileNotFoundError or ValueError, in a sentence that names the file and the notebook to run, where a run has
not got that far. Titles and panels are in `assets/show/figures.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsr.evaluate import HABITS
from mmsr.results import CROPS, DETECTOR, METRICS, measured_workflows, read_metrics
from mmsr.show.charts import NOTEBOOKS, TEXTS, bars, canvas, curve, heading, lines, read, saved, share, stacks, whisker
from mmsr.show.look import ACCENT, INK, MIST, NAVY, PALE, SLATE, SMALL, TAN, colour, words
from mmsr.stats import Interval
from mmsr.task import HALVES
from mmsr.world.questions import TYPES

INTERVALS = "lines: 95 % intervals"


@saved
def funnel(run_dir: Path) -> Figure:
    """What is left after each step of the data building (paper §3.3), with the subjects of the balanced examples."""
    card, steps = read(run_dir, "data/card.json"), TEXTS["funnel"]["steps"]
    kept, labels, subjects = card["funnel"], card["labels"], pd.Series(card["taxonomy"]).sort_values(ascending=False)
    note = f"preset {card['preset']}, seed {card['seed']}  ·  n = {kept['questions']:,} questions played"
    chart = canvas(run_dir, "funnel", 4.7, note, [("search-required", NAVY), ("search-free", SLATE)])
    left, right = chart.subplots(1, 2, width_ratios=(1.25, 1))
    parts = [(PALE, [*(kept[step] for step in steps), 0, 0])]
    for label, shade in (("search_required", NAVY), ("search_free", SLATE)):
        parts.append((shade, [0] * len(steps) + [kept[label], labels.get(label, 0)]))
    stacks(left, [*steps.values(), "Usable examples", "Balanced data set"], parts)
    heading(left, "Steps")
    stacks(right, [*subjects.index], [(MIST, [*subjects])])
    heading(right, "Balanced data set by subject")
    return chart


@saved
def sft_curve(run_dir: Path) -> Figure:
    """Loss and token accuracy of supervised fine-tuning by step (paper §3.4)."""
    return _curves(run_dir, "sft_curve", "sft/sft.csv", TAN)


@saved
def grpo_curves(run_dir: Path) -> Figure:
    """Reward, accuracy, valid turns, searches, crops and entropy by GRPO step (paper §4.3)."""
    return _curves(run_dir, "grpo_curves", "grpo/grpo.csv", ACCENT)


def _curves(run: Path, name: str, file: str, shade: str) -> Figure:
    """A panel for each column of a training's CSV, by step."""
    table, text = read(run, file), TEXTS[name]
    took = f"  ·  {table['seconds'].max() / 60:.1f} min" if "seconds" in table else ""
    meaning = "points: steps; line: running mean over a tenth of them, with its 95 % interval"
    rows, columns = -(-len(text["panels"]) // 3), min(len(text["panels"]), 3)
    chart = canvas(run, name, 1.6 + 2 * rows, f"n = {len(table):,} steps{took}  ·  {meaning}")
    for ax, (column, title) in zip(chart.subplots(rows, columns).flat, text["panels"].items()):
        heading(ax, title)
        curve(ax, table, column, shade, file, unit=column in text["shares"])
    return chart


@saved
def choice(run_dir: Path) -> Figure:
    """Accuracy on the validation questions: of the adapters that GRPO kept, and at step 0 of the cold start."""
    read(run_dir, METRICS, "grpo")
    metrics = read_metrics(run_dir)
    if "grpo/chosen_step" not in metrics:
        raise ValueError(f"{run_dir / METRICS} has no grpo/chosen_step: run notebook {NOTEBOOKS['grpo']} first.")
    names = (re.fullmatch(r"grpo/val/(\d+)/accuracy", name) for name in metrics)
    steps = sorted(int(name[1]) for name in names if name)
    played, chosen = [metrics[f"grpo/val/{step}/accuracy"] for step in steps], metrics["grpo/chosen_step"].value
    chart = canvas(run_dir, "choice", 3.6, f"{sample(played)} validation questions  ·  {INTERVALS}")
    ax = chart.subplots()
    ax.plot(steps, [100 * found.value for found in played], color=PALE, lw=2, zorder=1)
    for step, found in zip(steps, played):
        shade, height = ACCENT if step == chosen else NAVY if step else TAN, 100 * found.value
        whisker(ax, step, found, color=shade)
        ax.plot(step, height, "o", color=shade, ms=8)
        ax.annotate(f"{height:.1f}", (step, height), (9, 4), textcoords="offset points", size=SMALL, color=shade)
    ax.set(xticks=steps, xlabel="step of GRPO", ylabel="accuracy, %")
    return chart


@saved
def workflows(run_dir: Path) -> Figure:
    """Accuracy of each workflow (paper Table 1), searches per question, the share of searches that were needless."""
    return _bars(run_dir, "workflows", "eval", _played(run_dir), TEXTS["workflows"]["panels"])


@saved
def by_type(run_dir: Path) -> Figure:
    """Accuracy by question type, for each workflow: the world's types, or a benchmark's most frequent kinds."""
    kinds = read(run_dir, "eval/rows.jsonl")["type"].value_counts().index[: len(TYPES)]
    panels = {f"accuracy/{kind}": words(kind) for kind in (TYPES if set(kinds) & set(TYPES) else kinds)}
    return _bars(run_dir, "by_type", "eval", _played(run_dir), panels)


@saved
def halves(run_dir: Path) -> Figure:
    """Accuracy on InfoSeek's two halves and their harmonic mean, for each workflow (paper Table 2)."""
    panels = {f"accuracy/{half}": words(half) for half in (*HALVES, "harmonic_mean")}
    return _bars(run_dir, "halves", "eval", _played(run_dir), panels)


@saved
def habits(run_dir: Path) -> Figure:
    """What the agent decides before and after GRPO, and the teacher beside it (the habits of notebook 4)."""
    panels = {f"habit/{name}": habit.words for name, habit in HABITS.items()}
    return _bars(run_dir, "habits", "eval", ("sft", "grpo", "teacher"), panels)


@saved
def crops(run_dir: Path) -> Figure:
    """Accuracy and retrieval of the trained agent by where its crop comes from (paper §4.3)."""
    return _bars(run_dir, "crops", "ablation", (*CROPS, DETECTOR), TEXTS["crops"]["panels"])


def _played(run: Path) -> list[str]:
    """Our workflows, and the rivals' that this run has played."""
    return measured_workflows(read(run, METRICS, "eval"))


def _bars(run: Path, name: str, folder: str, rows: Sequence[str], panels: Mapping[str, str]) -> Figure:
    """A panel for each metric `<folder>/<row>/<metric>` (metric → title), a bar in it for each workflow or crop."""
    read(run, METRICS, folder)
    metrics, needed = read_metrics(run), [f"{folder}/{row}/accuracy" for row in rows]
    if not any(metric in metrics for metric in needed):
        raise ValueError(f"{run / METRICS} has no {needed[0]}: run notebook {NOTEBOOKS[folder]} first.")
    if folder == "ablation":  # of which our world has some, a benchmark others
        rows = [row for row, metric in zip(rows, needed) if metric in metrics]
    chart = canvas(run, name, 1.9 + 0.29 * len(rows), f"held-out questions  ·  {INTERVALS}")
    for ax, (metric, title) in zip(chart.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        found = [metrics.get(f"{folder}/{row}/{metric}") for row in rows]
        bars(ax, rows, found, percent=metric != "searches")
        heading(ax, title, sample(found))
    return chart


def sample(intervals: Sequence[Interval | None]) -> str:
    """How many items are behind these intervals: "n = 600", or "n = 85 to 180" where they differ."""
    counts = [i.n for i in intervals if i and i.n is not None]
    ends = sorted({min(counts), max(counts)}) if counts else []
    return "n = " + (" to ".join(f"{n:,}" for n in ends) or "unknown")


@saved
def search_behaviour(run_dir: Path) -> Figure:
    """How many searches a question gets before and after GRPO, by whether the question needs any (paper §4.3)."""
    rows = read(run_dir, "eval/rows.jsonl")
    rows = rows[rows["workflow"].isin(["sft", "grpo"])]
    free, most = rows["search_free"].astype(bool), min(rows["searches"].max(), 6)
    note = f"n = {rows['id'].nunique():,} questions  ·  {INTERVALS}"
    chart = canvas(run_dir, "search_behaviour", 3.9, note, [("before GRPO", TAN), ("after GRPO", ACCENT)])
    groups = {"All questions": rows, "No search needed": rows[free], "A search needed": rows[~free]}
    for ax, (title, group) in zip(chart.subplots(1, 3), groups.items()):
        means = [_search_counts(ax, group[group["workflow"] == name], name, most) for name in ("sft", "grpo")]
        heading(ax, title, f"n = {group['id'].nunique():,}  ·  mean {' → '.join(means)}")
        ax.set(ylim=(0, 105), yticks=[0, 25, 50, 75, 100], xlabel="searches")
        ax.set_xticks(range(most + 1), [*map(str, range(most)), f"{most}+" if most == 6 else str(most)])
        ax.grid(axis="x", visible=False)
    return chart


def _search_counts(ax: Axes, rows: pd.DataFrame, workflow: str, most: int) -> str:
    """A bar for each number of searches, as high as its share of a workflow's rows. Returns their mean in words."""
    if rows.empty:
        return "–"
    for number in range(most + 1):
        place = number + (0.2 if workflow == "grpo" else -0.2)
        found = share(rows["searches"].clip(upper=most) == number, rows["entity"])
        ax.bar(place, 100 * found.value, width=0.36, color=colour(workflow))
        whisker(ax, place, found, color=INK)
    return f"{rows['searches'].mean():.2f}"


@saved
def crops_by_flags(run_dir: Path) -> Figure:
    """Accuracy and recall@1 by crop and by the number of flags in the scene."""
    rows = read(run_dir, "ablation/rows.jsonl")
    note = f"n = {rows['id'].nunique():,} held-out questions  ·  {INTERVALS}"
    by_crop = {crop: rows[rows["crop"] == crop] for crop in CROPS if (rows["crop"] == crop).any()}
    chart = canvas(run_dir, "crops_by_flags", 4.0, note, [(words(crop), colour(crop)) for crop in by_crop])
    for ax, (field, title) in zip(chart.subplots(1, 2), TEXTS["crops_by_flags"]["panels"].items()):
        lines(ax, "flags", [(colour(crop), chosen, field) for crop, chosen in by_crop.items()])
        ax.set(xticks=sorted(rows["flags"].unique()), xlabel="flags in the scene")
        heading(ax, title)
    return chart


@saved
def sweeps(run_dir: Path) -> Figure:
    """Accuracy and recall when the gold box is padded and when it is shaken."""
    rows = read(run_dir, "ablation/sweeps.jsonl")
    note = f"n = {rows['id'].nunique():,} held-out questions a level  ·  {INTERVALS}"
    scores = {"correct": ("Accuracy", ACCENT), "recall_at_1": ("Recall@1", NAVY), "recall_at_5": ("Recall@5", SLATE)}
    chart = canvas(run_dir, "sweeps", 4.0, note, [*scores.values()])
    for ax, (sweep, title) in zip(chart.subplots(1, 2), TEXTS["sweeps"]["panels"].items()):
        chosen = rows[rows["sweep"] == sweep]
        heading(ax, title)
        lines(ax, "level", [(shade, chosen, field) for field, (_, shade) in scores.items()])
        ax.set_xlabel(f"{sweep}, share of the box's side")
    return chart
