"""The programs of docs/recipes.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from random_qwen import random_qwen

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def reward(names: dict[str, Any], said: list[str]) -> None:
    near, judge = names["near"], names["Near"]()
    assert near("1,040 km", "1046 km") and not near("1,040 km", "1046 m") and not near("1,150 km", "1046 km")
    assert judge.verdict("", ["1,046 km"], "1040 km").correct and judge.verdict("", ["Nairobi"], "nairobi").correct
    assert not judge.verdict("", ["Nairobi"], "Lima").correct
    assert len(pd.read_csv("near/grpo.csv")) == names["preset"].grpo_steps and Path("near/adapter").is_dir()


def search_engine(names: dict[str, Any], said: list[str]) -> None:
    titles = names["Titles"](names["load_world"]().pages.values())
    assert titles.search("Kenya Population", 3)[0].title == "Kenya: Population"
    assert {value.n for value in names["accuracy"].values()} == {12} and names["accuracy"]["bm25"].value > 0.5


def world(names: dict[str, Any], said: list[str]) -> None:
    assert "The dragon costs seven coins." in said[-2] and "Dragon" in said[-1]


def model(names: dict[str, Any], said: list[str]) -> None:
    assert len(names["rows"]) == 2 and names["policy"].model.config.model_type == "qwen2_5_vl"


CHECKS = {check.__name__.replace("_", " "): check for check in (reward, search_engine, world, model)}


def test_every_section_is_a_recipe_with_a_check() -> None:
    sections = re.findall("^## Your own (.+)$", TEXT, re.MULTILINE)
    assert sections == [*CHECKS] == [title.removeprefix("Your own ") for title in RECIPES]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_does_what_it_says(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "my-qwen" in RECIPES[title]:
        random_qwen(Path("my-qwen"))
    names = {"__name__": "recipe"}
    exec(compile(RECIPES[title], title, "exec"), names)
    CHECKS[title.removeprefix("Your own ")](names, capsys.readouterr().out.splitlines())
