"""Relays: a search in plain words, one step to a lesson (used by pretrain.py).

    What is the capital of the country of the flag on the left?  look at what?          ->  the flag on the left
    1. Flag of Kenya … the same question …                       look up what?          ->  Kenya capital
    1. Kenya: Capital: name: Nairobi … the same question …       what do the pages say? ->  Nairobi

What comes back is what the local engine finds among the pages of train countries, as an episode would summarise it,
most names and values replaced by invented ones. When to take which step, and how the protocol writes it, is left to
fine-tuning: each instruction says which step it asks for.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from mmsr.base.reading import NOT_FOUND, TAUGHT, Lesson, fact_of, lesson_name, open_topic, pages_of, spaced, value_like
from mmsr.tools.summary import ExtractiveSummariser
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_EDGE, ABOUT_FLAG, POINTING, with_article
from mmsr.world.relations import EDGES
from mmsr.world.scenes import Scene
from mmsr.world.snapshot import Country, load_world

LOOK_AT, LOOK_UP, SAY = "look at what?", "look up what?", "what do the pages say?"
OTHERWISE = "look up what, in other words?"
KINDS = {"one_hop": 0.25, "open": 0.15, "two_hop": 0.25, "three_hop": 0.1, "hard": 0.15, "fact": 0.1}
HOPS = {"two_hop": 1, "three_hop": 2}  # countries on the way to the one that is asked about
INVENTED = 0.7  # of the names and of the answers
BUDGETS = (64, 96, 112, 128)  # tokens of what a search returns, about as in an episode


class Topic(NamedTuple):
    """A country, the name it goes by here, what is asked about it, the page's word for that, and the answer there."""

    country: Country
    name: str
    noun: str
    page_noun: str
    answer: str


