"""Slow, failing and wrong tools in the middle of GRPO: it trains on, or stops with the error and goes on from there."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hostile import cases, page, text
from PIL import Image

from mmsr.env import Tools
from mmsr.grpo import train_grpo
from mmsr.lab import open_tools
from mmsr.policy import load_policy
from mmsr.presets import get_preset
from mmsr.protocol import Box
from mmsr.runs.ask import SHIPPED
from mmsr.runs.check import CLOCKS
from mmsr.tools.base import FatalToolError, Grounder, Hit, ToolError
from mmsr.world.questions import make_questions

pytestmark = pytest.mark.slow

PRESET = replace(get_preset("smoke"), grpo_steps=3)
Change = Callable[[int, list[Hit]], list[Hit]]


@dataclass
class Disturbed:
    """A search that does something else from a certain call on; it counts them."""

    inner: Any
    change: Change = lambda call, hits: hits
    start: int = 0
    calls: list[object] = field(default_factory=list)

    def search(self, query: object, k: int) -> list[Hit]:
        self.calls.append(query)
        hits = self.inner.search(query, k)
        return self.change(len(self.calls), hits) if len(self.calls) > self.start else hits


QUESTIONS = make_questions("train", PRESET.grpo_steps * PRESET.grpo_questions, 7)


def trained(folder: Path, disturb: Callable[[Tools], Tools]) -> list[dict[str, str]]:
    """The shipped agent after GRPO with such tools: the rows of its table, without times."""
    policy = load_policy("tiny", SHIPPED)
    train_grpo(policy, QUESTIONS, disturb(open_tools(PRESET, policy)), PRESET, folder, seed=3)
    with (folder / "grpo.csv").open(newline="", encoding="utf-8") as file:
        return [{name: x for name, x in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def with_text(change: Change, start: int) -> Callable[[Tools], Tools]:
    return lambda tools: replace(tools, text=Disturbed(tools.text, change, start))


@dataclass(frozen=True)
class Calm:
    """The training that nothing disturbs: its rows, its folder, and how many text searches half of it took."""

    rows: list[dict[str, str]]
    folder: Path
    middle: int


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder, seen = tmp_path_factory.mktemp("calm"), []

    def counted(tools: Tools) -> Tools:
        seen.append(Disturbed(tools.text))
        return replace(tools, text=seen[0])

    rows = trained(folder, counted)
    assert len(rows) == PRESET.grpo_steps and len(seen[0].calls) > 4
    return Calm(rows, folder, len(seen[0].calls) // 2)


def trains_on(rows: list[dict[str, str]]) -> None:
    """All steps are there, with numbers in them, and a reward within its bounds."""
    assert [int(row["step"]) for row in rows] == list(range(1, PRESET.grpo_steps + 1))
    assert all(math.isfinite(float(cell)) for row in rows for cell in row.values() if cell)
    assert all(0 <= float(row["reward"]) <= 1 for row in rows)


def test_slow_tools_change_nothing(calm: Calm, tmp_path: Path) -> None:
    def slow(call: int, hits: list[Hit]) -> list[Hit]:
        time.sleep(0.3 * (call % 3 == 0))
        return hits

    assert trained(tmp_path, with_text(slow, 0)) == calm.rows and weights(tmp_path) == weights(calm.folder)


def raises(error: Exception, every: int = 1) -> Change:
    def change(call: int, hits: list[Hit]) -> list[Hit]:
        if call % every == 0:
            raise error
        return hits

    return change


@pytest.mark.parametrize("every", [1, 2])
def test_failing_tools_are_observations(calm: Calm, tmp_path: Path, every: int) -> None:
    trains_on(trained(tmp_path, with_text(raises(ToolError("The engine is down: try later."), every), calm.middle)))


@pytest.mark.parametrize("error", [FatalToolError("The budget is spent: raise it."), KeyError("a tool's own mistake")])
def test_what_stops_a_training_is_told_and_it_goes_on_to_the_same_weights(
    calm: Calm, tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error.args[0])):
        trained(tmp_path, with_text(raises(error), calm.middle))
    assert not (tmp_path / "adapter").exists()
    assert trained(tmp_path, lambda tools: tools) == calm.rows and weights(tmp_path) == weights(calm.folder)


def hostile_pages(call: int, hits: list[Hit]) -> list[Hit]:
    some = [case for case in cases("pages") if not case.get("refused")]
    case = some[call % len(some)]
    body = page(case).decode("utf-8", "replace")[:8000]
    return [Hit("hostile", text(case.get("title", "Kenya")), body, 1.0, "http://[x")] * 5


WRONG = {
    "nothing": lambda call, hits: [],
    "ten times as many": lambda call, hits: hits * 10,
    "all the same": lambda call, hits: hits[:1] * 5,
    "without texts": lambda call, hits: [replace(hit, title="", text="") for hit in hits],
    "of others": lambda call, hits: [Hit("x", "Atlantis: Capital", "name: Atlantis", -1e9)] * 5,
    "hostile": hostile_pages,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_results_are_trained_on_without_harm(calm: Calm, tmp_path: Path, change: Change) -> None:
    trains_on(trained(tmp_path, with_text(change, calm.middle)))


class Lost(Grounder):
    """A grounder that never finds anything."""

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        return None


def test_a_grounder_that_finds_nothing(tmp_path: Path) -> None:
    trains_on(trained(tmp_path, lambda tools: replace(tools, grounder=Lost())))


class Mute:
    """A summariser that fails, or says nothing."""

    def __init__(self, error: Exception | None):
        self.error = error

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        if self.error:
            raise self.error
        return ""


@pytest.mark.parametrize("error", [None, ToolError("The model is down: try later.")], ids=["nothing", "failing"])
def test_a_summariser_that_says_nothing(tmp_path: Path, error: Exception | None) -> None:
    trains_on(trained(tmp_path, lambda tools: replace(tools, text_summary=Mute(error))))
