"""What every tool takes and gives, local or live (paper §3.2).

text_search.search("Kenya capital", k=5)     -> [Hit(id="ke/capital", title="Kenya: Capital", text=…, score=9.1), …]
image_search.search(crop, k=5)               -> [Hit(id="ke", title="Flag of Kenya", text=…, score=0.98), …]
grounder.locate(picture, "the flag on the left") -> (16, 256, 150, 349), or None where nothing was found
summariser.summarise(question, query, hits)  -> the text the policy reads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture, x2 and y2 exclusive


class ToolError(RuntimeError):
    """A tool could not answer; the message says in one sentence what was wrong, where, and what to do."""


@dataclass(frozen=True)
class Hit:
    """One result of a search: identifier, title, text, score (higher is better), address where it has one."""

    id: str
    title: str
    text: str
    score: float
    url: str = ""


class TextSearch(Protocol):
    def search(self, query: str, k: int) -> list[Hit]: ...


class ImageSearch(Protocol):
    def search(self, picture: Image.Image, k: int) -> list[Hit]: ...


class Grounder(Protocol):
    def locate(self, picture: Image.Image, expression: str) -> Box | None: ...


class Summariser(Protocol):
    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str: ...
