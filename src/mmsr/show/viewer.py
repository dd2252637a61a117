"""The trajectory viewer: one self-contained HTML page, and its twin of widgets for a notebook.

    html_page(rows, load_world(), Path("trajectories.html"))    # rows of eval/rows.jsonl, all workflows together
    write_page([{"trajectory": t, "question": {"text": "…"}}], [picture], path)      # any picture, no world
    browser(rows, load_world())                                 # dropdowns and the same rendering, in a notebook

`trajectory_html` renders one row for both. Everything in a trajectory comes from a policy or from the web, so all of it
is escaped, addresses become links only where they are http, and the page's content policy runs the one script it came
with and loads nothing. A question's picture is embedded once (about 10 kB), whatever the number of workflows.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mmsr.show.pictures import picture_of
from mmsr.show.transcript import SHORT, TAGS, TYPES, WORKFLOWS, Box, answer_of, blocks, crop_box, golds, is_right
from mmsr.show.viewer_style import CARD_STYLE, PAGE, PAGE_STYLE, SCRIPT
from mmsr.world.snapshot import World

if TYPE_CHECKING:
    from ipywidgets import VBox

MARKS = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("unscored", "·")}
LARGEST = 640  # pixels of an embedded picture's longer side
MOST_REMS = 15  # height of an enlarged crop


# --- one trajectory -------------------------------------------------------------------------------------------------


def trajectory_html(row: Mapping, picture: Image.Image) -> str:
    """One episode as HTML with its own style, safe to show anywhere.

    Args:
        row: A row of `eval/rows.jsonl`, or any dictionary with "trajectory" (`Trajectory.as_dict()`) and, where known,
            "question", "workflow" and "correct".
        picture: What the episode was about; boxes are in its pixels.
    """
    attribute = f'style="--picture:url({data_url(picture)})"'
    return f"<style>{CARD_STYLE}</style>{_card(row, picture, attribute)}"


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG data URL, made smaller where it is large."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _card(row: Mapping, picture: Image.Image, attribute: str) -> str:
    """The article of a row; `attribute` gives it its picture."""
    question, trajectory = row.get("question") or {}, row["trajectory"]
    turns = trajectory.get("turns") or []
    body = "".join(_turn(number, turn, question) for number, turn in enumerate(turns, 1)) or "<p>No turns.</p>"
    return (
        f'<article class="mmsr" {attribute}>'
        f"<header><h2>{escape(question.get('text') or 'No question')}</h2>{_facts(row)}{_verdict(row)}</header>"
        f'<div class="body"><div class="pictures">{_pictures(row, picture)}</div>'
        f'<ol class="turns">{body}</ol></div></article>'
    )


def _facts(row: Mapping) -> str:
    question, trajectory = row.get("question") or {}, row["trajectory"]
    turns = trajectory.get("turns") or []
    searches = sum(t.get("action") in ("text_search", "img_search") and not t.get("error") for t in turns)
    reward = (trajectory.get("reward") or {}).get("total")
    facts = [
        WORKFLOWS.get(row.get("workflow", ""), row.get("workflow", "")),
        TYPES.get(question.get("type", ""), question.get("type", "")),
        question.get("taxonomy", ""),
        _count(searches, "search", "searches"),
        _count(len(turns), "turn", "turns"),
        f"reward {reward:.2f}" if reward is not None else "",
    ]
    spans = (f"<span>{escape(str(fact))}</span>" for fact in dict.fromkeys(facts) if fact)
    return f'<p class="facts">{"".join(spans)}</p>'


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _verdict(row: Mapping) -> str:
    right, answer, accepted = is_right(row), answer_of(row), golds(row.get("question") or {})
    name, mark = MARKS[right]
    gold = f'<span class="gold">gold: {escape(str(accepted[0]))}</span>' if accepted and not right else ""
    words = {"right": "right", "wrong": "wrong", "unscored": "answer"}[name]
    shown = escape(answer) if answer else "<em>no answer</em>"
    return f'<p class="verdict {name}"><b aria-label="{words}">{mark}</b><span>{shown}</span>{gold}</p>'


def _pictures(row: Mapping, picture: Image.Image) -> str:
    """The scene with the searched box (and the gold one dashed), and the searched crop enlarged."""
    box, gold = crop_box(row["trajectory"], picture), (row.get("question") or {}).get("box")
    marks = _mark("gold-box", gold, picture) if box and gold else ""
    marks += _mark("crop-box", box, picture) if box else ""
    shape = f"aspect-ratio:{picture.width}/{picture.height}"
    scene = f'<figure><div class="scene" role="img" aria-label="the picture" style="{shape}">{marks}</div></figure>'
    if box is None:
        return f'{scene}<p class="none">No picture was searched.</p>'
    whole = box == (0, 0, picture.width, picture.height)
    words = "searched whole" if whole else "the searched crop"
    crop = "" if whole else f'<div class="crop" role="img" aria-label="the crop" style="{_zoom(box, picture)}"></div>'
    legend = '<span class="dashed">dashed: gold box</span>' if gold and not whole else ""
    return f"{scene}<figure>{crop}<figcaption>{words}{legend}</figcaption></figure>"


def _mark(name: str, box: Sequence[float], picture: Image.Image) -> str:
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = 100 * x1 / picture.width, 100 * y1 / picture.height
    width, height = 100 * (x2 - x1) / picture.width, 100 * (y2 - y1) / picture.height
    return f'<i class="{name}" style="left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"></i>'


def _zoom(box: Box, picture: Image.Image) -> str:
    """The CSS that shows this part of the background picture as large as there is room."""
    x1, y1, x2, y2 = box
    across = 100 * x1 / max(1, picture.width - (x2 - x1))
    down = 100 * y1 / max(1, picture.height - (y2 - y1))
    size = f"{100 * picture.width / (x2 - x1):.2f}% {100 * picture.height / (y2 - y1):.2f}%"
    shape = f"aspect-ratio:{x2 - x1}/{y2 - y1};width:min(100%,{MOST_REMS * (x2 - x1) / (y2 - y1):.2f}rem)"
    return f"{shape};background-size:{size};background-position:{across:.2f}% {down:.2f}%"


def _turn(number: int, turn: Mapping, question: Mapping) -> str:
    parts = []
    for block in blocks(turn):
        text = escape(block.text)
        if block.kind == "information":
            parts.append(_hits(turn, question))
        parts.append(f'<div class="block {block.kind}"><span class="tag">{TAGS[block.kind]}</span><p>{text}</p></div>')
    seconds = float(turn.get("seconds") or 0)
    took = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else ""
    return f'<li><span class="turn">turn {number}<small>{took}</small></span>{"".join(parts)}</li>'


def _hits(turn: Mapping, question: Mapping) -> str:
    """The results behind an observation, folded, with the gold page or country marked."""
    country = [question["entity"]] if question.get("entity") and "picture" not in question else []
    wanted = {*question.get("gold_pages", ()), *country}  # a benchmark's entity is no identifier of a hit
    hits = turn.get("hits") or []
    if not hits:
        return ""
    ranks = [rank for rank, hit in enumerate(hits, 1) if hit.get("id") in wanted]
    found = f", gold at {ranks[0]}" if ranks else ", gold not among them" if wanted else ""
    items = "".join(_hit(hit, hit.get("id") in wanted) for hit in hits)
    return f"<details><summary>{_count(len(hits), 'result', 'results')}{found}</summary><ol>{items}</ol></details>"


def _hit(hit: Mapping, gold: bool) -> str:
    title, url = escape(str(hit.get("title", ""))), str(hit.get("url") or "")
    if url.startswith(("https://", "http://")):
        title = f'<a href="{escape(url)}" rel="noopener noreferrer nofollow">{title}</a>'
    score = hit.get("score")
    shown = f"{score:.2f}" if isinstance(score, int | float) else ""
    name = ' class="is-gold"' if gold else ""
    return f"<li{name}><span>{title}</span> <code>{escape(str(hit.get('id', '')))}</code> <small>{shown}</small></li>"


# --- the page -------------------------------------------------------------------------------------------------------


def html_page(rows: Sequence[Mapping], world: World, path: Path) -> Path:
    """Write the page of these rows, with their scenes redrawn. Returns the path; ValueError where there are no rows."""
    return write_page(rows, [picture_of(row, world) for row in rows], path)


def write_page(rows: Sequence[Mapping], pictures: Sequence[Image.Image], path: Path) -> Path:
    """Write the page of rows and their pictures, one each. Returns the path; ValueError where there are no rows."""
    if not rows:
        raise ValueError("there are no trajectories to show: give at least one row")
    distinct = {id(picture): picture for picture in pictures}
    names = {key: f"p{number}" for number, key in enumerate(distinct)}
    cards = [
        _template(row, _card(row, picture, f'data-picture="{names[id(picture)]}"'))
        for row, picture in zip(rows, pictures, strict=True)
    ]
    rules = "".join(f'[data-picture="{names[k]}"]{{--picture:url({data_url(p)})}}' for k, p in distinct.items())
    page = PAGE.format(
        style=CARD_STYLE + PAGE_STYLE + rules,
        script=SCRIPT,
        script_hash=_hash(SCRIPT),
        workflows=_choices(rows, lambda row: row.get("workflow", ""), WORKFLOWS),
        types=_choices(rows, lambda row: (row.get("question") or {}).get("type", ""), TYPES),
        cards="\n".join(cards),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _template(row: Mapping, card: str) -> str:
    """A card that lies inert in the page until the script shows it, with what the filters need."""
    question = row.get("question") or {}
    facts = {
        "workflow": row.get("workflow", ""),
        "label": WORKFLOWS.get(row.get("workflow", ""), row.get("workflow", "")),
        "short": SHORT.get(row.get("workflow", ""), row.get("workflow", "")),
        "type": question.get("type", ""),
        "kind": TYPES.get(question.get("type", ""), question.get("type", "")),
        "outcome": MARKS[is_right(row)][0],
        "question": question.get("id", ""),
        "title": question.get("text") or "No question",
    }
    data = " ".join(f'data-{name}="{escape(str(value))}"' for name, value in facts.items())
    return f"<template {data}>{card}</template>"


def _choices(rows: Sequence[Mapping], read, names: Mapping[str, str]) -> str:
    """The options of a filter: the values that occur, known ones first and in their order."""
    return "".join(f'<option value="{escape(v)}">{escape(words)}</option>' for words, v in _values(rows, read, names))


def _values(rows: Sequence[Mapping], read, names: Mapping[str, str]) -> list[tuple[str, str]]:
    present = {str(read(row)) for row in rows} - {""}
    order = [*(v for v in names if v in present), *sorted(present - names.keys())]
    return [(names.get(value, value), value) for value in order]


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# --- the notebook ---------------------------------------------------------------------------------------------------


def browser(rows: Sequence[Mapping], world: World) -> VBox:
    """Widgets that choose a row by workflow, type and outcome and show it as `trajectory_html` does."""
    import ipywidgets as widgets

    def chooser(name: str, values: list[tuple[str, str]]) -> widgets.Dropdown:
        return widgets.Dropdown(description=name, options=[("all", ""), *values], layout={"width": "230px"})

    workflow = chooser("workflow", _values(rows, lambda row: row["workflow"], WORKFLOWS))
    kind = chooser("type", _values(rows, lambda row: row["question"]["type"], TYPES))
    outcome = chooser("outcome", [("right", "right"), ("wrong", "wrong")])
    chosen = widgets.Dropdown(description="question", layout={"width": "700px"})
    shown = widgets.HTML()

    def narrow(_: object = None) -> None:
        wanted = (workflow.value, kind.value, outcome.value)
        chosen.options = [
            (_line(row), index)
            for index, row in enumerate(rows)
            if all(not want or want == value for want, value in zip(wanted, _filtered_by(row)))
        ]
        chosen.index = 0 if chosen.options else None
        show()

    def show(_: object = None) -> None:
        if chosen.value is None:
            shown.value = "<p>No trajectory matches.</p>"
            return
        row = rows[chosen.value]
        shown.value = trajectory_html(row, picture_of(row, world))

    for control in (workflow, kind, outcome):
        control.observe(narrow, "value")
    chosen.observe(show, "value")
    narrow()
    return widgets.VBox([widgets.HBox([workflow, kind, outcome]), chosen, shown])


def _line(row: Mapping) -> str:
    workflow = WORKFLOWS.get(row["workflow"], row["workflow"])
    return f"{MARKS[is_right(row)][1]} {workflow}: {row['question']['text']}"


def _filtered_by(row: Mapping) -> tuple[str, str, str]:
    return row["workflow"], row["question"]["type"], MARKS[is_right(row)][0]
