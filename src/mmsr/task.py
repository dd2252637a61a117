"""A question about a picture: as it is asked (`Asked`), as an episode plays it (`Task`).

    task = Task.of(question)        # of our world, or of a file; its picture is drawn or read now
    task.picture.crop(task.box)     # the gold crop, where one is known

A question of our world is a `world.questions.Question`, which draws its scene from a seed; any other, of a benchmark or
of one's own, is a `FileQuestion`. Data building, training, evaluation and ablation take either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

from mmsr.protocol import Box
from mmsr.tools.picture import read_picture

HALVES = ("unseen_entity", "unseen_question")  # InfoSeek's, of a test set
UNPICTURED = Image.new("RGB", (1, 1))  # scoring looks at no picture


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every question has. `entity` is what it is about, to cluster by; `half` its part of a test set.

    `box`, in pixels of the picture, and `gold_pages` are what a search should find, where that is known.
    """

    id: str
    type: str
    text: str
    answer: str
    aliases: tuple[str, ...] = ()
    taxonomy: str = ""
    entity: str = ""
    half: str = ""
    gold_pages: tuple[str, ...] = ()
    box: Box | None = None

    @property
    def golds(self) -> tuple[str, ...]:
        """The gold answer and its aliases."""
        return (self.answer, *self.aliases)

    def draw(self) -> Image.Image:
        """The picture. Raises ValueError where it cannot be read."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Self:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


@dataclass(frozen=True, kw_only=True)
class FileQuestion(Asked):
    """A question about a picture in a file."""

    picture: str

    def draw(self) -> Image.Image:
        try:
            return read_picture(Path(self.picture).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"The picture of question {self.id}, {self.picture}, cannot be read: {error}.") from None


@dataclass(frozen=True)
class Task:
    """A question as an episode needs it. `gold_pages` and `box` serve metrics and ablations alone."""

    id: str
    question: str
    picture: Image.Image
    golds: tuple[str, ...]
    gold_pages: tuple[str, ...] = ()
    box: Box | None = None
    entity: str = ""

    @classmethod
    def of(cls, asked: Asked, pictured: bool = True) -> Task:
        """The one way to make a task of a question; without its picture it can be scored but not played."""
        picture = asked.draw() if pictured else UNPICTURED
        return cls(asked.id, asked.text, picture, asked.golds, asked.gold_pages, asked.box, asked.entity)
