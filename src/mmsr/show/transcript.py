"""A trajectory as people read it: blocks of reason, action, information and errors, one outcome, one crop.

    for block in blocks(trajectory["turns"][0]):
        block.kind, block.text        # ("reason", "Whose flag is it?"), ("img_search", "the flag on the left"), …

Pictures, the HTML viewer and the terminal all show an episode through these. A row is one of `eval/rows.jsonl`, or any
dictionary with "trajectory" (`Trajectory.as_dict()`) and, where known, "question", "workflow", "correct" and "support";
what a policy or a page left in it is text and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from mmsr.env import SEARCHES
from mmsr.protocol import Answer, Box, ImageSearch, ProtocolError, TextSearch, parse_turn
from mmsr.reward import RewardWeights, exact_match
from mmsr.show.look import words
from mmsr.task import FileQuestion
from mmsr.tools.ground import clamp
from mmsr.world.questions import Question

Row = Mapping[str, Any]
WRITTEN = ("reason", "answer", "text_search", "img_search", "unread")  # blocks that the policy wrote
NO_ROWS = "there are no trajectories to show: give at least one row"


class Block(NamedTuple):
    """One piece of a turn. `kind` is a key of `look.TAGS`."""

    kind: str
    text: str


def blocks(turn: Row) -> list[Block]:
    """A turn in reading order: what the policy wrote, why it failed if it did, what came back, the next prompt."""
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
        case ImageSearch(expression, box):
            crop = "the crop at " + ", ".join(map(str, box)) if box else expression
            action = Block("img_search", crop or "the whole picture")
    return [Block("reason", turn.reason), action]


def shaded(turn: Row, block: Block) -> list[tuple[str, float | None]]:
    """A block's text in pieces; those that the policy was less than sure of come with their probability."""
    written, place, pieces, done = turn.get("text") or "", -1, [], 0
    if block.kind in WRITTEN:
        opened = 0 if block.kind == "reason" else written.find("</reason>") + len("</reason>")
        place = written.find(block.text, 0 if block.kind == "unread" else written.find(">", opened))
    for start, end, sure in (turn.get("doubts") or ()) if place >= 0 else ():
        start, end = (min(max(at - place, done), len(block.text)) for at in (start, end))
        if start < end:
            pieces += [(block.text[done:start], None), (block.text[start:end], sure)]
            done = end
    return [*pieces, (block.text[done:], None)]


def _returned(observation: str) -> list[Block]:
    """The information of an observation and the prompt after it."""
    tagged = re.match("<information>(.*)</information>(.*)", observation, re.DOTALL)
    body, prompt = (text.strip() for text in (tagged.groups() if tagged else (observation, "")))
    found = [Block("information", body or "(nothing)")] if tagged or body else []
    return [*found, Block("prompt", prompt)] if prompt else found


def gold_among(hits: list[Row], question: Row) -> tuple[list[bool], str]:
    """Which results are a gold page or the right country, and the same in words; none where nothing gold is known."""
    country = [] if "picture" in question else [question.get("entity")]  # for a question from a file it names no result
    wanted = [*(question.get("gold_pages") or ()), *filter(None, country)]
    gold = [hit.get("id") in wanted for hit in hits]
    if any(gold):
        return gold, f", gold at {gold.index(True) + 1}"
    return gold, ", gold not among them" if wanted else ""


def facts(row: Row) -> list[str]:
    """The workflow, the question's type and subject, what the episode took and earned, as far as they are known."""
    question, trajectory = row.get("question") or {}, row.get("trajectory")
    found = [words(row.get("workflow") or ""), words(question.get("type") or ""), question.get("taxonomy") or ""]
    if trajectory:
        turns = trajectory.get("turns") or []
        searches = sum(t.get("action") in SEARCHES and not t.get("error") for t in turns)
        found += [f"{searches} search{'es' * (searches != 1)}", f"{len(turns)} turn{'s' * (len(turns) != 1)}"]
        reward = (trajectory.get("reward") or {}).get("total")
        found += [] if reward is None else [f"reward {reward:.2f}"]
    return list(dict.fromkeys(filter(None, found)))


def reward_parts(row: Row) -> str:
    """What the reward is made of, " = 0.90 right + 0.10 format", where the usual weights add up to it."""
    reward, weights = (row.get("trajectory") or {}).get("reward") or {}, RewardWeights()
    right, form = weights.correct * reward.get("correct", 0), weights.format * reward.get("format", 0)
    known = {"correct", "format"} <= reward.keys() and abs(right + form - reward["total"]) < 0.001
    return f" = {right:.2f} right + {form:.2f} format" if known else ""


def supporting(row: Row) -> list[tuple[str, str, str]]:
    """The pages that hold the answer (`reward.support`): where in the episode each was read, its title, its address."""
    found = []
    for page in (row.get("support") or {}).get("pages", ()):
        which = f"turn {page['turn']}, " + (f"page {page['rank']}" if page["rank"] else "the summary")
        found.append((which + ", distrusted" * page["distrusted"], page["title"], page["url"]))
    return found


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
    """What was searched of the picture, in its pixels: a crop, all of it, or None where nothing was."""
    for turn in trajectory.get("turns") or []:
        if turn.get("action") == "img_search" and not turn.get("error"):
            return clamp(turn.get("box") or (0, 0, *picture.size), picture)
    return None


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
