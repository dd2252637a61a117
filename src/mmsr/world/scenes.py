"""Scenes: two to four framed flags on a varied background, drawn from a seed.

    scene = draw_scene(world, ["ke", "pe", "fr"], seed=7)
    scene.picture                 # 384×384 RGB, the resolution the tools crop from
    scene.flags[0].box            # the gold box of one flag in pixels, x1, y1, x2, y2
    scene.references(0)           # expressions that mean this flag and no other

The policy sees a scene smaller than this (128 pixels on the tiny preset): a box is easy to name there, a flag is not.
"""

from __future__ import annotations

import math
import random
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmsr.protocol import Box
from mmsr.tools.picture import flat
from mmsr.world.snapshot import ASSETS, World

SIDE = 384
MAX_TILT = 12.0
FRAME = 12
MARGIN = 0.12  # of the picture: by which a flag must lie further to one side than another
LARGER = 18 / SIDE  # of the picture: by which one must be wider than the next to be the largest
MOSTLY = 0.5  # of a flag, at least, has the colour that it is called by
_COLOURS = tomllib.loads((ASSETS / "scenes.toml").read_text(encoding="utf-8"))
WALLS = [tuple(colour) for colour in _COLOURS["walls"]]
FRAME_COLOURS = {name: tuple(colour) for name, colour in _COLOURS["frames"].items()}
CLOTH_COLOURS = {name: tuple(colour) for name, colour in _COLOURS["cloth"].items()}
EMBLEMS = {name: frozenset(isos.split()) for name, isos in _COLOURS["emblems"].items()}
KINDS = ("position", "frame", "size", "relative")


@dataclass(frozen=True)
class PlacedFlag:
    """One flag in a scene: what it is, the box of its cloth (without the frame), frame colour and width in pixels.

    `frame` is "" where there is none; `looks` are words for what it shows, such as "with the star".
    """

    iso: str
    box: Box
    frame: str
    width: int
    looks: tuple[str, ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture with its flags. `seed` and the ISO codes redraw it exactly."""

    picture: Image.Image
    flags: tuple[PlacedFlag, ...]
    seed: int

    def references(self, index: int, kinds: Sequence[str] = KINDS) -> list[str]:
        """Expressions that point at flag `index` and at no other flag of this scene, without "the flag …".

        `kinds` are from position, size, frame, look and relative: beside a flag known by its frame, or by its look
        where flags have no frames.
        """
        return [words for kind in kinds for words, meant in self._expressions(kind) if meant == [index]]

    def told(self, index: int, ref: str) -> dict[str, str]:
        """What a look at flag `index` tells: its "frame", and the "side" it lies on; not what `ref` gives away."""
        flag, found = self.flags[index], {}
        width = self.picture.width
        if flag.frame and "frame" not in ref:
            found["frame"] = flag.frame
        if abs(flag.centre[0] - width / 2) > width * 0.1 and not {"left", "right"} & {*ref.split()}:
            found["side"] = "left" if flag.centre[0] < width / 2 else "right"
        return found

    def _expressions(self, kind: str) -> list[tuple[str, list[int]]]:
        """The expressions of one kind, each with the flags that it may mean."""
        flags = self.flags
        wide, high = (MARGIN * edge for edge in self.picture.size)
        if kind == "position":
            return [
                ("on the left", _first(flags, lambda f: f.centre[0], wide)),
                ("on the right", _first(flags, lambda f: -f.centre[0], wide)),
                ("at the top", _first(flags, lambda f: f.centre[1], high)),
                ("at the bottom", _first(flags, lambda f: -f.centre[1], high)),
            ]
        if kind == "size":
            margin = LARGER * self.picture.width
            return [
                ("that is the largest", _first(flags, lambda f: -f.width, margin)),
                ("that is the smallest", _first(flags, lambda f: f.width, margin)),
            ]
        framed = _by_words([[f"in the {flag.frame} frame"] if flag.frame else [] for flag in flags])
        looking = _by_words([flag.looks for flag in flags])
        if kind in {"frame", "look"}:
            return list((framed if kind == "frame" else looking).items())
        landmarks = framed if all(flag.frame for flag in flags) else framed | looking
        found = []
        for words, (index, *more) in landmarks.items():
            if not more:
                x, y = flags[index].centre
                others = [(i, *flag.centre) for i, flag in enumerate(flags) if i != index]
                found += [
                    (f"to the left of the one {words}", [i for i, fx, _ in others if fx < x - wide]),
                    (f"to the right of the one {words}", [i for i, fx, _ in others if fx > x + wide]),
                    (f"above the one {words}", [i for i, _, fy in others if fy < y - high]),
                    (f"below the one {words}", [i for i, _, fy in others if fy > y + high]),
                ]
        return found


def _first(flags: Sequence[PlacedFlag], key: Callable[[PlacedFlag], float], margin: float) -> list[int]:
    """The flag with the smallest key, if it leads the next one by `margin`."""
    first, *others = sorted(range(len(flags)), key=lambda i: key(flags[i]))
    return [] if others and key(flags[others[0]]) - key(flags[first]) < margin else [first]


def _by_words(said: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Which flags each expression may mean, from the expressions of each flag."""
    meant: dict[str, list[int]] = {}
    for index, expressions in enumerate(said):
        for words in expressions:
            meant.setdefault(words, []).append(index)
    return meant


def looks_of(iso: str, flag: Image.Image) -> tuple[str, ...]:
    """Words for what a flag shows: its country's emblems, and the colour of most of it.

    An invented flag goes by its emblem instead of a country.
    """
    cloth = flat(flag).resize((30, 20))
    distance = ((np.asarray(cloth, np.int64)[:, :, None] - list(CLOTH_COLOURS.values())) ** 2).sum(-1)
    nearest = [list(CLOTH_COLOURS)[i].rpartition("_")[2] for i in distance.argmin(-1).ravel()]
    word, count = Counter(nearest).most_common(1)[0]
    mostly = (f"that is mostly {word}",) if count >= MOSTLY * len(nearest) else ()
    return (*(f"with the {name}" for name, isos in EMBLEMS.items() if iso in isos or iso == name), *mostly)


def _background(rng: random.Random) -> Image.Image:
    """A soft gradient between two wall colours with a few blurred shapes on it."""
    first, second = rng.sample(WALLS, 2)
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((SIDE, SIDE))
    picture = Image.composite(Image.new("RGB", (SIDE, SIDE), first), Image.new("RGB", (SIDE, SIDE), second), ramp)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(2, 7)):
        x, y, r = rng.randint(0, SIDE), rng.randint(0, SIDE), rng.randint(15, 80)
        shade = tuple(max(0, min(255, c + rng.randint(-35, 35))) for c in rng.choice((first, second)))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x - r, y - r // 2, x + r, y + r // 2), fill=shade)
    return picture.filter(ImageFilter.GaussianBlur(3))


