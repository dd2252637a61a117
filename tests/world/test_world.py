"""The world is what its documentation says: counts, splits, scenes and questions from seeds, answers on their pages."""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsr.base import snapshot as build
from mmsr.task import HALVES
from mmsr.world import questions as asked
from mmsr.world.questions import ABOUT_COUNTRY, ABOUT_EDGE, ABOUT_FLAG, TYPES, Question, make_questions
from mmsr.world.relations import RELATIONS
from mmsr.world.scenes import FRAME_COLOURS, SIDE, Scene, draw_scene, place_flags
from mmsr.world.snapshot import ASSETS, load_world

WORLD = load_world()
TRAIN = {c.iso for c in WORLD.by_split("train")}
QUESTIONS = {split: make_questions(split, 200, seed=3) for split in ("train", "val", "test")}
EVERY = [q for questions in QUESTIONS.values() for q in questions]
WORDINGS = {"fact": ABOUT_COUNTRY, "one_hop": ABOUT_FLAG, "hard": ABOUT_FLAG, "two_hop": ABOUT_EDGE}


# --- the snapshot ---------------------------------------------------------------------------------------------------


def test_the_snapshot_counts() -> None:
    assert len(WORLD.countries) == 194 and len(WORLD.pages) == 8567
    assert sum(flag.iso in WORLD.countries for flag in WORLD.flags) == 194 and len(WORLD.flags) == 242
    assert [len(WORLD.by_split(split)) for split in ("train", "val", "test")] == [134, 20, 40]
    known = {c.iso for c in WORLD.countries.values() if c.known}
    assert len(known) == 45 and known <= TRAIN
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 2_000_000


def test_every_page_belongs_to_a_country_and_is_plain_text() -> None:
    for page in WORLD.pages.values():
        iso, slug = page.id.split("/")
        section, field, _ = build.FIELDS[slug]
        assert (page.title, page.section) == (f"{WORLD.countries[iso].name}: {field}", section)
        text = f"{page.title} {page.text}"
        assert not re.search(r"</?[a-zA-Z][^>]*>|&#?\w+;|\s\s|\n", text), page
        assert 0 < len(page.text) <= build.MAX_PAGE_CHARS


def test_no_page_tells_of_a_flag() -> None:
    assert not [slug for slug in build.FIELDS if re.search("flag|colou?r|symbol", slug)]
    assert {page.id.split("/")[1] for page in WORLD.pages.values()} == {*build.FIELDS}


def test_every_flag_can_be_drawn() -> None:
    for flag in WORLD.flags:
        picture = WORLD.flag(flag.iso)
        assert picture.mode == "RGBA" and picture.width == 100
    assert WORLD.by_name("kenya").iso == "ke" and WORLD.by_name("Atlantis") is None


# --- scenes ---------------------------------------------------------------------------------------------------------

SCENES = [draw_scene(WORLD, ["ke", "pe", "fr", "jp"][: 2 + seed % 3], seed) for seed in range(60)]


def meant(scene: Scene, words: str) -> int:
    """The flag that an expression means, worked out from the places of all flags."""
    flags = scene.flags
    keys = {
        "left": lambda i: flags[i].centre[0],
        "right": lambda i: -flags[i].centre[0],
        "top": lambda i: flags[i].centre[1],
        "above": lambda i: flags[i].centre[1],
        "bottom": lambda i: -flags[i].centre[1],
        "below": lambda i: -flags[i].centre[1],
        "largest": lambda i: -flags[i].width,
        "smallest": lambda i: flags[i].width,
    }
    first = re.search("|".join(keys), words)
    if first:
        return min(range(len(flags)), key=keys[first[0]])
    (found,) = [i for i, flag in enumerate(flags) if f"in the {flag.frame} frame" == words]
    return found


def test_an_expression_means_its_flag_and_no_other() -> None:
    said = 0
    for scene in SCENES:
        for index in range(len(scene.flags)):
            for words in scene.references(index):
                assert meant(scene, words) == index, (scene.seed, words)
                said += 1
    assert said > 300


def test_the_same_seed_draws_the_same_picture() -> None:
    again = draw_scene(WORLD, ["ke", "pe"], 7)
    assert draw_scene(WORLD, ["ke", "pe"], 7).picture.tobytes() == again.picture.tobytes()
    assert draw_scene(WORLD, ["ke", "pe"], 8).picture.tobytes() != again.picture.tobytes()
    assert draw_scene(WORLD, ["ke", "fr"], 7).picture.tobytes() != again.picture.tobytes()


