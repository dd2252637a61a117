"""Lessons in reading: pages, then a question that one of them answers (used by lessons.py and relays.py).

Real pages of train countries, mostly under invented names and with invented values, and pages made up whole. No lesson
gives a fact of a held-out relation; its page is read like any other, by its own words.
"""

from __future__ import annotations

import functools
import random
import re
import tomllib

from mmsr.presets import ASSETS
from mmsr.world.names import invented_name, invented_word, real_word
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_FLAG, with_article
from mmsr.world.relations import EDGES, RELATIONS, Relation
from mmsr.world.snapshot import Country, Page, load_world

Lesson = tuple[str, str]

WORDS = tomllib.loads((ASSETS / "base" / "lessons.toml").read_text(encoding="utf-8"))
PLAIN_WORDS: list[str] = WORDS["plain"].split()
TRAIN = load_world().by_split("train")
KNOWN = [country for country in TRAIN if country.known]
TAUGHT = [relation for relation in RELATIONS.values() if not relation.only]
NOT_FOUND = "not found"


def noun_of(relation: Relation, rng: random.Random) -> str:
    """The page's word for what is asked, now and then the hard one."""
    return relation.hard if relation.hard and rng.random() < 0.25 else relation.noun


def fact_of(relation: Relation, country: Country) -> str | None:
    """The answer as it stands on the country's page, or None where it does not."""
    return relation.read(load_world().page(country.iso, relation.slug))


@functools.cache
def pages_of(country: Country) -> list[Page]:
    """All pages of one country."""
    return [page for page in load_world().pages.values() if page.id.startswith(f"{country.iso}/")]


def open_topic(country: Country, rng: random.Random) -> tuple[Page, str, str, str] | None:
    """What a clause of a page says, in its own words: page, clause, noun, answer. None where it cannot be asked."""
    page = rng.choice(pages_of(country))
    field = page.title.split(": ", 1)[1].lower()
    clauses = page.text.split("; ")
    clause = rng.choice(clauses)
    key, _, value = clause.rpartition(": ")
    if key in {"total", "name", "noun"}:
        key = f"{field} {key}"
    match = re.match(r"\$?-?\d[\d.,]*\d?(?:%|(?: km| sq km| years| m)\b)?|[^,;:(%\d]+", value)
    answer = match.group().strip(' "') if match else ""
    if not answer or page.text.count(answer) > 1 or (not key and clause != clauses[0]):
        return None
    words = (key.split(": ")[-1].lower() + " " if key and rng.random() < 0.8 else "") + (field if not key else "")
    noun = " ".join(words.replace(" - ", " ").split()) or field
    if rng.random() < 0.3:
        noun = rng.choice(("main ", "number of ", "size of the ", "length of ", "share of ")) + noun
    return page, clause, noun, answer


def excerpt(text: str, answer: str, rng: random.Random) -> str:
    """A page as a summary may leave it: some of its clauses, the one with the answer among them."""
    clauses = text.split("; ")
    keep = [c for c in clauses if (answer and answer in c) or rng.random() < 0.6] or clauses[:1]
    return "; ".join(keep)[:160]


MARKS = {"a": "áãâä", "e": "éèê", "i": "íî", "o": "óôöø", "u": "úü", "c": "ç", "n": "ñ", "s": "š", "z": "ž"}


def lesson_name(rng: random.Random) -> str:
    """An invented name; in one of eight a letter has a diacritic, or the name follows an apostrophe."""
    name, draw = invented_name(rng), rng.random()
    places = [i for i, letter in enumerate(name) if letter in MARKS]
    if draw < 0.1 and places:
        place = rng.choice(places)
        return name[:place] + rng.choice(MARKS[name[place]]) + name[place + 1 :]
    return rng.choice(("Côte d'", "N'", "L'", "Sant'")) + name if draw > 0.975 else name


def invented_number(rng: random.Random) -> str:
    """A number with a decimal place, with thousands separated by commas, or plain."""
    form = rng.choice(("{a}", "{a}.{b}", "{a},{c:03d}", "{a},{c:03d},{d:03d}"))
    return form.format(a=rng.randint(1, 999), b=rng.randint(0, 9), c=rng.randint(0, 999), d=rng.randint(0, 999))


