"""The world snapshot: countries, pages of text, and flags.

    world = load_world()
    world.pages["ke/capital"]     # Page(id='ke/capital', title='Kenya: Capital', section='Government', text='name: …')
    world.flag("ke")              # a PIL picture, RGBA, 100 pixels wide

The 194 countries are split 134 / 20 / 40 into train, val and test, and a third of the train countries is "known": the
only ones whose flags and facts the tiny base was shown in pre-training. The split is fixed, for the base was made with
it. Source: design of the offline twin of the paper's web (paper §3.2).
"""

from __future__ import annotations

import bz2
import functools
import io
import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).parents[1] / "assets" / "world"
SPLIT_SEED = 2510_12801
SPLIT_SIZES = {"train": 134, "val": 20, "test": 40}
KNOWN_COUNTRIES = 45


@dataclass(frozen=True)
class Page:
    """One page of the corpus: an identifier like an address, a title, a factbook section, and plain text."""

    id: str
    title: str
    section: str
    text: str


@dataclass(frozen=True)
class Country:
    """A country with its ISO code, English short name, split and whether the tiny base was taught about it."""

    iso: str
    name: str
    split: str
    known: bool


@dataclass(frozen=True)
class FlagImage:
    """One entry of the picture index: a flag, titled; territories are distractors that no question asks about."""

    iso: str
    title: str
    country: bool


@dataclass(frozen=True, eq=False)
class World:
    """The snapshot in memory. `pages` by id, `countries` by ISO code, `flags` in the order of the picture index."""

    countries: dict[str, Country]
    pages: dict[str, Page]
    flags: tuple[FlagImage, ...]

    def by_split(self, split: str) -> list[Country]:
        """Countries of one split ("train", "val", "test"), in ISO order."""
        return [country for country in self.countries.values() if country.split == split]

    def by_name(self, name: str) -> Country | None:
        """The country of that short name, or None."""
        return _names(self).get(name.lower())

    def page(self, iso: str, slug: str) -> Page | None:
        """The page of one country on one subject, or None where the factbook has none."""
        return self.pages.get(f"{iso}/{slug}")

    def flag(self, iso: str) -> Image.Image:
        """The flag as published: RGBA, 100 pixels wide (height by the flag's own proportion)."""
        return _flags()[iso]


@functools.cache
def _flags() -> dict[str, Image.Image]:
    flags = {}
    with zipfile.ZipFile(ASSETS / "flags.zip") as archive:
        for name in archive.namelist():
            flags[Path(name).stem] = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
    return flags


@functools.lru_cache(maxsize=4)
def _names(world: World) -> dict[str, Country]:
    return {country.name.lower(): country for country in world.countries.values()}


@functools.cache
def load_world() -> World:
    """Read the committed snapshot (about 0.5 MB) and split its countries."""
    snapshot = json.loads(bz2.decompress((ASSETS / "pages.json.bz2").read_bytes()))
    isos = [entry["iso"] for entry in snapshot["countries"]]
    shuffled = random.Random(SPLIT_SEED).sample(isos, len(isos))
    split_of, start = {}, 0
    for split, size in SPLIT_SIZES.items():
        split_of |= dict.fromkeys(shuffled[start : start + size], split)
        start += size
    known = set(shuffled[:KNOWN_COUNTRIES])
    countries = {
        entry["iso"]: Country(entry["iso"], entry["name"], split_of[entry["iso"]], entry["iso"] in known)
        for entry in snapshot["countries"]
    }
    pages = {entry["id"]: Page(**entry) for entry in snapshot["pages"]}
    flags = tuple(
        FlagImage(entry["iso"], f"Flag of {entry['name']}", kind == "countries")
        for kind in ("countries", "territories")
        for entry in snapshot[kind]
    )
    return World(countries, pages, flags)
