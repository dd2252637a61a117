"""The command line: every subcommand's help, what it prints, and its one-sentence errors."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from sample_run import eval_rows
from small_notebooks import write
from toolbar_world import write_sources

from mmsr.files import write_rows
from mmsr.live.door import Door
from mmsr.live.record import Call
from mmsr.results import record_metrics
from mmsr.runs import command as cli
from mmsr.stats import Interval

COMMANDS = (
    "run",
    "check",
    "table",
    "compare",
    "contrast",
    "sft",
    "grpo",
    "ask",
    "export",
    "scene",
    "fit",
    "bench",
    "replay",
    "replay export",
    "replay import",
    "replay stats",
    "serve",
    "world",
    "world index",
)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one notebook, as the current folder."""
    work = "from pathlib import Path\nfrom mmsr.results import record_metrics\nassert not fail, 'as asked'\n"
    work += "record_metrics(Path(run_dir), {'eval/rag/accuracy': 0.25})"
    write(tmp_path, "01_build_data", "run_dir = '.'\nfail = False", work)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error: one line, no traceback."""
    said = capsys.readouterr().err
    assert said.startswith("mmsr: ") and said.count("\n") == 1
    return said


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ("", *COMMANDS))
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: mmsr {command}".strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ("", "nonsense", "replay", "table", "compare a", "contrast a", "run --seed x", "serve --port x")
)
def test_a_wrong_call_shows_the_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(command.split())
    assert end.value.code == 2
    assert "usage: mmsr" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    look = "import sys, mmsr.runs.command as m; m.parser(); print([n for n in sys.modules if n in "
    look += "('torch', 'transformers', 'papermill', 'numpy', 'starlette')])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_prints_one_table_and_where_the_figures_are(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "01", "--name", "mine", "--preset", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^rag +25\.0 %", shown, re.MULTILINE) and re.search(r"^grpo +– ", shown, re.MULTILINE)
    assert shown.count("valid turns") == 1
    assert shown.endswith("Figures: papermill_runs/mine/figures\n")


def test_run_says_which_cell_failed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-p", "fail=true"]) == 1
    said = sentence(capsys)
    assert "01_build_data, cell [3] (from pathlib import Path) failed with AssertionError: as asked." in said
    assert "01_build_data.failed.ipynb" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-p", "fali=true"], "'fali': there are fail"),
        (["-p", "fail=maybe"], "01_build_data: fail must be true or false, not 'maybe'"),
        (["-p", "fail"], "-p takes key=value, not 'fail'"),
        (["-p", "fail=true", "-p", "fail=false"], "-p gives fail twice"),
        (["09"], "no notebook '09': there are 01_build_data"),
        (["--preset", "huge"], "no preset 'huge': use one of tiny, smoke"),
        (["--name", "a/b"], "cannot be named 'a/b'"),
    ],
)
def test_run_refuses(clone: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *options]) == 2
    assert said in sentence(capsys)
    assert not (clone / "papermill_runs").exists()


def test_run_refuses_a_magic_among_the_parameters_and_a_name_too_long(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--name", "x" * 300]) == 2
    assert "use up to 64 letters" in sentence(capsys)
    write(clone, "01_build_data", "%matplotlib inline\nfail = False")
    assert cli.main(["run"]) == 2
    assert "01_build_data.ipynb: the `parameters` cell may only set names to literals" in sentence(capsys)
    assert not (clone / "papermill_runs").exists()


@pytest.mark.parametrize("command", ["table {}", "ask {} What?", "replay stats {}", "replay import {} {}"])
def test_a_path_that_cannot_be_is_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command.format(*[str(tmp_path / ("x" * 300))] * 2).split()) in (1, 2)
    assert "ile name too long" in sentence(capsys) or "unable to open" in sentence(capsys)


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "scene.png"))

    monkeypatch.setattr("PIL.Image.Image.save", full)
    assert cli.main(["scene", "kenya", "--out", str(tmp_path / "scene.png")]) == 1
    assert "scene.png: No space left on device; mend that, and the same command goes on from here." in sentence(capsys)


def test_the_repository_is_found_from_within(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone / "notebooks")
    assert cli.repository() == clone


def test_run_outside_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "lib" / "mmsr" / "runs" / "command.py"))
    assert cli.main(["run"]) == 2
    assert "within a clone" in sentence(capsys)


def test_an_interruption_is_said_to_be_resumable(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmsr.runs.runner.run", interrupted)
    assert cli.main(["run"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# --- table and compare ------------------------------------------------------------------------------------------------


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", str(tmp_path)]) == 2
    assert "has no metrics.json" in sentence(capsys)
    record_metrics(tmp_path, {"ablation/base/accuracy": Interval(0.5, 0.4, 0.6, 90)})
    assert cli.main(["table", str(tmp_path)]) == 0
    assert "50.0 % [40.0, 60.0]" in capsys.readouterr().out


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    record_metrics(tmp_path / "a", {"x": 1, "time/01": 1})
    assert cli.main(["compare", a, b]) == 2
    assert "b has no metrics.json" in sentence(capsys)
    record_metrics(tmp_path / "b", {"x": 1, "time/01": 2})
    assert cli.main(["compare", a, b]) == 0
    assert capsys.readouterr().out == "The runs agree.\n"
    record_metrics(tmp_path / "b", {"x": 2})
    assert cli.main(["compare", a, b]) == 1
    assert capsys.readouterr().out == "x: 1.0 and 2.0\n"


def test_contrast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "a" / "eval" / "rows.jsonl", eval_rows(4))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert cli.main(["contrast", a, "--to", b]) == 2
    assert "rows.jsonl is not there: run notebook 04 first" in sentence(capsys)
    assert cli.main(["contrast", a, "--to", a]) == 0
    assert capsys.readouterr().out.startswith("a − a, on the same 4 questions\n")


# --- replay -----------------------------------------------------------------------------------------------------------


def test_replay_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, lines, other = (tmp_path / name for name in ("a.sqlite", "a.jsonl", "b.sqlite"))
    Door("record", record).answer(Call("serper", 1, "POST /search", {"q": "x"}), ask=lambda: "found")
    assert cli.main(["replay", "export", str(record), str(lines)]) == 0
    assert json.loads(lines.read_text())["answer"] == "found"
    assert cli.main(["replay", "import", str(other), str(lines)]) == 0
    assert cli.main(["replay", "stats", str(other)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == [
        f"calls written to {lines}: 1",
        f"calls added to {other}: 1, left as they were: 0",
    ]
    assert "serper: calls 1, errors 0" in shown


@pytest.mark.parametrize("action", ("export", "import", "stats"))
def test_replay_without_files(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "none.sqlite"), str(tmp_path / "none.jsonl")][: 1 if action == "stats" else 2]
    assert cli.main(["replay", action, *files]) == 2
    assert "none." in sentence(capsys)


def test_replay_of_broken_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert cli.main(["replay", "import", str(tmp_path / "a.sqlite"), str(tmp_path / "a.jsonl")]) == 2
    assert "line 1 is no recorded call" in sentence(capsys)


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ("taken", "99999", "-1"))
def test_serve_on_a_port_that_cannot_be_used(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1]) if port == "taken" else port
        assert cli.main(["serve", "--port", number]) == 2
    assert f"the port {number} cannot be used" in sentence(capsys)


def test_a_world_is_made_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages, pictures = write_sources(tmp_path)
    command = ["world", "index", "--pages", str(pages), "--pictures", str(pictures), "--to", str(tmp_path / "my.world")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'my.world'}: 29 pages, 11 pictures by thumbnails.\n"
    assert cli.main(command) == 2
    assert "my.world is there already: delete it, or choose another name." in sentence(capsys)
    assert cli.main([*command[:-1], str(tmp_path / "b"), "--vectors", "none/such"]) == 2
    assert "The vision model none/such cannot be loaded" in sentence(capsys)
    assert cli.main([*command[:3], str(tmp_path / "no.jsonl"), *command[4:-1], str(tmp_path / "b")]) == 1
    assert "no.jsonl: No such file" in sentence(capsys)
    assert not (tmp_path / "b").exists()


def test_serve_of_a_folder_that_is_no_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--world", str(tmp_path)]) == 2
    assert "world.json is not there: make the world with `mmsr world index`" in sentence(capsys)


def test_serve_answers_until_interrupted() -> None:
    command = [sys.executable, "-m", "mmsr", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1]
            answer = httpx.post(f"{address}/search", json={"q": "Kenya capital"}, timeout=30).json()
            assert "Kenya" in answer["organic"][0]["title"]
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        assert server.stderr.read() == ""


def test_a_scene_is_drawn_to_ask_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, size in (([], "384×384"), (["--photo", "--seed", "3"], "")):
        out = tmp_path / f"scene{len(more)}.png"
        assert cli.main(["scene", "kenya", "jp", "Brazil", "--out", str(out), *more]) == 0
        told = capsys.readouterr().out
        with Image.open(out) as picture:
            assert f"{picture.width}×{picture.height} pixels" in told and size in told
        assert told.count(f"mmsr ask {out} 'What is the capital of the country of the flag ") >= 1


@pytest.mark.parametrize(
    ("countries", "out", "remedy"),
    [
        (["kenia"], "scene.png", "did you mean Kenya"),
        (["kenya"], "scene.gif", ".png or .jpg"),
        (["kenya"], "nowhere/scene.png", "in a folder that exists"),
        (["ke", "pe", "fr", "de", "it"] * 4, "scene.png", "ask for four or fewer"),
    ],
)
def test_a_scene_that_cannot_be_drawn_is_refused(
    countries: list[str], out: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["scene", *countries, "--out", str(tmp_path / out)]) == 2
    assert remedy in sentence(capsys) and not list(tmp_path.iterdir())
