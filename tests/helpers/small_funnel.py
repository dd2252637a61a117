"""A small funnel whose base answers from a list: the kit's own steps, without a model to wait for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mmsr.ablation import oracle
from mmsr.dataset import Asked, save_examples
from mmsr.env import Tools
from mmsr.funnel import Built, build
from mmsr.lab import local_tools
from mmsr.players import Player, scripted
from mmsr.presets import get_preset
from mmsr.world.questions import Question, make_questions
from mmsr.world.snapshot import load_world

WORLD, PRESET = load_world(), replace(get_preset("smoke"), eval_batch=2)


@functools.cache
def questions() -> list[Question]:
    """Of all types."""
    return make_questions(WORLD, "train", 30, seed=41)


class ListedBase:
    """A base that knows the answer to every third question; it notes the batches it is asked in."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.known = {question.text: question.answer for question in asked[::3]}
        self.model, self.tokenizer = torch.nn.Linear(2, 2), SimpleNamespace(all_special_tokens=["<|im_end|>", "[PAD]"])
        with torch.no_grad():
            self.model.weight.fill_(1.0)
            self.model.bias.fill_(0.0)
        self.batches: list[tuple[str, ...]] = []

    def count_tokens(self, text: str) -> int:
        return len(text) // 4

    def to_picture(self, box: Sequence[float], picture: Any) -> Any:
        return tuple(box)

    def ask(self, asked: Sequence[tuple[Any, str]], batch_size: int) -> list[str]:
        texts = tuple(text for _, text in asked)
        self.batches.append(texts)
        return [self.known.get(text, "Atlantis") for text in texts]


@functools.cache
def tools() -> Tools:
    """The local tools, with the gold boxes."""
    return replace(
        local_tools(PRESET, ListedBase(questions()), WORLD),  # type: ignore[arg-type]
        grounder=oracle(questions(), WORLD),
    )


@dataclass
class Made:
    """What a funnel gave: the result, the base it asked, and its files' bytes."""

    built: Built
    base: ListedBase
    files: dict[str, bytes]


def make(folder: Path, player: Player | None = None, asked: Sequence[Asked] | None = None, **changes: Any) -> Made:
    """Build a data set of twelve into a run's folder, going on from what it holds."""
    asked = questions() if asked is None else asked
    base = ListedBase(asked)
    settings: dict[str, Any] = {"tools": tools(), "preset": PRESET, "seed": 3, "size": 12} | changes
    built = build(
        asked, WORLD, player or scripted(WORLD, settings["tools"]), policy=base, folder=folder / "funnel", **settings
    )
    save_examples(built.examples, folder / "data", WORLD, built.card())
    files = {p.name: p.read_bytes() for p in sorted((folder / "data").rglob("*")) if p.is_file()}
    return Made(built, base, files)
