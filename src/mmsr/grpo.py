"""GRPO against the live tools (paper §3.4), with TRL's GRPOTrainer on the episodes of our own loop.

    policy = train_grpo(policy, questions, tools, preset, folder, seed, RewardWeights())

Paper's settings: 8 rollouts a question, advantage = reward − group mean (no standard deviation), KL 0.001, clip 0.2.
rollout.py plays the episodes; with_trl.py hands them to TRL. What TRL computes from them is written out here once more,
by hand, for notebook 3: a test holds `loss` and its helpers to the trainer's numbers.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from mmsr.decode import Row, spread
from mmsr.env import Tools, Trajectory
from mmsr.files import read_table, write_json
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.results import TOLERATED
from mmsr.reward import Judge, RewardWeights, scores
from mmsr.rollout import Episode, Sampling, roll
from mmsr.stats import Interval
from mmsr.task import Asked, Task
from mmsr.tools.base import FatalToolError
from mmsr.training import StepCSV, processes, quiet_trainers, save_adapter, train, training_arguments
from mmsr.with_trl import EpisodeTrainer, adding

CLIP = 0.2  # of a token's probability over what it was when it was drawn
LATEST = "latest.json"  # an episode of the newest step
KEPT = 4  # adapters per training run: validation says which of them is the agent (`Lab.choose`)
STEPS = 5  # over which calls are counted: some hundred, so that one burst of failures is not yet a reason to stop

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
        epsilon=CLIP,
        scale_rewards="none",
        loss_type="grpo",
        temperature=preset.temperature,
        max_completion_length=preset.completion_tokens,
        mask_truncated_completions=False,
    )


def as_rows(questions: Sequence[Asked]) -> Dataset:
    """Rows as TRL reads them. It asks for a prompt, and is given the identifier of the question."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": question.id}]} for question in questions])


# --- rewards ----------------------------------------------------------------------------------------------------------


def reward_functions(
    tasks: Mapping[str, Task], weights: RewardWeights, judge: Judge | None
) -> tuple[list[Callable], list[float]]:
    """The reward, and beside it, with weight 0, the parts and habits that get a column in the CSV."""

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


class Outage(TrainerCallback):
    """Ends a run in trouble: FatalToolError if over TOLERATED of the last STEPS steps' searches or verdicts fail."""

    def __init__(self, judge: Judge | None):
        self.judge, self.searched, self.said = judge, Counter[str](), ""
        self.steps = deque([self._so_far()], maxlen=STEPS + 1)

    def hear(self, episodes: Sequence[Episode]) -> None:
        """Count the searches of episodes that were played."""
        vain = [turn.failed for episode in episodes for turn in episode.trajectory.turns if turn.failed]
        searches = sum(episode.trajectory.searches() for episode in episodes)
        self.searched.update({"searches": searches, "searches in vain": len(vain)})
        self.said = vain[-1] if vain else self.said

    def _so_far(self) -> Counter[str]:
        judged = Counter(self.judge.counts() if self.judge else {})
        verdicts, vain = judged.total() - judged["exact"], judged["unreadable"] + judged["failed"]
        return self.searched + Counter({"verdicts": verdicts, "verdicts in vain": vain})

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self._so_far())
        if len(self.steps) <= STEPS:
            return
        asked = sum(gather_object([self.steps[-1] - self.steps[0]]), Counter())
        for kind, last in (("searches", f" (the last said: {self.said.rstrip('.')})"), ("verdicts", " of the judge")):
            if asked[f"{kind} in vain"] > TOLERATED * asked[kind]:
                told = f"{asked[f'{kind} in vain']} of {asked[kind]} {kind} of the last {STEPS} steps failed{last}"
                raise FatalToolError(f"{told}: mend that, and the same command goes on from the last checkpoint.")


def kept_steps(steps: int) -> list[int]:
    """The steps after which a training run keeps its adapter: every quarter, or all steps of a very short run."""
    return [step for step in range(1, steps + 1) if step * KEPT % steps < KEPT]


class Keeper(TrainerCallback):
    """Saves the adapter after each of `kept_steps`, in a folder of its own."""

    def __init__(self, trainer: EpisodeTrainer, folder: Path):
        self.trainer, self.folder = trainer, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in kept_steps(state.max_steps):
            save_adapter(self.trainer, self.folder / str(state.global_step))