def test_a_box_holds_its_flag_and_nothing_of_it_lies_outside() -> None:
    magenta = Image.new("RGBA", (100, 60), (255, 0, 255))  # a colour that no background and no frame has
    grey = Image.new("RGBA", (100, 60), (90, 90, 90))
    for seed in range(30):
        scene = place_flags([("a", grey), ("b", magenta), ("c", grey)], seed)
        pixels = np.asarray(scene.picture).astype(int)
        cloth = np.abs(pixels - (255, 0, 255)).sum(axis=2) < 60
        ys, xs = np.nonzero(cloth)
        x1, y1, x2, y2 = scene.flags[1].box
        assert max(abs(xs.min() - x1), abs(ys.min() - y1), abs(xs.max() + 1 - x2), abs(ys.max() + 1 - y2)) <= 2
        assert cloth[y1:y2, x1:x2].mean() > 0.6


def test_flags_are_apart_and_inside() -> None:
    for scene in SCENES:
        assert scene.picture.size == (SIDE, SIDE) and scene.picture.mode == "RGB"
        for i, flag in enumerate(scene.flags):
            x1, y1, x2, y2 = flag.box
            assert 0 <= x1 < x2 <= SIDE and 0 <= y1 < y2 <= SIDE and flag.frame in FRAME_COLOURS
            for other in scene.flags[:i]:
                a, b, c, d = other.box
                assert x2 <= a or c <= x1 or y2 <= b or d <= y1


# --- questions ------------------------------------------------------------------------------------------------------


def test_questions_follow_from_the_seed() -> None:
    assert make_questions("test", 30, seed=1) == make_questions("test", 30, seed=1)
    assert make_questions("test", 30, seed=1) != make_questions("test", 30, seed=2)
    assert make_questions("test", 30, seed=1) == make_questions("test", 60, seed=1)[:30]
    with pytest.raises(ValueError, match="use train, val or test"):
        make_questions("dev", 1, seed=0)


def test_questions_differ_and_survive_json() -> None:
    assert len({q.id for q in EVERY}) == len(EVERY)
    for question in EVERY:
        assert Question.from_dict(json.loads(json.dumps(question.as_dict()))) == question


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_types_and_halves_are_there(split: str) -> None:
    questions = QUESTIONS[split]
    assert {q.type for q in questions} == {*TYPES}
    halves = {"seen"} if split == "train" else {*HALVES}
    for half in halves:
        assert {q.type for q in questions if q.half == half} == {*TYPES}
    assert {q.half for q in questions} == halves
    assert {len(q.isos) for q in questions} == {2, 3, 4}


def test_the_answer_stands_on_the_gold_page() -> None:
    for q in EVERY:
        if q.type == "visual":
            assert not q.gold_pages and q.taxonomy == "Visual"
            continue
        page = WORLD.pages[q.gold_pages[-1]]
        assert q.answer in page.text and q.taxonomy == page.section
        assert len(q.gold_pages) == (2 if q.type == "two_hop" else 1) and bool(q.edge) == (q.type == "two_hop")
        leads = WORLD.pages[q.gold_pages[0]]
        assert leads.id.startswith(f"{q.entity}/")
        if q.type == "two_hop":
            assert WORLD.countries[page.id.split("/")[0]].name in leads.text and not page.id.startswith(f"{q.entity}/")


def test_a_question_points_at_its_flag() -> None:
    for q in EVERY:
        flag = q.scene().flags[q.target]
        assert flag.iso == q.entity == q.isos[q.target]
        if q.expression:
            assert q.box == flag.box and q.expression in q.text
            assert q.expression.removeprefix("the flag ") in q.scene().references(q.target)


def test_visual_answers_are_in_the_picture() -> None:
    for q in (q for q in EVERY if q.type == "visual"):
        scene = q.scene()
        flag = scene.flags[q.target]
        side = "left" if flag.centre[0] < SIDE / 2 else "right"
        assert q.answer == {"count": str(len(scene.flags)), "frame": flag.frame, "side": side}[q.relation]


def worded(question: Question) -> str:
    """The split whose words a question is in."""
    wordings = asked.WORDINGS.get(question.relation) or WORDINGS[question.type]
    forms = {form: split for split, those in wordings.items() for form in those}
    [split] = {forms[f] for f in forms if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(f)), question.text)}
    return split


