"""The local tools find what is there, say so within their budget, and crop what is meant."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_policy import tiny

from mmsr.tools.base import Box, Hit
from mmsr.tools.ground import (
    BaseGrounder,
    OracleGrounder,
    PerturbedGrounder,
    RandomGrounder,
    clamp,
    iou,
    pad,
    read_box,
)
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.picture import picture_key
from mmsr.tools.summary import ExtractiveSummariser
from mmsr.tools.text import LocalTextSearch, words
from mmsr.world.questions import make_questions
from mmsr.world.relations import RELATIONS
from mmsr.world.scenes import draw_scene
from mmsr.world.snapshot import load_world

WORLD = load_world()
TEXT = LocalTextSearch(WORLD)
IMAGE = LocalImageSearch(WORLD)
PICTURE = Image.new("RGB", (200, 100), "white")


# --- text search ----------------------------------------------------------------------------------------------------


def test_a_country_and_a_noun_find_their_page() -> None:
    asked = [(c, r) for c in WORLD.by_split("train") for r in RELATIONS.values() if r.read(WORLD.page(c.iso, r.slug))]
    found = [f"{c.iso}/{r.slug}" in [h.id for h in TEXT.search(f"{c.name} {r.noun}", 5)] for c, r in asked]
    assert len(asked) > 3000 and sum(found) / len(found) >= 0.95


def test_hits_are_pages_best_first() -> None:
    hits = TEXT.search("Kenya capital", 5)
    assert len(hits) == 5 and hits[0].id == "ke/capital"
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True) and hits[-1].score > 0
    assert all((h.title, h.text) == (WORLD.pages[h.id].title, WORLD.pages[h.id].text) for h in hits)
    assert TEXT.search("Kenya capital", 5) == hits and TEXT.search("Kenya capital", 2) == hits[:2]


@pytest.mark.parametrize("query", ["", "zzyzx qwrt", "what is the of", "!? <answer>"[:2]])
def test_no_known_word_finds_nothing(query: str) -> None:
    assert TEXT.search(query, 5) == []


def test_unknown_words_are_passed_over() -> None:
    assert TEXT.search("zzyzx Kenya capital", 5) == TEXT.search("Kenya capital", 5)


def test_words() -> None:
    assert words("What is the Population of the Bahamas' islands? Glass, gas") == [
        *("population", "bahama", "island", "glass", "gas")
    ]


# --- picture search -------------------------------------------------------------------------------------------------


def test_a_crop_finds_its_flag_and_a_whole_scene_does_not() -> None:
    questions = [q for q in make_questions("test", 100, seed=5) if q.box][:60]
    pictures = [q.scene().picture for q in questions]
    crops = [IMAGE.search(p.crop(q.box), 1)[0].id == q.entity for p, q in zip(pictures, questions)]
    wholes = [IMAGE.search(p, 1)[0].id == q.entity for p, q in zip(pictures, questions)]
    assert len(questions) == 60 and sum(crops) / 60 >= 0.9 and sum(wholes) / 60 <= 0.1


def test_matches_are_titled_and_best_first() -> None:
    hits = IMAGE.search(WORLD.flag("ke").convert("RGB"), 5)
    assert hits[0].id == "ke" and hits[0].title == "Flag of Kenya" and len(hits) == 5
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True) and hits[0].score > 0.9
    assert len(IMAGE.search(Image.new("RGB", (1, 1)), 5)) == 5  # a single pixel is a picture too


# --- summaries ------------------------------------------------------------------------------------------------------

CLAUSES = st.lists(st.text("abc ,:.é1", max_size=30), max_size=6).map("; ".join)
HITS = st.lists(st.builds(Hit, st.just("x"), st.text("abc :", max_size=40), CLAUSES, st.just(1.0)), max_size=6)


@given(HITS, st.text("abc é", max_size=30), st.integers(8, 120))
@settings(max_examples=150, deadline=None)
def test_a_summary_stays_within_its_budget(hits: list[Hit], query: str, budget: int) -> None:
    count = tiny().count_tokens
    summary = ExtractiveSummariser(count, budget).summarise("abc?", query, hits)
    assert summary and (summary == "Nothing was found." or count(summary) <= budget)
    assert (
        all(line.startswith(f"{n}. ") for n, line in enumerate(summary.split("\n"), 1))
        or len(hits) == 0
        or (summary == "Nothing was found.")
    )


@given(st.integers(0, 5), st.integers(3, 8))
@settings(max_examples=30, deadline=None)
def test_the_clause_with_the_answer_is_kept(at: int, others: int) -> None:
    clauses = [f"thing {n}: nothing of note, {n} and {n}" for n in range(others)]
    clauses.insert(min(at, others), "lowest point: Caspian Sea -28 m")
    summariser = ExtractiveSummariser(lambda text: len(text.split()), 40)
    hit = Hit("az/elevation", "Azerbaijan: Elevation", "; ".join(clauses), 1.0)
    summary = summariser.summarise("What is the lowest point?", "Azerbaijan lowest point", [hit, hit])
    assert "lowest point: Caspian Sea -28 m" in summary and "thing" in summary


def test_answers_of_real_questions_are_in_what_is_read() -> None:
    summariser = ExtractiveSummariser(tiny().count_tokens, 112)
    asked = [q for q in make_questions("train", 80, seed=8) if q.type in ("fact", "one_hop")]
    kept = 0
    for q in asked:
        query = f"{WORLD.countries[q.entity].name} {RELATIONS[q.relation].noun}"
        kept += q.answer in summariser.summarise(q.text, query, TEXT.search(query, 5))
    assert kept / len(asked) >= 0.95


class Counter:
    """Counts words as tokens, and what it was given to count."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, text: str) -> int:
        self.read += len(text)
        return len(text.split())


