"""The house look of the figures and what they read: a run's CSV and JSON, never a model.

    chart = canvas(run, "Accuracy by workflow", "held-out questions", 3.2, "n = 600")
    axes = chart.panels(1, 3, bottom=0.7)
    bars(axes[0, 0], [Bar("RAG workflow", Interval(0.41, 0.37, 0.45, 600), SLATE)], percent=True)

All are 9 inches wide, which is 900 pixels on a page. Colours are told apart by the colour-blind; the accent belongs to
the trained agent alone. A shape that is drawn from a sample carries its 95 % interval.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmsr.stats import Interval, cluster_mean, proportion

INK, MUTED, FAINT, GRID, PAPER = "#1d2733", "#64707d", "#c3cbd3", "#e9edf1", "#ffffff"
ACCENT, TAN = "#c4510c", "#df9d6b"  # the trained agent, and the same agent before GRPO
NAVY, SLATE, MIST, PALE = "#2b567f", "#7a92a9", "#a9b6c2", "#dde2e7"
WIDTH, MARGIN = 9.0, 0.3  # inches
SMALL, TEXT, HEADING = 8.0, 9.0, 13.0  # points

LOOK = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": TEXT,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": TEXT,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
    "lines.solid_capstyle": "round",
}


class Chart(Figure):
    """A figure that shows itself in a notebook without pyplot, and places its panels in inches."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, dpi=150)
        width, height = self.get_size_inches()
        return file.getvalue(), {"width": round(100 * width), "height": round(100 * height)}

    def inches(self, x: float, y: float) -> tuple[float, float]:
        """A place, in inches from the left and from the top, as the figure's own fractions."""
        width, height = self.get_size_inches()
        return x / width, 1 - y / height

    def panels(
        self,
        rows: int,
        columns: int,
        *,
        left: float = MARGIN,
        right: float = MARGIN,
        top: float = 1.15,
        bottom: float = 0.7,
        across: float = 0.5,
        down: float = 0.7,
        widths: Sequence[float] | None = None,
    ) -> NDArray[np.object_]:
        """A grid of axes, (rows, columns), with margins and gaps in inches; `widths` are shares."""
        width, height = self.get_size_inches()
        cell_width = (width - left - right - across * (columns - 1)) / columns
        cell_height = (height - top - bottom - down * (rows - 1)) / rows
        grid = self.add_gridspec(
            rows,
            columns,
            left=left / width,
            right=1 - right / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=across / cell_width,
            hspace=down / cell_height,
            width_ratios=widths,
        )
        return grid.subplots(squeeze=False)


def canvas(run: Path, title: str, subtitle: str, height: float, note: str) -> Chart:
    """An empty chart with its title, one line on what is shown, and the run and the sample in small type."""
    chart = Chart(figsize=(WIDTH, height))
    FigureCanvasAgg(chart)
    chart.text(*chart.inches(MARGIN, 0.34), title, size=HEADING, weight="bold", va="center")
    chart.text(*chart.inches(MARGIN, 0.62), subtitle, size=TEXT, color=MUTED, va="center")
    source = f"Run {run.resolve().name}"
    chart.text(*chart.inches(MARGIN, height - 0.18), f"{source}  ·  {note}", size=SMALL, color=MUTED, va="center")
    return chart


def key(chart: Chart, entries: Sequence[tuple[str, str]], y: float = 0.9) -> None:
    """Coloured words in one line under the subtitle, for panels that share their colours."""
    x, renderer = MARGIN, chart.canvas.get_renderer()
    for words, colour in entries:
        chart.text(*chart.inches(x, y), "■", color=colour, va="center", size=TEXT)
        text = chart.text(*chart.inches(x + 0.16, y), words, color=INK, va="center", size=TEXT)
        x += 0.16 + text.get_window_extent(renderer).width / chart.dpi + 0.3


