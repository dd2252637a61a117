"""The reward: R = 0.9·s + 0.1·s_fmt by default (paper §3.4), with a price per search and an evidence bonus as weights.

s is 1 where the judge finds the answer right: offline by exact match over the gold answer and its aliases, else by a
large model (`live.roles.ModelJudge`). s_fmt is the share of turns that were valid, an episode without an answer
counting one broken turn more. So an oracle earns 1 and every malformed turn costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mmsr.answers import exact_match
from mmsr.env import Trajectory
from mmsr.task import Task

Label = Literal["correct", "incorrect", "not_attempted"]
LABELS: tuple[Label, ...] = ("correct", "incorrect", "not_attempted")


@dataclass(frozen=True)
class Verdict:
    """The judge's label (None where it gave none), whether the answer matches exactly, and the judge's few words."""

    label: Label | None
    exact: bool
    why: str = ""

    @property
    def correct(self) -> bool:
        """The label's word; exact match where there is no label (those are counted by `Judge.counts`)."""
        return self.exact if self.label is None else self.label == "correct"


class Judge(Protocol):
    """Says whether answers are right. `settings` names it in results; `workers` may judge side by side."""

    settings: Mapping[str, Any]
    workers: int

    def verdict(self, question: str, golds: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer. Raises ToolError where none can be had."""

    def verdicts(self, rows: Sequence[tuple[str, Sequence[str], str]]) -> list[Verdict]:
        """On (question, golds, answer) rows, in order, each different one asked once; None as label for a failure."""

    def counts(self) -> dict[str, int]:
        """Different answers judged, by label, "unreadable" and "failed", and how many of them match exactly."""


def verdicts(judge: Judge | None, answered: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """Of answers to tasks: the judge's verdicts, or exact match's where there is no judge."""
    rows = [(task.question, task.golds, answer) for task, answer in answered]
    if judge is not None:
        return judge.verdicts(rows)
    matches = [exact_match(answer, golds) for _, golds, answer in rows]
    return [Verdict("correct" if match else "incorrect", match) for match in matches]


@dataclass(frozen=True)
class RewardWeights:
    """`search_price` is taken off per search that was carried out; `evidence_bonus` is given for the share of gold
    pages among the results. The paper sets both to 0; MMSearch-R1 prices searching at 0.1."""

    correct: float = 0.9
    format: float = 0.1
    search_price: float = 0.0
    evidence_bonus: float = 0.0


def format_score(trajectory: Trajectory) -> float:
    """The share of valid turns, in [0, 1]; no answer counts as one more broken turn."""
    turns = len(trajectory.turns) + (trajectory.end != "answer")
    return trajectory.valid_turns / turns if turns else 0.0


def evidence(trajectory: Trajectory, task: Task) -> float:
    """The share of gold pages that the searches returned; 1 where no page is needed."""
    if not task.gold_pages:
        return 1.0
    return len({*task.gold_pages} & {*trajectory.retrieved}) / len(task.gold_pages)


def score(trajectory: Trajectory, task: Task, weights: RewardWeights, verdict: Verdict | None = None) -> float:
    """The reward of an episode, its answer judged exactly where no verdict is given.

    The reward's parts are kept in `trajectory.reward`. An episode that did not end in an answer is never right.
    """
    verdict = verdict or verdicts(None, [(task, trajectory.answer)])[0]
    parts = {
        "correct": float(trajectory.end == "answer" and verdict.correct),
        "format": format_score(trajectory),
        "searches": float(trajectory.searches()),
        "evidence": evidence(trajectory, task),
    }
    total = (
        weights.correct * parts["correct"]
        + weights.format * parts["format"]
        - weights.search_price * parts["searches"]
        + weights.evidence_bonus * parts["evidence"] * bool(task.gold_pages)
    )
    trajectory.reward = {"total": round(total, 6)} | {key: round(value, 4) for key, value in parts.items()}
    return total


def scores(
    trajectories: Sequence[Trajectory], tasks: Sequence[Task], weights: RewardWeights, judge: Judge | None
) -> list[float]:
    """The rewards of many episodes, whose answers are judged together, side by side."""
    ended = [i for i, trajectory in enumerate(trajectories) if trajectory.end == "answer"]
    judged = dict(zip(ended, verdicts(judge, [(tasks[i], trajectories[i].answer) for i in ended])))
    return [score(t, task, weights, judged.get(i)) for i, (t, task) in enumerate(zip(trajectories, tasks))]
