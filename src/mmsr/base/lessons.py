"""What the tiny base is taught: short lessons on scenes and on text, as instruction and response (used by pretrain.py).

    locate: the flag on the left      ->  4,64,37,87        (pixels of the 128-pixel picture)
    What is the capital of Kenya?     ->  Nairobi           (or "unknown")

The card (`assets/tiny/README.md`) lists them all. Only train countries appear, a third of them "known", and no turn of
the protocol. Most names and values that must be read are invented, for a model that is shown 134 names learns the names
instead of learning to copy.
"""

from __future__ import annotations

import math
import random
import tomllib

from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from mmsr.base import reading
from mmsr.base.reading import KNOWN, TAUGHT, TRAIN, Lesson, fact_of, noun_of, now_and_then_marked, spaced
from mmsr.presets import ASSETS
from mmsr.world.photo import Size, place_in_photo
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_FLAG, WORDINGS, with_article
from mmsr.world.scenes import FRAME_COLOURS, KINDS, PlacedFlag, Scene, place_flags
from mmsr.world.snapshot import load_world

SIZES = tomllib.loads((ASSETS / "base" / "architecture.toml").read_text(encoding="utf-8"))
PATCH, MERGE = SIZES["vision"]["patch_size"], SIZES["vision"]["spatial_merge_size"]
VIEW = SIZES["pictures"]["side"]  # of a square picture as the tiny policy sees it; others have the same area
UNKNOWN = "unknown"
PHOTOS = 0.6  # of the scenes that both kinds can show
DRAWN = 1.75  # a photo scene is drawn this many times as wide as it is seen
POINTED = (*KINDS, "look")


def view_of(size: Size) -> Size:
    """Width and height at which the tiny policy sees a picture of some size."""
    height, width = smart_resize(size[1], size[0], PATCH * MERGE, VIEW * VIEW, VIEW * VIEW)
    return width, height


def lesson_view(rng: random.Random) -> Size:
    """The view of a square picture, or of another shape."""
    return view_of((1000, 1000) if rng.random() < 0.5 else _any_size(rng))


def _any_size(rng: random.Random) -> Size:
    """The size of a large picture, up to twice as wide as high, or twice as high as wide."""
    slim = 2 ** (rng.uniform(-1, 1) / 2)
    return round(1000 * slim), round(1000 / slim)


def lesson_scene(rng: random.Random, view: Size = (VIEW, VIEW)) -> Scene:
    """Flags of known countries, of other train countries, or invented, in a picture that is seen at this size."""
    photo = view != (VIEW, VIEW) or rng.random() < PHOTOS
    flags: list[tuple[str, Image.Image]] = []
    for _ in range(rng.randint(2, 6 if photo and rng.random() < 0.3 else 4)):
        draw = rng.random()
        iso = "" if draw < 0.3 else rng.choice(KNOWN if draw < 0.55 else TRAIN).iso
        if not iso or iso not in dict(flags):
            flags.append((iso, load_world().flag(iso)) if iso else invented_flag(rng))
    flags += [invented_flag(rng) for _ in range(2 - len(flags))]
    if not photo:
        return place_flags(flags, rng.randrange(2**31))
    drawn = DRAWN * VIEW / 1000
    while view_of(size := tuple(round(edge * drawn) for edge in _any_size(rng))) != view:
        pass
    return place_in_photo(flags, rng.randrange(2**31), size)


