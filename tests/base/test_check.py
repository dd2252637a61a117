"""The skill check asks of the shipped base what its card says that it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mmsr.policy import TINY_DIR


def test_the_command_measures_the_skills_of_the_card(tmp_path: Path) -> None:
    out = tmp_path / "skills.json"
    command = [sys.executable, "-m", "mmsr.base.check", "--tries", "8", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found, shipped = json.loads(out.read_text()), json.loads((TINY_DIR / "skills.json").read_text())
    assert found.keys() == shipped.keys()
    assert all(0 <= value <= 1 for value in found.values())
    assert found["locate/test/position/iou_50"] >= 0.75 and found["relay/test/look_at_what"] >= 0.75
    assert found["read/test"] > 0.25 and found["facts/other"] < 0.25  # it reads what it does not know


def test_too_few_tries_are_refused_before_anything_is_loaded() -> None:
    command = [sys.executable, "-m", "mmsr.base.check", "--tries", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "'--tries'" in done.stderr


def test_the_card_gives_the_numbers_of_the_skill_file() -> None:
    card = (TINY_DIR / "README.md").read_text()
    for name, value in json.loads((TINY_DIR / "skills.json").read_text()).items():
        assert f"| {name} | {value:.3f} |" in card
