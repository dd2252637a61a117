"""The scripted teacher: plays the protocol against the live local tools (paper §3.3, where Gemini-2.5-Pro does).

It sees the question, the picture (through the scene's annotation, which stands in for eyes) and what the tools return.
It never sees the gold answer: it reads pages with the relation's pattern, takes the best match of the picture search at
its word, and refines a query that failed. So it can be wrong, and its episodes are filtered like any teacher's.
"""

from __future__ import annotations

import random

from mmsr.env import SearchEnv, Task, Trajectory
from mmsr.protocol import UNABLE, Action, Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.world.data import Country, World
from mmsr.world.questions import Question
from mmsr.world.relations import EDGES, RELATIONS
from mmsr.world.scenes import SIDE

WHOSE = ("I must know whose flag this is.", "First I need the country of this flag.", "Whose flag is it? I look it up.")
FOUND = ("This is the flag of {name}. I look for its {noun}.", "It is {name}. Now I need the {noun}.")
NAMED = ("The country is {name}. I look for its {noun}.", "I do not know the {noun} of {name}, so I search.")
REFINE = ("The pages do not say. Another word is {noun}.", "That did not help. I try {noun}.")
NEXT = ("That country is {name}. I look for its {noun}.", "It leads to {name}. Now I need the {noun}.")
READ = ("The page says it.", "Here it is.")
KNOWN = ("I know this without a search.", "I know it.")
SEEN = ("The picture shows it.", "I can see it.")
LOST = ("I could not find it.",)


class Teacher:
    """Plays one question at a time. The wording of its reasons follows from `seed` and the question."""

    def __init__(self, world: World, seed: int):
        self.world, self.seed = world, seed

    def play(self, question: Question, env: SearchEnv) -> Trajectory:
        """Play a question to its end in `env`, which holds its task, and return the trajectory."""
        env.reset(question.id)
        self._rng = random.Random(f"{self.seed}/{question.id}")
        self._env = env
        if question.type == "visual":
            self._do(SEEN, Answer(self._look(question)))
        else:
            self._answer(question)
        return env.trajectory

    def _do(self, reasons: tuple[str, ...], action: Action, **words: str) -> str:
        reason = self._rng.choice(reasons).format(**words)
        return self._env.step(render_turn(Turn(reason, action)))

    def _look(self, question: Question) -> str:
        """What the picture alone answers, from the scene's annotation."""
        scene = question.scene(self.world)
        flag = scene.flags[question.target]
        if question.relation == "count":
            return str(len(scene.flags))
        return flag.frame if question.relation == "frame" else ("left" if flag.centre[0] < SIDE / 2 else "right")

    def _answer(self, question: Question) -> None:
        """Find the country, follow the edge if there is one, then look the relation up and answer."""
        country, reasons = self._country(question)
        if country and question.edge:
            country, reasons = self._follow(question, country, reasons), NEXT
        answer = self._look_up(question, country, reasons) if country else None
        self._do(READ, Answer(answer)) if answer else self._do(LOST, Answer(UNABLE))

    def _country(self, question: Question) -> tuple[Country | None, tuple[str, ...]]:
        if question.type == "fact":
            return self.world.countries[question.entity], NAMED
        self._do(WHOSE, ImageSearch(question.expression))
        hits = self._env.trajectory.turns[-1].hits
        name = hits[0]["title"].removeprefix("Flag of ") if hits else ""
        return self.world.by_name(name), FOUND

    def _follow(self, question: Question, country: Country, reasons: tuple[str, ...]) -> Country | None:
        edge = EDGES[question.edge]
        seen = self._do(reasons, TextSearch(f"{country.name} {edge.noun}"), name=country.name, noun=edge.noun)
        iso = edge.follow(self.world, country.iso) if self._returned(country, edge.slug) else None
        target = self.world.countries[iso] if iso else None
        return target if target and target.name in seen else None

    def _look_up(self, question: Question, country: Country, reasons: tuple[str, ...]) -> str | None:
        """Search in the question's words; where that fails, in the page's word."""
        relation = RELATIONS[question.relation]
        nouns = [relation.hard, relation.noun] if question.type == "hard" else [relation.noun]
        for attempt, noun in enumerate(nouns):
            words = REFINE if attempt else reasons
            seen = self._do(words, TextSearch(f"{country.name} {noun}"), name=country.name, noun=noun)
            answer = relation.read(self.world.page(country.iso, relation.slug))
            if answer and answer in seen and self._returned(country, relation.slug):
                return answer
        return None

    def _returned(self, country: Country, slug: str) -> bool:
        return any(hit["id"] == f"{country.iso}/{slug}" for hit in self._env.trajectory.turns[-1].hits)


def recall(question: Question, answer: str, seed: int) -> str:
    """The one turn of a search-free example: the base's own answer, which was right, behind a reason."""
    reasons = SEEN if question.type == "visual" else KNOWN
    return render_turn(Turn(random.Random(f"{seed}/{question.id}").choice(reasons), Answer(answer)))


def as_task(question: Question, world: World) -> Task:
    """The episode's view of a question."""
    return Task(
        id=question.id,
        question=question.text,
        picture=question.scene(world).picture,
        golds=question.golds,
        gold_pages=question.gold_pages,
        box=question.box,
        entity=question.entity,
    )
