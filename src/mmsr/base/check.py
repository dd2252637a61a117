"""What the tiny base can do, measured: the numbers of its model card.

    python -m mmsr.base.check --out src/mmsr/assets/tiny/skills.json

Each skill is asked in the form it was taught, on train or test countries; scenes and seeds are new. Flags of test
countries should be found (locating is general) but not recognised (naming needs an introduction).
"""

from __future__ import annotations

import difflib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmsr.base.lessons import UNKNOWN
from mmsr.base.reading import NOT_FOUND, TAUGHT, fact_of, marked, pages_of
from mmsr.base.relays import LOOK_AT, LOOK_UP, SAY, Relays
from mmsr.files import write_json
from mmsr.policy import Policy, load_policy
from mmsr.reward import exact_match
from mmsr.tools.ground import BaseGrounder, iou
from mmsr.world.photo import draw_photo
from mmsr.world.questions import ABOUT_COUNTRY, Question, make_questions, with_article
from mmsr.world.relations import RELATIONS
from mmsr.world.scenes import draw_scene
from mmsr.world.snapshot import Country, load_world

ANOTHER = "another page"  # of those that the last search found
ERRORS = ("wrong_page", "wrong_field", "misspelt", "cut", "not_found", "other")


def said(text: str, first: bool = True) -> dict[str, Any]:
    """A turn of the user; the first of a conversation shows the picture."""
    return {"role": "user", "content": [{"type": "image"}] * first + [{"type": "text", "text": text}]}


