"""A damaged file of a run is told in one sentence that names it, or the run goes on to the same result without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_runs import END, Bench, asked, differences, follows, mmsr

pytestmark = pytest.mark.slow

# A kind of file, and the notebook that reads it next, or that is played again and goes on from it.
NEXT = {
    "state.json": "03_grpo",
    "metrics.json": "03_grpo",
    "data/data.jsonl": "02_sft",
    "data/card.json": "02_sft",
    "data/pictures/*.png": "02_sft",
    "sft/adapter/adapter_config.json": "03_grpo",
    "sft/adapter/adapter_model.safetensors": "03_grpo",
    "sft/adapter/sha256.json": "03_grpo",
    "grpo/adapter/adapter_model.safetensors": "04_evaluate",
}
AGAIN = {
    "funnel/begun.json": "01_build_data",
    "funnel/played.jsonl": "01_build_data",
    "funnel/base.jsonl": "01_build_data",
    "sft/sft.csv": "02_sft",
    "sft/checkpoints/*/trainer_state.json": "02_sft",
    "sft/checkpoints/*/optimizer.pt": "02_sft",
    "sft/checkpoints/*/adapter_model.safetensors": "02_sft",
    "grpo/grpo.csv": "03_grpo",
}
READ = {"metrics.json": ["table"], "eval/rows.jsonl": ["contrast", "--to", "whole"]}  # by a command alone


def cut(path: Path) -> None:
    """Half of a file; of lines, whole ones: nothing in what is left tells of the rest."""
    data = path.read_bytes()
    half = data[: len(data) // 2]
    path.write_bytes(half[: half.rfind(b"\n") + 1] if path.suffix in (".jsonl", ".csv") else half)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def other(path: Path) -> None:
    """JSON of another shape, or a line of it."""
    path.write_bytes(b'[{"another": "shape"}]\n')


def missing(path: Path) -> None:
    path.unlink()


WAYS: list[Callable[[Path], None]] = [cut, empty, zeroed, other, missing]


def told_in_a_sentence(said: str, path: Path) -> bool:
    """Whether standard error is one line of ours that names the file or its folder."""
    names = path.name in said or path.parent.name in said
    plain = said.startswith("mmsr: ") and said.count("\n") == 1 and "Traceback" not in said
    return plain and names and not re.search(r"\[Errno|KeyError|TypeError|JSONDecodeError|AttributeError", said)


def damaged(folder: Path, pattern: str, way: Callable[[Path], None]) -> Path:
    path = sorted(folder.glob(pattern))[-1]
    way(path)
    return path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("pattern", [*NEXT, *AGAIN])
def test_a_run_tells_of_a_damaged_file_or_goes_on(bench: Bench, pattern: str, way: Callable[[Path], None]) -> None:
    name = re.sub(r"\W+", "_", f"{pattern} {way.__name__}")
    if notebook := NEXT.get(pattern):
        folder = bench.begin(name, notebook)
    else:
        notebook = AGAIN[pattern]
        folder = bench.begin(name, follows(notebook))
        (folder / f"{notebook}.ipynb").unlink()  # so it is played again
    path = damaged(folder, pattern, way)
    done = mmsr(bench.root, *asked(name, notebook))
    if done.returncode == 0:
        assert differences(folder, bench.after(notebook)) == []
    else:
        assert told_in_a_sentence(done.stderr, path), done.stderr


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("pattern", READ)
def test_a_command_tells_of_a_damaged_file(bench: Bench, pattern: str, way: Callable[[Path], None]) -> None:
    folder = bench.begin(re.sub(r"\W+", "_", f"read {pattern} {way.__name__}"), END)
    path = damaged(folder, pattern, way)
    command, *rest = READ[pattern]
    runs = [str(bench.kept[END]) if word == "whole" else word for word in rest]
    done = mmsr(bench.root, command, str(folder), *runs)
    assert done.returncode != 0, done.stdout
    assert told_in_a_sentence(done.stderr, folder / path.name), done.stderr
