"""GRPO against the live tools (paper §3.4), with TRL's GRPOTrainer on the episodes of our own loop.

    policy = train_grpo(policy, tasks, tools, preset, folder, seed, RewardWeights())

Paper's settings: 8 rollouts a question, advantage = reward − group mean (no standard deviation), KL 0.001, clip 0.2.
rollout.py plays the episodes; with_trl.py hands them to TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from mmsr.env import Tools, Trajectory
from mmsr.files import read_table
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.reward import Judge, RewardWeights, scores
from mmsr.rollout import Episode, Sampling, roll
from mmsr.stats import Interval
from mmsr.task import Task
from mmsr.training import StepCSV, quiet_trainers, train, training_arguments
from mmsr.with_trl import EpisodeTrainer

# --- settings ---------------------------------------------------------------------------------------------------------


def grpo_config(preset: Preset, folder: Path, seed: int, kl: float) -> GRPOConfig:
    """The paper's settings, sizes by preset."""
    return GRPOConfig(
        **training_arguments(preset, folder, seed, preset.grpo_questions * preset.generations),
        max_steps=preset.grpo_steps,
        num_generations=preset.generations,
        learning_rate=preset.grpo_lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=preset.grpo_warmup,
        beta=kl,
        epsilon=0.2,
        scale_rewards="none",
        loss_type="grpo",
        temperature=preset.temperature,
        max_completion_length=preset.completion_tokens,
        mask_truncated_completions=False,
    )


def as_rows(tasks: Sequence[Task]) -> Dataset:
    """Rows as TRL reads them. It asks for a prompt, and is given the identifier of the task."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": task.id}]} for task in tasks])


# --- rewards ----------------------------------------------------------------------------------------------------------


def reward_functions(
    tasks: Mapping[str, Task], weights: RewardWeights, judge: Judge | None
) -> tuple[list[Callable], list[float]]:
    """The reward, and beside it, with weight 0, the parts and habits that the CSV keeps a column of."""

    def reward(trajectory: list[Trajectory], **_: Any) -> list[float]:
        return scores(trajectory, [tasks[episode.task_id] for episode in trajectory], weights, judge)

    def watch(name: str, measure: Callable[[Trajectory], float]) -> Callable:
        def watched(trajectory: list[Trajectory], **_: Any) -> list[float]:
            return [measure(episode) for episode in trajectory]

        watched.__name__ = name
        return watched

    watched = [
        watch("accuracy", lambda t: t.reward["correct"]),
        watch("searches", lambda t: float(t.searches())),
        watch("crops", lambda t: float(any(turn.box for turn in t.turns))),
        watch("valid_turns", lambda t: t.valid_turns / max(1, len(t.turns))),
    ]
    return [reward, *watched], [1.0] + [0.0] * len(watched)


# --- training ---------------------------------------------------------------------------------------------------------


def train_grpo(
    policy: Policy,
    tasks: Sequence[Task],
    tools: Tools,
    preset: Preset,
    folder: Path,
    seed: int,
    weights: RewardWeights | None = None,
    kl: float = 0.001,
    judge: Judge | None = None,
) -> Policy:
    """Train a policy that carries the SFT adapter, going on from the last checkpoint if there is one.

    The adapter lands in `folder/adapter`, one row per step in `folder/grpo.csv`.
    """
    quiet_trainers()
    by_id, sampling = {task.id: task for task in tasks}, Sampling.of(preset, preset.temperature)

    def play(names: Sequence[str], keys: Sequence[str]) -> list[Episode]:
        return roll(policy, [by_id[name] for name in names], tools, preset.prompts, sampling, keys)

    functions, shares = reward_functions(by_id, weights or RewardWeights(), judge)
    config = grpo_config(preset, folder, seed, kl)
    config.reward_weights = shares
    trainer = EpisodeTrainer(
        policy,
        play,
        model=policy.model,
        args=config,
        reward_funcs=functions,
        train_dataset=as_rows(tasks),
        processing_class=policy.processor,
        callbacks=[StepCSV(folder / "grpo.csv")],
    )
    return train(trainer, policy, folder)


def first_and_last(csv_path: Path) -> dict[str, Interval]:
    """Means over the first and the last tenth of the steps (at least one each), as `grpo/reward_first`, `…_last`."""
    columns = {"reward": "reward"} | {name: f"rewards/{name}/mean" for name in ("searches", "accuracy", "valid_turns")}
    rows = read_table(csv_path, columns.values(), "delete it and the checkpoints beside it, and train again")
    tenth, found = max(1, len(rows) // 10), {}
    for name, column in columns.items():
        for part, chosen in (("first", rows[:tenth]), ("last", rows[-tenth:])):
            mean = sum(float(row[column]) for row in chosen) / len(chosen)
            found[f"grpo/{name}_{part}"] = Interval(mean, None, None, len(chosen))
    return found
