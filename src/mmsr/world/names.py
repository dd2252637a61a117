"""Invented words, names, numbers and flags: what cannot be learned by heart has to be copied (used by the lessons)."""

from __future__ import annotations

import functools
import random
import re

from PIL import Image, ImageDraw

from mmsr.world.snapshot import load_world

ONSETS = "b c d f g h j k l m n p r s t v w y z br ch dr gr kh kr pr sh st th tr".split()
VOWELS = ["a", "e", "i", "o", "u", "ai", "au", "ea", "ia", "oo", "ou"]
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "k", "nd", "ng", "rk", "st"]
UNITS = ["%", " km", " sq km", " years", "", "", " m", " million"]


def invented_word(rng: random.Random) -> str:
    """A pronounceable word that is in no dictionary, most likely."""
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 3, 3)))
    )


@functools.cache
def real_words() -> list[str]:
    """The words of three letters or more on the pages of train countries."""
    world = load_world()
    text = " ".join(
        f"{p.title} {p.text}"
        for c in world.by_split("train")
        for p in world.pages.values()
        if p.id.startswith(f"{c.iso}/")
    )
    return sorted({word.lower() for word in re.findall(r"[A-Za-z]{3,}", text)})


def real_word(rng: random.Random) -> str:
    """Any word of the corpus."""
    return rng.choice(real_words())


def spliced_word(rng: random.Random) -> str:
    """The head of one word of the corpus and the tail of another: pieces of real words, in an order never seen."""
    head, tail = real_word(rng), real_word(rng)
    return (head[: rng.randint(2, max(2, len(head) - 1))] + tail[-rng.randint(2, max(2, len(tail) - 2)) :])[:14]


def invented_name(rng: random.Random) -> str:
    """One to three capitalised invented words, now and then joined as in real names."""
    word = spliced_word if rng.random() < 0.6 else invented_word
    words = [word(rng).capitalize() for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0])]
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
