"""Pictures of training from within: every token with its mask, a group with its advantages, what an update changed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_policy import tiny

from mmsr.decode import Row
from mmsr.env import Trajectory, TurnRecord
from mmsr.grpo import Group
from mmsr.rollout import Episode
from mmsr.show import lessons
from mmsr.task import Task
from mmsr.tools.image import LocalImageSearch
from mmsr.world.questions import make_questions
from mmsr.world.scenes import draw_scene
from mmsr.world.snapshot import load_world

TURN = "<reason>I must know whose flag this is.</reason>\n<img_search> the flag on the left</img_search>"
ANSWER = "<reason>The page says it.</reason>\n<answer> {}</answer>"


def texts(figure: Figure) -> list[str]:
    """All that is written on the figure."""
    return [text.get_text() for ax in figure.axes for text in (*ax.texts, ax.title)]


def group(rewards: list[float]) -> Group:
    question = make_questions("train", 4, seed=2)[0]
    ids = tiny().tokenizer("what is the capital?" + TURN, add_special_tokens=False)["input_ids"]
    written = [n >= 5 for n in range(len(ids))]
    episodes = []
    for number in range(len(rewards)):
        row = Row([*ids], 5, torch.zeros(3, 5, dtype=torch.long), 0, torch.zeros(1, 4), [*written], [0.0] * len(ids))
        turns = [TurnRecord(TURN, "img_search"), TurnRecord(ANSWER.format(f"answer {number}"), "answer")]
        episodes.append(Episode(Trajectory(question.id, turns, f"answer {number}", "answer"), row))
    return Group(Task.of(question), episodes, rewards)


def test_tokens_show_the_mask_and_count_what_repeats() -> None:
    tokenizer = tiny().tokenizer
    ids = tokenizer("<|vision_start|>" + "<|image_pad|>" * 36 + "<|vision_end|>who?\n" + TURN)["input_ids"]
    learned = [n > 40 for n in range(len(ids))]
    figure = lessons.tokens(tokenizer, ids, learned)
    said = texts(figure)
    assert f"{sum(learned)} of {len(ids)} tokens bear loss" in said and "<|image_pad|>×36" in said
    assert "".join(said).replace("·", " ").count("the flag on the left") == 1
    colours = {tuple(np.round(patch.get_facecolor(), 2)) for ax in figure.axes for patch in ax.patches}
    assert len(colours) == 2


def test_a_group_is_ranked_with_its_advantages() -> None:
    said = texts(lessons.group(group([0.1, 1.0, 0.1, 0.4])))
    order = [text for text in said if text.startswith("answer ")]
    assert order == ["answer 1", "answer 3", "answer 0", "answer 2"]
    assert [text for text in said if text[:1] in "+-" and text[1:2].isdigit()] == ["+0.60", "+0.00", "-0.30", "-0.30"]


def test_a_group_that_teaches_nothing_is_drawn_too() -> None:
    assert texts(lessons.group(group([0.1] * 4))).count("+0.00") == 4


def test_an_update_shows_what_moved_and_what_is_clipped() -> None:
    played = group([1.0, 0.1])
    number = sum(played.episodes[0].row.written)
    drawn = [torch.full((number,), -1.0) for _ in range(2)]
    likelier, less = drawn[0].clone(), drawn[1].clone()
    likelier[:3] += 0.5  # 1.65 times as likely, and rewarded: clipped
    less[:2] += 0.5  # as much, and not rewarded: free to come back
    figure = lessons.update(tiny().tokenizer, played, [drawn, [likelier, less], [likelier, less]])
    notes = [text for text in texts(figure) if "clipped next" in text]
    assert notes == [f"3 of {2 * number} clipped next"] * 2


CASES = [(1.3, 1, True), (1.3, -1, False), (0.7, -1, True), (0.7, 1, False), (1.1, 1, False)]


@pytest.mark.parametrize(("ratio", "advantage", "cut"), CASES)
def test_where_clipping_acts(ratio: float, advantage: float, cut: bool) -> None:
    assert lessons.clips(np.array([ratio]), advantage).tolist() == [cut]


def test_crops_show_what_the_search_sees_and_finds() -> None:
    world, scene = load_world(), draw_scene(load_world(), ["ke", "jp", "br"], 7)
    box, whole = scene.flags[1].box, (0, 0, *scene.picture.size)
    figure = lessons.crops(scene.picture, {"gold": box, "whole": whole}, LocalImageSearch(world), world)
    said = " ".join(texts(figure))
    assert f"gold, {box[2] - box[0]} × {box[3] - box[1]} px" in said and said.count("its thumbnail") == 2
    assert re.search(r"thumbnail (0\.\d\d) Japan", said) and len(figure.axes[0].images) == 14
