"""Commands that README, notebooks and docstrings show: the command line takes each, and the runner would begin it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from mmsr.live.engines import IMAGE_ENGINES, TEXT_ENGINES
from mmsr.runs import command as cli
from mmsr.runs.parameters import assign, flat
from mmsr.runs.runner import LOOSE, _check, _choose

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs" / "faq.md",
    ROOT / "docs" / "outside.md",
    ROOT / "docs" / "recipes.md",
    ROOT / "papermill_runs" / "README.md",
    *sorted(NOTEBOOKS.glob("*.ipynb")),
]
DOCUMENTS += [
    ROOT / "src" / "mmsr" / name
    for name in ("runs/ask.py", "gpu/bench.py", "runs/compare.py", "gpu/fit.py", "runs/launch.py")
]
NEEDS = {"03_grpo": {"02_sft"}, "04_evaluate": {"02_sft", "03_grpo"}, "05_crop_ablation": {"03_grpo"}}  # their adapters


def text(path: Path) -> str:
    """What a document says; of a notebook, its markdown."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return path.read_text()


def commands(path: Path) -> Iterator[list[str]]:
    """The words after `mmsr` of each command shown, in order; a lone subcommand names it and calls nothing."""
    joined = text(path).replace("\\\n", " ")
    fenced = r"^(?: {4})?(?:\.venv/bin/)?mmsr (?P<fenced>.*)$"
    inline = r"`(?:\.venv/bin/)?mmsr (?P<inline>[^`]+)`"
    launched = r"accelerate launch .*?-m mmsr (?P<launched>.*)$"
    for found in re.finditer(f"{fenced}|{inline}|{launched}", joined, re.MULTILINE):
        command = next(filter(None, found.groups())).replace("\n", " ")
        words = shlex.split(re.sub(r"\[.*?\]", "", command), comments=True)
        if len(words) > 1:
            yield words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_can_be_given(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for engine in (*TEXT_ENGINES.values(), *IMAGE_ENGINES.values()):
        monkeypatch.setenv(engine.service.key_env or "NO_KEY", "a-key")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    done: dict[str, dict[str, dict]] = {}
    for words in commands(path):
        try:
            options = cli.parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"mmsr {shlex.join(words)}: {capsys.readouterr().err}")
        if options.command is cli._train:
            done.setdefault(options.run.name, {})[{"sft": "02_sft", "grpo": "03_grpo"}[options.action]] = {}
        if options.command is cli._run:
            parameters = cli.parameters(options.parameters)
            if "data_dir" in parameters:
                parameters["data_dir"] = str(tmp_path)
            values = assign(_choose(options.notebooks, NOTEBOOKS), options.preset, parameters, NOTEBOOKS)
            _check(options.preset, values, NOTEBOOKS)
            run = done.setdefault(options.name or options.preset, {})
            for name, given in values.items():
                missing = NEEDS.get(name, set()) - run.keys() - values.keys()
                assert not missing or "adapters" in parameters, f"mmsr {shlex.join(words)}: nothing trained {missing}"
                now = flat(options.preset, given)
                changed = {key for key, value in run.get(name, {}).items() if value != now[key]} - LOOSE
                assert not changed, f"mmsr {shlex.join(words)}: {name} of this run had other {changed}"
                run[name] = now


def test_commands_are_found() -> None:
    found = [words for path in DOCUMENTS for words in commands(path)]
    assert len(found) > 15 and {"run", "contrast", "ask", "fit", "bench", "grpo"} <= {words[0] for words in found}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_says_what_the_committed_run_took(path: Path) -> None:
    took = json.loads((ROOT / "papermill_runs" / "reference" / "state.json").read_text())["notebooks"][path.stem]
    said = re.search(r"\*\*It takes\*\* (\d+) minutes and ([\d.]+) GB", text(path))
    assert said and (int(said[1]), float(said[2])) == (round(took["seconds"] / 60), round(took["peak_gb"], 1))
