"""What the tiny base is taught: short lessons on scenes and on text, as instruction and response (used by pretrain.py).

| lesson | instruction | response |
|---|---|---|
| locate | `locate: the flag on the left` | `4,64,37,87` (pixels of the 96-pixel picture) |
| name | `name: the flag in the red frame` | `Kenya`, or `unknown` for a flag it was not introduced to |
| visual | `How many flags are there?` | `3` |
| mosaic | `colours of row 2` (of a picture of tiles) | `red blue white` |
| frames | `frames from left to right` | `red 4,64,37,87; blue 50,8,80,30` |
| fact | `What is the capital of Kenya?` | `Nairobi`, or `unknown` |
| read | pages, then a question (or the other way round) | the answer as it stands there, or `not found` |
| look up, repeat, wrap | lists, key–value pairs, markup of invented words | what was asked for |
| relay | a question; then a list; then pages | what is pointed at; what to look up; the answer |
| same as | `same as: seat of power` | `capital` |

Only train countries appear; only a third of them are "known". Most names and values that must be read are invented, for
a model that is shown 134 names learns the names instead of learning to copy. No lesson contains a turn of the protocol.
No lesson gives a fact of a held-out relation; their pages are read like any other, by their own words.
"""

from __future__ import annotations

import functools
import random
import re

from PIL import Image, ImageDraw

from mmsr.world.data import Country, Page, World, load_world
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_FLAG, COUNT, FRAME, SIDE_OF
from mmsr.world.relations import EDGES, RELATIONS, Relation
from mmsr.world.scenes import FRAME_COLOURS, SIDE, Scene, place_flags

Lesson = tuple[str, str]

VIEW = 96  # side of the picture as the tiny policy sees it
# Pages that no lesson asks about; the skill check says how the base reads them.
UNREAD = {
    "aircraft-prefix",
    "urbanization",
    "railways",
    "export-commodities",
    "unemployment-rate",
    "merchant-marine",
    "life-expectancy",
}
UNKNOWN = "unknown"
NOT_FOUND = "not found"
ONSETS = "b c d f g h j k l m n p r s t v w y z br ch dr gr kh kr pr sh st th tr".split()
VOWELS = ["a", "e", "i", "o", "u", "ai", "au", "ea", "ia", "oo", "ou"]
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "k", "nd", "ng", "rk", "st"]
UNITS = ["%", " km", " sq km", " years", "", "", " m", " million"]
TAG_WORDS = ["note", "name", "query", "item", "step", "page", "thing", "value", "label", "clue", "word", "part"]
PLAIN_WORDS = """
    reason text search img crop answer information text_search img_search what is the of country flag frame red green
    blue left right top bottom largest smallest need find look page says know must whose this that same word other
""".split()


