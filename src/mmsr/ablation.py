"""What the crop is worth: one trained policy, the grounder exchanged (paper §4.3, cropped against whole-image search).

| crop | box from |
|---|---|
| base | the grounder of the run, as in training: the frozen base unless another was chosen |
| oracle | the gold box |
| whole | no box: the whole picture is searched |
| random | a box of a flag's size anywhere |
| coordinates | the trained policy names the box itself, and searches by `<img_crop>x1,y1,x2,y2</img_crop>` |

Only questions that need the picture search count. `recall_at_k` is over all of them: a policy that does not search has
found nothing. The sweeps shake or pad the gold box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mmsr.env import Tools, Trajectory
from mmsr.evaluate import Exam, agent, judge_rows
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import Box
from mmsr.results import CROPS
from mmsr.reward import Judge
from mmsr.rollout import as_coordinates
from mmsr.stats import Interval, cluster_mean, paired_difference
from mmsr.task import Task
from mmsr.tools.base import Grounder
from mmsr.tools.ground import BaseGrounder, OracleGrounder, PerturbedGrounder, RandomGrounder, iou
from mmsr.tools.picture import picture_key
from mmsr.world.questions import Question

PADDINGS = (-0.2, -0.1, 0.0, 0.1, 0.25, 0.5)
NOISES = (0.0, 0.05, 0.1, 0.2, 0.4)


def needing_crop(questions: Sequence[Question], n: int) -> list[Question]:
    """The first `n` questions that cannot be answered without knowing whose flag is meant."""
    return [q for q in questions if q.type in ("one_hop", "two_hop", "hard")][:n]


def oracle(questions: Sequence[Question]) -> OracleGrounder:
    """A grounder that knows every question's gold box."""
    return OracleGrounder({picture_key(q.draw()): q.box for q in questions if q.box})


def crop_rows(
    policy: Policy, questions: Sequence[Question], preset: Preset, tools: Tools, seed: int, judge: Judge | None = None
) -> list[dict]:
    """All five crops on the same questions, one row per crop and question."""
    aimed = BaseGrounder(policy, preset.prompts.locate, trained=True)
    grounders: dict[str, Grounder] = {
        "base": tools.grounder,
        "oracle": oracle(questions),
        "whole": OracleGrounder({}),
        "random": RandomGrounder(seed),
        "coordinates": aimed,
    }
    rows = []
    for crop in CROPS:
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
    questions: Sequence[Question],
    preset: Preset,
    tools: Tools,
    judge: Judge | None,
    rewrite: Callable[[str, Task], str] = lambda text, task: text,
) -> list[dict]:
    exam = Exam(tuple(questions))
    trajectories = agent(policy, exam, preset, tools, rewrite)
    judged = judge_rows("", exam, trajectories, [False] * len(questions), judge)
    return [
        {
            "id": q.id,
            "entity": q.entity,
            "flags": len(q.isos),
            "correct": row["correct"],
            **({"verdict": row["verdict"], "exact": row["exact"]} if judge else {}),
            "recall_at_1": bool(row["recall_at_1"]),
            "recall_at_5": bool(row["recall_at_5"]),
            "iou": round(iou(searched_box(t), q.box), 4),
        }
        for q, t, row in zip(questions, trajectories, judged)
    ]


def searched_box(trajectory: Trajectory) -> Box | None:
    """The box of an episode's picture search, if it had one."""
    return next((turn.box for turn in trajectory.turns if turn.action == "img_search" and turn.box), None)


def summarise(rows: Sequence[dict], seed: int) -> dict[str, Interval]:
    """`ablation/<crop>/accuracy`, `recall_at_1`, `recall_at_5`, `iou`, and the paired gain of the base's crop."""
    by_crop = {crop: [row for row in rows if row["crop"] == crop] for crop in CROPS}
    found = {}
    for crop, chosen in by_crop.items():
        countries = [row["entity"] for row in chosen]
        for key, name in (("correct", "accuracy"), ("recall_at_1", "recall_at_1"), ("recall_at_5", "recall_at_5")):
            found[f"ablation/{crop}/{name}"] = cluster_mean([float(r[key]) for r in chosen], countries, seed)
        if all("verdict" in row for row in chosen):
            found[f"ablation/{crop}/exact_match"] = cluster_mean([float(r["exact"]) for r in chosen], countries, seed)
        found[f"ablation/{crop}/iou"] = cluster_mean([r["iou"] for r in chosen], countries, seed)
    base = [float(row["correct"]) for row in by_crop["base"]]
    for other in CROPS[1:]:
        against = [float(row["correct"]) for row in by_crop[other]]
        countries = [row["entity"] for row in by_crop[other]]
        found[f"paired/base-{other}/accuracy"] = paired_difference(base, against, countries, seed)
    return found
