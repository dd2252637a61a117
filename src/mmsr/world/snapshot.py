"""The world snapshot: countries, pages of text, and flags.

    world = load_world()
    world.pages["ke/capital"]     # Page(id='ke/capital', title='Kenya: Capital', section='Government', text='name: …')
    world.flag("ke")              # a PIL picture, RGBA, 100 pixels wide

The 194 countries are split 134 / 20 / 40 into train, val and test, and a third of the train countries is "known": the
only ones whose flags and facts the tiny base was shown in pre-training. The split is fixed, because the base was
made with it. The snapshot is the offline twin of the paper's web (paper §3.2).
"""

from __future__ import annotations

import bz2
import difflib
import functools
import io
import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmsr.tools.image import LocalImageSearch
from mmsr.tools.text import LocalTextSearch

ASSETS = Path(__file__).parents[1] / "assets" / "world"
SPLIT_SEED = 2510_12801
SPLIT_SIZES = {"train": 134, "val": 20, "test": 40}
KNOWN_COUNTRIES = 45


@dataclass(frozen=True)
class Page:
    """One page of the corpus: an identifier like an address, a title, a factbook section, plain text, its address."""

    id: str
    title: str
    section: str
    text: str
    url: str = ""


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
    url: str = ""


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
        return next((country for country in self.countries.values() if country.name.lower() == name.lower()), None)

    def find(self, country: str) -> Country:
        """The country of that short name or ISO code. ValueError, with the nearest names, where there is none."""
        found = self.countries.get(country.lower()) or self.by_name(country)
        if found is None:
            near = difflib.get_close_matches(country.title(), [known.name for known in self.countries.values()])
            raise ValueError(
                f"there is no country {country!r}" + (f": did you mean {' or '.join(near)}?" if near else ".")
            )
        return found

    def page(self, iso: str, slug: str) -> Page | None:
        """The page of one country on one subject, or None where the factbook has none."""
        return self.pages.get(f"{iso}/{slug}")

    def flag(self, iso: str) -> Image.Image:
        """The flag as published: RGBA, 100 pixels wide (height in the flag's own proportion)."""
        return _flags()[iso]

    def text_search(self) -> LocalTextSearch:
        """BM25 over its pages, indexed now."""
        return LocalTextSearch(self)

    def picture_search(self) -> LocalImageSearch:
        """Cosine over thumbnails of its flags, made now."""
        return LocalImageSearch(self)


@functools.cache
def _flags() -> dict[str, Image.Image]:
    with zipfile.ZipFile(ASSETS / "flags.zip") as archive:
        pngs = {Path(name).stem: archive.read(name) for name in archive.namelist()}
    return {iso: Image.open(io.BytesIO(png)).convert("RGBA") for iso, png in pngs.items()}


@functools.cache
def load_world() -> World:
    """Read the committed snapshot (about 0.5 MB) and split its countries."""
    snapshot = json.loads(bz2.decompress((ASSETS / "pages.json.bz2").read_bytes()))
    isos = [entry["iso"] for entry in snapshot["countries"]]
    shuffled = random.Random(SPLIT_SEED).sample(isos, len(isos))
    splits = dict(zip(shuffled, (split for split, size in SPLIT_SIZES.items() for _ in range(size))))
    known = shuffled[:KNOWN_COUNTRIES]
    countries = [
        Country(**entry, split=splits[iso], known=iso in known) for iso, entry in zip(isos, snapshot["countries"])
    ]
    pages = [Page(**entry) for entry in snapshot["pages"]]
    pictured = snapshot["countries"] + snapshot["territories"]
    flags = tuple(FlagImage(entry["iso"], f"Flag of {entry['name']}") for entry in pictured)
    return World({country.iso: country for country in countries}, {page.id: page for page in pages}, flags)
