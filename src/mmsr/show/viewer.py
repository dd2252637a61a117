"""The trajectory viewer: one self-contained HTML page, also within a notebook.

    html_page(rows, Path("trajectories.html"))      # rows of eval/rows.jsonl, all workflows together
    write_page([{"trajectory": t, "question": {"text": "…"}}], [picture], path)      # any picture
    browser(rows)                                   # the same page in a notebook's cell
    trajectory_html(row, picture)                   # one card of it

The template, its styles and its one script are `assets/show/viewer*`. Everything in a trajectory comes from a policy or
from the web, so the template escapes all of it, addresses become links only where they are http, and the page's content
policy runs the script it came with and loads nothing. A question's picture is embedded once (about 10 kB), whatever the
number of workflows.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from mmsr.files import write_whole
from mmsr.results import WORKFLOWS
from mmsr.show import transcript
from mmsr.show.look import ASSETS, SHORT, words
from mmsr.show.transcript import Row, picture_of
from mmsr.world.questions import TYPES

LARGEST = 640  # pixels of an embedded picture's longer side
CARD_STYLE, PAGE_STYLE, SCRIPT = (
    (ASSETS / name).read_text(encoding="utf-8") for name in ("viewer_card.css", "viewer_page.css", "viewer.js")
)
ENVIRONMENT = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
ENVIRONMENT.globals |= {"read": transcript, "words": words, "short": SHORT}
TEMPLATE = ENVIRONMENT.get_template("viewer.html")


def trajectory_html(row: Row, picture: Image.Image) -> str:
    """One row as HTML with its own style, safe to show anywhere; boxes are in the picture's pixels."""
    style = f"--picture:url({data_url(picture)})"
    return f"<style>{CARD_STYLE}</style>{TEMPLATE.module.card(row, picture, style=style)}"


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG data URL, made smaller where it is large."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def html_page(rows: Sequence[Row], path: Path) -> Path:
    """Write the page of these rows, with their scenes redrawn. Returns the path; ValueError where there are no rows."""
    return write_page(rows, [picture_of(row) for row in rows], path)


def write_page(rows: Sequence[Row], pictures: Sequence[Image.Image], path: Path) -> Path:
    """Write the page of rows and their pictures, one each. Returns the path; ValueError where there are no rows."""
    write_whole(path, page(rows, pictures))
    return path


class Page(str):
    """A page that a notebook shows in a frame of its own, apart from what else the notebook holds."""

    def _repr_html_(self) -> str:
        style = "width:100%;height:50rem;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(self)}"></iframe>'


def browser(rows: Sequence[Row]) -> Page:
    """The page of these rows in a notebook's cell; ValueError where there are no rows."""
    return page(rows, [picture_of(row) for row in rows])


def page(rows: Sequence[Row], pictures: Sequence[Image.Image]) -> Page:
    """The page of rows and their pictures, one each; ValueError where there are no rows."""
    if not rows:
        raise ValueError("there are no trajectories to show: give at least one row")
    distinct = {id(picture): picture for picture in pictures}
    names = {key: f"p{number}" for number, key in enumerate(distinct)}
    return Page(
        TEMPLATE.render(
            cards=[(row, picture, names[id(picture)]) for row, picture in zip(rows, pictures, strict=True)],
            urls={names[key]: data_url(picture) for key, picture in distinct.items()},
            workflows=_choices((row.get("workflow") for row in rows), WORKFLOWS),
            types=_choices(((row.get("question") or {}).get("type") for row in rows), TYPES),
            style=CARD_STYLE + PAGE_STYLE,
            script=SCRIPT,
            script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        )
    )


def _choices(found: Iterable[str | None], known: Sequence[str]) -> list[str]:
    """The values of a filter that occur, known ones first and in their order."""
    present = set(filter(None, found))
    return [*(value for value in known if value in present), *sorted(present - set(known))]
