"""`mmsr ask`: any picture, one question; what is told, the page, and one clear error for whatever cannot be asked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from damage import damage
from PIL import ExifTags, Image
from toolbar_world import scene, write_sources

from mmsr import rollout
from mmsr.env import TurnRecord
from mmsr.policy import add_lora, load_policy
from mmsr.runs import UsageError
from mmsr.runs import command as cli
from mmsr.runs.ask import SHIPPED, _run_settings, ask, find_agent, printable, read_file, turn_text
from mmsr.task import Task
from mmsr.world.own import index_world
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import load_world

TURNS = [
    "<reason>Whose flag is it?</reason>\n<img_search>the flag on the left</img_search>",
    "<reason>It is Kenya.</reason>\n<text_search>Kenya capital</text_search>",
    "Nairobi",
    "<reason>I read it.</reason>\n<answer>Nairobi</answer>",
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was never trained, as the shipped one is laid out."""
    folder = tmp_path_factory.mktemp("agent")
    add_lora(load_policy("tiny"), r=4, alpha=8).model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture made by hand: two flags side by side on grey."""
    world, picture = load_world(), Image.new("RGB", (640, 400), "grey")
    for iso, x in (("ke", 40), ("pe", 360)):
        picture.paste(world.flag(iso).convert("RGB").resize((240, 160)), (x, 120))
    path = tmp_path_factory.mktemp("pictures") / "flags.png"
    picture.save(path)
    return path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's turns are TURNS, and its boxes the left flag; all else is as ever."""
    turns, write = iter(TURNS), rollout.write

    def boxes(self, conversations, *args, **kwargs) -> list[str]:
        return [",".join(map(str, self.to_frame((40, 120, 280, 280), picture))) for picture, _ in conversations]

    def written(policy, rows, *args) -> list[str]:
        return [policy.replace_turn(row, text, next(turns)) for row, text in zip(rows, write(policy, rows, *args))]

    monkeypatch.setattr("mmsr.policy.Policy.generate", boxes)
    monkeypatch.setattr("mmsr.rollout.write", written)


