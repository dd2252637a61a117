"""Invented words and names: what cannot be learned by heart has to be copied (in the base's lessons, and in SFT)."""

from __future__ import annotations

import functools
import random
import re

from mmsr.world.snapshot import load_world

ONSETS = "b c d f g h j k l m n p r s t v w y z br ch dr gr kh kr pr sh st th tr".split()
VOWELS = ["a", "e", "i", "o", "u", "ai", "au", "ea", "ia", "oo", "ou"]
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "k", "nd", "ng", "rk", "st"]


def invented_word(rng: random.Random) -> str:
    """A pronounceable word, most likely in no dictionary."""
    syllables = rng.choice((1, 2, 2, 3, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


@functools.cache
def real_words() -> list[str]:
    """The words of three letters or more on the pages of train countries."""
    train = {country.iso for country in load_world().by_split("train")}
    pages = (page for page in load_world().pages.values() if page.id.split("/")[0] in train)
    return sorted({w.lower() for page in pages for w in re.findall(r"[A-Za-z]{3,}", f"{page.title} {page.text}")})


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
