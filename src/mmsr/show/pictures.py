"""Trajectories as pictures: the scene with the crop drawn in, the crop enlarged, the turns as coloured text.

    scenes(questions[:6], load_world())                       # questions and their pictures
    draw_trajectory(scene.picture, trajectory, question)      # a figure
    gallery(rows[:4], load_world(), Path("figures/gallery.png"))
    side_by_side(sft_row, grpo_row, load_world())             # one question before and after GRPO

Rows are those of `eval/rows.jsonl`. Everything is laid out in inches from the top left corner, and text is wrapped by
its measured width, so that nothing overlaps whatever a policy wrote.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from mmsr.show.charts import ACCENT, GRID, INK, LOOK, MARGIN, MUTED, NAVY, WIDTH, Chart
from mmsr.show.transcript import TAGS, TYPES, WORKFLOWS, answer_of, blocks, crop_box, golds, is_right
from mmsr.tools.picture import read_picture
from mmsr.world.questions import Question
from mmsr.world.snapshot import World

COLOURS = {
    "reason": MUTED,
    "img_search": ACCENT,
    "text_search": NAVY,
    "information": "#6b5a8e",
    "answer": INK,
    "unread": "#a3203a",
    "error": "#a3203a",
}
SIZE, LINE = 8.5, 0.175  # points of text, inches of a line
TAG_WIDTH, GAP = 1.05, 0.22
MOST_LINES = 6  # of one block
RIGHT, WRONG = "#1f6f54", "#a3203a"


class Sheet:
    """A growing page: what is put on it is kept, and painted once its height is known."""

    def __init__(self) -> None:
        self._paint: list[Callable[[Axes], None]] = []

    def text(self, x: float, y: float, words: str, **style) -> None:
        style = {"size": SIZE, "va": "baseline"} | style
        self._paint.append(lambda ax: ax.text(x, y, words, **style))

    def image(self, x: float, y: float, width: float, picture: Image.Image) -> float:
        """Put a picture at this width; returns its height."""
        height = width * picture.height / picture.width
        extent = (x, x + width, y + height, y)
        self._paint.append(lambda ax: ax.imshow(picture, extent=extent, interpolation="lanczos", zorder=1))
        return height

    def box(self, x: float, y: float, width: float, height: float, **style) -> None:
        style = {"fill": False, "zorder": 3} | style
        self._paint.append(lambda ax: ax.add_patch(Rectangle((x, y), width, height, **style)))

    def rule(self, y: float) -> None:
        self._paint.append(lambda ax: ax.plot([MARGIN, WIDTH - MARGIN], [y, y], color=GRID, lw=1))

    def figure(self, height: float) -> Figure:
        """The finished page."""
        with matplotlib.rc_context(LOOK), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            chart = Chart(figsize=(WIDTH, height))
            FigureCanvasAgg(chart)
            ax = chart.add_axes((0, 0, 1, 1))
            for paint in self._paint:
                paint(ax)
            ax.set(xlim=(0, WIDTH), ylim=(height, 0))
            ax.axis("off")
        return chart


# --- text -----------------------------------------------------------------------------------------------------------


@functools.cache
def _renderer():
    return FigureCanvasAgg(Figure(dpi=100)).get_renderer()


@functools.lru_cache(maxsize=20_000)
def _measure(text: str, size: float, weight: str = "normal") -> float:
    """The width of a line in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return _renderer().get_text_width_height_descent(text, font, False)[0] / 100


