"""A world of one's own: made of any pages and pictures, searched like ours, refused where it is not whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import DAMAGES, damage
from measure_world import main as measure
from PIL import Image
from random_qwen import hub_copy
from small_policy import tiny
from toolbar_world import BOX, BUTTONS, answer, page_of, scene, write_questions, write_sources
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmsr.benchmarks.registry import open_benchmark
from mmsr.env import SearchEnv, Tools, Trajectory
from mmsr.evaluate import Exam, direct, judge_rows, rag, summarise
from mmsr.files import FileDamaged, write_rows
from mmsr.lab import open_tools
from mmsr.live.outside import Outside, connect
from mmsr.presets import get_preset
from mmsr.protocol import Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.task import Task
from mmsr.tools.base import FatalToolError, ToolError
from mmsr.tools.ground import OracleGrounder
from mmsr.tools.image import SIGLIP, embedder
from mmsr.tools.picture import picture_key
from mmsr.tools.text import LocalTextSearch
from mmsr.world.own import OwnWorld, check_world, index_world, open_world
from mmsr.world.snapshot import load_world

PRESET = get_preset("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toolbar's world."""
    sources = tmp_path_factory.mktemp("toolbar")
    index_world(*write_sources(sources), sources / "my.world")
    return sources / "my.world"


# --- what is found ----------------------------------------------------------------------------------------------------


def test_pages_and_pictures_are_found_with_their_titles_and_addresses(folder: Path) -> None:
    world = open_world(str(folder))
    text, image = world.text_search(), world.picture_search()
    hit = text.search("toggle the pan tool", 3)[0]
    assert (hit.id, hit.title) == ("pan", "Pan button") and hit.text == world.pages["pan"].text
    assert hit.url.endswith("#pan") and "Toggle the pan/zoom tool." in hit.text
    hit = text.search("reading comma separated CSV files", 3)[0]
    assert (hit.title, hit.url) == ("Module csv", "") and hit.id.isdecimal()
    assert text.search("", 3) == text.search("zzyzx", 3) == []
    for name in BUTTONS:
        hit = image.search(scene(name).crop(BOX), 3)[0]
        assert (hit.id, hit.title) == (f"{name}.png", name) and hit.score > 0.9
    assert world.flag("grace_hopper.jpg").mode == "RGB"


def test_our_own_pages_are_found_as_in_our_world(tmp_path: Path, folder: Path) -> None:
    ours = load_world()
    rows = [{"id": page.id, "title": page.title, "text": page.text} for page in ours.pages.values()]
    write_rows(tmp_path / "pages.jsonl", rows[::5])
    own = index_world(tmp_path / "pages.jsonl", folder.parent / "pictures", tmp_path / "world").text_search()
    some = replace(ours, pages={page.id: page for page in list(ours.pages.values())[::5]})
    for query in ("Kenya capital", "lowest point of Peru", "exports of oil and gas to Japan"):
        assert own.search(query, 20) == LocalTextSearch(some).search(query, 20)


def test_a_world_is_the_same_for_the_same_pages_and_pictures(tmp_path: Path, folder: Path) -> None:
    index_world(folder.parent / "pages.jsonl", folder.parent / "pictures", folder.parent / "again")
    assert (folder.parent / "again" / "sha256.json").read_bytes() == (folder / "sha256.json").read_bytes()


