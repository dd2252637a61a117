"""The shapes that figures are made of, and the files of a run that they read: CSV and JSON, never a model.

    chart = canvas(run, "Accuracy by workflow", "held-out questions", 3.2, "lines: 95 % intervals")
    bars(chart.subplots(), ["rag", "grpo"], [Interval(0.41, 0.37, 0.45, 600), None], percent=True)

A value that is measured on a sample is drawn with its 95 % interval.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmsr.files import read_rows
from mmsr.show.look import ACCENT, INK, MARGIN, MIST, MUTED, PAPER, SMALL, TEXT, WIDTH, colour, in_our_look, words
from mmsr.stats import Interval, cluster_mean, proportion

Pairs = Sequence[tuple[str, str]]
ALL: list[Callable[[Path], Figure]] = []  # the figures of a run, in order
NAMES = ("01_build_data", "02_sft", "03_grpo", "04_evaluate", "05_crop_ablation")
NOTEBOOKS = {folder: f"{name}.ipynb" for folder, name in zip(("data", "sft", "grpo", "eval", "ablation"), NAMES)}


class Chart(Figure):
    """A figure that shows itself in a notebook, 900 pixels wide, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, dpi=150)
        width, height = self.get_size_inches()
        return file.getvalue(), {"width": round(100 * width), "height": round(100 * height)}


def canvas(run: Path, title: str, subtitle: str, height: float, note: str, key: Pairs = ()) -> Chart:
    """A chart, without panels yet: title, a line on what is shown, a note on the sample; `key` names colours."""
    chart = Chart(figsize=(WIDTH, height), layout="constrained")
    left, inch = MARGIN / WIDTH, 1 / height
    source = f"Run {run.resolve().name}  ·  {note}"
    chart.text(left, 1 - 0.34 * inch, title, size=13, weight="bold", va="center")
    chart.text(left, 1 - 0.62 * inch, subtitle, color=MUTED, va="center")
    chart.text(left, 0.18 * inch, source, size=SMALL, color=MUTED, va="center")
    if key:
        patches = [Patch(color=shade, label=meaning) for meaning, shade in key]
        chart.legend(handles=patches, ncols=len(key), loc="center left", bbox_to_anchor=(left, 1 - 0.9 * inch))
    top, bottom = (1.15 if key else 0.88) * inch, 0.35 * inch
    chart.get_layout_engine().set(rect=(left / 2, bottom, 1 - left, 1 - top - bottom))
    return chart


def saved(draw: Callable[[Path], Figure]) -> Callable[[Path], Figure]:
    """A figure of a run: drawn in our look, saved as `<run>/figures/<name>.png`, and one of ALL."""

    @functools.wraps(draw)
    @in_our_look
    def wrapper(run_dir: Path) -> Figure:
        figure = draw(Path(run_dir))
        save(figure, Path(run_dir) / "figures" / f"{draw.__name__}.png")
        return figure

    ALL.append(wrapper)
    return wrapper


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Software": None})


def read(run: Path, file: str, folder: str = "") -> Any:
    """A file of a run: the value of `.json`, a table of `.jsonl` or `.csv`; `folder` is whose notebook writes it.

    A question's fields stand beside those of its row; a cell of a CSV that is empty or no number is NaN. Raises
    FileNotFoundError or ValueError, saying which notebook to run, for a file that is missing or has no rows.
    """
    path, notebook, table = run / file, NOTEBOOKS[folder or file.split("/")[0]], pd.DataFrame()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run notebook {notebook} first.")
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        table = pd.DataFrame([row.get("question", {}) | row for row in read_rows(path, f"run notebook {notebook}")])
    elif path.stat().st_size:
        table = pd.read_csv(path).apply(pd.to_numeric, errors="coerce")
    if table.empty:
        raise ValueError(f"{path} is empty: run notebook {notebook} again.")
    return table


def share(outcomes: pd.Series, countries: pd.Series) -> Interval:
    """The share of True, resampled by country as the run's metrics are; Wilson's where all outcomes are the same."""
    if outcomes.nunique() == 1:
        return proportion(outcomes)
    return cluster_mean(outcomes.astype(float), countries, seed=0)


def heading(ax: Axes, title: str, small: str = "") -> None:
    """A panel's title, and a small line under it."""
    ax.set_title(title, pad=20 if small else None)
    ax.annotate(small, (0, 1), (0, 6), "axes fraction", "offset points", size=SMALL, color=MUTED)


def missing(ax: Axes, text: str) -> None:
    """Says in an empty panel what the run does not have."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED)
    ax.set(xticks=[], yticks=[])


def whisker(ax: Axes, x: float, interval: Interval, **style) -> None:
    """An interval in per cent, upright; none where it is unknown, as of a single country."""
    if interval.low is not None and interval.high is not None:
        ax.plot([x, x], [100 * interval.low, 100 * interval.high], lw=1.2, **style)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Rows from top to bottom, named on the left."""
    ax.set(ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names, color=INK, size=TEXT)
    ax.spines["bottom"].set_visible(False)
    ax.grid(axis="y", visible=False)


