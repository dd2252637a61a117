"""A question about a picture: as it is asked (`Asked`), as an episode plays it (`Task`).

    task = Task.of(question)        # of our world, or of a file; its picture is drawn or read now
    task.picture.crop(task.box)     # the gold crop, where one is known

A question of our world is a `world.questions.Question`, which draws its scene from a seed; any other, of a benchmark or
of one's own, is a `FileQuestion`. Data building, training, evaluation and ablation take either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mmsr.protocol import Box
from mmsr.tools.picture import read_picture

UNPICTURED = Image.new("RGB", (1, 1))  # scoring looks at no picture


class Asked(Protocol):
    """What every question has. `entity` is what it is about, for intervals; `half` its part of a test set."""

    id: str
    type: str
    text: str
    answer: str
    aliases: tuple[str, ...]
    taxonomy: str
    gold_pages: tuple[str, ...]
    box: Box | None
    entity: str
    half: str

    @property
    def golds(self) -> tuple[str, ...]: ...
    def draw(self) -> Image.Image: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FileQuestion:
    """A question about a picture in a file. Nothing gold is known of what a search should find for it."""

    id: str
    type: str
    text: str
    answer: str
    aliases: tuple[str, ...]
    picture: str
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
        """The picture, read now. Raises ValueError for a file that is missing or holds none."""
        try:
            return read_picture(Path(self.picture).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"The picture of question {self.id}, {self.picture}, cannot be read: {error}.") from None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> FileQuestion:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


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
        """The one way to make a task of a question; without its picture it can be scored and not played."""
        picture = asked.draw() if pictured else UNPICTURED
        return cls(asked.id, asked.text, picture, asked.golds, asked.gold_pages, asked.box, asked.entity)
