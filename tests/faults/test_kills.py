"""A run that is killed at any moment of any notebook, in the middle of a save too, ends as if it had not been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from broken_runs import Bench, asked, differences, mmsr, started, wait_for_kernel

pytestmark = pytest.mark.slow

SHARES = {
    "01_build_data": (0.3, 0.5, 0.7),
    "02_sft": (0.25, 0.4, 0.55, 0.7),
    "03_grpo": (0.25, 0.4, 0.55, 0.7),
    "04_evaluate": (0.3, 0.5, 0.7),
    "05_crop_ablation": (0.3, 0.5, 0.7),
}
MOMENTS = [(notebook, share) for notebook, shares in SHARES.items() for share in shares]
SAVES = [  # what a kernel is about to do when it and its runner die
    ("02_sft", "open", r"checkpoint-\d+[/\\]trainer_state\.json$"),
    ("03_grpo", "open", r"checkpoint-2[/\\]adapter_config\.json$"),
    ("04_evaluate", "os.rename", r"rows\.jsonl\.part$"),
]
KILLER = """
import os, re, signal, sys

what, pattern = os.environ["FAULT"].split(" ", 1)

def die(event, arguments):
    if event == what and re.search(pattern, str(arguments[0])) and (event != "open" or "w" in str(arguments[1])):
        for process in (os.getppid(), os.getpid()):
            os.kill(process, signal.SIGKILL)

sys.addaudithook(die)
"""


def killed(bench: Bench, name: str, notebook: str, share: float) -> Path:
    """A run whose runner was killed after this share of the notebook's time, sooner where it was quicker than that."""
    folder = bench.begin(name, notebook)
    runner = started(bench.root, *asked(name, notebook))
    wait_for_kernel(folder, runner)
    try:
        runner.wait(share * bench.seconds[notebook])
    except subprocess.TimeoutExpired:
        runner.kill()
        runner.wait()
        return folder
    shutil.rmtree(folder)
    return killed(bench, name, notebook, share / 2)


def ends_as_if_nothing_had_been(bench: Bench, folder: Path, notebook: str) -> None:
    assert not (folder / f"{notebook}.ipynb").exists()  # it was killed in the middle of it
    done = mmsr(bench.root, *asked(folder.name, notebook))
    assert done.returncode == 0, done.stderr
    assert differences(folder, bench.after(notebook)) == []


@pytest.mark.parametrize(("notebook", "share"), MOMENTS)
def test_killed_at_a_moment(bench: Bench, notebook: str, share: float) -> None:
    folder = killed(bench, f"killed_{notebook[:2]}_{share:.2f}", notebook, share)
    ends_as_if_nothing_had_been(bench, folder, notebook)


@pytest.mark.skipif(os.name != "posix", reason="a process cannot kill its parent there")
@pytest.mark.parametrize(("notebook", "event", "pattern"), SAVES, ids=[save[0] for save in SAVES])
def test_killed_inside_a_save(bench: Bench, tmp_path: Path, notebook: str, event: str, pattern: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLER, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    name = f"killed_{notebook[:2]}_saving"
    folder = bench.begin(name, notebook)
    runner = started(bench.root, *asked(name, notebook), PYTHONPATH=paths, FAULT=f"{event} {pattern}")
    assert runner.wait() == -signal.SIGKILL
    ends_as_if_nothing_had_been(bench, folder, notebook)
