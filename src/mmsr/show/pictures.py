"""Trajectories as pictures: the scene with the crop drawn in, the crop enlarged, the turns as coloured text.

    scenes(questions[:6])                                     # questions and their pictures
    draw_trajectory(scene.picture, trajectory, question)      # a figure
    gallery(rows[:4], Path("figures/gallery.png"))
    side_by_side(sft_row, grpo_row)                           # one question before and after GRPO

Rows are those of `eval/rows.jsonl`. Everything is laid out in inches from the top left corner, and text is wrapped by
its measured width, so that nothing overlaps whatever a policy wrote. What draws a part returns where it ends.
"""

from __future__ import annotations

import bisect
import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image

from mmsr.show.charts import Chart, save
from mmsr.show.look import ACCENT, GRID, INK, LOOK, MARGIN, MUTED, NAVY, RIGHT, VIOLET, WIDTH, WRONG, in_our_look, words
from mmsr.show.transcript import TAGS, Row, blocks, crop_box, crop_words, facts, outcome, picture_of
from mmsr.task import Asked

warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of what it lacks, the font draws a box
STYLES = {  # the colour of a tag, and how the text beside it is written
    "reason": (MUTED, {"color": MUTED, "style": "italic"}),
    "img_search": (ACCENT, {"color": ACCENT, "weight": "bold"}),
    "text_search": (NAVY, {"color": NAVY, "weight": "bold"}),
    "information": (VIOLET, {}),
    "answer": (INK, {"weight": "bold"}),
    "unread": (WRONG, {}),
    "error": (WRONG, {}),
}
OUTCOMES = {"right": RIGHT, "wrong": WRONG, "unscored": INK}
SIZE = 8.5  # points of text
LEADING = 0.0206  # inches of a line for each point
TAG_WIDTH, PAGE = 1.05, WIDTH - 2 * MARGIN
MOST_LINES, LONGEST = 6, 500  # lines of one text, characters that a line could hold


@functools.lru_cache(maxsize=20_000)
def _width(text: str, size: float, weight: str) -> float:
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
        room = width - _width(" …", size, weight)
        lines = [*lines[: most - 1], f"{_beginning(lines[most - 1], room, size, weight)} …"]
    return lines


def _beginning(text: str, width: float, size: float, weight: str) -> str:
    """The longest beginning of a text that fits, up to the end of a word where one ends in it."""
    fit = max(1, bisect.bisect(range(1, len(text) + 1), width, key=lambda n: _width(text[:n], size, weight)))
    space = text.rfind(" ", 0, fit + 1) if fit < len(text) else -1
    return text[: space if space > 0 else fit].rstrip()


class Sheet:
    """A page that grows downwards, in inches; it is cut to its height when it is done."""

    def __init__(self) -> None:
        self.figure = Chart(figsize=(WIDTH, 1))
        self.ax = self.figure.add_axes((0, 0, 1, 1))

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
        self.ax.add_patch(Rectangle((x, y), width, height, fill=False, zorder=3, **style))

    def cut(self, height: float) -> Figure:
        """The finished page."""
        self.figure.set_size_inches(WIDTH, height)
        self.ax.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
        self.ax.axis("off")
        return self.figure


def _heading(sheet: Sheet, y: float, row: Row) -> float:
    """The question, and what kind of row it is."""
    text = (row.get("question") or {}).get("text") or ""
    y = sheet.text(MARGIN, y, text, PAGE, 3, size=11.5, weight="bold") + 0.03
    return sheet.text(MARGIN, y, " · ".join(facts(row)), PAGE, 2, color=MUTED) + 0.13


def _scene(sheet: Sheet, x: float, y: float, width: float, picture: Image.Image, row: Row) -> float:
    """The scene with the searched box drawn in, and the gold one dashed."""
    box, scale = crop_box(row["trajectory"], picture), width / picture.width
    gold = (row.get("question") or {}).get("box") if box else None
    dashed, solid = {"color": INK, "lw": 1, "ls": (0, (3, 2))}, {"color": ACCENT, "lw": 2}
    for shown, halo, style in ((gold, 2.2, dashed), (box, 3.6, solid)):
        if shown:
            x1, y1, x2, y2 = (scale * v for v in shown)
            sheet.frame(x + x1, y + y1, x2 - x1, y2 - y1, color="white", lw=halo)
            sheet.frame(x + x1, y + y1, x2 - x1, y2 - y1, **style)
    return sheet.image(x, y, width, picture)


def _crop(sheet: Sheet, x: float, y: float, width: float, most: float, picture: Image.Image, row: Row) -> float:
    """The searched crop, enlarged to at most `width` × `most` and framed, with a line of words below it."""
    box = crop_box(row["trajectory"], picture)
    if box and box != (0, 0, *picture.size):
        crop = picture.crop(box)
        wide = min(width, most * crop.width / crop.height)
        end = sheet.image(x, y, wide, crop)
        sheet.frame(x, y, wide, end - y, color=ACCENT, lw=2)
        y = end + 0.06
    return sheet.text(x, y, crop_words(box, picture), width, color=MUTED, size=SIZE - 0.5)