def invented_word(rng: random.Random) -> str:
    """A pronounceable word that is in no dictionary, most likely."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 3, 3)))
    )


def invented_name(rng: random.Random) -> str:
    """One to three capitalised invented words, now and then joined as in real names."""
    words = [invented_word(rng).capitalize() for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0])]
    return rng.choices((" ", "-", " and ", " of "), (8, 1, 1, 1))[0].join(words)


def invented_number(rng: random.Random, like: str = "") -> str:
    """A number with the form of `like` (same punctuation, other digits), or of any form."""
    if like:
        first = re.search(r"\d", like)
        return "".join(
            str(rng.randint(1 if i == first.start() else 0, 9)) if c.isdigit() else c for i, c in enumerate(like)
        )
    form = rng.choice(("{a}", "{a}.{b}", "{a},{c:03d}", "{a},{c:03d},{d:03d}"))
    return form.format(a=rng.randint(1, 999), b=rng.randint(0, 9), c=rng.randint(0, 999), d=rng.randint(0, 999))


def invented_flag(rng: random.Random) -> Image.Image:
    """Stripes, a cross or a triangle, perhaps with a disc, in random colours."""
    width, height = 100, rng.choice((50, 60, 67, 67, 67, 75, 100))
    flag = Image.new("RGBA", (width, height), "white")
    draw = ImageDraw.Draw(flag)
    colours = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(5)]
    stripes, kind = rng.randint(1, 4), rng.random()
    for i in range(stripes):
        if kind < 0.6:
            draw.rectangle((0, i * height // stripes, width, (i + 1) * height // stripes), fill=colours[i])
        else:
            draw.rectangle((i * width // stripes, 0, (i + 1) * width // stripes, height), fill=colours[i])
    if rng.random() < 0.25:
        draw.polygon(((0, 0), (rng.randint(25, 50), height // 2), (0, height)), fill=colours[4])
    if rng.random() < 0.2:
        draw.rectangle((rng.randint(20, 40), 0, rng.randint(45, 55), height), fill=colours[3])
        draw.rectangle((0, height * 2 // 5, width, height * 3 // 5), fill=colours[3])
    if rng.random() < 0.35:
        x, r = rng.randint(20, 80), rng.randint(8, 20)
        draw.ellipse((x - r, height // 2 - r, x + r, height // 2 + r), fill=colours[4])
    return flag


def lesson_scene(world: World, rng: random.Random) -> Scene:
    """Two to four flags: known, other train countries, or invented (named "")."""
    train = world.by_split("train")
    known = [country for country in train if country.known]
    flags = []
    for _ in range(rng.randint(2, 4)):
        draw = rng.random()
        if draw < 0.2:
            flags.append(("", invented_flag(rng)))
        else:
            iso = rng.choice(known if draw < 0.65 else train).iso
            if iso not in {name for name, _ in flags}:
                flags.append((iso, world.flag(iso)))
    while len(flags) < 2:
        flags.append(("", invented_flag(rng)))
    return place_flags(flags, rng.randrange(2**31))


def mosaic(rng: random.Random) -> tuple[Image.Image, list[Lesson]]:
    """A picture of coloured tiles, and what colours its rows and columns have: colour, learned densely.

    Without it the base finds edges to the pixel and stays blind to hue for thousands of steps.
    """
    columns, rows = rng.randint(2, 6), rng.randint(2, 6)
    names = [[rng.choice(list(FRAME_COLOURS)) for _ in range(columns)] for _ in range(rows)]
    picture = Image.new("RGB", (columns, rows))
    for y, row in enumerate(names):
        for x, name in enumerate(row):
            picture.putpixel((x, y), tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in FRAME_COLOURS[name]))
    picture = picture.resize((VIEW, VIEW), Image.Resampling.NEAREST)
    lessons = [(f"colours of row {y + 1}", " ".join(row)) for y, row in enumerate(names)]
    lessons += [(f"colours of column {x + 1}", " ".join(row[x] for row in names)) for x in range(columns)]
    rng.shuffle(lessons)
    return picture, lessons


def box_text(scene: Scene, index: int) -> str:
    """The box of one flag as the policy writes it: whole pixels of its 96-pixel view."""
    return ",".join(str(max(0, min(VIEW, round(v * VIEW / SIDE)))) for v in scene.flags[index].box)


def scene_lessons(world: World, scene: Scene, rng: random.Random) -> list[Lesson]:
    """Dense practice on one scene: every flag located, some named, something asked about the picture."""
    lessons: list[Lesson] = []
    for index, flag in enumerate(scene.flags):
        words = scene.references(index)
        if not words:
            continue
        for expression in rng.sample(words, min(len(words), 2)):
            lessons.append((f"locate: the flag {expression}", box_text(scene, index)))
        ref = f"the flag {rng.choice(words)}"
        country = world.countries.get(flag.iso)
        if rng.random() < 0.8:
            lessons.append((f"name: {ref}", country.name if country and country.known else UNKNOWN))
        if rng.random() < 0.3:
            relation = _any_relation(rng)
            answer = relation.read(world.page(country.iso, relation.slug)) if country and country.known else None
            question = rng.choice(ABOUT_FLAG[:-1]).format(noun=_noun(relation, rng), ref=ref)
            lessons.append((question, answer or UNKNOWN))
        if rng.random() < 0.3 and "frame" not in ref:
            lessons.append((rng.choice(FRAME[:-1]).format(ref=ref), flag.frame))
        if (
            rng.random() < 0.3
            and abs(flag.centre[0] - SIDE / 2) > SIDE * 0.1
            and not {"left", "right"} & {*ref.split()}
        ):
            side = "left" if flag.centre[0] < SIDE / 2 else "right"
            lessons.append((rng.choice(SIDE_OF[:-1]).format(ref=ref), side))
    if rng.random() < 0.5:
        lessons.append((rng.choice(COUNT[:-1]), str(len(scene.flags))))
    rng.shuffle(lessons)
    if rng.random() < 0.5:
        order = sorted(range(len(scene.flags)), key=lambda i: scene.flags[i].centre[0])
        boxes = "; ".join(f"{scene.flags[i].frame} {box_text(scene, i)}" for i in order)
        lessons.insert(0, ("frames from left to right", boxes))
    return lessons


def _any_relation(rng: random.Random) -> Relation:
    return rng.choice([relation for relation in RELATIONS.values() if not relation.held_out])


def _noun(relation: Relation, rng: random.Random) -> str:
    return relation.hard if rng.random() < 0.25 else relation.noun


def fact_lesson(world: World, rng: random.Random) -> Lesson:
    """A fact about a known country, or "unknown" for another country or an invented one."""
    relation, country, draw = _any_relation(rng), rng.choice(world.by_split("train")), rng.random()
    if draw < 0.6:
        country = rng.choice([c for c in world.by_split("train") if c.known])
    answer = relation.read(world.page(country.iso, relation.slug)) if country.known else None
    name = invented_name(rng) if draw > 0.85 else country.name
    text = rng.choice(ABOUT_COUNTRY[:-1]).format(noun=_noun(relation, rng), country=name)
    return text, (answer if answer and name == country.name else UNKNOWN)


def excerpt(text: str, answer: str, rng: random.Random) -> str:
    """A page as a summary may leave it: some of its clauses, the one with the answer among them."""
    clauses = text.split("; ")
    keep = [c for c in clauses if (answer and answer in c) or rng.random() < 0.6] or clauses[:1]
    return "; ".join(keep)[:160]


def altered(page: Page, country: Country, answer: str, rng: random.Random) -> tuple[str, str, str, str]:
    """The page with its country, and most often its answer, replaced by invented ones: name, title, text, answer."""
    name, new = invented_name(rng), answer
    if answer and rng.random() < 0.8:
        new = invented_number(rng, answer) if answer[0].isdigit() else invented_name(rng)
        if answer[0].islower():
            new = new.lower()
        if answer.startswith("."):
            new = "." + invented_word(rng)[:2]
    text = page.text.replace(country.name, name)
    text = text.replace(answer, new, 1) if answer else text
    return name, page.title.replace(country.name, name), text, new


def read_lesson(world: World, rng: random.Random) -> Lesson:
    """One to five numbered pages and a question that one of them answers, or none."""
    train = world.by_split("train")
    country = rng.choice(train)
    topic: Relation = rng.choice([*(r for r in RELATIONS.values() if not r.held_out), *EDGES.values()])
    gold = world.page(country.iso, topic.slug)
    match = re.search(topic.pattern, gold.text) if gold else None
    if match is None:
        return generic_read_lesson(rng)
    answer = match.group(1).strip(' "')
    name, title, text, answer = altered(gold, country, answer, rng) if rng.random() < 0.7 else (
        country.name, gold.title, gold.text, answer
    )  # fmt: skip
    lines = [f"{title}: {excerpt(text, answer, rng)}"]
    for _ in range(rng.randint(0, 3)):
        owner = rng.choice(train)
        other = rng.choice(pages_of(world, owner.iso))
        if rng.random() < 0.6:  # another page on the same country
            if other.id.split("/")[1] != topic.slug:
                lines.append(f"{other.title.replace(owner.name, name)}: {excerpt(other.text, '', rng)}")
        elif owner.iso != country.iso:
            lines.append(f"{other.title}: {excerpt(other.text, '', rng)}")
    if rng.random() < 0.1:
        lines, answer = lines[1:] or [f"{name}: {invented_word(rng)}"], NOT_FOUND
    noun = _noun(topic, rng) if isinstance(topic, Relation) else topic.noun
    if topic in EDGES.values() and topic.key == "neighbour":
        noun = rng.choice(("longest land border", "neighbour with the longest land border"))
    return _pose(lines, noun, name, answer, rng)


@functools.cache
def real_words() -> list[str]:
    """The words of three letters or more on the pages of train countries."""
    world = load_world()
    text = " ".join(f"{p.title} {p.text}" for c in world.by_split("train") for p in pages_of(world, c.iso))
    return sorted({word.lower() for word in re.findall(r"[A-Za-z]{3,}", text)})


def real_word(rng: random.Random) -> str:
    """Any word of the corpus."""
    return rng.choice(real_words())


@functools.cache
def pages_of(world: World, iso: str) -> list[Page]:
    """All pages of one country."""
    return [page for page in world.pages.values() if page.id.startswith(f"{iso}/")]


def open_read_lesson(world: World, rng: random.Random) -> Lesson:
    """A real page asked by its own words, whatever it is about: the key of one of its clauses, or its title."""
    country = rng.choice(world.by_split("train"))
    page = rng.choice([p for p in pages_of(world, country.iso) if p.id.split("/")[1] not in UNREAD])
    field = page.title.split(": ", 1)[1].lower()
    clause = rng.choice(page.text.split("; "))
    key, _, value = clause.rpartition(": ")
    if key in {"total", "name", "noun"}:
        key = f"{field} {key}"
    match = re.match(r"\$?-?\d[\d.,]*\d?(?:%|(?: km| sq km| years| m)\b)?|[^,;:(%\d]+", value)
    answer = match.group().strip(' "') if match else ""
    if not answer or page.text.count(answer) > 1:
        return generic_read_lesson(rng)
    if not key and clause != page.text.split("; ")[0]:
        return generic_read_lesson(rng)
    words = (key.split(": ")[-1].lower() + " " if key and rng.random() < 0.8 else "") + (field if not key else "")
    noun = " ".join(words.replace(" - ", " ").split()) or field
    if rng.random() < 0.3:
        noun = rng.choice(("main ", "number of ", "size of the ", "length of ", "share of ")) + noun
    name = invented_name(rng) if rng.random() < 0.5 else country.name
    lines = [f"{page.title}: {excerpt(page.text, clause, rng)}".replace(country.name, name)]
    for other in rng.sample(pages_of(world, country.iso), rng.randint(0, 3)):
        if other.id != page.id:
            lines.append(f"{other.title}: {excerpt(other.text, '', rng)}".replace(country.name, name))
    return _pose(lines, noun, name, answer.replace(country.name, name), rng) if answer in lines[0] else copy_lesson(rng)


def relay_lessons(world: World, scene: Scene, rng: random.Random) -> list[Lesson]:
    """Three instructions that hang together: what is pointed at, what to look up for a listed name, what a page says.

    Each response copies from the one before it and from the question at the start: what reasoning over several turns
    needs, in plain words.
    """
    relation = _any_relation(rng)
    country = rng.choice(world.by_split("train"))
    page = world.page(country.iso, relation.slug)
    answer = relation.read(page)
    spots = [words for i in range(len(scene.flags)) for words in scene.references(i)]
    if answer is None or not spots:
        return [generic_read_lesson(rng)]
    name, title, text = country.name, page.title, page.text
    if rng.random() < 0.7:
        name, title, text, answer = altered(page, country, answer, rng)
    ref, noun = f"the flag {rng.choice(spots)}", _noun(relation, rng)
    question = rng.choice(ABOUT_FLAG[:-1]).format(noun=noun, ref=ref)
    others = [invented_name(rng) if rng.random() < 0.3 else rng.choice(world.by_split("train")).name for _ in range(4)]
    listed = "\n".join(f"{i}. Flag of {other}" for i, other in enumerate([name, *others], 1))
    pages = [f"{title}: {excerpt(text, answer, rng)}"]
    for other in rng.sample(pages_of(world, country.iso), rng.randint(1, 3)):
        if other.id != page.id:
            pages.append(f"{other.title}: {excerpt(other.text, '', rng)}".replace(country.name, name))
    rng.shuffle(pages)
    numbered = "\n".join(f"{i}. {line}" for i, line in enumerate(pages, 1))
    return [
        (f"{question}\nwhich flag, and what about it?", f"{ref}. {noun}"),
        (f"{listed}\nwhich one, and what to look up?", f"{name}. {noun}. {name} {noun}"),
        (f"{numbered}\nwhat do the pages say?", answer),
    ]


def generic_read_lesson(rng: random.Random) -> Lesson:
    """The same with a made-up key and value: any word may be asked for, so that a relation never seen can be read."""
    name = invented_name(rng)
    pages = []
    for _ in range(rng.randint(1, 5)):
        word = invented_word if rng.random() < 0.4 else real_word
        noun = " ".join(word(rng) for _ in range(rng.randint(1, 3)))
        unit = rng.choice(UNITS)
        value = invented_number(rng) + unit if rng.random() < 0.5 else invented_name(rng)
        more = rng.choice(
            (
                f" ({rng.randint(1990, 2026)} est.)",
                f"; {invented_word(rng)}: {invented_number(rng)}{unit}",
                f", {invented_word(rng)}, {invented_word(rng)} ({rng.randint(1990, 2026)})",
                "",
            )
        )
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
        question = rng.choice(ABOUT_COUNTRY[:-1]).format(noun=noun, country=name)
    elif draw < 0.75:
        ref = "the flag " + rng.choice(("on the left", "on the right", "at the top", "in the red frame"))
        question = rng.choice(ABOUT_FLAG[:-1]).format(noun=noun, ref=ref)
    else:
        question = f"{name} {noun}"
    return (f"{pages}\n{question}" if rng.random() < 0.5 else f"{question}\n{pages}"), answer


def copy_lesson(rng: random.Random) -> Lesson:
    """Repeat a list, look a key up, find an item by its number, or wrap words in a tag."""
    words = [rng.choice((invented_word, invented_name, invented_number))(rng) for _ in range(rng.randint(2, 6))]
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
    tag = rng.choice([*TAG_WORDS, invented_word(rng)])
    if kind == 3:
        return f"wrap in {tag}: {' '.join(words)}", f"<{tag}>{' '.join(words)}</{tag}>"
    other = invented_word(rng)
    return f"<{tag}>{words[0]}</{tag}>\n<{other}>{words[1]}</{other}>\n{tag}?", words[0]


def synonym_lesson(rng: random.Random) -> Lesson:
    """Another wording of the same attribute: `same as` gives the page's word, `in other words` the hard one."""
    relation = _any_relation(rng)
    if rng.random() < 0.8:
        return f"same as: {relation.hard}", relation.noun
    return f"in other words: {relation.noun}", relation.hard


def text_lesson(world: World, rng: random.Random, copying: float) -> Lesson:
    """One lesson on text; `copying` is the share of plain copying, high at the start of the curriculum."""
    if rng.random() < copying:
        return copy_lesson(rng)
    draw = rng.random()
    if draw < 0.45:
        return read_lesson(world, rng)
    if draw < 0.63:
        return open_read_lesson(world, rng)
    if draw < 0.8:
        return generic_read_lesson(rng)
    if draw < 0.92:
        return fact_lesson(world, rng)
    return synonym_lesson(rng)
