"""How things look and what they are called: the colours, the style of all figures, words for the core's keys.

A key (of a workflow, a crop, a question's type) comes from the core, its word from `assets/show/words.toml`. Colours
can be told apart by the colour-blind; the accent is the trained agent's alone, and what is drawn in ink is a bound.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import matplotlib

ASSETS = Path(__file__).parents[1] / "assets" / "show"
STYLE = str(ASSETS / "mmsr.mplstyle")
LOOK = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
in_our_look = matplotlib.rc_context(fname=STYLE)  # a decorator; nobody's own matplotlibrc changes a figure

INK, MUTED, GRID, PAPER = (LOOK[k] for k in ("text.color", "axes.labelcolor", "grid.color", "figure.facecolor"))
TEXT, SMALL = LOOK["font.size"], LOOK["axes.labelsize"]  # points
ACCENT, TAN = "#c4510c", "#df9d6b"  # the trained agent, and the same agent before GRPO
NAVY, SLATE, MIST, PALE = "#2b567f", "#7a92a9", "#a9b6c2", "#dde2e7"
RIGHT, WRONG = "#1f6f54", "#a3203a"
WIDTH, MARGIN = 9.0, 0.3  # inches; 9 are 900 pixels on a page

_TABLES = tomllib.loads((ASSETS / "words.toml").read_text(encoding="utf-8"))
WORDS, SHORT, COLOURS, BLOCKS, ROAD = (_TABLES[name] for name in ("words", "short", "colours", "blocks", "road"))
TAGS = {kind: block["tag"] for kind, block in BLOCKS.items()}


def words(key: str) -> str:
    """The word for a workflow, a crop or a type of question; most types are called by their keys."""
    return WORDS.get(key) or (key[:1].upper() + key[1:]).replace("_", " ")


def colour(key: str) -> str:
    """The colour of a workflow or a crop; all but a few are slate."""
    return COLOURS.get(key, SLATE)
