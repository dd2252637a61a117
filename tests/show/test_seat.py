"""The player's seat: turns are played as a policy's are, and the reward is the one that a policy would get."""

from __future__ import annotations

from dataclasses import replace

from small_policy import tiny

from mmsr.ablation import oracle
from mmsr.lab import open_tools
from mmsr.presets import get_preset
from mmsr.show.seat import Seat
from mmsr.teacher import scripted
from mmsr.world.questions import make_questions

PRESET = get_preset("smoke")
QUESTIONS = [q for q in make_questions("train", 30, seed=3) if q.type == "one_hop"][:2]


def seat() -> Seat:
    tools = replace(open_tools(PRESET, tiny()), grounder=oracle(QUESTIONS))
    return Seat(QUESTIONS, tools, PRESET.prompts, scripted(tools))


def click(widget: Seat, name: str) -> None:
    next(button for button in widget.buttons if button.description == name).click()


def test_an_episode_is_played_and_scored_beside_the_teachers() -> None:
    widget = seat()
    assert QUESTIONS[0].text in widget.card.value and QUESTIONS[0].answer not in widget.results.value
    click(widget, "search a crop")
    assert widget.turn.value.startswith("<reason>I must know whose flag this is.</reason>\n<img_search>")
    click(widget, "play the turn")
    assert "1. Flag of " in widget.card.value and widget.env.trajectory.searches("img_search") == 1
    widget.turn.value = f"<reason>I read it.</reason><answer>{QUESTIONS[0].answer}</answer>"
    click(widget, "play the turn")
    assert f"1. you: {QUESTIONS[0].answer}, reward 1.00  ·  the teacher: " in widget.results.value
    click(widget, "play the turn")
    assert len(widget.told) == 1  # an episode that has ended stays as it was


def test_what_breaks_the_protocol_is_refused_and_costs() -> None:
    widget = seat()
    widget.turn.value = "It is <b>Kenya</b>."
    click(widget, "play the turn")
    assert "a turn starts with" in widget.card.value and widget.env.trajectory.valid_turns == 0
    widget.turn.value = f"<reason>I read it.</reason><answer>{QUESTIONS[0].answer}</answer>"
    click(widget, "play the turn")
    assert "reward 0.95" in widget.results.value


def test_questions_come_one_after_the_other_and_again() -> None:
    widget = seat()
    for number in (1, 0):
        click(widget, "next question")
        assert widget.env.task.id == QUESTIONS[number].id and not widget.env.trajectory.turns
