"""The shapes that figures are made of, and the files of a run that they read: CSV and JSON, never a model.

    chart = canvas(run, "workflows", 3.2, "lines: 95 % intervals")
    bars(chart.subplots(), ["rag", "grpo"], [Interval(0.41, 0.37, 0.45, 600), None], percent=True)

A value that is measured on a sample is drawn with its 95 % interval.
"""

from __future__ import annotations

import functools
import io
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmsr.files import read_json, read_rows, undamaged
from mmsr.show.look import ACCENT, ASSETS, INK, MARGIN, MUTED, PAPER, SMALL, TEXT, WIDTH, colour, in_our_look, words
from mmsr.stats import Interval, cluster_mean, proportion

TEXTS = tomllib.loads((ASSETS / "figures.toml").read_text(encoding="utf-8"))
NAMES = ("01_build_data", "02_sft", "03_grpo", "04_evaluate", "05_crop_ablation")
NOTEBOOKS = {folder: f"{name}.ipynb" for folder, name in zip(("data", "sft", "grpo", "eval", "ablation"), NAMES)}


class Chart(Figure):
    """A figure that shows itself in a notebook, 900 pixels wide, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, dpi=150)
        width, height = self.get_size_inches()
        return file.getvalue(), {"width": round(100 * width), "height": round(100 * height)}


def canvas(run: Path, name: str, height: float, note: str, key: Sequence[tuple[str, str]] = ()) -> Chart:
    """The chart of this name, without panels yet: its title and subtitle, a note on the sample, what colours mean."""
    chart = Chart(figsize=(WIDTH, height), layout="constrained")
    left, inch = MARGIN / WIDTH, 1 / height
    chart.text(left, 1 - 0.34 * inch, TEXTS[name]["title"], size=13, weight="bold", va="center")
    chart.text(left, 1 - 0.62 * inch, TEXTS[name]["subtitle"], color=MUTED, va="center")
    chart.text(left, 0.18 * inch, f"Run {run.resolve().name}  ·  {note}", size=SMALL, color=MUTED, va="center")
    if key:
        patches = [Patch(color=shade, label=meaning) for meaning, shade in key]
        chart.legend(handles=patches, ncols=len(key), loc="center left", bbox_to_anchor=(left, 1 - 0.9 * inch))
    top, bottom = (1.15 if key else 0.88) * inch, 0.35 * inch
    chart.get_layout_engine().set(rect=(left / 2, bottom, 1 - left, 1 - top - bottom))
    return chart


def saved(draw: Callable[[Path], Figure]) -> Callable[[Path], Figure]:
    """A figure of a run: drawn in our look and saved as `<run>/figures/<name>.png`."""

    @functools.wraps(draw)
    @in_our_look
    def wrapper(run_dir: Path) -> Figure:
        figure = draw(run_dir)
        save(figure, run_dir / "figures" / f"{draw.__name__}.png")
        return figure

    return wrapper


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Software": None})


def read(run: Path, file: str, folder: str = "") -> Any:
    """A file of a run: the value of `.json`, a table of `.jsonl` or `.csv`; `folder` names the notebook that writes it.

    A question's fields stand beside those of its row; a cell of a CSV that is empty or not a number is NaN. Raises
    FileNotFoundError or ValueError, saying which notebook to run, for a file that is missing or has no rows.
    """
    path, notebook, table = run / file, NOTEBOOKS[folder or file.split("/")[0]], pd.DataFrame()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run notebook {notebook} first.")
    remedy = f"run notebook {notebook} again"
    if path.suffix == ".json":
        return read_json(path, dict, remedy)
    with undamaged(path, remedy):
        if path.suffix == ".jsonl":
            table = pd.DataFrame([row.get("question", {}) | row for row in read_rows(path, remedy)])
        elif path.stat().st_size:
            table = pd.read_csv(path).apply(pd.to_numeric, errors="coerce")
    if table.empty:
        raise ValueError(f"{path} is empty: {remedy}.")
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


def whisker(ax: Axes, x: float, interval: Interval, **style) -> None:
    """An interval in per cent, upright; none where it is unknown, as for a single country."""
    ends = [100 * end for end in (interval.low, interval.high) if end is not None]
    ax.plot([x] * len(ends), ends, lw=1.2, **style)


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
    name_rows(ax, [words(row) for row in rows])
    for y, (row, interval) in enumerate(zip(rows, intervals)):
        if interval is None:
            ax.text(0.02 * limit, y, "not measured", color=MUTED, size=SMALL, va="center_baseline", style="italic")
            continue
        shade = colour(row)
        value, *ends = (scale * x for x in (interval.value, interval.low, interval.high) if x is not None)
        ax.barh(y, value, height=0.62, facecolor=PAPER if shade == INK else shade, edgecolor=shade, linewidth=1.2)
        ax.plot(ends, [y] * len(ends), color=INK, lw=1.5)
        beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center_baseline", "size": SMALL}
        beside |= {"color": ACCENT, "weight": "bold"} if shade == ACCENT else {}
        ax.annotate(f"{value:.{2 - percent}f}", (max(value, *ends, 0), y), **beside)
    ax.set_xlim(0, 1.25 * limit)
    ax.set_xticks([0, 50, 100] if percent else [tick for tick in ax.get_xticks() if tick <= limit])


def stacks(ax: Axes, names: Sequence[str], parts: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Rows of bars made of coloured parts, with the number of each part inside it and the whole at its end."""
    whole, start = np.sum([counts for _, counts in parts], axis=0), np.zeros(len(names))
    room = 0.12 * max([*whole, 1])
    for shade, counts in parts:
        drawn = ax.barh(range(len(names)), counts, left=start, height=0.62, color=shade)
        inside = [f"{n:,}" if room < n < total else "" for n, total in zip(counts, whole)]
        ax.bar_label(drawn, inside, label_type="center", size=SMALL, color=PAPER)
        start += counts
    ax.bar_label(drawn, [f"{total:,}" for total in whole], padding=5, size=SMALL, weight="bold")
    name_rows(ax, names)
    ax.set(xlim=(0, 9 * room), xticks=[])