def value_like(answer: str, rng: random.Random) -> str:
    """An invented value in the form of an answer: digits for digits, words for words, in its case."""
    if answer.startswith("."):
        return "." + invented_word(rng)[:2]
    if answer[0].isdigit():
        return "".join(str(rng.randint(int(i == 0), 9)) if c.isdigit() else c for i, c in enumerate(answer))
    return lesson_name(rng).lower() if answer[0].islower() else lesson_name(rng)


def read_lesson(rng: random.Random) -> Lesson:
    """One to five numbered pages and a question that one of them answers, or none."""
    country = rng.choice(TRAIN)
    topic = rng.choice([*TAUGHT, *EDGES.values()])
    gold = load_world().page(country.iso, topic.slug)
    match = re.search(topic.pattern, gold.text) if gold else None
    if match is None:
        return generic_read_lesson(rng)
    name, text, answer = country.name, gold.text, match.group(1).strip(' "')
    if rng.random() < 0.7:
        name = lesson_name(rng)
        value = value_like(answer, rng) if answer and rng.random() < 0.8 else answer
        text, answer = text.replace(country.name, name).replace(answer, value, 1), value
    lines = [f"{gold.title.replace(country.name, name)}: {excerpt(text, answer, rng)}"]
    for _ in range(rng.randint(0, 3)):
        owner = rng.choice(TRAIN)
        other = rng.choice(pages_of(owner))
        if rng.random() < 0.6:  # another page on the same country
            if other.id.split("/")[1] != topic.slug:
                lines.append(f"{other.title.replace(owner.name, name)}: {excerpt(other.text, '', rng)}")
        elif owner.iso != country.iso:
            lines.append(f"{other.title}: {excerpt(other.text, '', rng)}")
    if rng.random() < 0.1:
        lines, answer = lines[1:] or [f"{name}: {invented_word(rng)}"], NOT_FOUND
    noun = noun_of(topic, rng)
    if topic.key == "neighbour":
        noun = rng.choice(("longest land border", "neighbour with the longest land border"))
    return _pose(lines, noun, name, answer, rng)


def open_read_lesson(rng: random.Random) -> Lesson:
    """A question on a real page in its own words, whatever it is about: the key of one of its clauses, or its title."""
    country = rng.choice(TRAIN)
    if (topic := open_topic(country, rng)) is None:
        return generic_read_lesson(rng)
    page, clause, noun, answer = topic
    name = lesson_name(rng) if rng.random() < 0.5 else country.name
    lines = [f"{page.title}: {excerpt(page.text, clause, rng)}".replace(country.name, name)]
    for other in rng.sample(pages_of(country), rng.randint(0, 3)):
        if other.id != page.id:
            lines.append(f"{other.title}: {excerpt(other.text, '', rng)}".replace(country.name, name))
    return _pose(lines, noun, name, answer.replace(country.name, name), rng) if answer in lines[0] else copy_lesson(rng)


def generic_read_lesson(rng: random.Random) -> Lesson:
    """The same with a made-up key and value: any word may be asked for, so that a relation never seen can be read."""
    name, pages = lesson_name(rng), []
    for _ in range(rng.randint(1, 5)):
        word = invented_word if rng.random() < 0.4 else real_word
        noun = " ".join(word(rng) for _ in range(rng.randint(1, 3)))
        unit = rng.choice(WORDS["units"])
        value = invented_number(rng) + unit if rng.random() < 0.5 else lesson_name(rng)
        estimate = f" ({rng.randint(1990, 2026)} est.)"
        another = f"; {invented_word(rng)}: {invented_number(rng)}{unit}"
        parts = f", {invented_word(rng)}, {invented_word(rng)} ({rng.randint(1990, 2026)})"
        more = rng.choice((estimate, another, parts, ""))
        start = rng.choice(("", "", "total: ", f"{invented_word(rng)}: "))
        pages.append((noun, value, f"{name}: {noun.capitalize()}: {start}{value}{more}"))
    noun, value, _ = rng.choice(pages)
    if rng.random() < 0.3:
        noun = rng.choice(("main ", "number of ", "size of the ", "length of ", "date of ", "share of ")) + noun
    return _pose([line for *_, line in pages], noun, name, value, rng)


