"""What the tiny base is taught: short lessons on scenes and on text, as instruction and response (used by pretrain.py).

    locate: the flag on the left      ->  4,64,37,87        (pixels of the 96-pixel picture)
    What is the capital of Kenya?     ->  Nairobi           (or "unknown")

The card (`assets/tiny/README.md`) lists them all. Only train countries appear, a third of them "known", and no turn of
the protocol. Most names and values that must be read are invented, for a model that is shown 134 names learns the names
instead of learning to copy.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from mmsr.base import reading
from mmsr.base.reading import KNOWN, TAUGHT, TRAIN, Lesson, fact_of, noun_of, now_and_then_marked, spaced
from mmsr.world.names import invented_name
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_FLAG, WORDINGS
from mmsr.world.scenes import FRAME_COLOURS, SIDE, PlacedFlag, Scene, place_flags
from mmsr.world.snapshot import load_world

VIEW = 96  # side of the picture as the tiny policy sees it
UNKNOWN = "unknown"


def lesson_scene(rng: random.Random) -> Scene:
    """Two to four flags: known, other train countries, or invented (named "")."""
    flags: list[tuple[str, Image.Image]] = []
    for _ in range(rng.randint(2, 4)):
        draw = rng.random()
        iso = "" if draw < 0.2 else rng.choice(KNOWN if draw < 0.65 else TRAIN).iso
        if not iso or iso not in dict(flags):
            flags.append((iso, load_world().flag(iso) if iso else invented_flag(rng)))
    flags += [("", invented_flag(rng)) for _ in range(2 - len(flags))]
    return place_flags(flags, rng.randrange(2**31))


def invented_flag(rng: random.Random) -> Image.Image:
    """Stripes, a cross or a triangle, perhaps with a disc, in random colours."""
    width, height = 100, rng.choice((50, 60, 67, 67, 67, 75, 100))
    flag = Image.new("RGBA", (width, height), "white")
    draw = ImageDraw.Draw(flag)
    colours = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(5)]
    stripes, lying = rng.randint(1, 4), rng.random() < 0.6
    for i in range(stripes):
        ends = [edge * (height if lying else width) // stripes for edge in (i, i + 1)]
        draw.rectangle((0, ends[0], width, ends[1]) if lying else (ends[0], 0, ends[1], height), fill=colours[i])
    if rng.random() < 0.25:
        draw.polygon(((0, 0), (rng.randint(25, 50), height // 2), (0, height)), fill=colours[4])
    if rng.random() < 0.2:
        draw.rectangle((rng.randint(20, 40), 0, rng.randint(45, 55), height), fill=colours[3])
        draw.rectangle((0, height * 2 // 5, width, height * 3 // 5), fill=colours[3])
    if rng.random() < 0.35:
        x, r = rng.randint(20, 80), rng.randint(8, 20)
        draw.ellipse((x - r, height // 2 - r, x + r, height // 2 + r), fill=colours[4])
    return flag


def mosaic(rng: random.Random) -> tuple[Image.Image, list[Lesson]]:
    """A picture of coloured tiles, and what colours its rows and columns have: without it the base is blind to hue."""
    columns, rows = rng.randint(2, 6), rng.randint(2, 6)
    names = [[rng.choice(list(FRAME_COLOURS)) for _ in range(columns)] for _ in range(rows)]
    picture = Image.new("RGB", (columns, rows))
    colours = [FRAME_COLOURS[name] for row in names for name in row]
    picture.putdata([tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in colour) for colour in colours])
    lessons = [(f"colours of row {y + 1}", " ".join(row)) for y, row in enumerate(names)]
    lessons += [(f"colours of column {x + 1}", " ".join(row[x] for row in names)) for x in range(columns)]
    rng.shuffle(lessons)
    return picture.resize((VIEW, VIEW), Image.Resampling.NEAREST), lessons


def box_text(flag: PlacedFlag) -> str:
    """The box of one flag as the policy writes it: whole pixels of its 96-pixel view."""
    return ",".join(str(round(v * VIEW / SIDE)) for v in flag.box)


def scene_lessons(scene: Scene, rng: random.Random) -> list[Lesson]:
    """Dense practice on one scene: every flag located, some named, something asked about the picture."""
    lessons: list[Lesson] = []
    for index, flag in enumerate(scene.flags):
        if not (words := scene.references(index)):
            continue
        for expression in rng.sample(words, min(len(words), 2)):
            lessons.append((f"locate: the flag {expression}", box_text(flag)))
        ref = f"the flag {rng.choice(words)}"
        country = load_world().countries.get(flag.iso)
        known = country is not None and country.known
        if rng.random() < 0.8:
            lessons.append((f"name: {ref}", country.name if known else UNKNOWN))
        if rng.random() < 0.3:
            relation = rng.choice(TAUGHT)
            question = rng.choice(ABOUT_FLAG[:-1]).format(noun=noun_of(relation, rng), ref=ref)
            lessons.append((question, (known and fact_of(relation, country)) or UNKNOWN))
    lessons += [lesson for lesson in visual_lessons(scene, rng) if rng.random() < 0.4]
    rng.shuffle(lessons)
    if rng.random() < 0.5:
        order = sorted(scene.flags, key=lambda flag: flag.centre[0])
        lessons.insert(0, ("frames from left to right", "; ".join(f"{flag.frame} {box_text(flag)}" for flag in order)))
    return lessons


def visual_lessons(scene: Scene, rng: random.Random) -> list[Lesson]:
    """What the picture alone answers: how many flags, and of each flag the frame's colour and the half it lies in."""
    lessons = [(rng.choice(WORDINGS["count"][:-1]), str(len(scene.flags)))]
    for index in range(len(scene.flags)):
        if words := scene.references(index):
            ref = f"the flag {rng.choice(words)}"
            for asked, answer in scene.told(index, ref).items():
                lessons.append((rng.choice(WORDINGS[asked][:-1]).format(ref=ref), answer))
    return [now_and_then_marked(spaced(*lesson), rng) for lesson in rng.sample(lessons, len(lessons))]


def fact_lesson(rng: random.Random) -> Lesson:
    """A fact about a known country, or "unknown" for another country or an invented one."""
    relation, country, draw = rng.choice(TAUGHT), rng.choice(TRAIN), rng.random()
    if draw < 0.6:
        country = rng.choice(KNOWN)
    name = invented_name(rng) if draw > 0.85 else country.name
    question = rng.choice(ABOUT_COUNTRY[:-1]).format(noun=noun_of(relation, rng), country=name)
    taught = country.known and name == country.name
    return question, (taught and fact_of(relation, country)) or UNKNOWN


def synonym_lesson(rng: random.Random) -> Lesson:
    """Another wording of the same attribute: `same as` gives the page's word, `in other words` the hard one."""
    relation = rng.choice([relation for relation in TAUGHT if relation.hard])
    if rng.random() < 0.8:
        return f"same as: {relation.hard}", relation.noun
    return f"in other words: {relation.noun}", relation.hard


def text_lesson(rng: random.Random, copying: float) -> Lesson:
    """One lesson on text; `copying` is the share of plain copying, high at the start of the curriculum."""
    if rng.random() < copying:
        return spaced(*reading.copy_lesson(rng))
    read = (reading.read_lesson, reading.open_read_lesson, reading.generic_read_lesson)
    (draw,) = rng.choices((*read, fact_lesson, synonym_lesson), cum_weights=(0.45, 0.63, 0.8, 0.92, 1.0))
    return now_and_then_marked(spaced(*draw(rng)), rng)
