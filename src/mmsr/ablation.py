"""What the crop is worth: one trained policy, its grounder swapped (paper §4.3, cropped versus whole-image search).

| crop | box from |
|---|---|
| base | the grounder of the run, as in training: the frozen base unless another was chosen |
| oracle | the gold box |
| whole | no box: the whole picture is searched |
| random | a box of a flag's size anywhere |
| coordinates | the trained policy names the box itself, and searches by `<img_crop>x1,y1,x2,y2</img_crop>` |
| detector | on a benchmark: the run's grounder, where that is a detector; base is then the frozen base's box |

Only questions that need the picture search count. `recall_at_k` is over all of them: a policy that does not search has
found nothing. The sweeps shake or pad the gold box. A benchmark has no boxes, so oracle, random and sweeps exist for
our world alone; its recall is of the title that a question is about, over the questions that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from mmsr.env import Tools, Trajectory
from mmsr.evaluate import Exam, agent, judge_rows
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import Box
from mmsr.results import CROPS, DETECTOR
from mmsr.reward import Judge, normalise
from mmsr.rollout import as_coordinates
from mmsr.stats import Interval, cluster_mean, paired_difference
from mmsr.task import Asked, Task
from mmsr.tools.base import Grounder
from mmsr.tools.ground import BaseGrounder, OracleGrounder, PerturbedGrounder, RandomGrounder, iou
from mmsr.tools.picture import picture_key
from mmsr.world.questions import Question

PADDINGS = (-0.2, -0.1, 0.0, 0.1, 0.25, 0.5)
NOISES = (0.0, 0.05, 0.1, 0.2, 0.4)


def needing_crop(questions: Sequence[Question], n: int) -> list[Question]:
    """The first `n` questions that cannot be answered without knowing whose flag is meant."""
    return [q for q in questions if q.type in ("one_hop", "two_hop", "hard")][:n]


def oracle(questions: Sequence[Asked]) -> OracleGrounder:
    """A grounder that knows every question's gold box, where it has one."""
    return OracleGrounder({picture_key(q.draw()): q.box for q in questions if q.box})


def crop_rows(
    policy: Policy, questions: Sequence[Asked], preset: Preset, tools: Tools, seed: int, judge: Judge | None = None
) -> list[dict]:
    """All crops on the same questions, of our world or of a benchmark, one row per crop and question."""
    aimed = BaseGrounder(policy, preset.prompts.locate, trained=True)
    grounders: dict[str, Grounder] = {"base": tools.grounder, "whole": OracleGrounder({}), "coordinates": aimed}
    if (gold := oracle(questions)).boxes:
        grounders |= {"oracle": gold, "random": RandomGrounder(seed)}
    elif not isinstance(tools.grounder, BaseGrounder):
        grounders |= {"base": BaseGrounder(policy, preset.prompts.locate), DETECTOR: tools.grounder}
    rows = []
    for crop in (crop for crop in (*CROPS, DETECTOR) if crop in grounders):
        rewrite = {"rewrite": as_coordinates(policy, aimed)} if crop == "coordinates" else {}
        played = _play(policy, questions, preset, replace(tools, grounder=grounders[crop]), judge, **rewrite)
        rows += [{"crop": crop, **row} for row in played]
    return rows


def sweep_rows(
    policy: Policy, questions: Sequence[Question], preset: Preset, tools: Tools, seed: int, judge: Judge | None = None
) -> list[dict]:
    """The gold box padded by PADDINGS and shaken by NOISES, one row per level and question."""
    exact = oracle(questions)
    levels = [("padding", level, PerturbedGrounder(exact, level, 0.0, seed)) for level in PADDINGS]
    levels += [("noise", level, PerturbedGrounder(exact, 0.0, level, seed)) for level in NOISES]
    rows = []
    for sweep, level, grounder in levels:
        played = _play(policy, questions, preset, replace(tools, grounder=grounder), judge)
        rows += [{"sweep": sweep, "level": level, **row} for row in played]
    return rows


def _play(
    policy: Policy,
    questions: Sequence[Asked],
    preset: Preset,
    tools: Tools,
    judge: Judge | None,
    rewrite: Callable[[str, Task], str] = lambda text, task: text,
) -> list[dict]:
    exam = Exam(tuple(questions), preset.rollout_rows, gold=any(q.box for q in questions))
    trajectories = agent(policy, exam, preset, tools, rewrite)
    judged = judge_rows("", exam, trajectories, [False] * len(questions), judge)
    return [
        {
            "id": q.id,
            "entity": q.entity,
            "correct": row["correct"],
            "searched": row["image_searches"] > 0,
            "box": searched_box(t),
            **({"verdict": row["verdict"], "exact": row["exact"]} if judge else {}),
            **_found(q, t, row),
        }
        for q, t, row in zip(questions, trajectories, judged)
    ]


def _found(question: Asked, trajectory: Trajectory, row: dict) -> dict[str, Any]:
    """Whether the first picture search found what is gold: on a benchmark its title; {} where that gives none."""
    if isinstance(question, Question):
        recall = {key: bool(row[key]) for key in ("recall_at_1", "recall_at_5")}
        return {"flags": len(question.isos), **recall, "iou": round(iou(searched_box(trajectory), question.box), 4)}
    gold = normalise(gold_title(question))
    if not gold:
        return {}
    hits = next((turn.hits for turn in trajectory.turns if turn.action == "img_search" and not turn.error), [])
    named = [f" {gold} " in f" {normalise(hit['title'])} " for hit in hits]
    return {f"recall_at_{k}": any(named[:k]) for k in (1, 5)}


def gold_title(question: Asked) -> str:
    """The title of the Wikipedia page that a benchmark gives as a question's subject; "" where it gives none."""
    return unquote(question.entity.partition("/wiki/")[2]).replace("_", " ")


def searched_box(trajectory: Trajectory) -> Box | None:
    """The box of an episode's picture search, if it had one."""
    return next((turn.box for turn in trajectory.turns if turn.action == "img_search" and turn.box), None)


def summarise(rows: Sequence[dict], seed: int) -> dict[str, Interval]:
    """`ablation/<crop>/accuracy`, `recall_at_1`, `recall_at_5`, `iou`, and the paired gain of the base's crop."""
    by_crop = {crop: [row for row in rows if row["crop"] == crop] for crop in dict.fromkeys(r["crop"] for r in rows)}
    names, found = {"correct": "accuracy", "exact": "exact_match"}, {}
    for crop, chosen in by_crop.items():
        for key in ("correct", "exact", "recall_at_1", "recall_at_5", "iou"):
            if known := [row for row in chosen if key in row]:
                values, countries = [float(row[key]) for row in known], [row["entity"] for row in known]
                found[f"ablation/{crop}/{names.get(key, key)}"] = cluster_mean(values, countries, seed)
    base = [float(row["correct"]) for row in by_crop["base"]]
    for other in list(by_crop)[1:]:
        against = [float(row["correct"]) for row in by_crop[other]]
        countries = [row["entity"] for row in by_crop[other]]
        found[f"paired/base-{other}/accuracy"] = paired_difference(base, against, countries, seed)
    return found
