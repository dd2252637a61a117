"""Habits are read off an episode's searches: which there were, in which words."""

from __future__ import annotations

import pytest

from mmsr.evaluate import HABITS, queries, seen_on, summarise
from mmsr.world.relations import RELATIONS

HARD = next(relation for relation in RELATIONS.values() if relation.hard)


def row(kind: str, *searches: str, error: str = "") -> dict:
    """A row as an evaluation leaves it, with what habits and the summary read."""
    turns = [{"action": "img_search", "content": "the flag", "error": ""}]
    turns += [{"action": "text_search", "content": text, "error": error} for text in searches]
    turns.append({"action": "answer", "content": "Lima", "error": ""})
    question = {"type": kind, "relation": HARD.key, "entity": "pe", "half": "seen", "taxonomy": "x"}
    counts = {"searches": 1, "text_searches": 0, "image_searches": 1, "valid_turns": 1, "turns": 1}
    flags = {"correct": True, "needless": False, "search_free": True, "evidence": None}
    flags["support"] = {"label": "supported", "pages": []}
    return {"question": question, "trajectory": {"turns": turns}} | counts | flags


@pytest.mark.parametrize(
    ("habit", "shown", "not_shown"),
    [
        ("looks_up", row("fact", "Peru capital"), row("fact")),
        ("looks_up", row("fact", "Peru capital"), row("fact", "Peru capital", error="all searches are used up")),
        ("goes_on", row("two_hop", "Peru main export partner", "China capital"), row("two_hop", "Peru capital")),
        ("goes_on", row("two_hop", "Peru a", "China b"), row("two_hop", "Peru a", "Peru a")),
        ("rewords", row("hard", f"Peru {HARD.noun}"), row("hard", f"Peru {HARD.hard}", f"Peru {HARD.noun}")),
        ("rewords", row("hard", f"Peru {HARD.noun}"), row("hard")),
        ("tries_again", row("hard", f"Peru {HARD.hard}", f"Peru {HARD.noun}"), row("hard", f"Peru {HARD.noun}")),
    ],
)
def test_a_habit_is_told_from_its_absence(habit: str, shown: dict, not_shown: dict) -> None:
    assert HABITS[habit].type == shown["question"]["type"]
    assert HABITS[habit].shown(shown) and not HABITS[habit].shown(not_shown)


def test_a_query_counts_once_and_only_if_it_was_carried_out() -> None:
    assert queries(row("hard", "a", "b", "a")) == ["a", "b"]
    assert queries(row("hard", "a", error="refused")) == []


def test_habits_are_measured_on_their_own_type() -> None:
    rows = [row("fact", "a"), row("fact"), row("two_hop", "a", "b"), row("visual")]
    assert {name: len(chosen) for name, chosen in seen_on(rows).items()} == {"looks_up": 2, "goes_on": 1}
    found = summarise(rows, seed=0)
    assert found["habit/looks_up"].value == 0.5 and found["habit/goes_on"].value == 1
    assert "habit/rewords" not in found


def test_a_benchmark_has_no_habits() -> None:
    benchmark = row("fact", "a")
    del benchmark["question"]["relation"]
    assert seen_on([benchmark]) == {}