def test_a_title_that_fills_the_budget_is_cut_and_the_other_hits_are_shown() -> None:
    long, kenya = Hit("a", "word " * 30, "one; two", 1.0), Hit("b", "Kenya: Capital", "name: Nairobi", 0.5)
    lines = ExtractiveSummariser(Counter(), 40).summarise("Capital?", "Kenya", [long, kenya, long]).split("\n")
    assert [line[:7] for line in lines] == ["1. word", "2. Keny", "3. word"]
    assert lines[1] == "2. Kenya: Capital: name: Nairobi" and all(len(line.split()) <= 20 for line in lines)


@pytest.mark.parametrize("joint", [", ", "; ", " "])
def test_twice_the_page_is_little_more_than_twice_the_work(joint: str) -> None:
    """Five pages of 8,000 characters, each "b, b, b", took half a minute."""

    def work(size: int) -> int:
        count = Counter()
        hits = [Hit(str(n), "b" + joint * 20, f"b{joint}" * size, 1.0) for n in range(5)]
        assert ExtractiveSummariser(count, 112).summarise("b?", "b", hits).startswith("1. b")
        return count.read

    assert work(8_000) < 2.5 * work(4_000)


def test_no_hits_is_said() -> None:
    assert ExtractiveSummariser(len, 100).summarise("a?", "a", []) == "Nothing was found."


# --- boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("4,64,37,87", (4, 64, 37, 87)),
        (" 4, 64 , 37 ,87\n", (4, 64, 37, 87)),
        ("<box>(4,64),(37,87)</box>", (4, 64, 37, 87)),
        ('```json\n[{"bbox_2d": [4, 64, 37, 87], "label": "flag 1"}]\n```', (4, 64, 37, 87)),
        ('[{"label": "2 flags", "bbox_2d": [4.4, 64.6, 37, 87]}]', (4, 65, 37, 87)),
        ('{"bbox_2d": [-3, 0, 37, 87]}', (-3, 0, 37, 87)),
        ("37,64,4,87", None),
        ("4,64,4,87", None),
        ("4,64,37", None),
        ("nothing", None),
        ("", None),
        ('{"bbox_2d": [4, 64, 37]}', None),
        ('{"bbox_2d": [4, , 64, 37]}', None),
        ('{"bbox_2d": ["a", "b", "c", "d"]}', None),
        ('{"bbox_2d": [[4, 64, 37, 87]]}', (4, 64, 37, 87)),
        ('{"bbox_2d": [4, 64, 1e999, 87]}', None),
        ('```json\n[\n\t{"bbox_2d": [1204, 1064, 1337, 1187], "la', (1204, 1064, 1337, 1187)),  # cut off after the box
        ('[{"bbox_2d": [4, 64, 37', None),  # cut off within it: the 2 of "2d" is no number of a box
        ('[{"bbox_2d": [4, 64, 37, 8', None),
        ('[{"bbox_2d": [4, 4, 37, 8', None),
        ('[{"label": "rows 1, 2, 3, 4", "bbox_2d": [4, 64, 37, 87]}]', (4, 64, 37, 87)),
        ("The 2 flags on the left: [4, 64, 37, 87]", (4, 64, 37, 87)),
        ("1. first 2. second 3. third 4. fourth", None),
    ],
)
def test_read_box(answer: str, box: Box | None) -> None:
    assert read_box(answer) == box


