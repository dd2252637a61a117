"""What an agent does with a kind of question, beyond right or wrong: the decisions that a cold start leaves half made.

| habit | of questions | what counts |
|---|---|---|
| looks_up | fact | a text search, instead of an answer from memory |
| goes_on | two_hop | a second, different text search, instead of an answer after the first |
| rewords | hard | the first text search is in the page's own word, not in the question's |
| tries_again | hard | a second, different text search (the paper's self-correction, §3.1) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmsr.world.relations import RELATIONS


@dataclass(frozen=True)
class Habit:
    """The type of question it is seen on, its name in a figure, and whether an evaluation's row shows it."""

    type: str
    words: str
    shown: Callable[[Mapping], bool]


def queries(row: Mapping) -> list[str]:
    """The text searches of a row's episode that were carried out, each different query once, in order."""
    turns = row["trajectory"]["turns"]
    return list(dict.fromkeys(t["content"] for t in turns if t["action"] == "text_search" and not t["error"]))


def _rewords(row: Mapping) -> bool:
    return RELATIONS[row["question"]["relation"]].noun in "".join(queries(row)[:1])


HABITS: dict[str, Habit] = {
    "looks_up": Habit("fact", "Fact: looks it up", lambda row: bool(queries(row))),
    "goes_on": Habit("two_hop", "Two hops: goes on", lambda row: len(queries(row)) > 1),
    "rewords": Habit("hard", "Hard: rewords first", _rewords),
    "tries_again": Habit("hard", "Hard: tries again", lambda row: len(queries(row)) > 1),
}


def seen_on(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The rows that each habit is measured on; a habit of a type that was not asked is left out, as in benchmarks."""
    world = [row for row in rows if row["question"].get("relation")]
    found = {name: [r for r in world if r["question"]["type"] == habit.type] for name, habit in HABITS.items()}
    return {name: chosen for name, chosen in found.items() if chosen}
