"""The scripted teacher: plays the protocol against the live local tools (paper §3.3, where Gemini-2.5-Pro does).

It sees the question, the picture (through the scene's annotation, which stands in for eyes) and what the tools return.
It never sees the gold answer: it reads pages with the relation's pattern, takes the best match of the picture search at
its word, and refines a query that failed. So it can be wrong, and its episodes are filtered like any teacher's.

    scripted(tools)                 # as the data building sees a teacher: a `Player`
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr.env import SearchEnv, Tools, Trajectory
from mmsr.protocol import UNABLE, Action, Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.task import Asked, Task
from mmsr.world.questions import Question
from mmsr.world.relations import EDGES, RELATIONS
from mmsr.world.scenes import SIDE
from mmsr.world.snapshot import Country, load_world

EPISODE_CODE = ("teacher.py", "env.py", "protocol.py", "task.py", "tools/*.py", "world/*.py", "assets/world/*.toml")
WHOSE = "I must know whose flag this is."
FOUND = "This is {name}. I look for its {noun}."
NAMED = "The country is {name}. I look for its {noun}."
REFINE = "The pages do not say. Another word for it is {noun}."
NEXT = "That country is {name}. I look for its {noun}."
READ = "The page says it."
KNOWN = "I know this without a search."
SEEN = "The picture shows it."
LOST = "I could not find it."


class Teacher:
    """Plays one question at a time, always in the same words: a small policy learns a single wording sooner."""

    def play(self, question: Question, env: SearchEnv) -> Trajectory:
        """Play a question to its end in `env`, the episode of its task, and return the trajectory."""
        self._env, self._world = env, load_world()
        if question.type == "visual":
            self._do(SEEN, Answer(self._look(question)))
        else:
            self._answer(question)
        return env.trajectory

    def _do(self, reason: str, action: Action, **words: str) -> str:
        return self._env.step(render_turn(Turn(reason.format(**words), action)))

    def _look(self, question: Question) -> str:
        """What the picture alone answers, from the scene's annotation."""
        scene = question.scene()
        flag = scene.flags[question.target]
        if question.relation == "count":
            return str(len(scene.flags))
        return flag.frame if question.relation == "frame" else ("left" if flag.centre[0] < SIDE / 2 else "right")

    def _answer(self, question: Question) -> None:
        """Find the country, follow the edge if there is one, then look the relation up and answer."""
        country, reason = self._country(question)
        if country and question.edge:
            country, reason = self._follow(question, country, reason), NEXT
        answer = self._look_up(question, country, reason) if country else None
        self._do(READ, Answer(answer)) if answer else self._do(LOST, Answer(UNABLE))

    def _country(self, question: Question) -> tuple[Country | None, str]:
        if question.type == "fact":
            return self._world.countries[question.entity], NAMED
        self._do(WHOSE, ImageSearch(question.expression))
        hits = self._env.trajectory.turns[-1].hits
        name = hits[0]["title"].removeprefix("Flag of ") if hits else ""
        return self._world.by_name(name), FOUND

    def _follow(self, question: Question, country: Country, reason: str) -> Country | None:
        edge = EDGES[question.edge]
        seen = self._do(reason, TextSearch(f"{country.name} {edge.noun}"), name=country.name, noun=edge.noun)
        iso = edge.follow(self._world, country.iso) if self._returned(country, edge.slug) else None
        target = self._world.countries[iso] if iso else None
        return target if target and target.name in seen else None

    def _look_up(self, question: Question, country: Country, reason: str) -> str | None:
        """Search in the question's words; where that fails, in the page's word."""
        relation = RELATIONS[question.relation]
        nouns = [relation.hard, relation.noun] if question.type == "hard" else [relation.noun]
        for attempt, noun in enumerate(nouns):
            words = REFINE if attempt else reason
            seen = self._do(words, TextSearch(f"{country.name} {noun}"), name=country.name, noun=noun)
            answer = relation.read(self._world.page(country.iso, relation.slug))
            if answer and answer in seen and self._returned(country, relation.slug):
                return answer
        return None

    def _returned(self, country: Country, slug: str) -> bool:
        return any(hit["id"] == f"{country.iso}/{slug}" for hit in self._env.trajectory.turns[-1].hits)


def recall(question: Question, answer: str) -> str:
    """The one turn of a search-free example: the base's own answer, which was right, behind a reason."""
    return render_turn(Turn(SEEN if question.type == "visual" else KNOWN, Answer(answer)))


# --- teachers as the data building sees them --------------------------------------------------------------------------


class FunnelError(RuntimeError):
    """A funnel cannot go on; the message says why, what is kept, and what to do."""


@dataclass(frozen=True)
class Player:
    """How a teacher plays a question, how many at once, and what its episodes follow from (`settings`).

    `prepare` is called with the questions of a wave before they are played; `field_of` labels a question that has no
    taxonomy.
    """

    settings: Mapping[str, Any]
    play: Callable[[Asked, Task, SearchEnv], Trajectory]
    workers: int = 1
    prepare: Callable[[Sequence[Asked]], None] = lambda questions: None
    field_of: Callable[[Asked], str] | None = None


def scripted(tools: Tools) -> Player:
    """The scripted teacher. It knows beforehand what it will ask the grounder, which can take a wave in one batch."""

    def prepare(questions: Sequence[Asked]) -> None:
        if any(not isinstance(question, Question) for question in questions):
            raise FunnelError("The scripted teacher plays only questions of the world: name a model as the teacher.")
        tools.grounder.locate_all([(asked.draw(), asked.expression) for asked in questions if asked.expression])

    settings = {"teacher": "scripted", "code": _code()}
    return Player(settings, lambda question, task, env: Teacher().play(question, env), tools.workers, prepare)


@functools.cache
def _code() -> str:
    """A hash of the sources that this process runs: those on the disk when it first asks."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in EPISODE_CODE for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
