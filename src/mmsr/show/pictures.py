"""Trajectories as pictures: the scene with the crop drawn in, the crop enlarged, the turns as coloured text.

    gallery(rows[:4], Path("figures/gallery.png"))
    side_by_side(sft_row, grpo_row)                 # one question before and after GRPO

Rows are those of `eval/rows.jsonl`. Everything is laid out in inches from the top left corner, and text is wrapped by
its measured width, so that nothing overlaps whatever a policy wrote. What draws a part returns where it ends.
"""

from __future__ import annotations

import bisect
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from mmsr.show.charts import Chart, save
from mmsr.show.look import ACCENT, BLOCKS, INK, LOOK, MARGIN, MUTED, RIGHT, WIDTH, WRONG, in_our_look, words
from mmsr.show.transcript import NO_ROWS, Row, blocks, crop_box, crop_words, facts, outcome, picture_of
from mmsr.task import Asked

warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # for what it lacks, the font draws a box
OUTCOMES = {"right": RIGHT, "wrong": WRONG, "unscored": INK}
SIZE, LEADING = 8.5, 0.0206  # points of text; inches of a line for each point
TAG_WIDTH, GAP, PAGE = 1.15, 0.4, WIDTH - 2 * MARGIN  # inches
MOST_LINES, LONGEST = 6, 500  # lines of one text, characters that a line could hold


@functools.lru_cache(maxsize=20_000)
def text_width(text: str, size: float, weight: str) -> float:
    """The width of a line in inches."""
    font = get_font(findfont(FontProperties(family=LOOK["font.family"], weight=weight)))
    font.set_size(size, 100)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 100


def wrap(text: str, width: float, size: float = SIZE, most: int = MOST_LINES, weight: str = "normal") -> list[str]:
    """Lines of at most `width` inches; words that are longer are cut; past `most` lines the last ends in "…"."""
    lines: list[str] = []
    for paragraph in "".join(c if c.isprintable() or c.isspace() else "·" for c in text).splitlines():
        rest = " ".join(paragraph.split())
        while rest and len(lines) <= most:
            lines.append(_beginning(rest[:LONGEST], width, size, weight))
            rest = rest[len(lines[-1]) :].lstrip()
    if len(lines) > most:
        room = width - text_width(" …", size, weight)
        lines = [*lines[: most - 1], f"{_beginning(lines[most - 1], room, size, weight)} …"]
    return lines


def _beginning(text: str, width: float, size: float, weight: str) -> str:
    """The longest beginning of a text that fits, up to the end of a word where one ends in it."""
    fit = max(1, bisect.bisect(range(1, len(text) + 1), width, key=lambda n: text_width(text[:n], size, weight)))
    space = text.rfind(" ", 0, fit + 1) if fit < len(text) else -1
    return text[: space if space > 0 else fit].rstrip()


class Sheet:
    """A page that grows downwards, in inches; `cut` ends it."""

    def __init__(self) -> None:
        self.figure = Chart(figsize=(WIDTH, 1))
        self.ax = self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])

    def text(self, x: float, y: float, text: str, width: float, most: int = MOST_LINES, **style) -> float:
        """Wrapped text with its top at y."""
        style = {"size": SIZE} | style
        height = LEADING * style["size"]
        for line in wrap(text, width, style["size"], most, style.get("weight", "normal")):
            self.ax.text(x, y + 0.75 * height, line, va="baseline", **style)
            y += height
        return y

    def image(self, x: float, y: float, width: float, picture: Image.Image) -> float:
        """A picture at this width."""
        end = y + width * picture.height / picture.width
        self.ax.imshow(picture, extent=(x, x + width, end, y), interpolation="lanczos", zorder=1)
        return end

    def frame(self, x: float, y: float, width: float, height: float, **style) -> None:
        """A box with a light edge, so that it is seen on any picture."""
        halo = [withStroke(linewidth=style["lw"] + 1.4, foreground="white")]
        self.ax.add_patch(Rectangle((x, y), width, height, fill=False, path_effects=halo, zorder=3, **style))

    def cut(self, y: float) -> Figure:
        """The page down to y."""
        self.figure.set_size_inches(WIDTH, y)
        self.ax.set(xlim=(0, WIDTH), ylim=(y, 0), aspect="auto")
        return self.figure


