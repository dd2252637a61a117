"""The scripted teacher uses what the tools return and nothing else, refines what failed, and is mostly right."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from small_policy import tiny
from stub_tools import Engine

from mmsr.ablation import oracle
from mmsr.env import SearchEnv, Tools, Trajectory
from mmsr.lab import open_tools
from mmsr.presets import get_preset
from mmsr.protocol import UNABLE, parse_turn
from mmsr.reward import exact_match
from mmsr.task import Task
from mmsr.teacher import Teacher, recall
from mmsr.world.questions import Question, make_questions
from mmsr.world.relations import RELATIONS

PRESET = get_preset("smoke")
QUESTIONS = make_questions("train", 60, seed=21)


@functools.cache
def tools() -> Tools:
    """The local tools, with boxes by the frozen base, asked in one batch."""
    found = open_tools(PRESET, tiny())
    found.grounder.locate_all([(q.scene().picture, q.expression) for q in QUESTIONS if q.expression])
    return found


def play(questions: list[Question], by: Tools, grounder=None) -> list[Trajectory]:
    """The teacher's episodes."""
    found = replace(by, grounder=grounder or by.grounder)
    return [Teacher().play(question, SearchEnv(found, PRESET.prompts, Task.of(question))) for question in questions]


def turns(trajectory: Trajectory) -> list[tuple[str, str]]:
    """What was written and what was read."""
    return [(turn.text, turn.observation) for turn in trajectory.turns]


@functools.cache
def episodes() -> list[Trajectory]:
    return play(QUESTIONS, tools())


def test_it_is_mostly_right_and_always_valid() -> None:
    right = [exact_match(t.answer, q.golds) for q, t in zip(QUESTIONS, episodes())]
    assert sum(right) / len(right) >= 0.9
    assert all(t.end == "answer" and t.valid_turns == len(t.turns) for t in episodes())


def test_each_type_takes_the_searches_it_needs() -> None:
    found = {}
    for question, trajectory in zip(QUESTIONS, episodes()):
        searches = (trajectory.searches("img_search"), trajectory.searches("text_search"))
        found.setdefault(question.type, set()).add(searches)
    assert found["visual"] == {(0, 0)} and found["fact"] == {(0, 1)}
    assert found["one_hop"] == {(1, 1)} and (1, 2) in found["two_hop"] and (1, 2) in found["hard"]


def test_it_never_reads_the_gold_answer() -> None:
    blind = [replace(q, answer="zzz", aliases=(), gold_pages=("x/y",), taxonomy="") for q in QUESTIONS]
    assert [turns(t) for t in play(blind, tools())] == [turns(t) for t in episodes()]


def test_it_sees_the_answer_before_it_says_it() -> None:
    for question, trajectory in zip(QUESTIONS, episodes()):
        if question.type != "visual" and trajectory.answer != UNABLE:
            assert any(trajectory.answer in turn.observation for turn in trajectory.turns)


def test_a_failed_hard_query_is_refined() -> None:
    refined = 0
    for question, trajectory in zip(QUESTIONS, episodes()):
        queries = [turn for turn in trajectory.turns if turn.action == "text_search"]
        if question.type != "hard" or len(queries) < 2:
            continue
        relation = RELATIONS[question.relation]
        first, second = queries
        assert relation.hard in first.content and relation.noun in second.content
        page = [hit["id"] for hit in first.hits if hit["id"] in question.gold_pages]
        assert not page or question.answer not in first.observation
        refined += exact_match(trajectory.answer, question.golds)
    assert refined >= 3


def test_it_takes_the_picture_search_at_its_word() -> None:
    asked = [q for q in QUESTIONS if q.type == "one_hop"][:10]
    swapped = {  # every crop shows another flag of the same scene
        q.id: replace(q, box=q.scene().flags[(q.target + 1) % len(q.isos)].box) for q in asked
    }
    trajectories = play(asked, tools(), oracle(list(swapped.values())))
    assert sum(exact_match(t.answer, q.golds) for q, t in zip(asked, trajectories)) <= 3


@pytest.mark.parametrize("kind", ["fact", "one_hop", "two_hop", "hard"])
def test_it_gives_up_where_the_search_finds_nothing(kind: str) -> None:
    nothing = replace(tools(), text=Engine("nothing"))
    question = next(q for q in QUESTIONS if q.type == kind)
    (trajectory,) = play([question], nothing)
    assert trajectory.answer == UNABLE and trajectory.valid_turns == len(trajectory.turns)


def test_recall_is_one_valid_turn_with_the_given_answer() -> None:
    for question in QUESTIONS[:20]:
        assert parse_turn(recall(question, "Lima")).action.text == "Lima"


def test_a_task_carries_the_question_and_its_gold() -> None:
    question = next(q for q in QUESTIONS if q.type == "one_hop")
    task = Task.of(question)
    assert (task.id, task.question, task.box, task.entity) == (
        question.id,
        question.text,
        question.box,
        question.entity,
    )
    assert task.golds == (question.answer, *question.aliases) and (task.gold_pages, task.box) == (
        question.gold_pages,
        question.box,
    )
    assert task.picture.tobytes() == question.scene().picture.tobytes()