def test_a_list_names_pictures_by_file_title_and_address(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for name, colours in (("a/one.png", ("red", "blue")), ("two.png", ("blue", "red")), ("three.png", "gr")):
        picture = Image.new("RGB", (40, 20), colours[0] if len(colours[0]) > 1 else "green")
        picture.paste("white" if name == "three.png" else colours[1], (20, 0, 40, 20))
        picture.save(tmp_path / "pictures" / name)
    rows = [
        {"file": "two.png", "title": "The second", "url": "https://example.org/2"},
        {"file": "a/one.png", "title": "One & only", "artist": "unknown"},
    ]
    write_rows(tmp_path / "pictures" / "pictures.jsonl", rows)
    write_rows(tmp_path / "pages.jsonl", [{"title": "A page", "text": "of text"}])
    world = index_world(tmp_path / "pages.jsonl", tmp_path / "pictures", tmp_path / "new" / "world")
    first = world.picture_search().search(Image.open(tmp_path / "pictures" / "a" / "one.png"), 5)
    assert [(hit.id, hit.title, hit.url) for hit in first] == [
        ("a/one.png", "One & only", ""),
        ("two.png", "The second", "https://example.org/2"),
    ]


# --- questions on it --------------------------------------------------------------------------------------------------


def oracle_tools(folder: Path) -> Tools:
    """The world's tools as a notebook gets them, for the tiny policy, with the gold box of each picture as grounder."""
    tools = open_tools(PRESET, tiny(), connect(Outside(world=str(folder))))
    return replace(tools, grounder=OracleGrounder({picture_key(scene(name)): BOX for name in BUTTONS}))


def scripted(task: Task, tools: Tools) -> Trajectory:
    """Search the crop, then the page of what it shows; answer with the page's first clause."""
    env = SearchEnv(tools, PRESET.prompts, task)
    env.step(render_turn(Turn("which button?", ImageSearch("the button"))))
    title = env.trajectory.turns[-1].hits[0]["title"]
    read = env.step(render_turn(Turn("what does it do?", TextSearch(f"{title} button"))))
    said = read.partition(f"1. {title} button: ")[2].partition("\n")[0].partition("; ")[0]
    env.step(render_turn(Turn("it says so", Answer(said))))
    return env.trajectory


def test_questions_of_fvqas_format_are_played_and_their_searches_measured(tmp_path: Path, folder: Path) -> None:
    found = open_benchmark("fvqa", write_questions(tmp_path / "fvqa"), 0, seed=0, block=4)
    known = tuple(replace(q, gold_pages=(page_of(Path(q.entity).stem),)) for q in found.questions)
    exam, tools = Exam(known, block=4, published=found.published), oracle_tools(folder)
    assert [question.answer for question in known] == [answer(name) for name in BUTTONS] and len(known) == 7
    played = {
        "direct": direct(tiny(), exam, PRESET),
        "rag": rag(tiny(), exam, PRESET, tools),
        "scripted": exam.play(lambda tasks: [scripted(task, tools) for task in tasks]),
    }
    rows = {name: judge_rows(name, exam, trajectories, [False] * 7) for name, trajectories in played.items()}

    def share(name: str, key: str) -> float:
        return sum(row[key] for row in rows[name]) / 7

    assert {row["recall_at_1"] for row in rows["direct"]} == {None} and share("direct", "searches") == 0
    assert share("rag", "recall_at_1") == 0 and share("rag", "searches") == 2  # the whole window is searched
    assert [row["trajectory"]["turns"][0]["hits"][0]["id"] for row in rows["rag"]] == ["grace_hopper.jpg"] * 7
    assert share("scripted", "recall_at_1") == share("scripted", "recall_at_5") == share("scripted", "evidence") == 1
    assert share("scripted", "correct") == 1 and share("direct", "correct") == share("rag", "correct") == 0
    assert summarise(rows["scripted"], 0)["evidence_coverage"].value == 1
    assert exam.published(rows["scripted"])["fvqa/fvqa_exact_match"].value == 1


def test_what_episodes_follow_from_tells_the_world_by_its_hash(folder: Path) -> None:
    told = oracle_tools(folder).settings
    assert len(told["world"]) == 64 and told["search"] == "local"
    assert "world" not in open_tools(PRESET, tiny(), connect(Outside())).settings


# --- a vision model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP with random weights, narrow and shallow, with its processor, as the hub would keep it."""
    place = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=narrow | {"vocab_size": 99}, vision_config=narrow | {"image_size": 32, "patch_size": 8}
    )
    SiglipModel(config).save_pretrained(place)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


