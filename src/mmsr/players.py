"""Teachers as the builder's funnel sees them, and tools for episodes side by side.

player = scripted(world, tools)                              # `teacher.Teacher`
player = LLMTeacher(chat, seed).player()                     # llm_teacher.py, many at once
player.play(question, to_task(question, world), env)
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mmsr
from mmsr.dataset import Asked
from mmsr.env import SearchEnv, Task, Tools, Trajectory
from mmsr.teacher import Teacher
from mmsr.tools.base import Box
from mmsr.tools.summary import ExtractiveSummariser, Shortened
from mmsr.world.questions import Question
from mmsr.world.snapshot import World

EPISODE_CODE = ("teacher.py", "env.py", "protocol.py", "tools/*.py", "world/*.py")  # what scripted episodes follow from


class FunnelError(RuntimeError):
    """A funnel cannot go on; the message says why, what is kept, and what to do."""


@dataclass(frozen=True)
class Player:
    """A teacher as the funnel sees it: how it plays a question, how many at once, and what its episodes follow from.

    `prepare` is called with the questions of a wave before they are played.
    """

    settings: Mapping[str, Any]
    play: Callable[[Asked, Task, SearchEnv], Trajectory]
    workers: int = 1
    prepare: Callable[[Sequence[Asked]], None] = lambda questions: None


def scripted(world: World, tools: Tools) -> Player:
    """The scripted teacher. It knows beforehand what it will ask the grounder, which can take a wave in one batch."""

    def play(question: Asked, task: Task, env: SearchEnv) -> Trajectory:
        return Teacher(world).play(question, env)

    def prepare(questions: Sequence[Asked]) -> None:
        if any(not isinstance(question, Question) for question in questions):
            raise FunnelError("The scripted teacher plays questions of the world alone: name a model as the teacher.")
        if hasattr(tools.grounder, "prefetch"):
            asked = [question for question in questions if question.expression]
            tools.grounder.prefetch([(question.scene(world).picture, question.expression) for question in asked])

    settings = {"teacher": "scripted", "code": _code(EPISODE_CODE)}
    return Player(settings, play, tools.workers, prepare)


@functools.cache
def _code(patterns: tuple[str, ...]) -> str:
    """Of the sources that this process runs: those on the disk when it first asks."""
    package, digest = Path(mmsr.__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def for_threads(tools: Tools) -> Tools:
    """The same tools for episodes side by side: what asks the local model or its tokenizer takes turns.

    Neither is safe between threads. Web tools are, and ask at the same time.
    """
    lock = threading.Lock()

    def alone(function: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*args: Any) -> Any:
            with lock:
                return function(*args)

        return locked

    def counting_alone(summariser: Any) -> Any:
        if isinstance(summariser, ExtractiveSummariser):
            return ExtractiveSummariser(alone(summariser.count_tokens), summariser.budget)
        if isinstance(summariser, Shortened):
            return replace(summariser, count_tokens=alone(summariser.count_tokens))
        return summariser

    return replace(
        tools,
        grounder=_Alone(alone(tools.grounder.locate)),
        text_summary=counting_alone(tools.text_summary),
        image_summary=counting_alone(tools.image_summary),
    )


@dataclass(frozen=True)
class _Alone:
    locate: Callable[..., Box | None]
