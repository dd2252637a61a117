"""The teacher as the paper has it: a large model plays whole episodes against the tools (paper §3.3, Gemini-2.5-Pro).

    teacher = LLMTeacher(connection.chat("gpt-4o", "teacher"), seed=0)
    trajectory = teacher.play(task, SearchEnv(tools, preset.prompts, Limits(), {task.id: task}))
    built = funnel.build(questions, world, teacher.player(), …)     # many at once, resumable

It gets the picture with the first prompt, and after each search what the tools return with the prompt for the next
turn. What it writes is parsed like any policy's turn: a broken one is told so, and may fail the episode. Any task will
do, of our world or of a benchmark. It reads the teacher's prompts; the trajectory holds the policy's, for that is what
the policy will learn from.
"""

from __future__ import annotations

import hashlib

from mmsr.dataset import Asked
from mmsr.env import SearchEnv, Task, Trajectory, TurnRecord
from mmsr.live.models import Chat, as_data
from mmsr.live.prompts import FIELD, FIELDS, turn_prompt
from mmsr.players import Player
from mmsr.protocol import sanitise

END = "</information>"


class LLMTeacher:
    """A model behind a chat endpoint. `seed` goes with every call, and the chat's model says at what temperature.

    Safe between threads: an episode's state is its environment's and its conversation's.
    """

    def __init__(self, chat: Chat, seed: int = 0) -> None:
        self.chat, self.seed = chat, seed

    def play(self, task: Task, env: SearchEnv, sample: int = 0) -> Trajectory:
        """Play a task to its end in `env`, which holds it, and return the trajectory.

        `sample` tells repeated episodes of one task apart. Raises the errors of `tools.limits` where the model gives no
        answer; the environment bounds the number of turns.
        """
        env.reset(task.id)
        question = sanitise(task.question)
        first = [
            {"type": "image", "image": task.picture},
            {"type": "text", "text": turn_prompt(question, teacher=True)},
        ]
        messages = [{"role": "user", "content": first}]
        while not env.trajectory.end:
            completion = self.chat.complete(messages, seed=self.seed + sample)
            text = completion.text.strip()
            env.step(text)
            turn = env.trajectory.turns[-1]
            turn.replay_keys.insert(0, completion.key)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": _next(question, turn)}]
        return env.trajectory

    def player(self, workers: int = 8) -> Player:
        """This teacher as the funnel sees it, playing so many episodes at once."""
        model = self.chat.model
        prompts = "".join(turn_prompt("", before, teacher=True) for before in ("start", "image", "text"))
        settings = {
            "teacher": model.model,
            "temperature": model.temperature,
            "teacher_prompts": hashlib.sha256(prompts.encode()).hexdigest()[:16],
        }
        return Player(settings, lambda question, task, env: self.play(task, env), workers)


def _next(question: str, turn: TurnRecord) -> str:
    """What the teacher reads after a turn: what came back, and its own prompt in place of the policy's."""
    if turn.error or END not in turn.observation:
        return turn.observation
    found = turn.observation[: turn.observation.index(END) + len(END)]
    return f"{found}\n{turn_prompt(question, 'image' if turn.action == 'img_search' else 'text', teacher=True)}"


class FieldLabeller:
    """Sorts questions that come without a taxonomy into `prompts.FIELDS`, as the paper's teacher does."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def __call__(self, question: Asked) -> str:
        """The field, or "" where the reply names none or several. Raises the errors of `tools.limits`."""
        prompt = FIELD.format(question=as_data(question.text), answer=as_data(question.answer))
        return read_field(self.chat.complete([{"role": "user", "content": prompt}]).text)


def read_field(reply: str) -> str:
    """The one field that a reply names; "" where it names none or several."""
    named = [name for name in FIELDS if name.lower() in reply.lower()]
    return named[0] if len(named) == 1 else ""