EDGE = st.integers(-300, 500)


@given(st.tuples(EDGE, EDGE, EDGE, EDGE), st.floats(-0.6, 2))
def test_clamped_and_padded_boxes_lie_inside(box: Box, share: float) -> None:
    inside = clamp(box, PICTURE)
    if inside is None:
        assert box[0] >= box[2] or box[1] >= box[3] or box[2] <= 0 or box[3] <= 0 or box[0] >= 200 or box[1] >= 100
        return
    for x1, y1, x2, y2 in (inside, pad(inside, share, PICTURE)):
        assert 0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 100
    assert clamp(inside, PICTURE) == inside


def test_pad_and_clamp_by_hand() -> None:
    assert clamp((-5, 10, 50, 300), PICTURE) == (0, 10, 50, 100)
    assert clamp((200, 10, 300, 50), PICTURE) is None
    assert pad((50, 40, 90, 60), 0.1, PICTURE) == (46, 38, 94, 62)
    assert pad((50, 40, 90, 60), -0.25, PICTURE) == (60, 45, 80, 55)
    assert pad((50, 40, 90, 60), 0.0, PICTURE) == (50, 40, 90, 60)


# --- grounders ------------------------------------------------------------------------------------------------------


def test_picture_key_is_of_the_pixels() -> None:
    assert picture_key(PICTURE) == picture_key(Image.new("RGB", (200, 100), "white"))
    assert len({picture_key(Image.new("RGB", s, c)) for s in ((200, 100), (100, 200)) for c in ("white", "red")}) == 4


def test_oracle_and_whole() -> None:
    oracle = OracleGrounder({picture_key(PICTURE): (1, 2, 3, 4)})
    assert oracle.locate(PICTURE.copy(), "whatever") == (1, 2, 3, 4)
    assert oracle.locate(Image.new("RGB", (9, 9)), "whatever") is None
    assert OracleGrounder({}).locate(PICTURE, "the flag") is None


def test_random_boxes_follow_from_seed_picture_and_expression() -> None:
    boxes = [RandomGrounder(seed).locate(PICTURE, w) for seed in range(8) for w in ("a", "b")]
    assert boxes == [RandomGrounder(seed).locate(PICTURE.copy(), w) for seed in range(8) for w in ("a", "b")]
    assert len({*boxes}) == len(boxes) and all(clamp(box, PICTURE) == box for box in boxes)


def test_perturbed_boxes() -> None:
    exact = OracleGrounder({picture_key(PICTURE): (50, 40, 90, 60)})
    assert PerturbedGrounder(exact, 0.0, 0.0, 1).locate(PICTURE, "a") == (50, 40, 90, 60)
    assert PerturbedGrounder(exact, 0.1, 0.0, 1).locate(PICTURE, "a") == (46, 38, 94, 62)
    shaken = [PerturbedGrounder(exact, 0.0, 0.4, seed).locate(PICTURE, "a") for seed in range(50)]
    assert shaken == [PerturbedGrounder(exact, 0.0, 0.4, seed).locate(PICTURE, "a") for seed in range(50)]
    assert len({*shaken}) > 40 and all(box is None or clamp(box, PICTURE) == box for box in shaken)
    gentle = [PerturbedGrounder(exact, 0.0, 0.05, seed).locate(PICTURE, "a") for seed in range(50)]
    near, far = (sum(iou(box, (50, 40, 90, 60)) for box in boxes) / 50 for boxes in (gentle, shaken))
    assert near > 0.8 > far
    assert PerturbedGrounder(OracleGrounder({}), 0.1, 0.1, 1).locate(PICTURE, "a") is None


