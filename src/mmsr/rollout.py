"""Batched multi-turn rollouts for data, evaluation and ablation; GRPO rolls out with TRL, on the same SearchEnv.

trajectories = play(policy, tasks, tools, preset.prompts, Sampling(max_new_tokens=64))
answers = answer_directly(policy, tasks, preset.prompts)        # the frozen base, without any tool
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmsr.env import SearchEnv, Tools, Trajectory, TurnRecord, first_messages
from mmsr.policy import Policy
from mmsr.protocol import ImageSearch, Prompts, ProtocolError, Turn, conversation, parse_turn, render_turn
from mmsr.task import Task
from mmsr.tools.base import Grounder


@dataclass(frozen=True)
class Sampling:
    """How turns are generated; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    batch_size: int = 64


def play(
    policy: Policy,
    tasks: Sequence[Task],
    tools: Tools,
    prompts: Prompts,
    sampling: Sampling,
    rewrite: Callable[[str, Task], str] = lambda text, task: text,
    on_turn: Callable[[TurnRecord, int], None] = lambda record, number: None,
) -> list[Trajectory]:
    """Play every task to its end, all of them abreast, and return their trajectories in order.

    `rewrite` may change a turn before it counts (the coordinate ablation does); `on_turn` is told of each one played.
    """
    by_id = {task.id: task for task in tasks}
    envs = [SearchEnv(tools, prompts, by_id, on_turn=on_turn) for _ in tasks]
    conversations = [first_messages(task, prompts) for task in tasks]
    for env, task in zip(envs, tasks):
        env.reset(task.id)
    active = list(range(len(tasks)))
    while active:
        batch = [(tasks[i].picture, conversations[i]) for i in active]
        texts = policy.generate(batch, sampling.max_new_tokens, sampling.temperature, sampling.batch_size)
        texts = [rewrite(text, tasks[i]) for i, text in zip(active, texts)]
        crops = [(tasks[i].picture, described_crop(text)) for i, text in zip(active, texts)]
        tools.grounder.locate_all([pair for pair in crops if pair[1]])  # in one batch: the environments ask one by one
        for i, text in zip(active, texts):
            observation = envs[i].step(text)
            conversations[i] += [{"role": "assistant", "content": text}, {"role": "tool", "content": observation}]
        active = [i for i in active if not envs[i].trajectory.end]
    return [env.trajectory for env in envs]


def described_crop(text: str) -> str:
    """The referring expression of a valid image search, else nothing."""
    try:
        action = parse_turn(text).action
    except ProtocolError:
        return ""
    return action.expression if isinstance(action, ImageSearch) else ""


def as_coordinates(policy: Policy, grounder: Grounder) -> Callable[[str, Task], str]:
    """A rewriting that makes a described crop one by coordinates, in the policy's frame, as `grounder` gives them."""

    def rewrite(text: str, task: Task) -> str:
        expression = described_crop(text)
        box = grounder.locate(task.picture, expression) if expression else None
        if box is None:
            return text
        turn = parse_turn(text)
        return render_turn(Turn(turn.reason, ImageSearch(box=policy.to_frame(box, task.picture))))

    return rewrite


def answer_directly(policy: Policy, tasks: Sequence[Task], prompts: Prompts, batch_size: int = 64) -> list[str]:
    """The frozen base's answers without any tool: the knowledge boundary, and the direct workflow."""
    asked = [(task.picture, conversation(prompts.direct, question=task.question)) for task in tasks]
    return policy.ask(asked, batch_size)