def train_grpo(
    policy: Policy,
    questions: Sequence[Asked],
    tools: Tools,
    preset: Preset,
    folder: Path,
    seed: int,
    weights: RewardWeights | None = None,
    kl: float = 0.001,
    judge: Judge | None = None,
) -> Policy:
    """Train a policy that carries the SFT adapter, going on from the last checkpoint if there is one.

    The adapter lands in `folder/adapter`, those of `kept_steps` in `folder/kept/<step>`, one row per step in
    `folder/grpo.csv`, an episode of the newest in `folder/latest.json`. Raises FatalToolError, as `Outage` does.
    """
    quiet_trainers()
    by_id, sampling = {question.id: question for question in questions}, Sampling.of(preset, preset.temperature)
    outage = Outage(judge)

    def play(names: Sequence[str], keys: Sequence[str]) -> list[Episode]:
        tasks = {name: Task.of(by_id[name]) for name in dict.fromkeys(names)}  # only one step's pictures are in memory
        episodes = roll(policy, [tasks[name] for name in names], tools, preset.prompts, sampling, keys)
        outage.hear(episodes)
        if processes().is_main_process:  # for whoever watches
            row = {"question": by_id[names[0]].as_dict(), "trajectory": episodes[0].trajectory.as_dict()}
            write_json(folder / LATEST, row)
        return episodes

    scored = {name: Task.of(question, pictured=False) for name, question in by_id.items()}
    functions, shares = reward_functions(scored, weights or RewardWeights(), judge)
    config = grpo_config(preset, folder, seed, kl)
    config.reward_weights = shares
    trainer = EpisodeTrainer(
        policy,
        play,
        model=policy.model,
        args=config,
        reward_funcs=functions,
        train_dataset=as_rows(questions),
        processing_class=policy.processor,
        callbacks=[StepCSV(folder / "grpo.csv"), outage],
    )
    trainer.add_callback(Keeper(trainer, folder / "kept"))
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


# --- by hand ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The episodes of one question, and what each has earned."""

    task: Task
    episodes: list[Episode]
    rewards: list[float]

    @property
    def advantages(self) -> list[float]:
        """What each has earned above the group's mean, not divided by a standard deviation (paper §3.4)."""
        mean = sum(self.rewards) / len(self.rewards)
        return [reward - mean for reward in self.rewards]

    @property
    def spread(self) -> float:
        """The rewards' standard deviation; where it is 0, so are all advantages, and the group teaches nothing."""
        return statistics.pstdev(self.rewards)


def play_groups(
    policy: Policy, tasks: Sequence[Task], tools: Tools, preset: Preset, seed: int, weights: RewardWeights
) -> list[Group]:
    """Play each task as often as a step of GRPO does, and reward it by exact match."""
    places = [(task, n) for task in tasks for n in range(preset.generations)]
    keys = [f"{seed}/{task.id}/{n}" for task, n in places]
    asked, sampling = [task for task, _ in places], Sampling.of(preset, preset.temperature)
    episodes = roll(policy, asked, tools, preset.prompts, sampling, keys)
    earned = scores([episode.trajectory for episode in episodes], asked, weights, None)
    starts = range(0, len(places), preset.generations)
    parts = [slice(start, start + preset.generations) for start in starts]
    return [Group(task, episodes[part], earned[part]) for task, part in zip(tasks, parts)]


def loss(
    now: torch.Tensor, drawn: torch.Tensor, reference: torch.Tensor, advantage: float, kl: float, clip: float = CLIP
) -> torch.Tensor:
    """The loss of one episode; a batch's is the mean of its episodes'.

    Log-probabilities [T] of the tokens that the policy wrote: as they are now, as they were when they were drawn, and
    under the reference, which is the cold start. What a tool returned is not among them.
    """
    ratio = (now - drawn).exp()
    gain = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    behind = reference - now
    divergence = behind.exp() - behind - 1  # Schulman's estimate of KL(policy ‖ reference), never below 0
    return (kl * divergence - gain).mean()


def log_probabilities(policy: Policy, row: Row) -> torch.Tensor:
    """Log-probabilities [T] of the tokens that a policy wrote, at temperature 1, with their gradients to LoRA."""
    decoder, (ids, _, positions) = policy.decoder, spread([row], [(0, len(row.ids))])
    with torch.no_grad():
        embeds, added = decoder.embed(ids, [row]), decoder.added(ids, [row])
    with adding(decoder.network.model, added):
        logits = policy.model(inputs_embeds=embeds, position_ids=positions.to(policy.device), use_cache=False).logits
    every = logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None].to(policy.device))
    return every[torch.tensor(row.written[1:]), 0]


def update_by_hand(policy: Policy, group: Group, rate: float, kl: float, times: int) -> list[list[torch.Tensor]]:
    """`times` updates on one group, as if it were the whole batch; then LoRA is put back as it was.

    Returns the log-probabilities [T] of each episode's tokens as they were drawn, and after each update.
    """
    rows, lora = [episode.row for episode in group.episodes], [w for w in policy.model.parameters() if w.requires_grad]
    kept, optimiser = [weight.detach().clone() for weight in lora], torch.optim.AdamW(lora, lr=rate, weight_decay=0.0)
    with torch.no_grad():
        drawn = [log_probabilities(policy, row) for row in rows]
        seen = [drawn]
    for _ in range(times):
        for row, before, advantage in zip(rows, drawn, group.advantages):
            (loss(log_probabilities(policy, row), before, before, advantage, kl) / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            seen.append([log_probabilities(policy, row) for row in rows])
    with torch.no_grad():
        for weight, before in zip(lora, kept):
            weight.copy_(before)
    return seen