def test_a_vision_model_makes_the_vectors_of_pictures_and_of_what_is_searched(
    tmp_path: Path, folder: Path, siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(siglip.parent)
    sources = folder.parent / "pages.jsonl", folder.parent / "pictures"
    world = index_world(*sources, tmp_path / "world", vectors=siglip.name)  # from where the command runs
    vectors = np.load(tmp_path / "world" / "vectors.npy")
    assert vectors.shape == (len(world.flags), 32) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    search = OwnWorld(tmp_path / "world").picture_search().search
    for flag in world.flags:
        hit = search(world.flag(flag.iso), 1)[0]
        assert hit.id == flag.iso and hit.score == pytest.approx(1, abs=1e-3)
    (siglip / "config.json").unlink()
    with pytest.raises(FatalToolError, match=r"The vision model .*siglip.* cannot be loaded .*: give a folder"):
        world.picture_search()
    assert world.text_search().search("pan", 1)[0].id == "pan"  # which needs none


def test_a_model_of_the_hub_is_named_with_its_commit(
    tmp_path: Path, siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, commit = SIGLIP.partition("@")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_copy(siglip, tmp_path, name, commit)
    (tmp_path / f"models--{name.replace('/', '--')}" / "refs").mkdir()
    (tmp_path / f"models--{name.replace('/', '--')}" / "refs" / "main").write_text(commit)
    picture = scene("Home")
    assert np.array_equal(embedder(SIGLIP)(picture), embedder(str(siglip))(picture))
    for other in (f"{name}@{'0' * 40}", name):
        with pytest.raises(FatalToolError, match=f"The vision model {other} cannot be loaded"):
            embedder(other)


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = '{"title": "a", "text": "b"}\n'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "pages.jsonl is empty: a world has pages and pictures"),
        (GOOD + "{\n", "pages.jsonl, line 2: expected a JSON object of strings, with title and text"),
        (GOOD + "[1]\n", "line 2: expected a JSON object"),
        ('{"title": "a", "contents": "b"}\n', "line 1: expected a JSON object of strings, with title and text"),
        ('{"title": null, "text": "b"}\n', "line 1: expected a JSON object"),
        ('{"title": "a", "text": "b", "url": 7}\n', "line 1: expected a JSON object"),
        ('{"title": "a", "text": "b", "id": 2}\n' + GOOD, "line 2: '2' stands in an earlier line too"),
        (GOOD.replace("a", "\udcff"), "line 1: expected a JSON object"),
    ],
)
def test_pages_that_cannot_be_used_are_named_with_their_line(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "pages.jsonl").write_bytes(lines.encode(errors="surrogateescape"))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(ValueError, match=said):
        index_world(tmp_path / "pages.jsonl", tmp_path / "pictures", tmp_path / "world")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages.jsonl", "pictures"]


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_text(GOOD)
    given = tmp_path / "pages.jsonl", tmp_path / "pictures", tmp_path / "world"
    with pytest.raises(ValueError, match="pictures is empty: a world has pages and pictures"):
        index_world(*given)
    given[1].mkdir()
    for name in ("a.png", "B.JPG", ".hidden.png", "notes.txt"):
        (given[1] / name).write_text("no picture")
    Image.new("RGB", (9, 9)).save(given[1] / "c.webp")
    with pytest.raises(ValueError, match=r"2 of 3 pictures must be mended or left out\. The picture .*B\.JPG cannot"):
        index_world(*given)
    (given[1] / "pictures.jsonl").write_text('{"file": "c.webp", "title": "C"}\n{"file": "c.webp", "title": "D"}\n')
    with pytest.raises(ValueError, match=r"pictures\.jsonl, line 2: 'c\.webp' stands in an earlier line too"):
        index_world(*given)
    (given[1] / "pictures.jsonl").write_text('{"file": "c.webp", "title": "C"}\n{"name": "c.webp", "title": "D"}\n')
    with pytest.raises(ValueError, match=r"line 2: expected a JSON object of strings, with file and title"):
        index_world(*given)
    (given[1] / "pictures.jsonl").write_text('{"file": "c.webp", "title": "C"}\n{"file": "d.png", "title": "D"}\n')
    with pytest.raises(ValueError, match=r"1 of 2 pictures .*d\.png cannot be read \(.*No such file"):
        index_world(*given)


def test_a_world_is_never_written_over(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"my\.world is there already: delete it, or choose another name"):
        index_world(folder.parent / "pages.jsonl", folder.parent / "pictures", folder)


def test_a_folder_that_is_no_world_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=r"world\.json is not there: make the world with `mmsr world index`"
        ):
            open_world(str(place))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_and_never_used(tmp_path: Path, folder: Path, how: str) -> None:
    for file in ("pages.jsonl", "pictures.jsonl", "vectors.npy", "world.json", "bm25/vocab.index.json", "sha256.json"):
        place = shutil.copytree(folder, tmp_path / file.replace("/", "-"))
        damage(place / file, how)
        with pytest.raises(FileDamaged, match=f"{Path(file).name} is damaged: make the world with `mmsr world index`"):
            check_world(place)
    (place / "sha256.json").write_bytes((folder / "sha256.json").read_bytes())
    (place / "bm25" / "data.csc.index.npy").unlink()
    with pytest.raises(FileDamaged, match=r"data\.csc\.index\.npy is damaged"):
        check_world(place)


def test_a_picture_that_has_gone_is_told_by_who_serves_it(tmp_path: Path) -> None:
    world = index_world(*write_sources(tmp_path), tmp_path / "world")
    hits = world.picture_search().search(scene("Home").crop(BOX), 1)
    shutil.rmtree(tmp_path / "pictures")
    with pytest.raises(ToolError, match=r"The picture .*Home\.png cannot be read"):
        world.flag("Home.png")
    assert world.picture_search().search(scene("Home").crop(BOX), 1) == hits  # a search needs no picture


# --- measuring --------------------------------------------------------------------------------------------------------


def test_a_small_size_is_measured(tmp_path: Path) -> None:
    given = {"--pages": "300", "--pictures": "30", "--queries": "10", "--out": str(tmp_path / "cost.json")}
    assert measure([word for pair in given.items() for word in pair]) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["pages"], cost["pictures"], cost["vectors"]) == (300, 30, "")
    assert cost["text_recall_at_5"] == cost["picture_recall_at_1"] == 1
    assert 0 < cost["text_p50_ms"] <= cost["text_p95_ms"] and cost["index_s"] > 0 and cost["disk_gb"] > 0
