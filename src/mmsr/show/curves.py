"""Training curves of a run: SFT and GRPO by step, from their CSV alone (paper §3.4, §4.3).

Points are steps, the line is their running mean over a tenth of all steps with its 95 % interval. A column that the
table does not have is named in its panel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mmsr.show.charts import ACCENT, INK, MUTED, TAN, TEXT, canvas, read_columns, saved

SFT, GRPO = "02_sft.ipynb", "03_grpo.ipynb"


@saved
def sft_curve(run_dir: Path) -> Figure:
    """Loss and token accuracy of supervised fine-tuning by step."""
    table = read_columns(run_dir / "sft" / "sft.csv", SFT)
    chart = canvas(
        run_dir, "Supervised fine-tuning", "by optimiser step, on assistant tokens alone", 3.6, _training(table)
    )
    axes = chart.panels(1, 2, left=0.7, top=1.15, across=0.8)[0]
    _curve(axes[0], table, "loss", "Loss", TAN, "sft/sft.csv")
    _curve(axes[1], table, "mean_token_accuracy", "Token accuracy", TAN, "sft/sft.csv", share=True)
    return chart


@saved
def grpo_curves(run_dir: Path) -> Figure:
    """Reward and behaviour by GRPO step, with the means of the first and the last tenth of the steps."""
    table = read_columns(run_dir / "grpo" / "grpo.csv", GRPO)
    subtitle = "means over each step's rollouts; at the right, of the first and the last tenth of the steps"
    chart = canvas(run_dir, "GRPO training", subtitle, 5.6, _training(table))
    axes = chart.panels(2, 3, left=0.6, top=1.15, across=0.55, down=0.75).ravel()
    panels = [
        ("reward", "Reward", False),
        ("rewards/accuracy/mean", "Accuracy", True),
        ("rewards/valid_turns/mean", "Valid turns", True),
        ("rewards/searches/mean", "Searches", False),
        ("rewards/crops/mean", "With a crop", True),
        ("entropy", "Entropy", False),
    ]
    for ax, (column, words, share) in zip(axes, panels):
        _curve(ax, table, column, words, ACCENT, "grpo/grpo.csv", share=share)
    return chart


def _training(table: dict[str, NDArray[np.float64]]) -> str:
    """The footnote of a training figure."""
    seconds = table.get("seconds", np.array([np.nan]))
    took = "" if np.all(np.isnan(seconds)) else f"  ·  {np.nanmax(seconds) / 60:.1f} min"
    steps = len(next(iter(table.values())))
    return (
        f"n = {steps:,} steps{took}  ·  points: steps; line: running mean over a tenth of them, with its 95 % interval"
    )


def _curve(
    ax: Axes, table: dict[str, NDArray], column: str, words: str, colour: str, file: str, share: bool = False
) -> None:
    """One column by step: faint points, running mean with its interval, means of the first and last tenth."""
    ax.set_title(words, weight="bold", pad=9)
    values = table.get(column, np.array([]))
    known = ~np.isnan(values)
    if not known.any():
        ax.text(
            0.5, 0.5, f"{file} has no column\n{column}", transform=ax.transAxes, ha="center", va="center", color=MUTED
        )
        ax.set(xticks=[], yticks=[])
        return
    steps = table["step"][known] if "step" in table else np.flatnonzero(known) + 1.0
    values = values[known]
    mean, error = running_mean(values)
    ax.plot(steps, values, "o", color=colour, ms=3, alpha=0.28, mew=0, zorder=2)
    ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.14, lw=0, zorder=1)
    ax.plot(steps, mean, color=colour, lw=2, zorder=3)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if share:
        ax.set(ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    elif values.min() >= 0:
        ax.set_ylim(bottom=0, top=max(values.max() * 1.06, 1e-6))
    tenth = max(1, len(values) // 10)
    first, last = float(values[:tenth].mean()), float(values[-tenth:].mean())
    for place, level in ((steps[:tenth], first), (steps[-tenth:], last)):
        ax.plot([place[0], place[-1]], [level, level], color=INK, lw=2.4, zorder=4, solid_capstyle="butt")
    ax.set_title(f"{first:.2f} → {last:.2f}", loc="right", color=INK, size=TEXT, pad=9)


def running_mean(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over a centred window of about a tenth of the values, and 1.96 standard errors (0 for a window of one)."""
    half = max(1, len(values) // 10) // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    errors = [1.96 * w.std(ddof=1) / np.sqrt(len(w)) if len(w) > 1 else 0.0 for w in windows]
    return np.array([w.mean() for w in windows]), np.array(errors)