def saved(draw: Callable[[Path], Figure]) -> Callable[[Path], Figure]:
    """Draw in the house look and save as `<run>/figures/<name>.png`."""

    @functools.wraps(draw)
    def wrapper(run_dir: Path) -> Figure:
        with matplotlib.rc_context(LOOK):
            figure = draw(Path(run_dir))
            path = Path(run_dir) / "figures" / f"{draw.__name__}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=200, metadata={"Software": None})
        return figure

    return wrapper


# --- what a run wrote -----------------------------------------------------------------------------------------------


def need(path: Path, notebook: str) -> Path:
    """The path, if it is there. Raises FileNotFoundError saying which notebook writes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run notebook {notebook} first.")
    return path


def read_json(path: Path, notebook: str) -> dict:
    """A JSON object. Raises FileNotFoundError as `need` does."""
    return json.loads(need(path, notebook).read_text(encoding="utf-8"))


def read_rows(path: Path, notebook: str) -> list[dict]:
    """The rows of a JSONL file. Raises as `need` does, and ValueError where there are none."""
    rows = [json.loads(line) for line in need(path, notebook).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty: run notebook {notebook} again.")
    return rows


def read_columns(path: Path, notebook: str) -> dict[str, NDArray[np.float64]]:
    """A table of numbers by column; a cell that is empty or no number is NaN. Raises as `read_rows` does."""
    with need(path, notebook).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} is empty: run notebook {notebook} again.")
    return {name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name}


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")


class Metrics:
    """`metrics.json` of a run. Raises FileNotFoundError, naming the notebook that fills it, where there is none."""

    def __init__(self, run: Path, notebook: str):
        self.path, self.notebook = run / "metrics.json", notebook
        self._entries = read_json(self.path, notebook)

    def get(self, name: str) -> Interval | None:
        """The interval under that name, or None where it was not measured."""
        entry = self._entries.get(name)
        if entry is None or entry.get("value") is None:
            return None
        return Interval(entry["value"], entry.get("low"), entry.get("high"), entry.get("n"))

    def table(self, prefix: str, rows: Iterable[str], columns: Iterable[str]) -> dict[str, list[Interval | None]]:
        """Column → the intervals of `<prefix>/<row>/<column>`, row by row, None where one was not measured.

        Raises ValueError where no row has an accuracy: then the notebook has not run.
        """
        names = list(rows)
        found = {column: [self.get(f"{prefix}/{row}/{column}") for row in names] for column in columns}
        if not any(self.get(f"{prefix}/{row}/accuracy") for row in names):
            raise ValueError(f"{self.path} has no {prefix}/{names[0]}/accuracy: run notebook {self.notebook} first.")
        return found


def sample(intervals: Sequence[Interval | None]) -> str:
    """How many items are behind these intervals: "n = 600", or "n = 85 to 180" where they differ."""
    counts = sorted({i.n for i in intervals if i is not None and i.n is not None})
    if not counts:
        return "n unknown"
    return f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}"


def shares(rows: Sequence[dict], by: str, field: str) -> tuple[list[float], list[Interval]]:
    """The values of `by` in order, and the share of rows where `field` is true at each."""
    places = sorted({row[by] for row in rows})
    groups = [[row for row in rows if row[by] == place] for place in places]
    return places, [share(group, [row[field] for row in group]) for group in groups]


def share(rows: Sequence[dict], outcomes: Sequence[bool]) -> Interval:
    """The share of True, resampled by country as the run's metrics are; Wilson's where all outcomes are the same."""
    if len(set(outcomes)) == 1:
        return proportion(outcomes)
    countries = [row["question"]["entity"] if "question" in row else row.get("entity", row["id"]) for row in rows]
    return cluster_mean([float(outcome) for outcome in outcomes], countries, seed=0)


# --- shapes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One row of a panel of bars or dots."""

    label: str
    interval: Interval | None
    colour: str
    hollow: bool = False


def named(measured: Sequence[Interval | None], names: dict[str, tuple[str, str]]) -> list[Bar]:
    """Bars of what was measured, with their words and colours; what is drawn in ink is a bound, and hollow."""
    return [Bar(words, i, colour, colour == INK) for i, (words, colour) in zip(measured, names.values())]