def test_the_base_finds_flags_of_countries_it_has_not_seen() -> None:
    rng, isos = random.Random(11), [c.iso for c in WORLD.by_split("test")]
    scenes = [draw_scene(WORLD, rng.sample(isos, rng.randint(2, 4)), 5000 + n) for n in range(40)]
    asked = [(s, i, w) for s in scenes for i in range(len(s.flags)) for w in s.references(i, ["position"])[:1]]
    grounder = BaseGrounder(tiny())
    boxes = grounder.locate_all([(scene.picture, f"the flag {w}") for scene, _, w in asked])
    found = [iou(box, s.flags[i].box) >= 0.5 for box, (s, i, _) in zip(boxes, asked)]
    assert len({id(s) for s, _, _ in asked}) >= 38 and sum(found) / len(found) >= 0.95


class Says:
    """A policy that gives the same answer to everything, in a frame of half the picture's size, and counts its work."""

    def __init__(self, answer: str):
        self.answer, self.asked, self.in_base = answer, [], 0

    def generate(self, conversations, max_new_tokens):
        self.asked += [messages[0]["content"][1]["text"] for _, messages in conversations]
        return [self.answer] * len(conversations)

    def to_picture(self, box, picture):
        return tuple(v * 2 for v in box)

    def base(self):
        self.in_base += 1
        return PICTURE.copy()  # any context manager will do


def test_the_base_grounder_asks_once_scales_and_clamps() -> None:
    policy = Says("10,20,150,30")
    grounder = BaseGrounder(policy, "find {expression}!")
    assert grounder.locate(PICTURE, "the flag") == grounder.locate(PICTURE.copy(), "the flag") == (20, 40, 200, 60)
    assert policy.asked == ["find the flag!"] and policy.in_base == 1
    grounder.locate_all([(PICTURE, "the flag"), (PICTURE, "b"), (PICTURE, "b"), (PICTURE, "c")])
    assert policy.asked[1:] == ["find b!", "find c!"]
    assert BaseGrounder(Says("150,10,160,20")).locate(PICTURE, "outside") is None
    assert BaseGrounder(Says("I see none")).locate(PICTURE, "none") is None
    trained = Says("1,1,2,2")
    BaseGrounder(trained, trained=True).locate(PICTURE, "a")
    assert trained.in_base == 0


@pytest.mark.parametrize("size", [(384, 384), (97, 301), (301, 97), (1000, 333), (33, 41)])
def test_boxes_scale_to_the_policys_frame_and_back(size: tuple[int, int]) -> None:
    picture, policy = Image.new("RGB", size), tiny()
    width, height = policy.frame(picture)
    processor = policy.processor.image_processor
    cells = processor(picture, return_tensors="pt")["image_grid_thw"][0].tolist()
    assert (width, height) == (cells[2] * processor.patch_size, cells[1] * processor.patch_size)
    assert policy.to_picture((0, 0, width, height), picture) == (0, 0, *size)
    assert policy.to_frame((0, 0, *size), picture) == (0, 0, width, height)
    assert policy.to_picture((width / 2, height / 2, width, height), picture)[:2] == (
        round(size[0] / 2),
        round(size[1] / 2),
    )
    box = (size[0] // 5, size[1] // 3, size[0] * 4 // 5, size[1] * 6 // 7)
    back = policy.to_picture(policy.to_frame(box, picture), picture)
    allowed = [0.5 + 0.5 * s / f for s, f in zip(size * 2, (width, height) * 2)]  # half a pixel of either grid
    assert all(abs(a - b) <= limit for a, b, limit in zip(back, box, allowed))
