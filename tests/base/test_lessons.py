"""What the tiny base is taught: lessons that can be followed, never the protocol, never a country of another split."""

from __future__ import annotations

import random
import re

import pytest

from mmsr.base.lessons import box_text, lesson_scene, lesson_view, scene_lessons, text_lesson, view_of, visual_lessons
from mmsr.base.reading import NOT_FOUND, marked, told_a_form
from mmsr.base.relays import LOOK_AT, LOOK_UP, SAY, Relays
from mmsr.policy import load_processor
from mmsr.protocol import TAGS
from mmsr.world.snapshot import load_world


def count_tokens(text: str) -> int:
    return len(text) // 3


@pytest.fixture(scope="module")
def relays() -> list[list[tuple[str, str]]]:
    rng = random.Random(0)
    source = Relays(count_tokens)
    drawn = [source.draw(lesson_scene(rng), rng) for _ in range(200)]
    return [lessons for lessons in drawn if lessons]


def test_every_step_of_a_relay_can_be_read_off_what_is_in_view(relays):
    seen = {LOOK_AT: 0, LOOK_UP: 0, SAY: 0}
    for lessons in relays:
        for instruction, response in lessons:
            body, _, step = instruction.rpartition("\n")
            if step not in seen:
                continue
            seen[step] += 1
            assert response.startswith(" ")
            if step == LOOK_UP:
                assert all(word in body for word in response.split()[:1])
            elif response != f" {NOT_FOUND}":
                assert response[1:] in body or step == SAY
    assert min(seen.values()) > 100


def test_most_reading_steps_have_an_answer_in_their_pages(relays):
    answers = [
        (response[1:] in instruction, response[1:] == NOT_FOUND)
        for lessons in relays
        for instruction, response in lessons
        if instruction.endswith(SAY) and instruction.count("\n") > 1
    ]
    assert all(there or not_found for there, not_found in answers)
    assert sum(there for there, _ in answers) > 0.6 * len(answers)


def test_relays_search_among_the_pages_of_their_split_alone():
    world = load_world()
    for split in ("train", "test"):
        isos = {country.iso for country in world.by_split(split)}
        assert {page.id.split("/")[0] for page in Relays(count_tokens, split).engine.pages} <= isos


def test_no_lesson_speaks_the_protocol(relays):
    rng = random.Random(1)
    lessons = [lesson for drawn in relays for lesson in drawn]
    lessons += [text_lesson(rng, copying=0.3) for _ in range(600)]
    for _ in range(30):
        lessons += scene_lessons(lesson_scene(rng), rng)
    tags = [f"<{tag}>" for tag in TAGS]
    assert not [lesson for lesson in lessons if any(tag in part for part in lesson for tag in tags)]


def test_a_marked_lesson_asks_for_the_same_behind_a_remark():
    rng = random.Random(2)
    for _ in range(50):
        instruction, response = marked(("How many flags are there?", " 3"), rng)
        question, order = instruction.split("\n")
        other, remark, tag = re.fullmatch(r"(\w+): (.+); then (\w+)", order).groups()
        assert question == "How many flags are there?"
        assert response == f"<{other}>{remark}</{other}>\n<{tag}> 3</{tag}>" and tag != other


def test_a_picture_is_asked_about_truly():
    rng = random.Random(3)
    asked = set()
    for _ in range(60):
        scene = lesson_scene(rng)
        for instruction, response in visual_lessons(scene, rng):
            answer = re.search(r" (\w+)(?:</\w+>)?$", response).group(1)
            if answer.isdigit():
                assert int(answer) == len(scene.flags)
            else:
                flags = [f for i, f in enumerate(scene.flags) if any(w in instruction for w in scene.references(i))]
                middle = scene.picture.width / 2
                halves = {"left" if flag.centre[0] < middle else "right" for flag in flags}
                assert answer in halves | {flag.frame for flag in flags}
            asked.add(answer)
    assert {"2", "3", "4", "5", "left", "right", "red"} <= asked


def test_boxes_are_in_the_pixels_of_the_view_and_never_too_tight():
    rng, views = random.Random(4), set()
    for _ in range(60):
        view = lesson_view(rng)
        views.add(view)
        scene = lesson_scene(rng, view)
        assert view_of(scene.picture.size) == view
        scale = [edge / seen for edge, seen in zip(scene.picture.size, view)] * 2
        for flag in scene.flags:
            x1, y1, x2, y2 = (int(v) * s for v, s in zip(box_text(flag, scene).split(","), scale))
            a, b, c, d = flag.box
            assert a - scale[0] < x1 <= a and b - scale[1] < y1 <= b
            assert c <= x2 < c + scale[0] and d <= y2 < d + scale[1]
    assert len(views) > 4


def test_a_described_form_is_followed():
    rng = random.Random(5)
    for _ in range(100):
        instruction, response = told_a_form(("How many flags are there?", " 3"), rng)
        assert "How many flags are there?" in instruction
        match = re.fullmatch(r"(?:<(\w+)>(.+)</\1>\n)?<(\w+)> 3</\3>", response)
        other, remark, tag = match.groups()
        assert tag in instruction and (other is None or (other in instruction and remark in instruction))


def test_a_relay_may_have_three_hops():
    rng, source, met = random.Random(6), Relays(count_tokens), 0
    for _ in range(60):
        lessons = source.draw(lesson_scene(rng), rng, "three_hop")
        queries = [response for instruction, response in lessons if instruction.endswith(LOOK_UP)]
        if lessons:
            met += 1
            assert len(queries) == 3 and len(set(queries)) == 3
            for instruction, _ in lessons[1:3]:  # the question is the same at each step
                assert lessons[0][0].split("\n")[0] in instruction
    assert met > 30


def test_a_copied_word_has_the_same_tokens_in_the_page_and_in_the_response():
    tokenizer = load_processor("tiny").tokenizer
    page, word = "1. Kyrgyzstan: Agricultural products: sugarcane, maize", "sugarcane"
    inside = tokenizer(page, add_special_tokens=False)["input_ids"]
    copied = tokenizer(f"<answer> {word}</answer>", add_special_tokens=False)["input_ids"]
    alone = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]

    def holds(ids: list[int]) -> bool:
        return any(ids[i : i + len(alone)] == alone for i in range(len(ids)))

    assert holds(inside) and holds(copied)
