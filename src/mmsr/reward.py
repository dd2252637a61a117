"""The reward: R = 0.9·s + 0.1·s_fmt by default (paper §3.4), with a price per search and an evidence bonus as weights.

s is 1 where the judge finds the answer right: offline by exact match over the gold answer and its aliases. s_fmt is the
share of turns that were valid, an episode without an answer counting one broken turn more. So an oracle earns 1 and
every malformed turn costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmsr.env import Task, Trajectory
from mmsr.stats import exact_match

Judge = Callable[[Task, str], bool]


@dataclass(frozen=True)
class RewardWeights:
    """`search_price` is taken off per search that was carried out; `evidence_bonus` is given for the share of gold
    pages among the results. The paper sets both to 0; MMSearch-R1 prices searching at 0.1."""

    correct: float = 0.9
    format: float = 0.1
    search_price: float = 0.0
    evidence_bonus: float = 0.0


def matches(task: Task, answer: str) -> bool:
    """The offline judge: exact match, after normalisation, with the gold answer or an alias."""
    return exact_match(answer, task.golds)


def format_score(trajectory: Trajectory) -> float:
    """The share of valid turns, in [0, 1]; no answer counts as one more broken turn."""
    turns = len(trajectory.turns) + (trajectory.end != "answer")
    return trajectory.valid_turns / turns if turns else 0.0


def evidence(trajectory: Trajectory, task: Task) -> float:
    """The share of gold pages that the searches returned; 1 where no page is needed."""
    if not task.gold_pages:
        return 1.0
    return len({*task.gold_pages} & {*trajectory.retrieved}) / len(task.gold_pages)


def score(trajectory: Trajectory, task: Task, weights: RewardWeights, judge: Judge = matches) -> float:
    """The reward of an episode; its parts are kept in `trajectory.reward`."""
    correct = float(trajectory.end == "answer" and judge(task, trajectory.answer))
    parts = {
        "correct": correct,
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
