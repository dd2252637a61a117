"""The crop ablation on a benchmark: the crops that need no gold box, and recall where a title is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_policy import tiny
from stub_tools import Finds

from mmsr import ablation
from mmsr.env import Tools, Trajectory, TurnRecord
from mmsr.evaluate import Exam
from mmsr.lab import open_tools
from mmsr.policy import Policy
from mmsr.presets import Preset, get_preset
from mmsr.results import CROPS, DETECTOR, record_metrics
from mmsr.runs.compare import table
from mmsr.show import figures
from mmsr.task import Asked, FileQuestion
from mmsr.tools.ground import BaseGrounder
from mmsr.world.questions import make_questions

PRESET = get_preset("smoke")
WIKI = "https://en.wikipedia.org/wiki/"
ASKED = [
    FileQuestion(id=str(n), type="templated", text="What is it?", answer="a", entity=entity, picture="none.png")
    for n, entity in enumerate((f"{WIKI}Acer_palmatum", f"{WIKI}Caf%C3%A9_Maure", "oven_04"))
]
TITLES = ("Japanese maple (Acer palmatum) - Wikipedia", "Cafe Maure", "Acer")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Tools]:
    """No model plays: every episode finds three titles, with the first of them moved on by one a question."""
    seen: list[Tools] = []

    def agent(policy: Policy, exam: Exam, preset: Preset, tools: Tools, rewrite: object) -> list[Trajectory]:
        seen.append(tools)
        assert exam.gold == all(question.box for question in exam.questions)
        return [found(question, place) for place, question in enumerate(exam.questions)]

    def found(question: Asked, place: int) -> Trajectory:
        hits = [{"id": title, "title": title} for title in (*TITLES[place:], *TITLES[:place])]
        return Trajectory(question.id, [TurnRecord("", "img_search", hits=hits)], question.answer, "answer")

    monkeypatch.setattr("mmsr.ablation.agent", agent)
    return seen


def crops(questions: Sequence[Asked], tools: Tools) -> list[dict]:
    return ablation.crop_rows(tiny(), questions, PRESET, tools, seed=0)


def test_a_benchmark_has_the_crops_that_need_no_gold_box(played: list[Tools]) -> None:
    tools = open_tools(PRESET, tiny())
    assert list(dict.fromkeys(row["crop"] for row in crops(ASKED, tools))) == ["base", "whole", "coordinates"]
    rows = crops(ASKED, replace(tools, grounder=Finds()))
    assert list(dict.fromkeys(row["crop"] for row in rows)) == ["base", "whole", "coordinates", DETECTOR]
    assert isinstance(played[3].grounder, BaseGrounder) and isinstance(played[-1].grounder, Finds)
    world = [question for question in make_questions("test", 20, seed=1) if question.box][:2]
    assert list(dict.fromkeys(row["crop"] for row in crops(world, tools))) == list(CROPS)


def test_recall_is_of_the_title_where_a_question_has_one(played: list[Tools], tmp_path: Path) -> None:
    rows = crops([*ASKED[:2], replace(ASKED[0], id="2", entity=f"{WIKI}Maur"), ASKED[2]], open_tools(PRESET, tiny()))
    assert [row.get("recall_at_1") for row in rows[:4]] == [True, True, False, None]
    assert [row.get("recall_at_5") for row in rows[:4]] == [True, True, False, None] and "iou" not in rows[0]
    found = ablation.summarise(rows, seed=0)
    assert found["ablation/whole/recall_at_1"].value == pytest.approx(2 / 3)
    assert found["ablation/whole/recall_at_1"].n == 3 and found["ablation/whole/accuracy"].n == 4
    assert {name for name in found if name.startswith("paired")} == {
        "paired/base-whole/accuracy",
        "paired/base-coordinates/accuracy",
    }
    record_metrics(tmp_path, found)
    assert "whole        100.0 %" in table(tmp_path) and DETECTOR not in table(tmp_path)
    shown = [label.get_text() for label in figures.crops(tmp_path).axes[0].get_yticklabels()]
    assert len(shown) == 3


def test_without_any_title_there_is_no_recall(played: list[Tools]) -> None:
    found = ablation.summarise(crops(ASKED[2:], open_tools(PRESET, tiny())), seed=0)
    assert {name.rpartition("/")[2] for name in found} == {"accuracy"}
