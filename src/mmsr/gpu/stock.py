"""What `mmsr bench --against trl` compares our loop with: TRL's trainer and tool loop, an evaluation without a cache.

TRL generates a turn, asks the tokenizer to parse it, calls the environment's one tool with the whole turn, appends what
comes back and masks it from the loss; every turn reads the whole conversation again. So that the protocol's parser is
the only one, the tokenizer's `parse_response` is ours here; an answer is read by the environment at the end (`close`).
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from datasets import Sequence as Many
from trl import GRPOTrainer

from mmsr.env import MAX_TURNS, SearchEnv, Tools, Trajectory, first_messages
from mmsr.grpo import grpo_config
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import Answer, ProtocolError, parse_turn
from mmsr.reward import RewardWeights, scores
from mmsr.rollout import Sampling
from mmsr.task import Task
from mmsr.training import MESSAGES, quiet_trainers, typed


class Tool:
    """A SearchEnv as TRL wants an environment: `reset` with a row of the data set, and one tool."""

    def __init__(self, tools: Tools, preset: Preset, tasks: Mapping[str, Task]):
        self._made = lambda name: SearchEnv(tools, preset.prompts, tasks[name])

    def reset(self, task_id: str, **_: object) -> None:
        """Begin the episode of a task."""
        self._env = self._made(task_id)

    def step(self, turn: str) -> str:
        """Play one turn.

        Args:
            turn: The whole text of the turn, as generated.

        Returns:
            What came back.
        """
        return self._env.step(turn)

    def _close(self, completion: Sequence[Mapping]) -> Trajectory:
        """The trajectory with its last turn, for which TRL does not call: an answer, or one that was cut off."""
        if not self._env.trajectory.end and completion[-1]["role"] == "assistant":
            self._env.step(completion[-1]["content"])
        return self._env.trajectory


def read_turn(text: str, finished: bool) -> dict[str, Any]:
    """A generated turn as TRL's message: a call of `step` with the turn's text, unless it answers or was cut off."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    try:
        ends = isinstance(parse_turn(text).action, Answer)
    except ProtocolError:
        ends = False
    if finished and not ends:
        message["tool_calls"] = [{"type": "function", "function": {"name": "step", "arguments": {"turn": text}}}]
    return message


def stock_grpo(policy: Policy, tasks: Sequence[Task], tools: Tools, preset: Preset, folder: Path, seed: int) -> None:
    """GRPO as `train_grpo` does it, by TRL alone."""
    quiet_trainers()
    by_id, tokenizer = {task.id: task for task in tasks}, policy.tokenizer

    def parse_response(self: Any, response: Any, **_: Any) -> dict[str, Any]:
        ids = torch.as_tensor(response).tolist()
        return read_turn(self.decode(ids, skip_special_tokens=True), self.eos_token_id in ids)

    def reward(environments: Sequence[Tool], completions: Sequence[Sequence[Mapping]], **_: Any) -> list[float]:
        episodes = [environment._close(turns) for environment, turns in zip(environments, completions)]
        return scores(episodes, [by_id[episode.task_id] for episode in episodes], RewardWeights(), None)

    tokenizer.response_template = {"role": "assistant"}  # TRL asks for one; parsing is the function above
    tokenizer.parse_response = types.MethodType(parse_response, tokenizer)
    config = grpo_config(preset, folder, seed, 0.001)
    config.max_tool_calling_iterations = MAX_TURNS
    config.generation_kwargs = {"max_new_tokens": preset.new_tokens}
    features = Features({"prompt": MESSAGES, "images": Many(Picture()), "task_id": Value("string")})
    rows = {
        "prompt": [typed(first_messages(task, preset.prompts)) for task in tasks],
        "images": [[task.picture] for task in tasks],
        "task_id": list(by_id),
    }
    GRPOTrainer(
        model=policy.model,
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict(rows, features=features),
        processing_class=policy.processor,
        environment_factory=lambda: Tool(tools, preset, by_id),
    ).train()


def forgetful_play(
    policy: Policy, tasks: Sequence[Task], tools: Tools, preset: Preset, sampling: Sampling
) -> list[Trajectory]:
    """Episodes whose every turn reads its whole conversation again, picture and all, by transformers' `generate`."""
    envs = [SearchEnv(tools, preset.prompts, task) for task in tasks]
    told = [first_messages(task, preset.prompts) for task in tasks]
    active = list(range(len(tasks)))
    while active:
        active.sort(key=lambda i: sum(len(str(message["content"])) for message in told[i]))
        for start in range(0, len(active), sampling.rows):
            chosen = active[start : start + sampling.rows]
            texts = generated(policy, [(tasks[i], told[i]) for i in chosen], sampling.turn_tokens)
            for i, text in zip(chosen, texts):
                told[i] += [{"role": "assistant", "content": text}, {"role": "tool", "content": envs[i].step(text)}]
        active = [i for i in active if not envs[i].trajectory.end]
    return [env.trajectory for env in envs]


@torch.no_grad()
def generated(policy: Policy, asked: Sequence[tuple[Task, list[dict]]], max_new_tokens: int) -> list[str]:
    """The next turn of each conversation, greedily."""
    render = policy.processor.apply_chat_template
    texts = [render(messages, add_generation_prompt=True, tokenize=False) for _, messages in asked]
    pictures = [[task.picture] for task, _ in asked]
    read = policy.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
    with policy.generating():
        ids = policy.model.generate(
            **read.to(policy.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=policy.tokenizer.pad_token_id,
            eos_token_id=policy.tokenizer.eos_token_id,
        )
    return policy.tokenizer.batch_decode(ids[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