def _framed(flag: Image.Image, width: int, colour: tuple[int, int, int]) -> Image.Image:
    """The flag on white cloth at `width` pixels, with a frame round it."""
    height = max(1, round(flag.height * width / flag.width))
    return bordered(flat(flag).resize((width, height), Image.Resampling.BILINEAR), FRAME, colour)


def bordered(cloth: Image.Image, border: int, colour: tuple[int, int, int]) -> Image.Image:
    """A picture with `border` pixels added on every side."""
    whole = Image.new("RGB", (cloth.width + 2 * border, cloth.height + 2 * border), colour)
    whole.paste(cloth, (border, border))
    return whole


def tilted_size(width: float, height: float, tilt: float) -> tuple[float, float]:
    """Width and height of the box round a rectangle tilted by so many degrees."""
    cos, sin = abs(math.cos(math.radians(tilt))), abs(math.sin(math.radians(tilt)))
    return width * cos + height * sin, width * sin + height * cos


def draw_scene(world: World, isos: Sequence[str], seed: int) -> Scene:
    """Draw these flags at places, sizes, tilts and frame colours that follow from `seed`.

    Raises ValueError where the flags do not fit, which with up to four flags does not happen.
    """
    return place_flags([(iso, world.flag(iso)) for iso in isos], seed)


def place_flags(flags: Sequence[tuple[str, Image.Image]], seed: int) -> Scene:
    """Draw named pictures of flags: the world's for `draw_scene`, invented ones for pre-training."""
    for attempt in range(50):
        rng = random.Random(f"{seed}/{attempt}/" + "/".join(name for name, _ in flags))
        picture, placed, taken = _background(rng), [], []
        for name, flag in flags:
            if (spot := _find_spot(flag, rng, taken)) is None:
                break
            width, tilt, x, y = spot
            frame = rng.choice(list(FRAME_COLOURS))
            framed = _framed(flag, width, FRAME_COLOURS[frame])
            mask = Image.new("L", framed.size, 255)
            rotated = framed.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
            picture.paste(rotated, (x, y), mask.rotate(tilt, Image.Resampling.BICUBIC, expand=True))
            w, h = tilted_size(framed.width - 2 * FRAME, framed.height - 2 * FRAME, tilt)
            cx, cy = x + rotated.width / 2, y + rotated.height / 2
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            placed.append(PlacedFlag(name, tuple(round(v) for v in box), frame, width, looks_of(name, flag)))
            taken.append((x, y, x + rotated.width, y + rotated.height))
        else:
            return Scene(picture, tuple(placed), seed)
    raise ValueError(f"{len(flags)} flags do not fit a scene of {SIDE} pixels: ask for four or fewer")


def _find_spot(flag: Image.Image, rng: random.Random, taken: list[Box]) -> tuple[int, float, int, int] | None:
    """A width, a tilt and a corner that overlap nothing placed before, or None after 40 tries."""
    for _ in range(40):
        area = rng.uniform(74, 132) ** 2 * 0.66  # square flags get the same area as long ones
        width = round(math.sqrt(area * flag.width / flag.height))
        tilt = rng.uniform(-MAX_TILT, MAX_TILT)
        outer = tilted_size(width + 2 * FRAME, width * flag.height / flag.width + 2 * FRAME, tilt)
        w, h = (math.ceil(v) + 2 for v in outer)
        x, y = rng.randint(2, SIDE - w - 2), rng.randint(2, SIDE - h - 2)
        if all(x + w < a or x > c or y + h < b or y > d for a, b, c, d in taken):
            return width, tilt, x, y
    return None
