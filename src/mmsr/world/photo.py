"""Photo scenes: flags on photo-like backgrounds, most of them without a frame, harder than those of scenes.py.

    scene = draw_photo(world, ["ke", "pe", "fr"], seed=7)         # of a size that follows from the seed
    scene.flags[0].box, scene.references(0)                       # as of any scene

The backgrounds are procedural: clouds of noise, planks, tiles, landscapes, clutter, then light, blur and grain. Flags
are lit, tilted, shadowed, may overlap a little, and the whole goes through JPEG.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmsr.protocol import Box
from mmsr.tools.ground import shared_area
from mmsr.tools.picture import flat
from mmsr.world.scenes import FRAME_COLOURS, PlacedFlag, Scene, bordered, looks_of, tilted_size
from mmsr.world.snapshot import World

Size = tuple[int, int]

SIZES: tuple[Size, ...] = ((800, 600), (600, 800), (640, 640), (960, 540), (900, 600), (512, 384))
FRAMED = 0.25  # of the flags
TILT = 15.0  # degrees, at most, to either side
COVERED = 0.12  # of a flag, at most, by another
SIDES = (0.16, 0.34)  # of a flag: the square root of its area, over that of the picture's


def draw_photo(world: World, isos: Sequence[str], seed: int, size: Size | None = None) -> Scene:
    """Draw these flags on a background, all by `seed`. Raises ValueError where they do not fit (more than six)."""
    return place_in_photo([(iso, world.flag(iso)) for iso in isos], seed, size)


def place_in_photo(flags: Sequence[tuple[str, Image.Image]], seed: int, size: Size | None = None) -> Scene:
    """Draw named pictures of flags: the world's for `draw_photo`, invented ones for pre-training."""
    names = "/".join(name for name, _ in flags)
    for attempt in range(50):
        rng = random.Random(f"photo/{seed}/{attempt}/{names}")
        chosen = size or rng.choice(SIZES)
        spots = _spots([flag for _, flag in flags], chosen, rng)
        if spots is None:
            continue
        picture, placed = ground(chosen, rng), []
        for (name, flag), (width, tilt, x, y) in zip(flags, spots):
            frame = rng.choice(list(FRAME_COLOURS)) if rng.random() < FRAMED else ""
            cloth, border = _cloth(flag, width, rng), 0
            if frame:
                border = max(2, width // 12)
                cloth = bordered(cloth, border, FRAME_COLOURS[frame])
            _paste(picture, cloth, tilt, (x, y), rng)
            w, h = tilted_size(cloth.width - 2 * border, cloth.height - 2 * border, tilt)
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            placed.append(PlacedFlag(name, tuple(round(v) for v in box), frame, width, looks_of(name, flag)))
        return Scene(_as_jpeg(picture, rng), tuple(placed), seed)
    raise ValueError(f"{len(flags)} flags do not fit a photo scene: ask for six or fewer")


def _spots(flags: Sequence[Image.Image], size: Size, rng: random.Random) -> list[tuple[int, float, int, int]] | None:
    """Width, tilt and centre of each flag, or None where this draw has no room for all."""
    spots: list[tuple[int, float, int, int]] = []
    taken: list[Box] = []
    side = math.sqrt(size[0] * size[1])
    for flag in flags:
        for _ in range(40):
            area = (side * rng.uniform(*SIDES)) ** 2 * 0.66
            width = max(8, round(math.sqrt(area * flag.width / flag.height)))
            tilt = rng.uniform(-TILT, TILT) if rng.random() < 0.7 else 0.0
            w, h = tilted_size(width * 7 / 6, width * flag.height / flag.width + width / 6, tilt)  # with its frame
            if w + 4 >= size[0] or h + 4 >= size[1]:
                continue
            x = rng.randint(math.ceil(w / 2) + 1, size[0] - math.ceil(w / 2) - 1)
            y = rng.randint(math.ceil(h / 2) + 1, size[1] - math.ceil(h / 2) - 1)
            box = (round(x - w / 2), round(y - h / 2), round(x + w / 2), round(y + h / 2))
            if all(_shared(box, other) <= COVERED for other in taken):
                spots.append((width, tilt, x, y))
                taken.append(box)
                break
        else:
            return None
    return spots


def _shared(a: Box, b: Box) -> float:
    """The overlap of two boxes, as a share of the smaller one."""
    return shared_area(a, b) / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def _cloth(flag: Image.Image, width: int, rng: random.Random) -> Image.Image:
    """The flag at `width` pixels, lit from one side, in folds or flat, paler or darker than it is."""
    height = max(1, round(flag.height * width / flag.width))
    pixels = np.asarray(flat(flag).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    across, down = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    folds = rng.choice((0.0, 0.0, 0.06, 0.12)) * np.sin(
        2 * math.pi * (rng.uniform(1, 4) * across + rng.uniform(-0.5, 0.5) * down + rng.random())
    )
    slope = rng.uniform(-0.12, 0.12) * (across - 0.5) + rng.uniform(-0.12, 0.12) * (down - 0.5)
    light = rng.uniform(0.82, 1.05) * (1 + folds + slope)
    grey, strength = pixels.mean(2, keepdims=True), rng.uniform(0.8, 1.0)
    return _image((grey + (pixels - grey) * strength) * light[:, :, None])


def _paste(picture: Image.Image, cloth: Image.Image, tilt: float, centre: tuple[int, int], rng: random.Random) -> None:
    """Lay a flag on the picture, its middle at `centre`, most often with a shadow beneath it."""
    mask = Image.new("L", cloth.size, 255).rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    corner = (round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2))
    if rng.random() < 0.6:
        far = max(1, cloth.width // 20)
        shade = Image.new("L", (mask.width + 6 * far, mask.height + 6 * far), 0)
        shade.paste(mask.point(lambda v: v * 2 // 5), (3 * far, 3 * far))
        at = tuple(c - 3 * far + rng.randint(-far, 2 * far) for c in corner)
        blurred = shade.filter(ImageFilter.GaussianBlur(far))
        picture.paste(Image.new("RGB", shade.size, (10, 10, 15)), at, blurred)
    picture.paste(cloth.rotate(tilt, Image.Resampling.BICUBIC, expand=True), corner, mask)


def _as_jpeg(picture: Image.Image, rng: random.Random) -> Image.Image:
    """What is left of a picture that was sent as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(60, 95))
    return Image.open(file).convert("RGB")


# --- grounds ----------------------------------------------------------------------------------------------------------


def ground(size: Size, rng: random.Random) -> Image.Image:
    """A background of one of the kinds, in light and shade, sharp or blurred, with a sensor's grain."""
    chance = np.random.default_rng(rng.getrandbits(64))
    pixels = rng.choice(GROUNDS)(size, rng, chance)
    across, down = np.linspace(-1, 1, size[0])[None, :], np.linspace(-1, 1, size[1])[:, None]
    light = 1 + rng.uniform(-0.2, 0.2) * across + rng.uniform(-0.2, 0.2) * down
    light = light - rng.choice((0.0, 0.15, 0.3)) * (across**2 + down**2) / 2
    picture = _image(pixels * light[:, :, None])
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 4) * size[0] / 800))
    grain = chance.normal(0, rng.uniform(0, 7), (size[1], size[0], 1)).astype(np.float32)
    return _image(np.asarray(picture, np.float32) + grain)


def _image(pixels: np.ndarray) -> Image.Image:
    """A picture from red, green and blue [H, W, 3], clipped to 0 … 255."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colour(rng: random.Random) -> np.ndarray:
    """A colour for a background: most are greyish, some are not."""
    base, strong = rng.uniform(30, 225), rng.random() < 0.3
    spread = 70 if strong else 25
    return np.array([base + rng.uniform(-spread, spread) for _ in range(3)], np.float32)


def _noise(size: Size, chance: np.random.Generator, cells: tuple[int, int]) -> np.ndarray:
    """Values from 0 to 1 [H, W]: coarse noise of this many cells, and three finer octaves."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(4):
        shape = [min(edge, max(2, cell << octave)) for edge, cell in zip(size, cells)]
        small = Image.fromarray(chance.random((shape[1], shape[0]), np.float32))
        total += np.asarray(small.resize(size, Image.Resampling.BICUBIC)) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _clouds(size: Size, rng: random.Random, chance: np.random.Generator) -> np.ndarray:
    """Plaster, stone, grass or sky: noise between two colours."""
    cells = rng.randint(2, 24)
    share = _noise(size, chance, (cells, cells))[:, :, None]
    return _colour(rng) * (1 - share) + _colour(rng) * share


def _planks(size: Size, rng: random.Random, chance: np.random.Generator) -> np.ndarray:
    """Boards side by side, each with its shade and its grain; horizontal or vertical."""
    boards, lying = rng.randint(3, 12), rng.random() < 0.5
    w, h = size if lying else size[::-1]
    rows = np.arange(h) * boards // h
    shades = chance.uniform(0.75, 1.15, boards)[rows][:, None]
    grain = 0.75 + 0.5 * _noise((w, h), chance, (2, boards * 4))
    gaps = np.where(np.diff(rows, prepend=rows[0])[:, None] > 0, 0.45, 1.0)
    pixels = (shades * grain * gaps)[:, :, None] * _colour(rng)
    return pixels if lying else pixels.transpose(1, 0, 2)


def _tiles(size: Size, rng: random.Random, chance: np.random.Generator) -> np.ndarray:
    """Bricks or tiles in rows, every second row shifted."""
    count = rng.randint(4, 16)
    height = size[1] / count
    width = height * rng.uniform(1, 2.5)
    rows = (np.arange(size[1]) / height).astype(int)
    along = (np.arange(size[0])[None, :] + (rows % 2)[:, None] * width / 2) / width
    columns = along.astype(int)
    shades = chance.uniform(0.7, 1.1, (count + 1, columns.max() + 1))[rows[:, None], columns]
    gap = (along % 1 < 0.06) | ((np.arange(size[1]) / height % 1)[:, None] < 0.1)
    share = (0.9 + 0.2 * _noise(size, chance, (30, 30)))[:, :, None]
    return np.where(gap[:, :, None], _colour(rng), _colour(rng) * shades[:, :, None]) * share


def _landscape(size: Size, rng: random.Random, chance: np.random.Generator) -> np.ndarray:
    """A sky that grows paler towards a rough horizon, and ground before it."""
    down = np.linspace(0, 1, size[1])[:, None, None]
    blue = np.array([rng.uniform(70, 190), rng.uniform(130, 200), rng.uniform(170, 250)], np.float32)
    sky = blue * (1 - down) + 235 * down
    line = rng.uniform(0.35, 0.75) + 0.15 * (_noise((size[0], 8), chance, (rng.randint(2, 8), 2))[:1] - 0.5)
    return np.where(down < line[:, :, None], sky, _clouds(size, rng, chance))


def _clutter(size: Size, rng: random.Random, chance: np.random.Generator) -> np.ndarray:
    """Things of all colours and shapes, on top of each other."""
    picture = _image(_clouds(size, rng, chance))
    draw, side = ImageDraw.Draw(picture), min(size)
    for _ in range(rng.randint(8, 30)):
        x, y, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), side * rng.uniform(0.03, 0.25)
        colour = tuple(rng.randint(0, 255) for _ in range(3)) if rng.random() < 0.5 else tuple(map(int, _colour(rng)))
        around = [rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 6))]
        if rng.random() < 0.4:
            draw.ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=colour)
        else:
            draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in sorted(around)], fill=colour)
    return np.asarray(picture, np.float32)


GROUNDS: tuple[Callable[[Size, random.Random, np.random.Generator], np.ndarray], ...] = (
    _clouds,
    _planks,
    _tiles,
    _landscape,
    _clutter,
)
