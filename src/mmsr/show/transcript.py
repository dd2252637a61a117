"""A trajectory as people read it: blocks of reason, action, information and errors, one outcome, one crop.

    for block in blocks(trajectory["turns"][0]):
        block.kind, block.text        # ("reason", "Whose flag is it?"), ("img_search", "the flag on the left"), …

Pictures, the HTML viewer and the terminal all show an episode through these, and so in the same way. A row is one of
`eval/rows.jsonl`, or any dictionary with "trajectory" (`Trajectory.as_dict()`) and, where known, "question", "workflow"
and "correct"; what a policy or a page left in it is text and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from mmsr.answers import exact_match
from mmsr.protocol import Answer, Box, ImageSearch, ProtocolError, TextSearch, parse_turn
from mmsr.show.look import words
from mmsr.task import FileQuestion
from mmsr.world.questions import Question

TAGS = {
    "reason": "reason",
    "img_search": "image search",
    "text_search": "text search",
    "answer": "answer",
    "information": "information",
    "prompt": "prompt",
    "unread": "not understood",
    "error": "did not count",
}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """One piece of a turn. `kind` is a key of TAGS."""

    kind: str
    text: str


def blocks(turn: Row) -> list[Block]:
    """A turn in reading order: what the policy wrote, why it did not count if so, what came back, the next prompt."""
    found = _written(turn.get("text") or "")
    if turn.get("error"):
        return [*found, Block("error", turn["error"])]
    return found + _returned(turn.get("observation") or "")


def _written(text: str) -> list[Block]:
    try:
        turn = parse_turn(text)
    except ProtocolError:
        return [Block("unread", text.strip() or "(an empty turn)")]
    match turn.action:
        case Answer(answer):
            action = Block("answer", answer)
        case TextSearch(query):
            action = Block("text_search", query)
        case ImageSearch(box=box) if box:
            action = Block("img_search", "the crop at " + ", ".join(map(str, box)))
        case ImageSearch(expression):
            action = Block("img_search", expression or "the whole picture")
    return [Block("reason", turn.reason), action]


def _returned(observation: str) -> list[Block]:
    """The information of an observation and the prompt behind it."""
    opening, closing = "<information>", "</information>"
    if not observation.strip():
        return []
    if not observation.startswith(opening) or closing not in observation:
        return [Block("information", observation.strip())]
    body, _, prompt = observation.removeprefix(opening).rpartition(closing)
    found = [Block("information", body.strip() or "(nothing)")]
    return [*found, Block("prompt", prompt.strip())] if prompt.strip() else found


def gold_among(hits: list[Row], question: Row) -> tuple[list[bool], str]:
    """Which results are a gold page or the right country, and that in words; none can be where nothing gold is known.

    The entity of a question about a picture in a file is no identifier of a result.
    """
    country = [] if "picture" in question else [question.get("entity")]
    wanted = [*(question.get("gold_pages") or ()), *filter(None, country)]
    gold = [hit.get("id") in wanted for hit in hits]
    if any(gold):
        return gold, f", gold at {gold.index(True) + 1}"
    return gold, ", gold not among them" if wanted else ""


# --- a row ----------------------------------------------------------------------------------------------------------


def facts(row: Row) -> list[str]:
    """The workflow, the question's type and subject, what the episode took and earned, as far as they are known."""
    question, trajectory = row.get("question") or {}, row.get("trajectory")
    found = [words(row.get("workflow") or ""), words(question.get("type") or ""), question.get("taxonomy") or ""]
    if trajectory:
        turns = trajectory.get("turns") or []
        searches = sum(t.get("action") in ("text_search", "img_search") and not t.get("error") for t in turns)
        found += [f"{searches} search{'es' * (searches != 1)}", f"{len(turns)} turn{'s' * (len(turns) != 1)}"]
        reward = (trajectory.get("reward") or {}).get("total")
        found += [] if reward is None else [f"reward {reward:.2f}"]
    return list(dict.fromkeys(filter(None, found)))


class Outcome(NamedTuple):
    """How an episode ended: "right", "wrong" or "unscored", its mark, the answer, and the gold one if it was missed."""

    name: str
    mark: str
    answer: str
    gold: str


def outcome(row: Row) -> Outcome:
    """Right or wrong as the row was scored, else by exact match; unscored where there is no gold answer."""
    question = row.get("question") or {}
    golds = (question["answer"], *(question.get("aliases") or ())) if question.get("answer") else ()
    answer = row.get("answer") or (row.get("trajectory") or {}).get("answer") or ""
    right = exact_match(answer, golds) if row.get("correct") is None and golds else row.get("correct")
    name, mark = ("unscored", "·") if right is None else ("right", "✓") if right else ("wrong", "✗")
    return Outcome(name, mark, answer, golds[0] if golds and not right else "")


def crop_box(trajectory: Row, picture: Image.Image) -> Box | None:
    """What was searched by picture, in its pixels: a crop, the whole picture, or None where nothing was."""
    for turn in trajectory.get("turns") or []:
        if turn.get("action") == "img_search" and not turn.get("error"):
            return _inside(turn.get("box") or (0, 0, *picture.size), picture)
    return None


def _inside(box: Box, picture: Image.Image) -> Box:
    """The box cut to the picture, at least one pixel wide and high."""
    x1, x2 = sorted(max(0, min(int(v), picture.width)) for v in (box[0], box[2]))
    y1, y2 = sorted(max(0, min(int(v), picture.height)) for v in (box[1], box[3]))
    x1, y1 = min(x1, picture.width - 1), min(y1, picture.height - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def crop_words(box: Box | None, picture: Image.Image) -> str:
    """What is said under the crop."""
    if box is None:
        return "No picture was searched."
    crop = f"the searched crop, {box[2] - box[0]} × {box[3] - box[1]} px"
    return "searched whole" if box == (0, 0, *picture.size) else crop


def picture_of(row: Row) -> Image.Image:
    """The picture of a row's question: drawn from its seed, or read from its file."""
    question = row["question"]
    return (FileQuestion if "picture" in question else Question).from_dict(question).draw()