def test_each_split_has_countries_words_and_relations_of_its_own() -> None:
    for q in EVERY:
        split, unseen = q.id.split("-")[0], q.half == "unseen_question"
        assert WORLD.countries[q.entity].split == ("train" if unseen else split)
        assert worded(q) in ({"train", split} if q.half == "unseen_entity" else {split}), q.text
        if q.type not in ("visual", "hard"):
            asks = {"seen": {"", "train"}, "unseen_entity": {""}, "unseen_question": {split}}[q.half]
            assert RELATIONS[q.relation].only in asks, q.text
        if q.type == "hard":
            relation = RELATIONS[q.relation]
            assert relation.hard in q.text and not relation.only


def test_relations_of_the_test_share_no_words_or_pages_with_those_of_training_alone() -> None:
    plain = {"of", "the", "national"}
    held = [relation for relation in RELATIONS.values() if relation.only == "test"]
    for relation in RELATIONS.values():
        if relation.only in ("train", "val"):
            assert relation.slug not in {other.slug for other in held}, relation.key
            assert not {*relation.noun.split()} & ({word for other in held for word in other.noun.split()} - plain)


def test_hard_words_are_not_the_pages_words() -> None:
    for relation in RELATIONS.values():
        assert not (relation.hard and relation.only)
        assert not {*relation.hard.lower().split()} & {*relation.noun.lower().split()} - {"of", "the", "in"}


def test_scenes_of_training_show_training_flags_alone() -> None:
    assert all({*q.isos} <= TRAIN for q in QUESTIONS["train"])
    assert all({*q.isos} <= TRAIN for q in EVERY if q.half == "unseen_question")


# --- how the snapshot is made ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("<p>name: Lima</p><p>5&nbsp;km</p>", "name: Lima; 5 km"),
        ("C&ocirc;te d&rsquo;Ivoire", "Côte d'Ivoire"),
        ("a <strong>b</strong><br/>c &amp;lt; d", "a b; c < d"),
        ("1914–18; ;  ", "1914-18"),
    ],
)
def test_clean(raw: str, plain: str) -> None:
    assert build.clean(raw) == plain


def test_clip_ends_at_a_clause() -> None:
    assert build.clip("one; two", 20) == "one; two"
    assert build.clip("one two, three; four five", 20) == "one two, three"
    assert build.clip("onetwothree four", 13) == "onetwothree"


def test_longest_border_first() -> None:
    assert build.longest_first("(2): Chad 90 km; Niger 1,608 km; Mali 859.5 km") == (
        "Niger 1,608 km; Mali 859.5 km; Chad 90 km"
    )


def test_page_text() -> None:
    field = {"border countries": {"text": "Chad 90 km; Niger 1,608 km"}, "total": {"text": "1,698 km"}, "note": {}}
    assert build.page_text("land-boundaries", field) == "border countries: Niger 1,608 km; Chad 90 km; total: 1,698 km"
    assert build.page_text("export-partners", {"text": "USA 30%, UK 5%"}) == "United States 30%, United Kingdom 5%"
    assert build.page_text("capital", {}) == ""


def test_thumbnails_tell_flags_apart() -> None:
    black, white = b"\0" * 1152, b"\xff" * 1152
    assert build.distinct(black, [white]) and not build.distinct(b"\2" * 1152, [white, black])
    assert build.distinct(b"\3" * 1152, [black])


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flags.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"expected 2576650.*npm pack svg-country-flags@1\.2\.10"):
        build.read_flags(tmp_path / "flags.tgz")


def test_the_snapshot_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    archive = os.environ.get("MMSR_FLAGS_ARCHIVE", "")
    name, version = build.FACTBOOK
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        installed = ""
    if installed != version:
        pytest.skip(f"{name} {version} is not installed, of which the pages are made")
    if not Path(archive).is_file():
        pytest.skip("MMSR_FLAGS_ARCHIVE does not name svg-country-flags-1.2.10.tgz, of which the flags are made")
    assert build.build(Path(archive), tmp_path) == {"countries": 194, "territories": 48, "pages": 8567}
    for made in tmp_path.iterdir():
        kept = ASSETS / made.name
        assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(kept.read_bytes()).digest(), made.name
    assert {p.name for p in tmp_path.iterdir()} == {"pages.json.bz2", "flags.zip"}