def wrap(text: str, width: float, size: float = SIZE, most: int = MOST_LINES, weight: str = "normal") -> list[str]:
    """Lines of at most `width` inches; words that are longer are cut; past `most` lines the last ends in "…"."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            for piece in _pieces(word, width, size, weight):
                joined = f"{line} {piece}" if line else piece
                if _measure(joined, size, weight) <= width:
                    line = joined
                else:
                    lines.append(line)
                    line = piece
            if len(lines) > most:
                break
        if line:
            lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and _measure(f"{last} …", size, weight) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip()} …"]
    return lines


def _pieces(word: str, width: float, size: float, weight: str) -> list[str]:
    """The word, or where it is wider than the line, its parts that are not."""
    word = "".join(c if c.isprintable() else "·" for c in word[:500])
    pieces, piece = [], ""
    for c in word if _measure(word, size, weight) > width else ():
        if piece and _measure(piece + c, size, weight) > width:
            pieces.append(piece)
            piece = ""
        piece += c
    return [*pieces, piece] if pieces or piece else [word]


# --- parts of a card ------------------------------------------------------------------------------------------------


def _turns(sheet: Sheet, x: float, y: float, width: float, trajectory: Mapping) -> float:
    """The turns as tag and text, one below the other; returns where they end."""
    for turn in trajectory.get("turns") or []:
        for block in blocks(turn):
            if block.kind == "prompt":
                continue
            colour = COLOURS[block.kind]
            sheet.text(x, y + LINE * 0.75, TAGS[block.kind], color=colour, weight="bold", size=SIZE - 0.5)
            style = {"style": "italic", "color": MUTED} if block.kind == "reason" else {"color": INK}
            if block.kind in {"answer", "img_search", "text_search"}:
                style = {"color": colour, "weight": "bold"}
            for words in wrap(block.text, width - TAG_WIDTH, weight=style.get("weight", "normal")):
                sheet.text(x + TAG_WIDTH, y + LINE * 0.75, words, **style)
                y += LINE
            y += 0.06
        y += 0.1
    if not trajectory.get("turns"):
        sheet.text(x, y + LINE * 0.75, "no turns", color=MUTED, style="italic")
        y += LINE
    return y


def _verdict(sheet: Sheet, x: float, y: float, width: float, row: Mapping) -> float:
    """The answer against the gold one, with its mark; returns where it ends."""
    right, answer = is_right(row), answer_of(row) or "no answer"
    accepted = golds(row.get("question") or {})
    mark, colour = {True: ("✓", RIGHT), False: ("✗", WRONG), None: ("", INK)}[right]
    style = {"color": colour, "weight": "bold", "size": SIZE + 1.5}
    sheet.text(x, y + 0.15, mark, **style)
    indent = 0.22 if mark else 0.0
    for words in wrap(answer, width - indent, SIZE + 1.5, 2, "bold"):
        sheet.text(x + indent, y + 0.15, words, **style)
        y += 0.2
    if accepted and not right:
        for words in wrap(f"gold: {accepted[0]}", width, most=2):
            sheet.text(x + indent, y + LINE * 0.75, words, color=MUTED)
            y += LINE
    return y


def _scene(sheet: Sheet, x: float, y: float, width: float, picture: Image.Image, row: Mapping) -> float:
    """The scene with the crop drawn in (and the gold box dashed); returns its height."""
    height = sheet.image(x, y, width, picture)
    scale, box = width / picture.width, crop_box(row["trajectory"], picture)
    gold = (row.get("question") or {}).get("box")
    if box and gold:
        x1, y1, x2, y2 = gold
        place = (x + x1 * scale, y + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale)
        sheet.box(*place, edgecolor="white", linewidth=2.2, alpha=0.9)
        sheet.box(*place, edgecolor=INK, linewidth=1, linestyle=(0, (3, 2)))
    if box:
        x1, y1, x2, y2 = box
        place = (x + x1 * scale, y + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale)
        sheet.box(*place, edgecolor="white", linewidth=3.6)
        sheet.box(*place, edgecolor=ACCENT, linewidth=2)
    return height


def _crop(sheet: Sheet, x: float, y: float, width: float, most: float, picture: Image.Image, row: Mapping) -> float:
    """The crop enlarged to fit, framed in the accent; returns the height taken, a line of words below it included."""
    box = crop_box(row["trajectory"], picture)
    if box is None:
        sheet.text(x, y + LINE * 0.75, "no picture was searched", color=MUTED, style="italic")
        return LINE
    crop = picture.crop(box)
    width = min(width, most * crop.width / crop.height)
    height = sheet.image(x, y, width, crop)
    sheet.box(x, y, width, height, edgecolor=ACCENT, linewidth=2)
    whole = box == (0, 0, picture.width, picture.height)
    words = "searched: the whole picture" if whole else f"searched: crop of {crop.width} × {crop.height} px"
    sheet.text(x, y + height + 0.19, words, color=MUTED, size=SIZE - 0.5)
    return height + 0.25


def _heading(sheet: Sheet, y: float, row: Mapping) -> float:
    """The question, and what kind of row it is; returns where it ends."""
    question = row.get("question") or {}
    for words in wrap(question.get("text", ""), WIDTH - 2 * MARGIN, 11.5, 3, "bold"):
        sheet.text(MARGIN, y + 0.18, words, size=11.5, weight="bold", color=INK)
        y += 0.24
    kind = TYPES.get(question.get("type", ""), "")
    known = (WORKFLOWS.get(row.get("workflow", ""), ""), kind, question.get("taxonomy", ""))
    facts = list(dict.fromkeys(fact for fact in known if fact))
    if facts:
        sheet.text(MARGIN, y + 0.15, "  ·  ".join(facts), color=MUTED, size=SIZE)
        y += 0.24
    return y + 0.1


def _card(sheet: Sheet, y: float, picture: Image.Image, row: Mapping) -> float:
    """One row at full width: pictures on the left, turns on the right; returns where it ends."""
    y = _heading(sheet, y, row)
    side = 2.6
    left = y + _scene(sheet, MARGIN, y, side, picture, row) + 0.12
    left += _crop(sheet, MARGIN, left, side, 1.6, picture, row)
    x, width = MARGIN + side + 0.35, WIDTH - 2 * MARGIN - side - 0.35
    right = _verdict(sheet, x, y, width, row) + 0.14
    right = _turns(sheet, x, right, width, row["trajectory"])
    return max(left, right)


# --- pictures -------------------------------------------------------------------------------------------------------


def scenes(questions: Sequence[Question], world: World, columns: int = 3) -> Figure:
    """Questions side by side: the picture, the type, what is asked, the gold answer."""
    sheet, gap, y = Sheet(), 0.35, MARGIN
    width = (WIDTH - 2 * MARGIN - (columns - 1) * gap) / columns
    for start in range(0, len(questions), columns):
        ends = []
        for column, question in enumerate(questions[start : start + columns]):
            x = MARGIN + column * (width + gap)
            end = y + sheet.image(x, y, width, question.scene(world).picture) + 0.1
            parts = (
                (TYPES[question.type], {"color": MUTED}),
                (question.text, {"color": INK, "weight": "bold"}),
                (question.answer, {"color": RIGHT, "weight": "bold"}),
            )
            for text, style in parts:
                for words in wrap(text, width, weight=style.get("weight", "normal")):
                    sheet.text(x, end + LINE * 0.75, words, **style)
                    end += LINE
            ends.append(end)
        y = max(ends) + gap
    return sheet.figure(y)


def draw_trajectory(picture: Image.Image, trajectory: Mapping, question: Question | Mapping) -> Figure:
    """One episode: the scene with the crop, the crop enlarged, the turns, and right or wrong against the gold answer.

    Args:
        picture: What the episode was about; boxes are in its pixels.
        trajectory: `Trajectory.as_dict()`.
        question: A Question or its dictionary; of another dictionary, `text` is enough.
    """
    asked = question.as_dict() if isinstance(question, Question) else dict(question)
    sheet = Sheet()
    end = _card(sheet, MARGIN, picture, {"trajectory": trajectory, "question": asked})
    return sheet.figure(end + MARGIN)


def gallery(rows: Sequence[Mapping], world: World, path: Path) -> Figure:
    """Several rows of `eval/rows.jsonl` one below the other, saved as PNG at `path`; ValueError where there is none."""
    if not rows:
        raise ValueError("there are no trajectories to show: give at least one row of eval/rows.jsonl")
    sheet, y = Sheet(), MARGIN
    for index, row in enumerate(rows):
        if index:
            sheet.rule(y + 0.2)
            y += 0.4
        y = _card(sheet, y, picture_of(row, world), row)
    figure = sheet.figure(y + MARGIN)
    save(figure, path)
    return figure


def side_by_side(before: Mapping, after: Mapping, world: World) -> Figure:
    """Two rows on the same question next to each other, such as after SFT and after GRPO.

    Raises ValueError where they are about different questions.
    """
    if before["question"]["id"] != after["question"]["id"]:
        raise ValueError(
            f"rows are about {before['question']['id']} and {after['question']['id']}: give one question's"
        )
    sheet, gap = Sheet(), 0.4
    top = _heading(sheet, MARGIN, {"question": before["question"]})
    width, ends = (WIDTH - 2 * MARGIN - gap) / 2, []
    for x, row in ((MARGIN, before), (MARGIN + width + gap, after)):
        picture = picture_of(row, world)
        colour = ACCENT if row["workflow"] == "grpo" else INK
        sheet.text(x, top + 0.15, WORKFLOWS.get(row["workflow"], row["workflow"]), weight="bold", size=10, color=colour)
        y, half = top + 0.28, (width - 0.2) / 2
        scene = _scene(sheet, x, y, half, picture, row)
        crop = _crop(sheet, x + half + 0.2, y, half, scene - 0.25, picture, row)
        y = _verdict(sheet, x, y + max(scene, crop) + 0.15, width, row) + 0.12
        ends.append(_turns(sheet, x, y, width, row["trajectory"]))
    return sheet.figure(max(ends) + MARGIN)


def picture_of(row: Mapping, world: World) -> Image.Image:
    """The scene of a row's question, redrawn from its seed; of a benchmark's question the picture's file."""
    if "picture" in row["question"]:
        return read_picture(Path(row["question"]["picture"]).read_bytes())
    return Question.from_dict(row["question"]).scene(world).picture


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=200, metadata={"Software": None})
