"""Draw the house: `python figures/house.py` makes house.png of the package's own imports and of pyproject's layers.

A room is a module of the core or a package; its width is its lines. A room stands above all that it imports.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mmsr"
INK, MUTED, PAPER, CORE, SATELLITE, LAB = "#1d2733", "#64707d", "#ffffff", "#dde2e7", "#f3e3d6", "#c4510c"
WIDTH, ROW, GAP = 9.0, 0.42, 0.1  # inches
LINES = 620.0  # lines of code to an inch of a room's width
LEAST = 0.95  # inches that a name takes


def layers() -> list[list[str]]:
    """The floors from the top, as the contract in pyproject.toml holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in floor.split("|")] for floor in found]


def size(room: str) -> int:
    """Lines of a module or of a package."""
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else (PACKAGE / room).rglob("*.py")
    return sum(len(file.read_text(encoding="utf-8").split("\n")) - 1 for file in files)


def arrows() -> int:
    """Imports of one module by another within the package."""
    graph = grimp.build_graph("mmsr")
    return sum(len(graph.find_modules_directly_imported_by(module)) for module in graph.modules)


def draw() -> Figure:
    """One row a floor, satellites in another colour, lines of code under each name."""
    floors = layers()
    height = 1.1 + len(floors) * (ROW + GAP) + 0.35
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    ax.text(0.3, 0.4, "The house of mmsr", size=13, weight="bold", color=INK, va="center")
    told = "a room stands above all that it imports; its width is its lines of code"
    ax.text(0.3, 0.68, told, size=9, color=MUTED, va="center")
    y = 1.0
    for rooms in floors:
        widths = [max(LEAST, size(room) / LINES) for room in rooms]
        x = (WIDTH - sum(widths) - GAP * (len(rooms) - 1)) / 2
        for room, width in zip(rooms, widths):
            satellite = room in ("live", "runs", "show", "benchmarks", "gpu", "base")
            colour = LAB if room == "lab" else SATELLITE if satellite else CORE
            shape = "round,pad=0,rounding_size=0.06"
            ax.add_patch(FancyBboxPatch((x, y), width, ROW, boxstyle=shape, facecolor=colour, edgecolor="none"))
            words = PAPER if room == "lab" else INK
            name = room + "/" * (PACKAGE / room).is_dir()
            ax.text(x + width / 2, y + ROW * 0.38, name, size=9, color=words, ha="center", va="center", weight="bold")
            ax.text(x + width / 2, y + ROW * 0.76, f"{size(room):,}", size=7, color=words, ha="center", va="center")
            x += width + GAP
        y += ROW + GAP
    modules = len(list(PACKAGE.rglob("*.py")))
    total = sum(size(room) for rooms in floors for room in rooms)
    note = f"{total:,} lines in {modules} modules, {arrows()} imports, none upward  ·  grey: core, sand: satellites"
    ax.text(0.3, height - 0.2, note, size=8, color=MUTED, va="center")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("house.png"), dpi=200, metadata={"Software": None})
