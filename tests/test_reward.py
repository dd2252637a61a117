"""An oracle earns everything, every malformed turn costs, and the weights price what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from stub_tools import TASK, environment, turn

from mmsr.env import SearchEnv, Trajectory, TurnRecord
from mmsr.protocol import UNABLE, Answer, ImageSearch, TextSearch
from mmsr.reward import RewardWeights, Verdict, evidence, format_score, score, scores, support
from mmsr.task import Task
from mmsr.world.questions import make_questions

PAPER = RewardWeights()
TEXT, CROP, GOLD = turn(TextSearch("b")), turn(ImageSearch("the flag")), turn(Answer("gold"))
MALFORMED = [
    "gold",
    "<answer>gold</answer>",
    "<reason></reason><answer>gold</answer>",
    "<reason>\u200b</reason><answer>gold</answer>",
    "<reason>a</reason><answer>gold",
    "<reason>a</reason><answer>gold</answer> yes",
    "<reason>a</reason><text_search>b</text_search><answer>gold</answer>",
    "<reason>a</reason><img_search><img_crop>3,3,1,1</img_crop></img_search>",
    "<reason>a</reason><lookup>b</lookup>",
]


def played(*turns: str) -> SearchEnv:
    """The episode of these turns."""
    env = environment()
    for text in turns:
        env.step(text)
    return env


def reward(*turns: str, weights: RewardWeights = PAPER) -> float:
    """What these turns earn."""
    return score(played(*turns).trajectory, TASK, weights)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_gold_answer_and_alias_earns_everything(split: str) -> None:
    for question in make_questions(split, 60, seed=4):
        for answer in question.golds:
            trajectory = played(turn(Answer(answer))).trajectory
            assert score(trajectory, Task.of(question), PAPER) == pytest.approx(1)
        trajectory = played(turn(Answer("something else"))).trajectory
        assert score(trajectory, Task.of(question), PAPER) == pytest.approx(0.1)


def test_searching_costs_nothing_in_the_paper() -> None:
    assert reward(CROP, TEXT, TEXT, GOLD) == reward(GOLD) == pytest.approx(1)


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_turn_earns_less(text: str) -> None:
    assert reward(text, GOLD) == pytest.approx(0.95)
    assert reward(text, text, GOLD) == pytest.approx(0.9 + 0.1 / 3)
    assert reward(text, text, text, GOLD) == 0  # the third ended the episode, so the answer came too late
    assert reward(text) == 0


def test_no_answer_earns_a_part_of_format_at_most() -> None:
    assert reward() == 0
    assert reward(TEXT) == pytest.approx(0.05)
    assert reward(CROP, TEXT, TEXT) == pytest.approx(0.075)
    assert reward(turn(Answer(UNABLE))) == pytest.approx(0.1)


def test_a_refused_search_costs_format() -> None:
    assert reward(CROP, CROP, GOLD) == pytest.approx(0.9 + 0.1 * 2 / 3)


def test_the_price_is_per_search_that_was_carried_out() -> None:
    priced = replace(PAPER, search_price=0.1)
    assert reward(GOLD, weights=priced) == pytest.approx(1)
    assert reward(CROP, TEXT, TEXT, GOLD, weights=priced) == pytest.approx(0.7)
    assert reward(CROP, CROP, GOLD, weights=priced) == pytest.approx(0.9 + 0.1 * 2 / 3 - 0.1)


def test_the_bonus_is_for_gold_pages() -> None:
    bonus = replace(PAPER, evidence_bonus=0.2)
    assert reward(TEXT, GOLD, weights=bonus) == pytest.approx(1.2)  # the stub returns page p0
    assert reward(GOLD, weights=bonus) == pytest.approx(1)
    half = replace(TASK, gold_pages=("p0", "p9"))
    assert score(played(TEXT, GOLD).trajectory, half, bonus) == pytest.approx(1.1)
    none_needed = replace(TASK, gold_pages=())
    assert evidence(played(GOLD).trajectory, none_needed) == 1
    assert score(played(TEXT, GOLD).trajectory, none_needed, bonus) == pytest.approx(1)


class Agrees:
    """A judge that finds every answer right, and notes what it is asked."""

    settings, workers = {"model": "agrees"}, 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def verdicts(self, rows: Sequence[tuple[str, Sequence[str], str]]) -> list[Verdict]:
        self.asked += [(question, answer) for question, _, answer in rows]
        return [Verdict("correct", False) for _ in rows]


def test_another_judge_decides_on_all_answers_at_once() -> None:
    judge, right, none = Agrees(), played(turn(Answer("other"))).trajectory, played(TEXT).trajectory
    assert scores([right, none, right], [TASK] * 3, PAPER, judge) == [1, pytest.approx(0.05), 1]
    assert judge.asked == [(TASK.question, "other")] * 2  # without an answer there is nothing to judge
    assert score(right, TASK, PAPER, Verdict(None, False)) == pytest.approx(0.1)


def test_the_parts_are_kept() -> None:
    trajectory = played(CROP, "gold", TEXT, GOLD).trajectory
    assert score(trajectory, TASK, PAPER) == pytest.approx(0.975)
    assert trajectory.reward == {"total": 0.975, "correct": 1, "format": 0.75, "searches": 2, "evidence": 1}


def test_an_answer_in_a_turn_that_did_not_count_is_none() -> None:
    trajectory = Trajectory("t", [TurnRecord("x", "none", "gold", error="broken")], answer="gold", end="broken")
    assert score(trajectory, TASK, PAPER) == 0 == format_score(Trajectory("t", trajectory.turns, end="broken"))


# --- support ----------------------------------------------------------------------------------------------------------

HITS = [
    {"id": "ke/capital", "title": "Kenya: Capital", "score": 2.0, "url": "https://good.example/ke"},
    {"id": "ke/a", "title": "Kenya: A very long title, which may be cut", "score": 1.0, "url": "https://bad.example/a"},
]
READ = "1. Kenya: Capital: name: Nairobi;\nelevation 1,795 m\n2. Kenya: A very long title: Nairobi-Mombasa; El Niño"


def searched(observation: str = READ, **changes: object) -> dict:
    """A search that found HITS, as a trajectory keeps it."""
    kept = {"text": "", "action": "text_search", "error": "", "hits": HITS}
    return kept | {"observation": f"<information>\n{observation}\n</information>\nNow answer."} | changes


def stands(answer: str, *turns: dict, end: str = "answer") -> tuple[str, list[tuple[int, int, str]]]:
    """An answer's label, and turn, rank and identifier of each page that holds it; bad.example is distrusted."""
    last = {"text": "", "action": "answer", "error": "", "hits": []}
    episode = {"turns": [*turns, last], "answer": answer, "end": end}
    found = support(episode, lambda url: "bad.example" in url)
    return found["label"], [(page["turn"], page["rank"], page["id"]) for page in found["pages"]]