def _pictures(sheet: Sheet, x: float, y: float, width: float, picture: Image.Image, row: Row) -> float:
    """The scene with the searched box drawn in, the gold one dashed; beside it the crop, enlarged, with its words."""
    box, side = crop_box(row["trajectory"], picture), min((width - GAP / 2) / 2, 2.6)
    end, scale, beside = sheet.image(x, y, side, picture), side / picture.width, x + side + GAP / 2
    gold = row["question"].get("box") if box else None
    for shown, style in ((gold, {"color": INK, "lw": 1, "ls": (0, (3, 2))}), (box, {"color": ACCENT, "lw": 2})):
        if shown:
            x1, y1, x2, y2 = (scale * v for v in shown)
            sheet.frame(x + x1, y + y1, x2 - x1, y2 - y1, **style)
    if box and box != (0, 0, *picture.size):
        crop = picture.crop(box)
        wide = min(side, (end - y - 0.25) * crop.width / crop.height)
        below = sheet.image(beside, y, wide, crop)
        sheet.frame(beside, y, wide, below - y, color=ACCENT, lw=2)
        y = below + 0.06
    return max(end, sheet.text(beside, y, crop_words(box, picture), side, color=MUTED, size=SIZE - 0.5))


def _episode(sheet: Sheet, x: float, y: float, width: float, row: Row) -> float:
    """The answer against the gold one, and the turns as tag and text, one below the other."""
    end, turns = outcome(row), row["trajectory"].get("turns") or []
    style = {"color": OUTCOMES[end.name], "weight": "bold", "size": SIZE + 1.5}
    y = sheet.text(x, y, f"{end.mark} {end.answer or 'no answer'}", width, 2, **style)
    y = sheet.text(x, y, f"gold: {end.gold}" if end.gold else "", width, 2, color=MUTED) + 0.13
    for turn in turns:
        for block in blocks(turn):
            if block.kind != "prompt":
                look = BLOCKS[block.kind]
                sheet.text(x, y, look["tag"], TAG_WIDTH, color=look["shade"], weight="bold", size=SIZE - 0.5)
                y = sheet.text(x + TAG_WIDTH, y, block.text, width - TAG_WIDTH, **look["text"]) + 0.06
        y += 0.1
    return y if turns else sheet.text(x, y, "no turns", width, color=MUTED, style="italic")


def _card(sheet: Sheet, x: float, y: float, width: float, shown: tuple[Image.Image, Row]) -> float:
    """The question and what kind of row it is, the scene beside the crop, the episode under them."""
    picture, row = shown
    y = sheet.text(x, y, row["question"]["text"], width, 3, size=11, weight="bold") + 0.03
    y = sheet.text(x, y, " · ".join(facts(row)), width, 2, color=MUTED) + 0.13
    y = _pictures(sheet, x, y, width, picture, row) + 0.15
    return _episode(sheet, x, y, width, row)


def _asked(sheet: Sheet, x: float, y: float, width: float, question: Asked) -> float:
    """A question's picture, its type, what is asked, the gold answer."""
    y = sheet.image(x, y, width, question.draw()) + 0.1
    y = sheet.text(x, y, words(question.type), width, color=MUTED)
    y = sheet.text(x, y, question.text, width, weight="bold")
    return sheet.text(x, y, question.answer, width, color=RIGHT, weight="bold")


def _grid(draw: Callable[..., float], items: Sequence, columns: int) -> Figure:
    """Items drawn in columns, row by row."""
    sheet, y = Sheet(), MARGIN
    width = (PAGE - (columns - 1) * GAP) / columns
    for start in range(0, len(items), columns):
        places = enumerate(items[start : start + columns])
        y = GAP + max(draw(sheet, MARGIN + column * (width + GAP), y, width, item) for column, item in places)
    return sheet.cut(y)


@in_our_look
def scenes(questions: Sequence[Asked]) -> Figure:
    """Questions, three side by side: the picture, the type, what is asked, the gold answer."""
    return _grid(_asked, questions, 3)


@in_our_look
def draw_trajectory(picture: Image.Image, trajectory: Row, question: Asked) -> Figure:
    """One episode (`Trajectory.as_dict()`): the scene and the crop, the turns, and the answer against the gold one."""
    return _grid(_card, [(picture, {"trajectory": trajectory, "question": question.as_dict()})], 1)


@in_our_look
def gallery(rows: Sequence[Row], path: Path) -> Figure:
    """Rows of `eval/rows.jsonl`, two side by side, saved as PNG at `path`; ValueError where there is none."""
    if not rows:
        raise ValueError(NO_ROWS)
    figure = _grid(_card, [(picture_of(row), row) for row in rows], 2)
    save(figure, path)
    return figure


@in_our_look
def side_by_side(before: Row, after: Row) -> Figure:
    """Two rows on the same question, such as after SFT and after GRPO; ValueError where they are on different ones."""
    first, second = before["question"]["id"], after["question"]["id"]
    if first != second:
        raise ValueError(f"rows are about {first} and {second}: give two rows on one question")
    return _grid(_card, [(picture_of(row), row) for row in (before, after)], 2)