def _pose(lines: list[str], noun: str, name: str, answer: str, rng: random.Random) -> Lesson:
    """Pages and question, in one order or the other; the question names the country, or a flag, or is mere keywords."""
    rng.shuffle(lines)
    pages = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    draw = rng.random()
    if draw < 0.45:
        question = rng.choice(ABOUT_COUNTRY["train"]).format(noun=noun, country=with_article(name))
    elif draw < 0.75:
        ref = "the flag " + rng.choice(("on the left", "on the right", "at the top", "in the red frame"))
        question = rng.choice(ABOUT_FLAG["train"]).format(noun=noun, ref=ref)
    else:
        question = f"{name} {noun}"
    return (f"{pages}\n{question}" if rng.random() < 0.5 else f"{question}\n{pages}"), answer


def copy_lesson(rng: random.Random) -> Lesson:
    """Repeat a list, look a key up, find an item by its number, or wrap words in a tag."""
    words = [rng.choice((invented_word, lesson_name, invented_number))(rng) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.4:
        words += rng.sample(PLAIN_WORDS, 2)
        rng.shuffle(words)
    kind = rng.randrange(5)
    if kind == 0:
        return f"repeat: {' '.join(words)}", " ".join(words)
    if kind == 1:
        keys = [invented_word(rng) for _ in words]
        pick = rng.randrange(len(words))
        return "; ".join(f"{k}: {v}" for k, v in zip(keys, words)) + f"\n{keys[pick]}?", words[pick]
    if kind == 2:
        pick = rng.randrange(len(words))
        return "\n".join(f"{i}. {w}" for i, w in enumerate(words, 1)) + f"\nitem {pick + 1}?", words[pick]
    tag = rng.choice([*WORDS["tags"], invented_word(rng)])
    if kind == 3:
        return f"wrap in {tag}: {' '.join(words)}", f"<{tag}> {' '.join(words)}</{tag}>"
    other = invented_word(rng)
    return f"<{tag}>{words[0]}</{tag}>\n<{other}>{words[1]}</{other}>\n{tag}?", words[0]


def spaced(instruction: str, response: str) -> Lesson:
    """A lesson whose response begins with a space: what is copied then has the same tokens as in running text."""
    return instruction, f" {response}"


def told_a_form(lesson: Lesson, rng: random.Random) -> Lesson:
    """The same lesson, its response in a form that is described in words: one tag or two, whose names are given.

    It teaches a base to follow the format that it is told, whatever the names (here never the protocol's).
    """
    instruction, response = lesson
    first, second = rng.sample(WORDS["tags"], 2) if rng.random() < 0.5 else (invented_word(rng), invented_word(rng))
    remark = " ".join(real_word(rng) for _ in range(rng.randint(2, 5)))
    if first == second or rng.random() < 0.4:
        form = rng.choice(WORDS["forms_of_one"]).format(first=first)
        return _around(instruction, form, rng), f"<{first}>{response}</{first}>"
    form = rng.choice(WORDS["forms_of_two"]).format(first=first, second=second, remark=remark)
    return _around(instruction, form, rng), f"<{first}>{remark}</{first}>\n<{second}>{response}</{second}>"


def _around(instruction: str, form: str, rng: random.Random) -> str:
    """An instruction with the description of a form before or after it."""
    return f"{form}\n{instruction}" if rng.random() < 0.5 else f"{instruction}\n{form}"


def marked(lesson: Lesson, rng: random.Random) -> Lesson:
    """The same lesson with its response in a tag, after a remark in another: a skill must not depend on its place."""
    instruction, response = lesson
    tag, other = rng.sample(WORDS["tags"], 2)
    remark = " ".join(rng.choice((invented_word, real_word))(rng) for _ in range(rng.randint(1, 4)))
    return f"{instruction}\n{other}: {remark}; then {tag}", f"<{other}>{remark}</{other}>\n<{tag}>{response}</{tag}>"


def now_and_then_marked(lesson: Lesson, rng: random.Random) -> Lesson:
    """A quarter of the lessons that come here are `marked`, a tenth `told_a_form`."""
    draw = rng.random()
    return marked(lesson, rng) if draw < 0.25 else told_a_form(lesson, rng) if draw < 0.35 else lesson
