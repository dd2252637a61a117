"""Grounders: from a referring expression to a box (paper §3.2 uses Grounding DINO).

| grounder | box |
|---|---|
| BaseGrounder | the policy's own frozen base, asked `locate: …`, as Qwen's models ground natively |
| live.dino.DinoGrounder | Grounding DINO, as in the paper |
| OracleGrounder | the gold box of the picture; none where it knows none (ablation) |
| RandomGrounder | a random box of a flag's usual size, the same for the same picture and expression (ablation) |

A grounder that finds nothing returns None, and the whole picture is searched.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmsr.protocol import Box, conversation
from mmsr.tools.base import Grounder
from mmsr.tools.picture import picture_key

ANSWER_TOKENS = 96  # Qwen spells numbers digit by digit: a box of four-digit numbers as JSON takes over 50
_NUMBER = r"-?\d{1,6}(?:\.\d+)?"
_FOUR = rf"(?<![\w.])({_NUMBER})" + rf"[\s,()\[\]]+({_NUMBER})" * 3


class BaseGrounder(Grounder):
    """Asks the frozen base for a box. `policy` needs `base()`, `generate()` and `to_picture()` (see policy.py).

    With `trained` the policy is asked as it is now, LoRA and all. Answers are kept for the life of the grounder: an
    expression on a picture has one box.
    """

    def __init__(self, policy: Any, prompt: str = "locate: {expression}", trained: bool = False):
        self.policy, self.prompt, self.trained = policy, prompt, trained
        self._boxes: dict[tuple[str, str], Box | None] = {}

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        """The box in pixels of the picture, or None where the base does not name a proper one."""
        return self.locate_all([(picture, expression)])[0]

    def locate_all(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[Box | None]:
        """The boxes of many expressions, those that are not known yet in one batch."""
        keys = [(picture_key(picture), expression) for picture, expression in pairs]
        missing = {key: picture for key, (picture, _) in zip(keys, pairs) if key not in self._boxes}
        if missing:
            asked = [(picture, conversation(self.prompt, expression=key[1])) for key, picture in missing.items()]
            with contextlib.nullcontext() if self.trained else self.policy.base():
                answers = self.policy.generate(asked, max_new_tokens=ANSWER_TOKENS)
            for (key, picture), answer in zip(missing.items(), answers):
                numbers = read_box(answer)
                self._boxes[key] = clamp(self.policy.to_picture(numbers, picture), picture) if numbers else None
        return [self._boxes[key] for key in keys]


def read_box(answer: str) -> tuple[int, int, int, int] | None:
    """The first four consecutive numbers of an answer: `4,64,37,87`, or Qwen's `[{"bbox_2d": [4, 64, 37, 87], …}]`.

    None where there are not four (an answer cut off, or of three numbers) or they do not make a box.
    """
    key = re.search(r'"bbox(?:_2d)?"\s*:(.*)', answer, re.DOTALL)
    match = re.search(_FOUR + r"\s*\]", key[1]) if key else re.search(_FOUR + r"(?!\w)", answer)
    if match is None:
        return None
    x1, y1, x2, y2 = (round(float(v)) for v in match.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def clamp(box: Box, picture: Image.Image) -> Box | None:
    """The part of a box that lies inside the picture, or None where nothing of it does."""
    x1, y1 = max(0, box[0]), max(0, box[1])
    x2, y2 = min(picture.width, box[2]), min(picture.height, box[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def pad(box: Box, share: float, picture: Image.Image) -> Box:
    """A box widened on each side by a share of its width and height (negative shrinks it), inside the picture."""
    dx, dy = (box[2] - box[0]) * share, (box[3] - box[1]) * share
    return clamp((round(box[0] - dx), round(box[1] - dy), round(box[2] + dx), round(box[3] + dy)), picture) or box


def shared_area(a: Box, b: Box) -> int:
    """What two boxes share, in square pixels."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def iou(a: Box | None, b: Box) -> float:
    """Intersection over union of two boxes; 0 where there is none."""
    if a is None:
        return 0.0
    inter = shared_area(a, b)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


@dataclass(frozen=True)
class OracleGrounder(Grounder):
    """The gold box of each picture, whatever is described. `boxes` is keyed by `picture_key`."""

    boxes: Mapping[str, Box]

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        return self.boxes.get(picture_key(picture))


def _drawn(seed: int, picture: Image.Image, expression: str) -> random.Random:
    """Random numbers that are the same for the same picture and expression."""
    return random.Random(f"{seed}/{picture_key(picture)}/{expression}")


@dataclass(frozen=True)
class RandomGrounder(Grounder):
    """A box of a flag's usual size anywhere in the picture, drawn from the picture and the expression."""

    seed: int

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        rng = _drawn(self.seed, picture, expression)
        width, height = (round(side * rng.uniform(0.2, 0.35)) for side in picture.size)
        x, y = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        return (x, y, x + width, y + height)


@dataclass(frozen=True)
class PerturbedGrounder(Grounder):
    """Another grounder's box, padded and shaken: for the sweeps of the crop ablation.

    `padding` is a share of width and height added on each side; `noise` is the standard deviation of each edge's shift,
    as a share of the box's side, drawn from the picture and the expression.
    """

    inner: Grounder
    padding: float
    noise: float
    seed: int

    def locate(self, picture: Image.Image, expression: str) -> Box | None:
        box = self.inner.locate(picture, expression)
        if box is None:
            return None
        rng = _drawn(self.seed, picture, expression)
        width, height = box[2] - box[0], box[3] - box[1]
        shifts = [rng.gauss(0, self.noise) * side for side in (width, height, width, height)]
        x1, y1, x2, y2 = (round(v + shift) for v, shift in zip(box, shifts))
        shaken = clamp((min(x1, x2 - 1), min(y1, y2 - 1), x2, y2), picture)
        return pad(shaken, self.padding, picture) if shaken else None