def _episode(sheet: Sheet, x: float, y: float, width: float, row: Row) -> float:
    """The answer against the gold one, and the turns as tag and text, one below the other."""
    end, turns = outcome(row), row["trajectory"].get("turns") or []
    mark, indent = ("", 0.0) if end.name == "unscored" else (end.mark, 0.22)
    style = {"color": OUTCOMES[end.name], "weight": "bold", "size": SIZE + 1.5}
    sheet.text(x, y, mark, width, **style)
    y = sheet.text(x + indent, y, end.answer or "no answer", width - indent, 2, **style)
    y = sheet.text(x + indent, y, f"gold: {end.gold}" if end.gold else "", width - indent, 2, color=MUTED) + 0.13
    for turn in turns:
        for block in blocks(turn):
            if block.kind != "prompt":
                shade, style = STYLES[block.kind]
                sheet.text(x, y, TAGS[block.kind], TAG_WIDTH, color=shade, weight="bold", size=SIZE - 0.5)
                y = sheet.text(x + TAG_WIDTH, y, block.text, width - TAG_WIDTH, **style) + 0.06
        y += 0.1
    return y if turns else sheet.text(x, y, "no turns", width, color=MUTED, style="italic")


def _cards(rows: Iterable[tuple[Image.Image, Row]]) -> Figure:
    """Rows one below the other, with a rule between two: pictures on the left, turns on the right."""
    sheet, side, end = Sheet(), 2.6, 0.0
    x = MARGIN + side + 0.35
    for picture, row in rows:
        if end:
            sheet.ax.plot([MARGIN, WIDTH - MARGIN], [end + 0.2] * 2, color=GRID, lw=1)
        y = _heading(sheet, end + 0.4 if end else MARGIN, row)
        left = _scene(sheet, MARGIN, y, side, picture, row) + 0.12
        left = _crop(sheet, MARGIN, left, side, 1.6, picture, row)
        end = max(left, _episode(sheet, x, y, WIDTH - MARGIN - x, row))
    return sheet.cut(end + MARGIN)


@in_our_look
def scenes(questions: Sequence[Asked]) -> Figure:
    """Questions, three side by side: the picture, the type, what is asked, the gold answer."""
    sheet, columns, gap, y = Sheet(), 3, 0.35, MARGIN
    width = (PAGE - (columns - 1) * gap) / columns
    for start in range(0, len(questions), columns):
        ends = []
        for column, question in enumerate(questions[start : start + columns]):
            x = MARGIN + column * (width + gap)
            end = sheet.image(x, y, width, question.draw()) + 0.1
            end = sheet.text(x, end, words(question.type), width, color=MUTED)
            end = sheet.text(x, end, question.text, width, weight="bold")
            ends.append(sheet.text(x, end, question.answer, width, color=RIGHT, weight="bold"))
        y = max(ends) + gap
    return sheet.cut(y)


@in_our_look
def draw_trajectory(picture: Image.Image, trajectory: Row, question: Asked | Row) -> Figure:
    """One episode (`Trajectory.as_dict()`): the scene and the crop, the turns, and the answer against the gold one.

    Boxes are in the picture's pixels. Of a question's dictionary, `text` is enough.
    """
    asked = question if isinstance(question, Mapping) else question.as_dict()
    return _cards([(picture, {"trajectory": trajectory, "question": asked})])


@in_our_look
def gallery(rows: Sequence[Row], path: Path) -> Figure:
    """Several rows of `eval/rows.jsonl` one below the other, saved as PNG at `path`; ValueError where there is none."""
    if not rows:
        raise ValueError("there are no trajectories to show: give at least one row of eval/rows.jsonl")
    figure = _cards((picture_of(row), row) for row in rows)
    save(figure, path)
    return figure


@in_our_look
def side_by_side(before: Row, after: Row) -> Figure:
    """Two rows on the same question next to each other, such as after SFT and after GRPO.

    Raises ValueError where they are about different questions.
    """
    first, second = before["question"]["id"], after["question"]["id"]
    if first != second:
        raise ValueError(f"rows are about {first} and {second}: give one question's")
    sheet, gap, ends = Sheet(), 0.4, []
    top = _heading(sheet, MARGIN, {"question": before["question"]})
    width = (PAGE - gap) / 2
    half = (width - 0.2) / 2
    for x, row in ((MARGIN, before), (MARGIN + width + gap, after)):
        picture, shade = picture_of(row), ACCENT if row["workflow"] == "grpo" else INK
        y = sheet.text(x, top, words(row["workflow"]), width, size=10, weight="bold", color=shade) + 0.07
        end = _scene(sheet, x, y, half, picture, row)
        end = max(end, _crop(sheet, x + half + 0.2, y, half, end - y - 0.25, picture, row))
        ends.append(_episode(sheet, x, end + 0.15, width, row))
    return sheet.cut(max(ends) + MARGIN)