def bars(ax: Axes, rows: Sequence[str], intervals: Sequence[Interval | None], percent: bool) -> None:
    """A bar for each workflow or crop, with its interval and its value beside it; a bound is hollow."""
    scale = 100 if percent else 1
    limit = 100.0 if percent else max([max(i.value, i.high or 0) for i in intervals if i] or [0]) or 1.0
    for y, (row, interval) in enumerate(zip(rows, intervals)):
        if interval is None:
            ax.text(0.02 * limit, y, "not measured", color=MUTED, size=SMALL, va="center_baseline", style="italic")
            continue
        value, end, shade = scale * interval.value, scale * max(interval.value, interval.high or 0), colour(row)
        face = PAPER if shade == INK else shade
        ax.barh(y, value, height=0.62, facecolor=face, edgecolor=shade, linewidth=1.2, zorder=2)
        if interval.low is not None and interval.high is not None:
            ax.plot([scale * interval.low, scale * interval.high], [y, y], color=INK, lw=1.5, zorder=3)
        style = {"weight": "bold", "color": ACCENT} if shade == ACCENT else {"color": INK}
        style |= {"va": "center_baseline", "size": SMALL, "zorder": 5}
        ax.annotate(f"{value:.{2 - percent}f}", (end, y), (7, 0), textcoords="offset points", **style)
    name_rows(ax, [words(row) for row in rows])
    for tick, row in zip(ax.get_yticklabels(), rows):
        if colour(row) == ACCENT:
            tick.set(color=ACCENT, weight="bold")
    ax.set_xlim(0, 1.25 * limit)
    ax.set_xticks([0, 50, 100] if percent else [tick for tick in ax.get_xticks() if tick <= limit])


def stacks(ax: Axes, names: Sequence[str], parts: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Rows of bars made of coloured parts, with the number of each part inside it and the whole at its end."""
    whole, start = np.sum([counts for _, counts in parts], axis=0), np.zeros(len(names))
    room = 0.12 * max([*whole, 1])
    for shade, counts in parts:
        drawn = ax.barh(range(len(names)), counts, left=start, height=0.62, color=shade, zorder=2)
        inside = [f"{n:,}" if room < n < total else "" for n, total in zip(counts, whole)]
        ax.bar_label(drawn, inside, label_type="center", size=SMALL, color=PAPER)
        start += counts
    ax.bar_label(drawn, [f"{total:,}" for total in whole], padding=5, size=SMALL, weight="bold")
    name_rows(ax, names)
    ax.set(xlim=(0, 9 * room), xticks=[])


def lines(ax: Axes, by: str, series: Sequence[tuple[str, str, pd.DataFrame, str]]) -> None:
    """The share of rows where a field is true at each value of `by`, a line with intervals for each series.

    series: (name, colour, rows, field); lines stand a little apart, so that their intervals do, too.
    """
    levels, ends = sorted({level for _, _, rows, _ in series for level in rows[by]}), []
    if not levels:
        return missing(ax, "not measured")
    for index, (name, shade, rows, field) in enumerate(series):
        groups = dict(list(rows.groupby(by)))
        apart = 0.01 * (levels[-1] - levels[0]) * (index - (len(series) - 1) / 2)
        x = [level + apart for level in groups]
        shares = [share(group[field], group["entity"]) for group in groups.values()]
        width = 2.2 if shade == ACCENT else 1.5
        ax.plot(x, [100 * found.value for found in shares], "-o", color=shade, lw=width, ms=5, zorder=2 + width)
        for place, found in zip(x, shares):
            whisker(ax, place, found, color=shade, alpha=0.75, zorder=2)
        ends.append((100 * shares[-1].value, name, shade))
    ends.sort()
    for (_, name, shade), height in zip(ends, spread([height for height, _, _ in ends], 7, -3, 103)):
        style = {"color": MUTED if shade == MIST else shade, "weight": "bold" if shade == ACCENT else "normal"}
        ax.text(1.02, height, name, va="center_baseline", size=SMALL, transform=ax.get_yaxis_transform(), **style)
    ax.set(ylim=(-3, 103))


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted heights moved apart to at least `gap`, as little as possible, and kept within [low, high]."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap if placed else low))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], placed[index + 1] - gap if index + 1 < len(placed) else high)
    return placed


def curve(ax: Axes, table: pd.DataFrame, column: str, title: str, shade: str, file: str, unit: bool) -> None:
    """A column by step: faint points, running mean with its interval, means of the first and the last tenth.

    A column that the table does not have is named in the panel. unit: its values lie between 0 and 1.
    """
    heading(ax, title)
    values = table.get(column, pd.Series(dtype=float)).dropna()
    if values.empty:
        return missing(ax, f"{file} has no column\n{column}")
    steps = table.get("step", pd.Series(table.index + 1))[values.index]
    mean, error = running_mean(values)
    ax.plot(steps, values, "o", color=shade, ms=3, alpha=0.28, mew=0, zorder=2)
    ax.fill_between(steps, mean - error, mean + error, color=shade, alpha=0.14, lw=0, zorder=1)
    ax.plot(steps, mean, color=shade, lw=2, zorder=3)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if unit:
        ax.set(ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    elif values.min() >= 0:
        ax.set_ylim(bottom=0, top=max(values.max() * 1.06, 1e-6))
    tenth = max(1, len(values) // 10)
    first, last = values.head(tenth).mean(), values.tail(tenth).mean()
    for place, level in ((steps.head(tenth), first), (steps.tail(tenth), last)):
        ax.plot([place.min(), place.max()], [level, level], color=INK, lw=2.4, zorder=4)
    ax.set_title(f"{first:.2f} → {last:.2f}", loc="right", weight="normal")


def running_mean(values: Sequence[float]) -> tuple[pd.Series, pd.Series]:
    """Means over a centred window of about a tenth of the values, and 1.96 standard errors (0 for a window of one)."""
    window = pd.Series(values).rolling(2 * (max(1, len(values) // 10) // 2) + 1, center=True, min_periods=1)
    return window.mean(), 1.96 * window.sem().fillna(0.0)