def invented_flag(rng: random.Random) -> tuple[str, Image.Image]:
    """Stripes, a cross or a triangle, perhaps with an emblem, in random colours; its name is that of the emblem."""
    width, height = 100, rng.choice((50, 60, 67, 67, 67, 75, 100))
    flag = Image.new("RGBA", (width, height), "white")
    draw = ImageDraw.Draw(flag)
    colours = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(5)]
    stripes, lying = rng.randint(1, 4), rng.random() < 0.6
    for i in range(stripes):
        ends = [edge * (height if lying else width) // stripes for edge in (i, i + 1)]
        draw.rectangle((0, ends[0], width, ends[1]) if lying else (ends[0], 0, ends[1], height), fill=colours[i])
    emblem = rng.choice(("", "", "", "triangle", "cross", "disc", "star", "crescent"))
    x, y, r = rng.randint(20, 80), height // 2, rng.randint(10, 22)
    if emblem == "triangle":
        draw.polygon(((0, 0), (rng.randint(25, 50), y), (0, height)), fill=colours[4])
    elif emblem == "cross":
        left, thick = rng.randint(25, 45), rng.randint(4, 8)
        draw.rectangle((left, 0, left + 2 * thick, height), fill=colours[3])
        draw.rectangle((0, y - thick, width, y + thick), fill=colours[3])
    elif emblem:
        draw_emblem(draw, emblem, (x, y), r, colours[4], flag.getpixel((min(99, x + r + 2), y)))
    return emblem, flag


def draw_emblem(draw: ImageDraw.ImageDraw, emblem: str, at: Size, r: int, colour: tuple, beneath: tuple) -> None:
    """A disc, a star or a crescent of radius `r`."""
    x, y = at
    if emblem == "star":
        points = [(-90 + 36 * i, r if i % 2 == 0 else r * 0.4) for i in range(10)]
        draw.polygon(
            [(x + d * math.cos(math.radians(a)), y + d * math.sin(math.radians(a))) for a, d in points], fill=colour
        )
        return
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    if emblem == "crescent":
        draw.ellipse((x - r * 0.5, y - r * 0.8, x + r * 1.1, y + r * 0.8), fill=beneath)


def mosaic(rng: random.Random, view: Size = (VIEW, VIEW)) -> tuple[Image.Image, list[Lesson]]:
    """A picture of coloured tiles, and what colours its rows and columns have: without it the base is blind to hue."""
    columns, rows = rng.randint(2, 6), rng.randint(2, 6)
    names = [[rng.choice(list(FRAME_COLOURS)) for _ in range(columns)] for _ in range(rows)]
    picture = Image.new("RGB", (columns, rows))
    colours = [FRAME_COLOURS[name] for row in names for name in row]
    picture.putdata([tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in colour) for colour in colours])
    lessons = [(f"colours of row {y + 1}", " ".join(row)) for y, row in enumerate(names)]
    lessons += [(f"colours of column {x + 1}", " ".join(row[x] for row in names)) for x in range(columns)]
    rng.shuffle(lessons)
    return picture.resize(view, Image.Resampling.NEAREST), lessons


def box_text(flag: PlacedFlag, scene: Scene) -> str:
    """The box of one flag as the policy writes it: whole pixels of its view, too wide rather than too tight."""
    (wide, high), (width, height) = view_of(scene.picture.size), scene.picture.size
    x1, y1, x2, y2 = flag.box
    edges = (math.floor(x1 * wide / width), math.floor(y1 * high / height))
    edges += (math.ceil(x2 * wide / width), math.ceil(y2 * high / height))
    return ",".join(map(str, edges))


def scene_lessons(scene: Scene, rng: random.Random) -> list[Lesson]:
    """Dense practice on one scene: every flag located, some named, something asked about the picture."""
    lessons: list[Lesson] = []
    for index, flag in enumerate(scene.flags):
        if not (words := scene.references(index, POINTED)):
            continue
        for expression in rng.sample(words, min(len(words), 2)):
            lessons.append((f"locate: the flag {expression}", box_text(flag, scene)))
        ref = f"the flag {rng.choice(words)}"
        country = load_world().countries.get(flag.iso)
        known = country is not None and country.known
        if rng.random() < 0.8:
            lessons.append((f"name: {ref}", country.name if known else UNKNOWN))
        if rng.random() < 0.3:
            relation = rng.choice(TAUGHT)
            question = rng.choice(ABOUT_FLAG["train"]).format(noun=noun_of(relation, rng), ref=ref)
            lessons.append((question, (known and fact_of(relation, country)) or UNKNOWN))
    lessons += [lesson for lesson in visual_lessons(scene, rng) if rng.random() < 0.4]
    rng.shuffle(lessons)
    if rng.random() < 0.5:
        order = sorted(scene.flags, key=lambda flag: flag.centre[0])
        told = [f"{flag.frame or 'no'} {box_text(flag, scene)}" for flag in order]
        lessons.insert(0, ("frames from left to right", "; ".join(told)))
    return lessons


def visual_lessons(scene: Scene, rng: random.Random) -> list[Lesson]:
    """What the picture alone answers: how many flags, and of each flag the frame's colour and the half it lies in."""
    lessons = [(rng.choice(WORDINGS["count"]["train"]), str(len(scene.flags)))]
    for index in range(len(scene.flags)):
        if words := scene.references(index):
            ref = f"the flag {rng.choice(words)}"
            for asked, answer in scene.told(index, ref).items():
                lessons.append((rng.choice(WORDINGS[asked]["train"]).format(ref=ref), answer))
    return [now_and_then_marked(spaced(*lesson), rng) for lesson in rng.sample(lessons, len(lessons))]


def fact_lesson(rng: random.Random) -> Lesson:
    """A fact about a known country, or "unknown" for another country or an invented one."""
    relation, country, draw = rng.choice(TAUGHT), rng.choice(TRAIN), rng.random()
    if draw < 0.6:
        country = rng.choice(KNOWN)
    name = reading.lesson_name(rng) if draw > 0.85 else country.name
    question = rng.choice(ABOUT_COUNTRY["train"]).format(noun=noun_of(relation, rng), country=with_article(name))
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
