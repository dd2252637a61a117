"""Pictures of training from within: every token with its mask, a group with its advantages, what an update changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from small_policy import tiny

from mmsr.decode import Row
from mmsr.env import Trajectory, TurnRecord
from mmsr.grpo import Group
from mmsr.results import record_metrics
from mmsr.rollout import Episode
from mmsr.show import lessons
from mmsr.show.charts import NAMES
from mmsr.stats import Interval
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


def test_the_boxes_of_all_crops_stand_on_one_picture() -> None:
    question = next(q for q in make_questions("test", 20, seed=2) if q.box)
    rows = [
        {"crop": "base", "searched": True, "box": question.box, "recall_at_1": True, "correct": True},
        {"crop": "whole", "searched": True, "box": None, "recall_at_1": False, "correct": False},
        {"crop": "random", "searched": False, "box": None, "recall_at_1": False, "correct": False},
    ]
    figure = lessons.boxes(question, rows)
    said = texts(figure)
    assert question.text.split()[0] in said[0] and said.count("✗ wrong") == 2
    assert [text for text in said if text in ("finds it", "finds another", "no search")] == [
        "finds it",
        "finds another",
        "no search",
    ]
    assert len(figure.axes[0].patches) == 2  # whoever did not search has no box, the whole picture has one


def test_why_shows_less_scatter_with_more_questions_and_a_narrower_paired_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    easy = rng.random(300) < 0.6  # the same questions are easy for both
    rows = {name: [asked(n, c) for n, c in enumerate(easy ^ (rng.random(300) < 0.05))] for name in ("grpo", "sft")}
    metrics = {f"eval/{name}/accuracy": Interval(0.5, 0.4, 0.6, 300) for name in ("grpo", "sft")}
    figure = lessons.why(rows, ("grpo", "sft"), {0: metrics, 1: metrics})
    left, middle, right = figure.axes
    scatter = [np.std(line.get_ydata()) for line in left.lines if len(line.get_ydata()) > 2]
    assert scatter == sorted(scatter, reverse=True) and len(scatter) == 4
    widths = [int(high) - int(low) for low, high in re.findall(r"\[([+-]\d+), ([+-]\d+)\]", legend(middle))]
    assert widths[0] < widths[1] and "each for itself" in legend(middle)
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["seed 0", "seed 1"]


def asked(number: int, correct: bool) -> dict:
    return {"correct": bool(correct), "question": {"entity": number}}


def legend(ax: Axes) -> str:
    return " ".join(text.get_text() for text in ax.get_legend().get_texts())


def test_seeds_are_those_of_whole_runs_of_the_same_preset(tmp_path: Path) -> None:
    for name, preset, seed in (
        ("mine", "tiny", 0),
        ("a", "tiny", 1),
        ("b", "tiny", 0),
        ("c", "smoke", 2),
        ("d", "tiny", 3),
    ):
        record_metrics(tmp_path / name, {"eval/grpo/accuracy" if name != "d" else "sft/val/accuracy": 0.5})
        if name != "mine":  # this run's manifest is written last
            (tmp_path / name / "manifest.json").write_text(json.dumps({"preset": preset, "seed": seed}))
    assert [*lessons.seeds(tmp_path / "mine", "tiny", 0)] == [0, 1]


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["", '{"preset"', "[1]", '{"seed": 1}', None])
def test_a_damaged_run_beside_this_one_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, damage: str | None
) -> None:
    for run in ("mine", "other"):
        record_metrics(tmp_path / run, {"eval/grpo/accuracy": 0.5})
    (tmp_path / "other" / "manifest.json").write_text('{"preset": "tiny", "seed": 1}')
    assert [*lessons.seeds(tmp_path / "mine", "tiny", 0)] == [0, 1]
    (tmp_path / "other" / name).unlink() if damage is None else (tmp_path / "other" / name).write_text(damage)
    assert [*lessons.seeds(tmp_path / "mine", "tiny", 0)] == [0]
    silent = name == "manifest.json" and damage in ('{"seed": 1}', None)  # a run of no preset, or one that goes on
    assert silent or str(tmp_path / "other") in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_road_shows_five_notebooks_and_where_this_one_stands(name: str) -> None:
    figure = lessons.road(name)
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len(colours) == 5 and [colours.count(c) for c in colours][NAMES.index(name)] == 1
    assert any(text.startswith("python 3.") and "torch" in text for text in texts(figure))