def bars(ax: Axes, rows: Sequence[Bar], *, percent: bool, dots: bool = False, labels: bool = True) -> None:
    """Rows from top to bottom, each a bar (or a dot) from 0 with its interval and its value written beside it."""
    scale = 100 if percent else 1
    ends = [max(b.interval.value, b.interval.high or 0) * scale for b in rows if b.interval]
    limit = 100.0 if percent else max([*ends, 0.0]) or 1.0
    for y, row in enumerate(rows):
        if row.interval is None:
            ax.text(0.02 * limit, y, "not measured", color=MUTED, size=SMALL, va="center_baseline", style="italic")
            continue
        value = row.interval.value * scale
        if dots:
            face = PAPER if row.hollow else row.colour
            ax.plot([value], [y], "o", ms=6, mfc=face, mec=row.colour, mew=1.4, zorder=4, clip_on=False)
        else:
            style = {"facecolor": PAPER, "edgecolor": row.colour} if row.hollow else {"color": row.colour}
            ax.barh(y, value, height=0.62, linewidth=1.2, zorder=2, **style)
        end = max(value, _whisker(ax, row, y, scale, dots))
        text = f"{value:.1f}" if percent else f"{value:.2f}"
        strong = {"weight": "bold", "color": ACCENT} if row.colour == ACCENT else {"color": INK}
        beside = {"textcoords": "offset points", "va": "center_baseline", "size": SMALL, "zorder": 5}
        ax.annotate(text, (end, y), (8 if dots and end == value else 5, 0), **beside, **strong)
    ax.set(xlim=(0, limit * (1.32 if dots else 1.2)), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    ax.set_yticklabels([row.label for row in rows] if labels else [], color=INK, size=TEXT)
    for tick, row in zip(ax.get_yticklabels(), rows):
        if row.colour == ACCENT:
            tick.set(color=ACCENT, weight="bold")
    ax.set_xticks([0, 25, 50, 75, 100] if percent else ax.get_xticks()[ax.get_xticks() <= limit])
    ax.spines["bottom"].set_visible(False)
    ax.grid(axis="y", visible=False)


def _whisker(ax: Axes, row: Bar, y: float, scale: float, dots: bool) -> float:
    """Draw the row's interval; returns where it ends."""
    low, high = row.interval.low, row.interval.high
    if low is None or high is None:
        return 0.0
    colour = row.colour if dots or row.hollow else INK
    ax.plot([low * scale, high * scale], [y, y], color=colour, lw=1.5, zorder=3, solid_capstyle="butt")
    return high * scale


def line(ax: Axes, x: Sequence[float], intervals: Sequence[Interval], colour: str, strong: bool = False) -> None:
    """Points joined by a line, each with its interval, in per cent."""
    values = [100 * i.value for i in intervals]
    ax.plot(x, values, "-o", color=colour, lw=2.2 if strong else 1.5, ms=5, zorder=4 if strong else 3)
    for place, interval in zip(x, intervals):
        if interval.low is not None and interval.high is not None:
            ends = [100 * interval.low, 100 * interval.high]
            ax.plot([place, place], ends, color=colour, lw=1.2, alpha=0.75, zorder=2)


def end_labels(ax: Axes, x: float, labels: Sequence[tuple[str, float, str]], gap: float) -> None:
    """Name lines at their right ends: (words, height, colour); labels keep `gap` apart on the axis."""
    order = sorted(labels, key=lambda label: label[1])
    heights = spread([height for _, height, _ in order], gap, *ax.get_ylim())
    for (words, _, colour), height in zip(order, heights):
        weight = "bold" if colour == ACCENT else "normal"
        readable = MUTED if colour == MIST else colour
        ax.text(x, height, words, color=readable, va="center_baseline", size=SMALL, weight=weight)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted heights moved apart to at least `gap`, as little as possible, and kept within [low, high]."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap if placed else low))
    top = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], top)
        top = placed[index] - gap
    return placed
