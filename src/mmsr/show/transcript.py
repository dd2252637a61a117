"""A trajectory as people read it: blocks of reason, action, information and errors, one verdict, one crop.

    for block in blocks(trajectory["turns"][0]):
        block.kind, block.text        # ("reason", "Whose flag is it?"), ("img_search", "the flag on the left"), …

Pictures and the HTML viewer both draw from these, so that they show the same episode in the same way. A trajectory is
the plain dictionary of `Trajectory.as_dict()`; what a policy or a page left in it is text and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from mmsr.protocol import Answer, ProtocolError, TextSearch, parse_turn
from mmsr.stats import exact_match

Box = tuple[int, int, int, int]

WORKFLOWS = {
    "direct": "Direct answer",
    "rag": "RAG workflow",
    "prompted": "Prompted agent",
    "sft": "Agent after SFT",
    "grpo": "Agent after GRPO",
    "teacher": "Teacher",
}
SHORT = {"direct": "direct", "rag": "RAG", "prompted": "prompted", "sft": "SFT", "grpo": "GRPO", "teacher": "teacher"}
TYPES = {"visual": "Visual", "fact": "Fact", "one_hop": "One hop", "two_hop": "Two hops", "hard": "Hard wording"}
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


@dataclass(frozen=True)
class Block:
    """One piece of a turn. `kind` is a key of TAGS."""

    kind: str
    text: str


def blocks(turn: Mapping) -> list[Block]:
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
    reason, action = Block("reason", turn.reason), turn.action
    if isinstance(action, Answer):
        return [reason, Block("answer", action.text)]
    if isinstance(action, TextSearch):
        return [reason, Block("text_search", action.query)]
    if action.box:
        return [reason, Block("img_search", "the crop at " + ", ".join(map(str, action.box)))]
    return [reason, Block("img_search", action.expression or "the whole picture")]


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


def crop_box(trajectory: Mapping, picture: Image.Image) -> Box | None:
    """What was searched by picture, in its pixels: a crop, the whole picture, or None where nothing was."""
    for turn in trajectory.get("turns") or []:
        if turn.get("action") == "img_search" and not turn.get("error"):
            whole = (0, 0, picture.width, picture.height)
            return _inside(turn["box"], picture) if turn.get("box") else whole
    return None


def _inside(box: Box, picture: Image.Image) -> Box:
    """The box cut to the picture, at least one pixel wide and high."""
    x1, x2 = sorted(max(0, min(int(v), picture.width)) for v in (box[0], box[2]))
    y1, y2 = sorted(max(0, min(int(v), picture.height)) for v in (box[1], box[3]))
    x1, y1 = min(x1, picture.width - 1), min(y1, picture.height - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def golds(question: Mapping) -> tuple[str, ...]:
    """The gold answer and its aliases; none where the question has no answer with it."""
    return (question["answer"], *question.get("aliases", ())) if question.get("answer") else ()


def is_right(row: Mapping) -> bool | None:
    """Whether the row's answer is right: as scored, else by exact match; None where there is no gold answer."""
    if row.get("correct") is not None:
        return bool(row["correct"])
    accepted = golds(row.get("question") or {})
    return exact_match(answer_of(row), accepted) if accepted else None


def answer_of(row: Mapping) -> str:
    """The final answer; empty where none was given."""
    return row.get("answer") or (row.get("trajectory") or {}).get("answer") or ""
