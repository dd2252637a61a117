"""The figures of the crop ablation, from a run's metrics and rows alone (paper §4.3)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mmsr.show.charts import (
    ACCENT,
    INK,
    MIST,
    MUTED,
    NAVY,
    SLATE,
    Metrics,
    bars,
    canvas,
    end_labels,
    line,
    named,
    read_rows,
    sample,
    saved,
    shares,
)

ABLATION = "05_crop_ablation.ipynb"
CROPS = {
    "base": ("Own crop", ACCENT),
    "oracle": ("Oracle crop", INK),
    "coordinates": ("Coordinates", NAVY),
    "whole": ("Whole picture", SLATE),
    "random": ("Random crop", MIST),
}
SCORES = {"accuracy": "Accuracy, %", "recall_at_1": "Recall@1, %", "recall_at_5": "Recall@5, %"}


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
        bars(ax, named(measured[score], CROPS), percent=True, labels=index == 0)
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
            x, intervals = shares([r for r in rows if r["crop"] == crop], "flags", field)
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
            x, intervals = shares(chosen, "level", field)
            line(ax, x, intervals, colour, field == "correct")
            ends.append((name, 100 * intervals[-1].value, colour))
        end_labels(ax, x[-1] + 0.05 * (x[-1] - x[0] or 1), ends, 7)
    return chart