@pytest.mark.parametrize(
    ("answer", "label", "ranks"),
    [
        ("The Nairobi.", "supported", [1, 2]),
        ("1795 m", "supported", [1]),  # the second line of the first page
        ("el nino", "distrusted", [2]),
        ("Kenya", "supported", [1, 2]),  # titles are read too
        ("airobi", "unsupported", []),
        ("2", "unsupported", []),  # the rank of a page is not its text
        ("Now answer", "unsupported", []),
        ("…", "unsupported", []),
        (UNABLE, "", []),
    ],
)
def test_an_answer_stands_on_the_pages_that_hold_its_words(answer: str, label: str, ranks: list[int]) -> None:
    pages = [(1, rank, HITS[rank - 1]["id"]) for rank in ranks]
    assert stands(answer, searched()) == (label, pages)


def test_a_page_is_told_by_the_turn_that_found_it_first() -> None:
    other = searched("1. Flag of Kenya", action="img_search", hits=[{"id": "ke", "title": "Flag of Kenya", "url": ""}])
    assert stands("Kenya", other, searched(), searched()) == (
        "supported",
        [(1, 1, "ke"), (2, 1, "ke/capital"), (2, 2, "ke/a")],
    )
    assert support({"turns": [searched()], "answer": "Nairobi", "end": "answer"}, bool)["pages"][0] == {
        "turn": 1,
        "rank": 1,
        "id": "ke/capital",
        "title": "Kenya: Capital",
        "url": "https://good.example/ke",
        "distrusted": True,
    }


def test_a_models_summary_supports_by_its_turn_alone() -> None:
    summary = searched("The capital is Nairobi, at 1,795 m.")
    assert stands("Nairobi", summary) == ("supported", [(1, 0, "")])
    assert stands("Nairobi", summary | {"hits": HITS[1:]}) == ("distrusted", [(1, 0, "")])


def test_nothing_supports_an_answer_without_a_search_and_a_failed_search_finds_no_page() -> None:
    assert stands("Nairobi") == ("", [])
    assert stands("Nairobi", searched(error="refused")) == ("", [])
    assert stands("Nairobi", searched(), end="broken") == ("", [])
    failed = searched("The search failed: Nairobi is down", hits=[])
    assert stands("Nairobi", failed) == ("unsupported", [])
