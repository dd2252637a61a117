"""Typed questions over scenes, with gold answer, aliases, gold pages and gold box.

    questions = make_questions("train", 100, seed=0)
    questions[0].text      # 'Look at the flag on the left. What is the capital of its country?'
    questions[0].answer    # 'Nairobi'

| type | needs | example |
|---|---|---|
| visual | the picture alone | How many flags are there? |
| fact | memory, or one text search | What is the capital of Kenya? |
| one_hop | a crop, then a text search | What is the capital of the country of the flag on the left? |
| two_hop | a crop, then two text searches | … of the country that shares the longest land border with … |
| hard | a crop, and a query in other words than the question's | What is the seat of power … |

Test and validation questions come in InfoSeek's two halves, so that validation can see what the test will: in
`unseen_entity` the split's own countries are asked about as in training, in `unseen_question` training countries by
relations and wordings of the split's own.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from mmsr.task import HALVES, Asked
from mmsr.world.relations import ASKED, EDGES, RELATIONS, Relation, aliases
from mmsr.world.scenes import Scene, draw_scene
from mmsr.world.snapshot import Country, World, load_world

TYPES = ("visual", "fact", "one_hop", "two_hop", "hard")
SHARES = {"visual": 0.2, "fact": 0.15, "one_hop": 0.3, "two_hop": 0.15, "hard": 0.2}

# Ways to point at a flag. By frame colour alone the tiny base finds flags hardly above chance (assets/tiny/README.md),
# and by size or look questions of the world do not ask; `Scene.references` can.
POINTING = ("position", "relative")
WORDINGS: dict[str, dict[str, list[str]]] = ASKED["wordings"]  # of what is asked, by split
ABOUT_FLAG, ABOUT_COUNTRY, ABOUT_EDGE = (WORDINGS[name] for name in ("about_flag", "about_country", "about_edge"))


def with_article(name: str) -> str:
    """A country's name as it stands in a sentence: "the United Kingdom"."""
    return f"the {name}" if name in ASKED["articles"]["the"] else name


@dataclass(frozen=True, kw_only=True)
class Question(Asked):
    """A question of the world and everything needed to score it. `scene` redraws its picture.

    `half` is one of HALVES, or "seen" in training; `entity` is the country asked
    about; `target` is its flag's place among `isos`, and `expression` points at it.
    """

    target: int
    expression: str
    relation: str
    edge: str = ""
    isos: tuple[str, ...]
    scene_seed: int

    def scene(self) -> Scene:
        """The picture with its flags, redrawn from the seed."""
        return _cached_scene(self.isos, self.scene_seed)

    def draw(self) -> Image.Image:
        """The picture alone."""
        return self.scene().picture


@functools.lru_cache(maxsize=4096)
def _cached_scene(isos: tuple[str, ...], seed: int) -> Scene:
    return draw_scene(load_world(), isos, seed)


def make_questions(split: str, n: int, seed: int) -> list[Question]:
    """`n` different questions of one split ("train", "val", "test"), in an order that follows from the seed."""
    if split not in {"train", "val", "test"}:
        raise ValueError(f"split is {split!r}: use train, val or test")
    world, draw = load_world(), 0
    questions: dict[tuple, Question] = {}
    while len(questions) < n:
        rng = random.Random(f"{seed}/{split}/{draw}")
        half = "seen" if split == "train" else HALVES[draw % 2]
        question = _draw_question(world, split, half, rng, f"{split}-{seed}-{draw}")
        draw += 1
        if question is not None:
            questions.setdefault((question.text, question.entity, question.answer), question)
    return list(questions.values())


def _wording(wordings: Mapping[str, Sequence[str]], splits: Sequence[str], rng: random.Random) -> str:
    return rng.choice([wording for split in splits for wording in wordings[split]])


def _draw_question(world: World, split: str, half: str, rng: random.Random, id_: str) -> Question | None:
    """One question, or None where the draw has no answer (a landlocked country has no longest sea border, say)."""
    worded = ("train", split) if half == "unseen_entity" else (split,)
    kind = rng.choices(TYPES, [SHARES[t] for t in TYPES])[0]
    pool = world.by_split("train" if half == "unseen_question" else split)
    others = world.by_split("train") + (pool if split != "train" else [])
    country = rng.choice(pool)
    if kind == "fact" and half == "seen" and rng.random() < 0.5:
        country = rng.choice([c for c in pool if c.known] or pool)
    rest = rng.sample([c.iso for c in others if c.iso != country.iso], rng.randint(1, 3))
    isos = [country.iso, *rest]
    rng.shuffle(isos)
    target, scene_seed = isos.index(country.iso), rng.randrange(2**31)
    scene = _cached_scene(tuple(isos), scene_seed)
    ways = [words for way in POINTING if (words := scene.references(target, [way]))]
    if not ways:
        return None
    expression = "the flag " + rng.choice(rng.choice(ways))
    common = {
        "id": id_,
        "type": kind,
        "target": target,
        "expression": expression,
        "box": scene.flags[target].box,
        "entity": country.iso,
        "isos": tuple(isos),
        "scene_seed": scene_seed,
        "half": half,
    }
    if kind == "visual":
        return _visual(scene, common, worded, rng)
    asked_by = {"seen": ("", "train"), "unseen_entity": ("",), "unseen_question": (split,)}[half]
    if kind == "hard":  # a hard wording is held out by its sentence alone
        relation = rng.choice([r for r in RELATIONS.values() if r.hard])
    else:
        relation = rng.choice([r for r in RELATIONS.values() if r.only in asked_by])
    return _about(world, country, relation, common, worded, rng)


def _visual(scene: Scene, common: dict, worded: Sequence[str], rng: random.Random) -> Question | None:
    ref, draw = common["expression"], rng.choice(("count", "frame", "side"))
    told = scene.told(common["target"], ref) | {"count": str(len(scene.flags))}
    if draw not in told:
        return None
    if draw == "count":
        common = common | {"expression": ""}
    return Question(
        **common,
        text=_wording(WORDINGS[draw], worded, rng).format(ref=ref),
        answer=told[draw],
        aliases={"2": ("two",), "3": ("three",), "4": ("four",)}.get(told[draw], ()),
        taxonomy="Visual",
        relation=draw,
    )


def _about(
    world: World, country: Country, relation: Relation, common: dict, worded: Sequence[str], rng: random.Random
) -> Question | None:
    """A question of type fact, one_hop, two_hop or hard, or None where the factbook does not answer it."""
    kind, iso, edge, pages = common["type"], country.iso, None, []
    if kind == "two_hop":
        edge = rng.choice(list(EDGES.values()))
        iso = edge.follow(world, country.iso)
        pages = [f"{country.iso}/{edge.slug}"]
    page = world.page(iso, relation.slug) if iso else None
    answer = relation.read(page)
    if answer is None:
        return None
    noun, ref = relation.hard if kind == "hard" else relation.noun, common["expression"]
    if kind == "fact":
        text = _wording(ABOUT_COUNTRY, worded, rng).format(noun=noun, country=with_article(country.name))
        common = common | {"expression": "", "box": None}
    elif edge:
        text = _wording(ABOUT_EDGE, worded, rng).format(noun=noun, edge=edge.phrase.format(ref=ref))
    else:
        text = _wording(ABOUT_FLAG, worded, rng).format(noun=noun, ref=ref)
    return Question(
        **common,
        text=text,
        answer=answer,
        aliases=aliases(answer),
        taxonomy=page.section,
        gold_pages=(*pages, page.id),
        relation=relation.key,
        edge=edge.key if edge else "",
    )