def lines(ax: Axes, by: str, series: Sequence[tuple[str, pd.DataFrame, str]]) -> None:
    """The share of rows where a field is true at each value of `by`; a line for each (colour, rows, field)."""
    for index, (shade, rows, field) in enumerate(series):
        apart = 0.01 * (rows[by].max() - rows[by].min()) * (index - (len(series) - 1) / 2)  # intervals side by side
        found = {level + apart: share(group[field], group["entity"]) for level, group in rows.groupby(by)}
        width = 2.2 if shade == ACCENT else 1.5
        ax.plot([*found], [100 * s.value for s in found.values()], "-o", color=shade, lw=width, ms=5, zorder=2 + width)
        for x, interval in found.items():
            whisker(ax, x, interval, color=shade, alpha=0.75, zorder=2)
    ax.set(ylim=(-3, 103))


def curve(ax: Axes, table: pd.DataFrame, column: str, shade: str, file: str, unit: bool) -> None:
    """A column by step: points, running mean with its interval, means of first and last tenth; `unit`: from 0 to 1."""
    values = table.get(column, pd.Series(dtype=float)).dropna()
    if values.empty:
        text = f"{file} has no column\n{column}"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED)
        ax.set(xticks=[], yticks=[])
        return
    steps, tenth = table["step"][values.index], max(1, len(values) // 10)
    mean, error = running_mean(values)
    ax.plot(steps, values, "o", color=shade, ms=3, alpha=0.28, mew=0)
    ax.fill_between(steps, mean - error, mean + error, color=shade, alpha=0.14, lw=0)
    ax.plot(steps, mean, color=shade, lw=2)
    for place in (steps.head(tenth), steps.tail(tenth)):
        ax.plot([place.min(), place.max()], [values[place.index].mean()] * 2, color=INK, lw=2.4)
    ax.set_title(f"{values.head(tenth).mean():.2f} → {values.tail(tenth).mean():.2f}", loc="right", weight="normal")
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if unit:
        ax.set(ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    elif values.min() >= 0:
        ax.set_ylim(bottom=0)


def running_mean(values: Sequence[float]) -> tuple[pd.Series, pd.Series]:
    """Means over a centred window of about a tenth of the values, and 1.96 standard errors (0 for a window of one)."""
    window = pd.Series(values).rolling(2 * (max(1, len(values) // 10) // 2) + 1, center=True, min_periods=1)
    return window.mean(), 1.96 * window.sem().fillna(0.0)
