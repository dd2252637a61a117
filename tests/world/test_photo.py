"""Photo scenes: drawn again from their seed, true boxes and words, flags that can be found by their crops."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mmsr.tools.image import LocalImageSearch
from mmsr.world.photo import COVERED, SIZES, draw_photo, ground
from mmsr.world.scenes import EMBLEMS, Scene, draw_scene, looks_of
from mmsr.world.snapshot import load_world

WORLD = load_world()
ISOS = list(WORLD.countries)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [draw_photo(WORLD, rng.sample(ISOS, 2 + seed % 5), seed) for seed in range(60)]


def test_a_seed_draws_the_same_picture_and_another_another() -> None:
    first, again, other = (draw_photo(WORLD, ["ke", "pe"], seed) for seed in (1, 1, 2))
    assert first.picture.tobytes() == again.picture.tobytes() and first.flags == again.flags
    assert first.picture.size != other.picture.size or first.picture.tobytes() != other.picture.tobytes()


def test_two_to_six_flags_lie_within_pictures_of_all_shapes(scenes: list[Scene]) -> None:
    assert {scene.picture.size for scene in scenes} == set(SIZES)
    assert {len(scene.flags) for scene in scenes} == {2, 3, 4, 5, 6}
    for scene in scenes:
        for x1, y1, x2, y2 in (flag.box for flag in scene.flags):
            assert 0 <= x1 < x2 <= scene.picture.width and 0 <= y1 < y2 <= scene.picture.height


def test_most_flags_have_no_frame_and_little_is_covered(scenes: list[Scene]) -> None:
    framed = [bool(flag.frame) for scene in scenes for flag in scene.flags]
    assert 0.1 < sum(framed) / len(framed) < 0.4
    for scene in scenes:
        for i, (x1, y1, x2, y2) in enumerate(flag.box for flag in scene.flags):
            for a, b, c, d in (flag.box for flag in scene.flags[:i]):
                shared = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
                assert shared <= (COVERED + 0.1) * min((x2 - x1) * (y2 - y1), (c - a) * (d - b))


def test_the_true_crop_finds_its_country_and_the_whole_picture_does_not(scenes: list[Scene]) -> None:
    search = LocalImageSearch(WORLD).search
    found = [search(s.picture.crop(flag.box), 1)[0].id == flag.iso for s in scenes for flag in s.flags]
    whole = [search(s.picture, 1)[0].id == flag.iso for s in scenes for flag in s.flags]
    assert sum(found) / len(found) >= 0.9 and sum(whole) / len(whole) < 0.1


def test_words_point_at_one_flag_truly(scenes: list[Scene]) -> None:
    kinds = Counter()
    for scene in scenes:
        flags = scene.flags
        for index, flag in enumerate(flags):
            for kind in ("position", "frame", "look", "relative"):
                kinds[kind] += len(scene.references(index, [kind]))
            for words in scene.references(index, ["look"]):
                assert words in flag.looks and sum(words in other.looks for other in flags) == 1
                if words.startswith("with the "):
                    assert flag.iso in EMBLEMS[words.removeprefix("with the ")]
            if "on the left" in scene.references(index, ["position"]):
                assert flag.centre[0] == min(other.centre[0] for other in flags)
            for words in scene.references(index, ["frame"]):
                assert words == f"in the {flag.frame} frame"
    assert min(kinds[kind] for kind in ("position", "frame", "look", "relative")) > 10


def test_looks_are_what_anyone_sees() -> None:
    seen = {iso: looks_of(iso, WORLD.flag(iso)) for iso in ("jp", "sa", "ch", "cn", "tr", "fr", "cz")}
    assert "that is mostly white" in seen["jp"] and "with the disc" in seen["jp"]
    assert "that is mostly green" in seen["sa"] and "that is mostly red" in seen["ch"]
    assert "with the cross" in seen["ch"] and "with the star" in seen["cn"] and "with the crescent" in seen["tr"]
    assert seen["fr"] == () and seen["cz"] == ("with the triangle",)
    assert all(iso in WORLD.countries for isos in EMBLEMS.values() for iso in isos)


def test_grounds_are_not_alike() -> None:
    drawn = [np.asarray(ground((120, 90), random.Random(seed)), np.float32) for seed in range(20)]
    assert min(picture.std() for picture in drawn) > 1
    means = {tuple(picture.mean((0, 1)).round()) for picture in drawn}
    assert len(means) == len(drawn)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="ask for six or fewer"):
        draw_photo(WORLD, ISOS[:40], 0)
    assert len(draw_scene(WORLD, ["ke"], 0).references(0, ["position"])) == 4  # one flag is all of these
