"""A committed run held against the same run again: what differs is named, and the exit status tells."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import DAMAGES, damage
from small_notebooks import write

from mmsr.files import write_json
from mmsr.results import record_metrics
from mmsr.runs import command as cli
from mmsr.runs.check import misses, surroundings
from mmsr.runs.runner import run

WORK = """
import os, time
from pathlib import Path
from mmsr.results import record_metrics
folder = Path(run_dir)
record_metrics(folder, {"x": 0.5, "threads": int(os.environ["OMP_NUM_THREADS"])})
for stage in ("sft", "grpo"):
    (folder / stage).mkdir()
    rows = [f"{step},{1 / 2**step},0.125,{time.time()}" for step in (1, 2, 3)]
    (folder / stage / f"{stage}.csv").write_text("\\n".join(["step,loss,grad_norm,seconds", *rows]) + "\\n")
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one notebook, with a reference on three threads that has been checked once, on two."""
    root = tmp_path_factory.mktemp("clone")
    write(root, "01_build_data", "run_dir = '.'\nseed = 0", WORK)
    run([], "smoke", "reference_smoke", 3, {}, root, pins={"OMP_NUM_THREADS": "3"})
    here = os.getcwd()
    os.chdir(root)
    try:
        assert cli.main(["check"]) == 0
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def pair(checked: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the run that checked and of the reference."""
    names = ("check_smoke", "reference_smoke")
    return tuple(shutil.copytree(checked / "papermill_runs" / name, tmp_path / name) for name in names)


def changed(change: Callable[[dict], None], folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_json(folder / "manifest.json", manifest)


def test_a_run_agrees_with_itself_whatever_it_took(pair: tuple[Path, Path]) -> None:
    assert (pair[0] / "sft" / "sft.csv").read_text() != (pair[1] / "sft" / "sft.csv").read_text()  # their seconds
    assert misses(*pair) == [] and surroundings(*pair) == []


def test_a_check_is_run_as_the_reference_was(pair: tuple[Path, Path]) -> None:
    here, there = (json.loads((folder / "manifest.json").read_text()) for folder in pair)
    assert here["seed"] == there["seed"] == 3 and here["pins"] == there["pins"]
    assert not here["pins"] or here["device"]["threads"] == 3


def test_a_changed_metric_is_named(pair: tuple[Path, Path]) -> None:
    record_metrics(pair[1], {"x": 0.5000000000000001})
    assert misses(*pair) == ["x: 0.5 and 0.5000000000000001"]


def test_the_first_changed_row_of_each_table_is_named(pair: tuple[Path, Path]) -> None:
    table = pair[1] / "sft" / "sft.csv"
    table.write_text(table.read_text().replace("\n2,0.25,0.125,", "\n2,0.26,0.5,").replace("\n3,", "\n4,"))
    assert misses(*pair) == ["sft.csv, row 2: loss 0.25 and 0.26, grad_norm 0.125 and 0.5"]
    shorter = pair[0] / "grpo" / "grpo.csv"
    shorter.write_text("".join(shorter.read_text().splitlines(True)[:-1]))
    assert misses(*pair)[1:] == ["grpo.csv, row 3: only in reference_smoke"]


def test_another_package_or_instruction_set_or_number_of_threads_is_named(pair: tuple[Path, Path]) -> None:
    def change(manifest: dict) -> None:
        manifest["packages"]["trl"] = "0.1"
        manifest["device"] |= {"used": "AVX512", "threads": 16}
        manifest["notebooks"]["01_build_data"]["code"] = manifest["git"] = "another"

    changed(change, pair[1])
    told = dict(line.split(": ") for line in surroundings(*pair))
    assert told["packages.trl"].endswith(" and '0.1'") and told["device.used"].endswith(" and 'AVX512'")
    assert told["device.threads"].endswith(" and 16") and told["git"] == "None and 'another'"
    assert told["notebooks.01_build_data.code"].endswith(" and 'another'") and len(told) == 5
    assert misses(*pair) == []  # surroundings are no digits


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository, as the current folder."""
    root = shutil.copytree(checked, tmp_path / "clone")
    monkeypatch.chdir(root)
    return root


def test_a_miss_is_told_with_what_else_differs(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = clone / "papermill_runs" / "reference_smoke"
    record_metrics(there, {"x": 2})
    changed(lambda manifest: manifest["packages"].update(torch="1.0"), there)
    assert cli.main(["check"]) == 1  # and it replaces the check that was
    told = capsys.readouterr().out.split("\nDigits of papermill_runs/check_smoke and papermill_runs/reference_smoke")[1]
    digits, _, around = told.partition("\n\nSurroundings that differ:\n")
    assert digits == " that differ:\n  x: 0.5 and 2.0"
    assert around.startswith("  packages.torch: '") and around.endswith(" and '1.0'\n") and around.count("\n") == 1


@pytest.mark.parametrize(("change", "goes_on"), [(str, True), (lambda text: text.replace("0.5, ", "0.75, "), False)])
def test_a_check_that_was_killed_goes_on_unless_what_it_runs_has_changed(
    clone: Path, change: Callable[[str], str], goes_on: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "papermill_runs" / "check_smoke" / "manifest.json").unlink()  # it is written last
    source = clone / "notebooks" / "01_build_data.ipynb"
    source.write_text(change(source.read_text()))
    assert cli.main(["check"]) == (0 if goes_on else 1)  # another notebook measures another thing
    assert ("is already finished" in capsys.readouterr().out) == goes_on


@pytest.mark.parametrize("lost", ["metrics.json", "manifest.json", "grpo/grpo.csv"])
def test_a_reference_that_is_not_whole_is_one_sentence(
    clone: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "papermill_runs" / "reference_smoke" / lost).unlink()
    assert cli.main(["check"]) == 2
    said = capsys.readouterr().err
    assert f"(no {lost}): make it with: mmsr run --preset smoke --name reference_smoke --fresh." in said
    assert said.startswith("mmsr: there is no run to check against in ") and said.count("\n") == 1
    assert cli.main(["check", "--preset", "tiny"]) == 2
    assert "reference (no metrics.json)" in capsys.readouterr().err


def test_a_broken_manifest_is_one_sentence(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / "papermill_runs" / "reference_smoke" / "manifest.json").write_text("{")
    assert cli.main(["check"]) == 2
    said = capsys.readouterr().err
    assert "manifest.json is broken: Expecting" in said and said.count("\n") == 1


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["metrics.json", "manifest.json", "sft/sft.csv"])
def test_a_damaged_reference_is_refused_before_it_is_run_again(
    clone: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(clone / "papermill_runs" / "reference_smoke" / name, how)
    shutil.rmtree(clone / "papermill_runs" / "check_smoke")
    assert cli.main(["check"]) == 2
    said = capsys.readouterr().err
    assert f"{name} is " in said and said.startswith("mmsr: ") and said.count("\n") == 1
    assert not (clone / "papermill_runs" / "check_smoke").exists()