def test_an_episode_is_told_turn_by_turn_and_drawn(
    adapter: Path, flags: Path, tmp_path: Path, scripted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "episode.html"
    question = "What is the capital of the country whose flag is on the left?"
    assert cli.main(["ask", str(flags), question, "--adapter", str(adapter), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[0] == question
    assert re.search(r"^ +image search +the flag on the left$", told, re.MULTILINE)
    x1, y1, x2, y2 = map(int, re.search(r"crop +(\d+), (\d+) to (\d+), (\d+) \(\d+ × \d+ pixels\)", told).groups())
    assert abs(x1 - 40) < 8 and abs(y1 - 120) < 8 and abs(x2 - 280) < 8 and abs(y2 - 280) < 8
    assert re.search(r"^ +found +Flag of Kenya \((0\.9\d|1\.00)\), ", told, re.MULTILINE)
    assert re.search(r"^ +found +Kenya: Capital \(", told, re.MULTILINE) and "Nairobi" in told
    assert re.search(r"^ +did not count +a turn starts with <reason>$", told, re.MULTILINE)
    assert [line for line in lines if re.fullmatch(r"\d\.", line)] == ["1.", "2.", "3.", "4."]
    assert re.search(r"^2 searches, 4 turns, ", told, re.M)
    assert max(map(len, lines)) <= 120
    assert re.search(r"^Answer: Nairobi\n +supported +turn 2, page 1, Kenya: Capital$", told, re.MULTILINE)
    html = page.read_text()
    assert "Found on" in html
    assert str(page) in told and question in html and html.count("data:image/webp") == 1 and "crop-box" in html
    assert "<nav" not in html and "<script" not in html  # the card alone
    assert not re.search(r"""(src|href)=["']?http""", html)  # it loads nothing


def test_a_run_gives_its_agent_and_its_preset(adapter: Path, tmp_path: Path) -> None:
    run = tmp_path / "papermill_runs" / "mine"
    (run / "sft").mkdir(parents=True)
    (run / "sft" / "adapter").symlink_to(adapter)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "qwen").mkdir()
    sizes = {"policy": "../qwen", "new_tokens": 96}
    state = {"preset": "qwen3b", "notebooks": {"01": {"parameters": {}}, "02": {"parameters": {"sizes": sizes}}}}
    (run / "state.json").write_text(json.dumps(state))
    agent = find_agent(run=run)
    assert agent.preset.name == "qwen3b" and Path(agent.preset.policy).samefile(tmp_path / "qwen")
    assert agent.adapter == run / "sft" / "adapter" and agent.preset.new_tokens == 96
    (run / "grpo").mkdir()
    (run / "grpo" / "adapter").symlink_to(adapter)
    assert find_agent("tiny", run=run, given={"policy": "tiny"}).adapter == run / "grpo" / "adapter"
    assert find_agent("qwen7b").adapter is None  # the base, prompted


def test_a_run_may_lie_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("/lone")  # directly under the root: there are no notebooks two floors above it
    told = {"preset": "tiny", "notebooks": {"01": {"parameters": {"sizes": {"policy": "none", "new_tokens": 9}}}}}
    monkeypatch.setattr(Path, "exists", lambda path: path == run / "state.json")
    monkeypatch.setattr(Path, "read_text", lambda path, **_: json.dumps(told))
    assert _run_settings(run) == ("tiny", {"policy": "none", "new_tokens": 9})


def test_the_shipped_agent_speaks_the_protocol_on_a_picture_of_its_world() -> None:
    question = next(q for q in make_questions("test", 20, seed=7) if q.type == "one_hop")
    agent = find_agent()
    assert agent.preset.name == "tiny" and agent.adapter == SHIPPED
    played = ask(agent, Task.of(question))
    assert played.end == "answer" and played.searches("img_search") == 1
    assert played.turns[0].box


def test_a_picture_is_made_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (5, 5), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_file(tmp_path / "turned.jpg").size == (20, 40)
    assert read_file(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said on standard error: one line, exit status 2."""
    assert cli.main(["ask", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmsr: ") and said.count("\n") == 1
    return said


def test_what_cannot_be_asked_is_said(
    adapter: Path, flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ("--adapter", str(adapter))
    broken, cut, huge = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    broken.write_bytes(b"no picture")
    cut.write_bytes(flags.read_bytes()[:-2000])
    Image.new("1", (6000, 5000)).save(huge)
    assert "cannot be read: No such file" in refused(capsys, str(tmp_path / "none.png"), "What?", *good)
    assert "cannot be read: Is a directory" in refused(capsys, str(tmp_path), "What?", *good)
    assert "not a picture in" in refused(capsys, str(broken), "What?", *good)
    assert "cannot be used" in refused(capsys, str(cut), "What?", *good)
    assert "more than 25 million pixels" in refused(capsys, str(huge), "What?", *good)
    assert "the question is empty" in refused(capsys, str(flags), "  ", *good)
    assert "no preset 'huge'" in refused(capsys, str(flags), "What?", "--preset", "huge")
    assert "is not a folder of LoRA weights" in refused(capsys, str(flags), "What?", "--adapter", str(tmp_path))
    assert "neither state.json nor manifest.json" in refused(capsys, str(flags), "What?", "--run", str(tmp_path))
    (tmp_path / "state.json").write_text("{")
    assert "state.json is broken: give the agent's" in refused(capsys, str(flags), "What?", "--run", str(tmp_path))
    assert "no parameter 'serch'" in refused(capsys, str(flags), "What?", *good, "-p", "serch=serper")
    assert "read_pages must be true or false" in refused(capsys, str(flags), "What?", *good, "-p", "read_pages=maybe")
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    assert "SERPER_API_KEY" in refused(capsys, str(flags), "What?", *good, "-p", "search=serper")
    nothing = ("--preset", "qwen3b", "-p", f"policy={tmp_path}")
    assert f"the policy {tmp_path} could not be loaded" in refused(capsys, str(flags), "What?", *nothing)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "adapter_config.json").write_text("{}")
    assert "is not a folder of LoRA weights" in refused(capsys, str(flags), "What?", "--adapter", str(wrong))
    shutil.copy(adapter / "adapter_config.json", wrong)  # and no weights
    assert "could not be loaded" in refused(capsys, str(flags), "What?", "--adapter", str(wrong))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        for how in ("cut", "empty", "other shape", "no text"):
            shutil.copytree(adapter, wrong, dirs_exist_ok=True)
            damage(wrong / name, how)
            said = refused(capsys, str(flags), "What?", "--adapter", str(wrong))
            assert f"{name} is damaged: train it again" in said or "is not a folder of LoRA weights" in said
    monkeypatch.setattr("mmsr.runs.ask.SHIPPED", tmp_path / "none")
    assert "ships no trained tiny agent: give one with --run RUN" in refused(capsys, str(flags), "What?")


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(10**10)  # sparse
    with pytest.raises(UsageError, match="larger than 50 MB"):
        read_file(tmp_path / "large.png")


def test_parameters_are_the_notebooks() -> None:
    given = {"search": "serper", "read_pages": "false", "four_bit": "true", "policy": "x", "sizes": '{"new_tokens": 9}'}
    agent = find_agent("qwen3b", given=given)
    assert (agent.outside.search, agent.outside.read_pages) == ("serper", False)
    assert (agent.preset.four_bit, agent.preset.policy, agent.preset.new_tokens) == (True, "x", 9)
    with pytest.raises(UsageError, match="search must be 'local'"):
        find_agent(given={"search": "gogle"})


def test_nothing_that_is_printed_commands_the_terminal() -> None:
    evil = "\x1b[2Jall\x07 gone\u202e"
    hits = [{"id": "a", "title": evil, "score": 1.0, "url": ""}]
    text = f"<reason>{evil}</reason>\n<text_search>{evil}</text_search>"
    turn = TurnRecord(text, "text_search", evil, hits=hits, observation=f"<information>\n{evil}\n</information>")
    told = turn_text(turn, 1)
    assert told.count("all gone") == 4 and all(c.isprintable() or c == "\n" for c in told)
    assert printable("a\nb\tc") == "a\nb c"


def test_it_ends_where_turns_break_the_protocol(adapter: Path, flags: Path) -> None:
    torch.manual_seed(0)
    told = []
    task = Task("ask", "What is it?", read_file(flags), golds=())
    played = ask(find_agent(adapter=adapter), task, tell=told.append)
    assert played.end == "broken" and "Answer: none: too many turns broke the protocol" in told[-1]
    assert len(told) == 2 + len(played.turns)


def test_a_world_of_ones_own_is_searched(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_world(*write_sources(tmp_path), tmp_path / "my.world")
    scene("Save").save(tmp_path / "scene.png")
    asked = (str(tmp_path / "scene.png"), "What does it do?", "--adapter", str(adapter), "-p")
    assert cli.main(["ask", *asked, f"world={tmp_path / 'my.world'}"]) == 0
    assert "Answer: " in capsys.readouterr().out
    assert "world.json is not there: make the world with" in refused(capsys, *asked, "world=nowhere")
    damage(tmp_path / "my.world" / "pages.jsonl", "cut")
    assert "pages.jsonl is damaged: make the world with" in refused(capsys, *asked, f"world={tmp_path / 'my.world'}")