def share(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """The share of answers that equal one of their golds."""
    return sum(map(exact_match, answers, golds)) / len(golds)


def locating(policy: Policy, n: int, photo: bool) -> dict[str, float]:
    """By the way that flags of test countries are pointed at: mean IoU, the share of 0.5 or more, and recall@1.

    Recall@1 is how often the crop finds the flag's own country; `gold` is what it is with the true boxes.
    """
    rng, grounder, world = random.Random(1), BaseGrounder(policy), load_world()
    isos, search = [country.iso for country in world.by_split("test")], world.picture_search().search
    draw, most = (draw_photo, 5) if photo else (draw_scene, 4)
    scenes = [draw(world, rng.sample(isos, rng.randint(2, most)), 910_000 + i) for i in range(n)]
    skills = {}
    for kind in ("position", "relative", "size", "frame", "look"):
        asked = [(s, f, w[0]) for s in scenes for i, f in enumerate(s.flags) if (w := s.references(i, [kind]))][:n]
        boxes = grounder.locate_all([(scene.picture, f"the flag {words}") for scene, _, words in asked])
        values = [iou(box, flag.box) for box, (_, flag, _) in zip(boxes, asked)]
        found = [search(s.picture.crop(box), 1)[0].id == f.iso for box, (s, f, _) in zip(boxes, asked) if box]
        skills[f"{kind}/mean_iou"] = sum(values) / len(values)
        skills[f"{kind}/iou_50"] = sum(v >= 0.5 for v in values) / len(values)
        skills[f"{kind}/recall_at_1"] = sum(found) / len(values)
    every = [search(s.picture.crop(flag.box), 1)[0].id == flag.iso for s in scenes for flag in s.flags]
    return skills | {"gold/recall_at_1": sum(every) / len(every)}


def naming(policy: Policy, countries: Sequence[Country], n: int) -> dict[str, float]:
    """How often a flag is called by its name, and how often "unknown"."""
    rng, asked, golds = random.Random(1), [], []
    for i in range(n):
        pair = rng.sample(countries, 2)
        scene = draw_scene(load_world(), [country.iso for country in pair], 900_000 + i)
        if words := scene.references(0):
            asked.append((scene.picture, [said(f"name: the flag {words[0]}")]))
            golds.append([pair[0].name])
    answers = policy.ask(asked, max_new_tokens=24)
    return {"named": share(answers, golds), "unknown": answers.count(UNKNOWN) / len(golds)}


def telling(policy: Policy, countries: Sequence[Country], n: int) -> float:
    """Exact match on facts about countries, by heart."""
    rng, picture = random.Random(3), draw_scene(load_world(), ["ke", "pe"], 5).picture
    asked, golds = [], []
    while len(asked) < n:
        country, relation = rng.choice(countries), rng.choice(TAUGHT)
        if (answer := fact_of(relation, country)) is not None:
            question = ABOUT_COUNTRY["train"][0].format(noun=relation.noun, country=with_article(country.name))
            asked.append((picture, [said(question)]))
            golds.append([answer])
    return share(policy.ask(asked, max_new_tokens=24), golds)


def reading(policy: Policy, countries: Sequence[Country], n: int, held_out: bool) -> dict[str, float]:
    """Exact match on facts read off the right page among three others of its country, and the errors by their kinds."""
    rng, picture = random.Random(2), draw_scene(load_world(), ["ke", "pe"], 5).picture
    relations = [relation for relation in RELATIONS.values() if relation.only == ("test" if held_out else "")]
    asked, golds, pages = [], [], []
    while len(asked) < n:
        country, relation = rng.choice(countries), rng.choice(relations)
        if (answer := fact_of(relation, country)) is None:
            continue
        gold = load_world().page(country.iso, relation.slug)
        shown = [gold, *rng.sample([page for page in pages_of(country) if page.id != gold.id], 3)]
        rng.shuffle(shown)
        lines = [f"{i}. {page.title}: {page.text[:160]}" for i, page in enumerate(shown, 1)]
        if not any(answer in line for line in lines):
            continue
        question = ABOUT_COUNTRY["train"][0].format(noun=relation.noun, country=with_article(country.name))
        asked.append((picture, [said("\n".join([*lines, question]))]))
        golds.append([answer])
        pages.append((lines[shown.index(gold)], "\n".join(lines)))
    answers = policy.ask(asked, max_new_tokens=24)
    errors = Counter(error_of(answer, gold, *page) for answer, (gold,), page in zip(answers, golds, pages))
    return {"": share(answers, golds)} | {f"/errors/{kind}": errors[kind] / n for kind in ERRORS}


def error_of(answer: str, gold: str, page: str, pages: str) -> str:
    """What is wrong with an answer that is not `gold`, which stands on `page`, one of `pages`; "" with the gold one."""
    if exact_match(answer, [gold]):
        return ""
    if not answer or answer == NOT_FOUND:
        return "not_found"
    if gold.startswith(answer) or answer.startswith(gold):
        return "cut"
    if answer in page:
        return "wrong_field"
    if answer in pages:
        return "wrong_page"
    return "misspelt" if difflib.SequenceMatcher(None, answer, gold).ratio() > 0.6 else "other"


def visual(policy: Policy, questions: list[Question], behind_a_remark: bool) -> float:
    """Exact match on questions that the picture alone answers, said at once or in a tag after a remark."""
    rng, seen = random.Random(6), [q for q in questions if q.type == "visual"]
    texts = [marked((q.text, ""), rng)[0] if behind_a_remark else q.text for q in seen]
    answers = policy.ask([(q.draw(), [said(text)]) for q, text in zip(seen, texts)], max_new_tokens=64)
    if behind_a_remark:  # <note>remark</note>\n<item> answer</item>
        answers = [answer.rpartition("</")[0].rpartition(">")[2] for answer in answers]
    return share(answers, [q.golds for q in seen])


def relaying(policy: Policy, n: int) -> dict[str, float]:
    """Exact match on each step of `n` relays of a kind (relays.py), with the right answers to the steps before in view.

    A relay of a kind is right where all its steps are; what is then asked about another page of a result counts apart.
    """
    rng, relays = random.Random(4), Relays(policy.count_tokens, "test")
    right: dict[str, list[bool]] = {LOOK_AT: [], LOOK_UP: [], SAY: [], ANOTHER: []}
    for kind in ("one_hop", "two_hop", "three_hop"):
        asked: list[tuple] = []
        for i in range(n):
            scene = draw_scene(load_world(), [country.iso for country in rng.sample(relays.countries, 3)], 920_000 + i)
            messages: list[dict] = []
            for instruction, response in relays.draw(scene, rng, kind):
                messages.append(said(instruction, first=not messages))
                step = instruction.rsplit("\n", 1)[-1]
                if step == SAY and "1. " not in instruction:
                    step = ANOTHER
                if step in right:
                    asked.append((i, step, scene.picture, list(messages), response))
                messages.append({"role": "assistant", "content": response})
        answers = policy.ask([(picture, messages) for *_, picture, messages, _ in asked], max_new_tokens=32)
        whole = dict.fromkeys((i for i, *_ in asked), True)
        for answer, (i, step, *_, gold) in zip(answers, asked):
            right[step].append(exact_match(answer, [gold]))
            whole[i] &= right[step][-1] or step == ANOTHER
        right[kind] = list(whole.values())
    return {name.rstrip("?").replace(" ", "_"): sum(marks) / len(marks) for name, marks in right.items()}


Tries = Annotated[int, typer.Option(min=8)]  # with fewer, some skill may be met by no question


def check(base: str = "tiny", tries: Tries = 200, out: Path | None = None) -> None:
    """Print what a base can do, with so many tries of each skill, and write it to `--out`."""
    policy, n = load_policy(base), tries
    test, train = load_world().by_split("test"), load_world().by_split("train")
    known, other = ([country for country in train if country.known == known] for known in (True, False))
    skills = {}
    for name, photo in (("test", False), ("photo", True)):
        skills |= {f"locate/{name}/{k}": v for k, v in locating(policy, n, photo).items()}
    for name, countries in (("known", known), ("test", test)):
        skills |= {f"name/{name}/{k}": v for k, v in naming(policy, countries, n).items()}
    for name, held_out in (("read/test", False), ("read/test/held_out_relations", True)):
        skills |= {name + part: value for part, value in reading(policy, test, n, held_out).items()}
    skills |= {f"relay/test/{step}": value for step, value in relaying(policy, n).items()}
    skills["facts/known"] = telling(policy, known, n)
    skills["facts/other"] = telling(policy, other, n)
    unseen = [q for q in make_questions("test", 2 * n, seed=77) if q.half == "unseen_entity"]
    for name, questions in (("train", make_questions("train", n, seed=77)), ("test", unseen)):
        skills[f"visual/{name}"] = visual(policy, questions, behind_a_remark=False)
        skills[f"visual/{name}/behind_a_remark"] = visual(policy, questions, behind_a_remark=True)
    skills = {key: round(value, 4) for key, value in skills.items()}
    print(json.dumps(skills, indent=1))
    if out:
        write_json(out, skills)


if __name__ == "__main__":
    typer.run(check)