class Relays:
    """Draws relays over the countries of one split; `count_tokens` measures what a search may return."""

    def __init__(self, count_tokens: Callable[[str], int], split: str = "train"):
        self.world, self.countries = load_world(), load_world().by_split(split)
        pages = {page.id: page for country in self.countries for page in pages_of(country)}
        self.engine = replace(self.world, pages=pages).text_search()
        self.count_tokens = functools.lru_cache(maxsize=50_000)(count_tokens)

    def draw(self, scene: Scene, rng: random.Random, kind: str = "") -> list[Lesson]:
        """The lessons of one relay, of some kind, about a flag of this scene; none where none can be pointed at."""
        spots = [words for i in range(len(scene.flags)) for words in scene.references(i, POINTING)]
        lessons: list[Lesson] = []
        while spots and not lessons:
            drawn = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
            if topic := self._topic(drawn, rng):
                lessons = self._relay(drawn, topic, f"the flag {rng.choice(spots)}", rng)
        return [spaced(*lesson) for lesson in lessons]

    def _topic(self, kind: str, rng: random.Random) -> Topic | None:
        country = rng.choice(self.countries)
        name = lesson_name(rng) if rng.random() < INVENTED else country.name
        if kind == "open":
            found = open_topic(country, rng)
            return Topic(country, name, found[2], found[2], found[3]) if found else None
        relation = rng.choice(TAUGHT)
        while kind == "hard" and not relation.hard:
            relation = rng.choice(TAUGHT)
        answer = fact_of(relation, country)
        noun = relation.hard if kind == "hard" else relation.noun
        return Topic(country, name, noun, relation.noun, answer) if answer else None

    def _relay(self, kind: str, topic: Topic, ref: str, rng: random.Random) -> list[Lesson]:
        """The steps of one relay, or none where the pages drawn do not carry it."""
        if kind == "fact":
            question = rng.choice(ABOUT_COUNTRY["train"]).format(noun=topic.noun, country=with_article(topic.name))
            return self._read(question, question, topic, rng)
        if kind in HOPS:
            return self._hops(HOPS[kind], topic, ref, rng)
        question = rng.choice(ABOUT_FLAG["train"]).format(noun=topic.noun, ref=ref)
        seen = f"{self._listed(topic.name, rng)}\n{question}"
        return [(f"{question}\n{LOOK_AT}", ref), *self._read(seen, question, topic, rng)]

    def _hops(self, number: int, topic: Topic, ref: str, rng: random.Random) -> list[Lesson]:
        """From the flag's country along `number` edges; the country that a page names goes by an invented name, or the
        topic's if it is the last.
        """
        country, steps, phrase = rng.choice(self.countries), [], f"the country of {ref}"
        name = self._name(country, rng)
        seen, began = self._listed(name, rng), name
        for left in reversed(range(number)):
            edge = rng.choice(list(EDGES.values()))
            leads_to = self.world.countries.get(edge.follow(self.world, country.iso) or "")
            if leads_to is None:
                return []
            following = self._name(leads_to, rng) if left else topic.name
            pages = self._search(f"{country.name} {edge.noun}", f"{edge.noun} {edge.phrase}", rng)
            pages = pages.replace(country.name, name).replace(leads_to.name, following)
            own = pages.partition("\n")[0]  # a country of another split has no page here
            if not own.startswith(f"1. {name}: ") or following not in own or following in (name, began):
                return []
            steps.append((seen, f"{name} {edge.noun}"))
            phrase = edge.phrase.replace("the country of {ref}", phrase)
            country, name, seen = leads_to, following, pages
        question = rng.choice(ABOUT_EDGE["train"]).format(noun=topic.noun, edge=phrase)
        return [
            (f"{question}\n{LOOK_AT}", ref),
            *((f"{pages}\n{question}\n{LOOK_UP}", query) for pages, query in steps),
            *self._read(f"{seen}\n{question}", question, topic, rng),
        ]

    def _name(self, country: Country, rng: random.Random) -> str:
        """What a country goes by here."""
        return lesson_name(rng) if rng.random() < INVENTED else country.name

    def _read(self, seen: str, question: str, topic: Topic, rng: random.Random) -> list[Lesson]:
        """Look the topic up and say what the pages hold; in the page's own word if the question's word failed."""
        steps: list[Lesson] = []
        for noun in dict.fromkeys((topic.noun, topic.page_noun)):
            steps.append((OTHERWISE if steps else f"{seen}\n{LOOK_UP}", f"{topic.name} {noun}"))
            pages = self._search(f"{topic.country.name} {noun}", question, rng)
            answer = topic.answer if topic.answer in pages else ""
            if answer and rng.random() < INVENTED:
                new = value_like(answer, rng)
                pages, answer = pages.replace(answer, new, 1), new
            pages, answer = (text.replace(topic.country.name, topic.name) for text in (pages, answer))
            steps.append((f"{pages}\n{question}\n{SAY}", answer if answer and answer in pages else NOT_FOUND))
            if answer:
                break
        return steps + self._also(pages, rng)

    def _also(self, pages: str, rng: random.Random) -> list[Lesson]:
        """Another page of the same result, asked about: whose page it is matters as much as what it is on."""
        lines = [line.split(". ", 1)[1] for line in pages.splitlines() if ". " in line]
        for line in rng.sample(lines, len(lines)):
            name, _, rest = line.partition(": ")
            field, _, text = rest.partition(": ")
            for relation in TAUGHT:
                page = self.world.page(self.countries[0].iso, relation.slug)
                answer = page and page.title.endswith(f": {field}") and relation.read(replace(page, text=text))
                if answer and pages.count(answer) == 1:
                    question = rng.choice(ABOUT_COUNTRY["train"]).format(noun=relation.noun, country=with_article(name))
                    return [(f"{question}\n{SAY}", answer)]
        return []

    def _search(self, query: str, question: str, rng: random.Random) -> str:
        """What an episode would read of a search for `query`."""
        summary = ExtractiveSummariser(self.count_tokens, rng.choice(BUDGETS))
        return summary.summarise(question, query, self.engine.search(query, 5))

    def _listed(self, name: str, rng: random.Random) -> str:
        """What a picture search returns: the country that is meant comes first."""
        others = [lesson_name(rng) if rng.random() < 0.3 else rng.choice(self.countries).name for _ in range(4)]
        return "\n".join(f"{i}. Flag of {other}" for i, other in enumerate([name, *others], 1))
