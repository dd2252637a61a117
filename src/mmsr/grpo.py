"""GRPO against the live tools (paper §3.4), with TRL's GRPOTrainer and SearchEnv as its environment.

    policy = train_grpo(policy, tasks, env_factory(tools, prompts, tasks), preset, folder, seed, RewardWeights())

Paper's settings: 8 rollouts a question, advantage = reward − group mean (no standard deviation), KL 0.001, clip 0.2.
TRL plays the episodes: with_trl.py says how, and what it overrides.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Image as Picture
from datasets import Sequence as Many
from trl import GRPOConfig

from mmsr.env import MAX_TURNS, SearchEnv, Trajectory, first_messages
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.reward import Judge, RewardWeights, scores
from mmsr.stats import Interval
from mmsr.task import Task
from mmsr.training import MESSAGES, StepCSV, quiet_trainers, train, training_arguments, typed
from mmsr.with_trl import ThriftyTrainer, close, install_parser

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
        max_tool_calling_iterations=MAX_TURNS,
        mask_truncated_completions=False,
        generation_kwargs={"max_new_tokens": preset.new_tokens},
    )


def as_rows(tasks: Sequence[Task], preset: Preset) -> Dataset:
    """Rows as TRL reads them: the prompt, the picture, and the task's identifier for `SearchEnv.reset`."""
    features = Features({"prompt": MESSAGES, "images": Many(Picture()), "task_id": Value("string")})
    prompts = [typed(first_messages(task, preset.prompts)) for task in tasks]
    rows = {"prompt": prompts, "images": [[t.picture] for t in tasks], "task_id": [t.id for t in tasks]}
    return Dataset.from_dict(rows, features=features)


# --- rewards ----------------------------------------------------------------------------------------------------------


def reward_functions(
    tasks: Mapping[str, Task], weights: RewardWeights, judge: Judge | None
) -> tuple[list[Callable], list[float]]:
    """The reward, and beside it, with weight 0, the parts and habits that the CSV keeps a column of."""

    def reward(environments: list[SearchEnv], completions: list[list[dict]], **_: Any) -> list[float]:
        episodes = [close(environment, turns) for environment, turns in zip(environments, completions)]
        return scores(episodes, [tasks[episode.task_id] for episode in episodes], weights, judge)

    def watch(name: str, measure: Callable[[Trajectory], float]) -> Callable:
        def watched(environments: list[SearchEnv], **_: Any) -> list[float]:
            return [measure(environment.trajectory) for environment in environments]

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
    new_env: Callable[[], SearchEnv],
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
    install_parser(policy.tokenizer)
    functions, shares = reward_functions({task.id: task for task in tasks}, weights or RewardWeights(), judge)
    config = grpo_config(preset, folder, seed, kl)
    config.reward_weights = shares
    trainer = ThriftyTrainer(
        model=policy.model,
        args=config,
        reward_funcs=functions,
        train_dataset=as_rows(tasks, preset),
        processing_class=policy.processor,
        environment_factory=new_env,
        callbacks=[StepCSV(folder / "grpo.csv")],
    )
    return train(trainer, policy, folder)


def first_and_last(csv_path: Path) -> dict[str, Interval]:
    """Means over the first and the last tenth of the steps (at least one each), as `grpo/reward_first`, `…_last`."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tenth, found = max(1, len(rows) // 10), {}
    columns = {"reward": "reward"} | {name: f"rewards/{name}/mean" for name in ("searches", "accuracy", "valid_turns")}
    for name, column in columns.items():
        for part, chosen in (("first", rows[:tenth]), ("last", rows[-tenth:])):
            mean = sum(float(row[column]) for row in chosen) / len(chosen)
            found[f"grpo/{name}_{part}"] = Interval(mean, None, None, len(chosen))
    return found
