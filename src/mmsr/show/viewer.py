"""The trajectory viewer: one self-contained HTML page, and its cards within a notebook.

    html_page(rows, Path("trajectories.html"))      # rows of eval/rows.jsonl, all workflows together
    html_page([{"trajectory": t, "question": {"text": "…"}}], path, [picture])       # any picture
    browser(rows)                                   # the same rows in a notebook's cell, one card at a time

The template, its styles and its one script are `assets/show/viewer*`. Everything in a trajectory comes from a policy or
from the web, so the template escapes all of it, addresses become links only where they are http, and the page's content
policy lets the script it came with run and nothing load. A card is text until it is shown, so thousands open at once.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from ipywidgets import HTML, Dropdown, HBox, Layout, Select, VBox
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from mmsr.files import write_whole
from mmsr.results import WORKFLOWS
from mmsr.show import transcript
from mmsr.show.look import ASSETS, SHORT, TAGS, words
from mmsr.show.transcript import NO_ROWS, Row, outcome, picture_of
from mmsr.tools.picture import picture_key
from mmsr.world.questions import TYPES

CARD_STYLE, PAGE_STYLE, SCRIPT = (
    (ASSETS / name).read_text(encoding="utf-8") for name in ("viewer_card.css", "viewer_page.css", "viewer.js")
)
ENVIRONMENT = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
NAMES = {"read": transcript, "words": words, "short": SHORT, "tags": TAGS}
TEMPLATE = ENVIRONMENT.get_template("viewer.html", globals=NAMES)


def trajectory_html(row: Row, picture: Image.Image) -> str:
    """One row as HTML with its own style, safe to show anywhere; boxes are in the picture's pixels."""
    style = f"--picture:url({data_url(picture)})"
    return f"<style>{CARD_STYLE}</style>{TEMPLATE.module.card(row, picture, style=style)}"


def data_url(picture: Image.Image) -> str:
    """The picture as a WebP data URL, its longer side at most 640 pixels."""
    small = picture.convert("RGB")
    small.thumbnail((640, 640))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def html_page(rows: Sequence[Row], path: Path, pictures: Sequence[Image.Image] = ()) -> Path:
    """Write the page of rows and their pictures, one each; without pictures the scenes are redrawn. Returns the path.

    One row is its card alone, more have a list, filters and two episodes side by side; a picture is embedded once,
    whatever the number of workflows. Raises ValueError where there are no rows.
    """
    if not rows:
        raise ValueError(NO_ROWS)
    html = TEMPLATE.render(
        rows=rows,
        cards=_cards(rows, pictures or map(picture_of, rows)),
        workflows=_choices((row.get("workflow") for row in rows), WORKFLOWS),
        types=_choices(((row.get("question") or {}).get("type") for row in rows), TYPES),
        style=CARD_STYLE + PAGE_STYLE,
        script=SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )
    write_whole(path, html)
    return path


def _cards(rows: Sequence[Row], pictures: Iterable[Image.Image]) -> Iterator[tuple[Row, Image.Image, str, str]]:
    """Each row, its picture, the picture's name on the page and, where the page does not have it yet, its data URL."""
    names: dict[str, str] = {}
    for row, picture in zip(rows, pictures, strict=True):
        seen = picture_key(picture)
        url = "" if seen in names else data_url(picture)
        yield row, picture, names.setdefault(seen, f"p{len(names)}"), url


def browser(rows: Sequence[Row]) -> VBox:
    """Rows in a notebook's cell, the chosen one drawn in a frame of its own; ValueError where there are none."""
    if not rows:
        raise ValueError(NO_ROWS)
    played = _choices((row["workflow"] for row in rows), WORKFLOWS)
    workflow = Dropdown(description="Workflow", options=["all", *map(words, played)])
    answer = Dropdown(description="Answer", options=["all", "right", "wrong"])
    question, card = Select(rows=10, layout=Layout(width="100%")), HTML()

    def narrow(_: object = None) -> None:
        found = [(words(row["workflow"]), outcome(row), row) for row in rows]
        fits = [f for f in found if workflow.value in ("all", f[0]) and answer.value in ("all", f[1].name)]
        question.options = [(f"{end.mark} {row['question']['text']} ({name})", row) for name, end, row in fits]
        question.index = 0 if fits else None

    def show(_: object) -> None:
        row = question.value
        html = escape(trajectory_html(row, picture_of(row))) if row else "No trajectory matches."
        card.value = f'<iframe sandbox style="width:100%;height:45rem;border:0" srcdoc="{html}"></iframe>'

    for choice, then in ((workflow, narrow), (answer, narrow), (question, show)):
        choice.observe(then, "value")
    narrow()
    return VBox([HBox([workflow, answer]), question, card])


def _choices(found: Iterable[str | None], known: Sequence[str]) -> list[str]:
    """The values of a filter that occur, known ones first and in their order."""
    return sorted(set(filter(None, found)), key=lambda v: (known.index(v) if v in known else len(known), v))
