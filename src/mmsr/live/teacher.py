"""The teacher as the paper has it: a large model plays whole episodes against the tools (paper §3.3, Gemini-2.5-Pro).

    teacher = LLMTeacher(connection.chat("gpt-4o", "teacher"), seed=0)
    trajectory = teacher.play(task, SearchEnv(tools, preset.prompts, {task.id: task}))
    built = data.build(questions, teacher.player(), …)     # many at once, resumable

What it writes is parsed like any policy's turn: a broken one is told so, and may fail the episode. It reads the
policies' prompts with advice on when to search; the trajectory holds them without, for the policy will learn from that.
"""

from __future__ import annotations

import hashlib

from mmsr.env import SearchEnv, Trajectory, TurnRecord
from mmsr.live.models import Chat
from mmsr.presets import read_prompt
from mmsr.protocol import sanitise
from mmsr.task import Task
from mmsr.teacher import Player

END = "</information>"
TURNS = {"start": "first_turn", "img_search": "after_image_search", "text_search": "after_text_search"}


class LLMTeacher:
    """A model behind a chat endpoint; `seed` goes with every call. Safe between threads."""

    def __init__(self, chat: Chat, seed: int = 0) -> None:
        self.chat, self.seed = chat, seed

    def play(self, task: Task, env: SearchEnv, sample: int = 0) -> Trajectory:
        """Play a task of any origin to its end in `env`, which holds it and bounds its turns.

        `sample` tells repeated episodes of one task apart. Raises the errors of `live.limits` where the model gives no
        answer.
        """
        env.reset(task.id)
        question = sanitise(task.question)
        first = {"type": "text", "text": turn_prompt(question)}
        messages = [{"role": "user", "content": [{"type": "image", "image": task.picture}, first]}]
        while not env.trajectory.end:
            completion = self.chat.complete(messages, seed=self.seed + sample)
            text = completion.text.strip()
            env.step(text)
            turn = env.trajectory.turns[-1]
            turn.replay_keys.insert(0, completion.key)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": _next(question, turn)}]
        return env.trajectory

    def player(self, workers: int = 8) -> Player:
        """This teacher as the data building sees it, playing so many episodes at once."""
        model, prompts = self.chat.model, "".join(turn_prompt("", before) for before in TURNS)
        written = hashlib.sha256(prompts.encode()).hexdigest()[:16]
        settings = {"teacher": model.model, "temperature": model.temperature, "teacher_prompts": written}
        return Player(settings, lambda question, task, env: self.play(task, env), workers)


def turn_prompt(question: str, before: str = "start") -> str:
    """The prompt of a turn as the policies have it, with advice on when to search; `before` is the action before it."""
    return read_prompt(TURNS[before], read_prompt("teacher_advice")).format(question=question)


def _next(question: str, turn: TurnRecord) -> str:
    """What the teacher reads after a turn: what came back, and its own prompt in place of the policy's."""
    found, end, _ = turn.observation.partition(END)
    if turn.error or not end:
        return turn.observation
    return f"{found}{end}\n{turn_prompt(question, turn.action)}"
