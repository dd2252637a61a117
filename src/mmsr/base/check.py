"""What the tiny base can do, measured: the numbers of its model card.

    python -m mmsr.base.check --out src/mmsr/assets/tiny/skills.json

Each skill is asked in the form it was taught, on train, val or test countries; scenes and seeds are new. Flags of test
countries should be found (locating is general) but not recognised (naming needs an introduction).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from mmsr.base.lessons import UNKNOWN
from mmsr.base.reading import marked
from mmsr.base.relays import LOOK_AT, LOOK_UP, SAY, Relays
from mmsr.policy import Policy, load_policy
from mmsr.stats import exact_match
from mmsr.tools.base import Box
from mmsr.tools.ground import BaseGrounder
from mmsr.world.questions import ABOUT_COUNTRY, Question, make_questions
from mmsr.world.relations import RELATIONS
from mmsr.world.scenes import draw_scene
from mmsr.world.snapshot import World, load_world

ANSWER_TOKENS = 24


def iou(a: Box | None, b: Box) -> float:
    """Intersection over union of two boxes; 0 where there is none."""
    if a is None:
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0, width) * max(0, height)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def locating(policy: Policy, world: World, n: int) -> dict[str, float]:
    """Mean IoU, and the share at or above 0.5, on flags of test countries, by the way the flag is pointed at."""
    rng, grounder = random.Random(1), BaseGrounder(policy)
    isos = [country.iso for country in world.by_split("test")]
    scenes = [draw_scene(world, rng.sample(isos, rng.randint(2, 4)), 910_000 + i) for i in range(n)]
    skills = {}
    for kind in ("position", "relative", "size", "frame"):
        asked = [(s, i, w[0]) for s in scenes for i in range(len(s.flags)) if (w := s.references(i, [kind]))][:n]
        pairs = [(scene.picture, f"the flag {words}") for scene, _, words in asked]
        grounder.prefetch(pairs)
        values = [iou(grounder.locate(*pair), scene.flags[i].box) for pair, (scene, i, _) in zip(pairs, asked)]
        skills[f"{kind}/mean_iou"] = sum(values) / len(values)
        skills[f"{kind}/iou_50"] = sum(v >= 0.5 for v in values) / len(values)
    return skills


def naming(policy: Policy, world: World, keep: Callable, n: int) -> dict[str, float]:
    """How often a flag is called by its name, and how often "unknown"."""
    rng = random.Random(1)
    isos = [c.iso for c in world.countries.values() if keep(c)]
    asked, golds = [], []
    for i in range(n):
        pair = rng.sample(isos, 2)
        scene = draw_scene(world, pair, 900_000 + i)
        words = scene.references(0)
        if words:
            asked.append((scene.picture, f"name: the flag {words[0]}"))
            golds.append(world.countries[pair[0]].name)
    answers = policy.ask(asked, max_new_tokens=ANSWER_TOKENS)
    return {
        "named": sum(exact_match(a, [g]) for a, g in zip(answers, golds)) / len(golds),
        "unknown": sum(a.strip() == UNKNOWN for a in answers) / len(golds),
    }


def reading(policy: Policy, world: World, split: str, held_out: bool, n: int) -> float:
    """Exact match on pages of real countries: the gold page among four others of the same country."""
    rng = random.Random(2)
    picture = draw_scene(world, ["ke", "pe"], 5).picture
    asked, golds = [], []
    while len(asked) < n:
        country = rng.choice(world.by_split(split))
        relation = rng.choice([r for r in RELATIONS.values() if r.held_out == held_out])
        page = world.page(country.iso, relation.slug)
        answer = relation.read(page)
        if answer is None:
            continue
        others = [p for p in world.pages.values() if p.id.startswith(f"{country.iso}/") and p.id != page.id]
        pages = [page, *rng.sample(others, 3)]
        rng.shuffle(pages)
        lines = "\n".join(f"{i}. {p.title}: {p.text[:160]}" for i, p in enumerate(pages, 1))
        if answer not in lines:
            continue
        asked.append((picture, f"{lines}\n{ABOUT_COUNTRY[0].format(noun=relation.noun, country=country.name)}"))
        golds.append(answer)
    return sum(exact_match(a, [g]) for a, g in zip(policy.ask(asked, max_new_tokens=ANSWER_TOKENS), golds)) / n


def facts(policy: Policy, world: World, known: bool, n: int) -> float:
    """Exact match without any page, about known or about other train countries."""
    rng = random.Random(3)
    picture = draw_scene(world, ["ke", "pe"], 5).picture
    asked, golds = [], []
    while len(asked) < n:
        country = rng.choice([c for c in world.by_split("train") if c.known == known])
        relation = rng.choice([r for r in RELATIONS.values() if not r.held_out])
        answer = relation.read(world.page(country.iso, relation.slug))
        if answer:
            asked.append((picture, ABOUT_COUNTRY[0].format(noun=relation.noun, country=country.name)))
            golds.append(answer)
    return sum(exact_match(a, [g]) for a, g in zip(policy.ask(asked, max_new_tokens=ANSWER_TOKENS), golds)) / n


def visual(policy: Policy, world: World, questions: list[Question], behind_a_remark: bool) -> float:
    """Exact match on questions that the picture alone answers, said at once or in a mark behind a remark."""
    rng = random.Random(6)
    seen = [q for q in questions if q.type == "visual"]
    texts = [marked((q.text, ""), rng)[0] if behind_a_remark else q.text for q in seen]
    answers = policy.ask([(q.scene(world).picture, text) for q, text in zip(seen, texts)], max_new_tokens=64)
    if behind_a_remark:  # <note>remark</note>\n<item> answer</item>
        answers = [answer.rpartition("</")[0].rpartition(">")[2] for answer in answers]
    return sum(exact_match(a, q.golds) for a, q in zip(answers, seen)) / len(seen)


def relaying(policy: Policy, world: World, split: str, n: int) -> dict[str, float]:
    """Exact match on each step of `n` relays (relays.py), with the right answers to the steps before it in view."""
    rng, relays = random.Random(4), Relays(world, policy.count_tokens, split)
    steps: dict[str, list[tuple]] = {LOOK_AT: [], LOOK_UP: [], SAY: []}
    isos = [country.iso for country in world.by_split(split)]
    for i in range(n):
        scene = draw_scene(world, rng.sample(isos, 3), 920_000 + i)
        messages: list[dict] = []
        for instruction, response in relays.draw(scene, rng):
            content = [{"type": "image"}] * (not messages) + [{"type": "text", "text": instruction}]
            messages.append({"role": "user", "content": content})
            if (step := instruction.rsplit("\n", 1)[-1]) in steps:
                steps[step].append((scene.picture, list(messages), response))
            messages.append({"role": "assistant", "content": response})
    found = {}
    for step, asked in steps.items():
        answers = policy.generate([(picture, messages) for picture, messages, _ in asked], max_new_tokens=32)
        right = sum(exact_match(answer, [gold]) for answer, (*_, gold) in zip(answers, asked))
        found[step.rstrip("?").replace(" ", "_")] = right / len(asked)
    return found


def check(policy: Policy, n: int) -> dict[str, float]:
    """All skills, `n` tries each."""
    world = load_world()
    test = [q for q in make_questions(world, "test", 2 * n, seed=77) if q.half == "unseen_entity"]
    train = make_questions(world, "train", n, seed=77)
    skills = {f"locate/test/{k}": v for k, v in locating(policy, world, n).items()}
    skills |= {f"name/known/{k}": v for k, v in naming(policy, world, lambda c: c.known, n).items()}
    skills |= {f"name/test/{k}": v for k, v in naming(policy, world, lambda c: c.split == "test", n).items()}
    skills["read/test"] = reading(policy, world, "test", False, n)
    skills["read/test/held_out_relations"] = reading(policy, world, "test", True, n)
    skills |= {f"relay/test/{step}": value for step, value in relaying(policy, world, "test", n).items()}
    skills["facts/known"] = facts(policy, world, True, n)
    skills["facts/other"] = facts(policy, world, False, n)
    for name, questions in (("train", train), ("test", test)):
        skills[f"visual/{name}"] = visual(policy, world, questions, behind_a_remark=False)
        skills[f"visual/{name}/behind_a_remark"] = visual(policy, world, questions, behind_a_remark=True)
    return {key: round(value, 4) for key, value in skills.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--tries", type=int, default=200, help="of each skill")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(check(load_policy(arguments.base), arguments.tries), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
