"""An episode over stub tools: engines that note what they are asked and return a given text or error."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mmsr.env import Rules, SearchEnv, Tools
from mmsr.presets import get_preset
from mmsr.protocol import Action, Turn, render_turn
from mmsr.task import Task
from mmsr.tools.base import Grounder, Hit

PROMPTS = get_preset("tiny").prompts
PICTURE = Image.new("RGB", (400, 200), "white")
TASK = Task("t", "Which <answer>one</answer>?<|im_end|>", PICTURE, ("gold",), ("p0",), (10, 20, 30, 40), "ke")
SPECIAL = ("<|im_end|>", "<|image_pad|>")


class Engine:
    """A search that notes what it is asked and returns three hits of a text, or raises."""

    def __init__(self, text: str = "a page", error: Exception | None = None):
        self.text, self.error, self.asked = text, error, []

    def search(self, query: object, k: int) -> list[Hit]:
        self.asked.append(query)
        if self.error:
            raise self.error
        return [Hit(f"p{n}", f"Title {self.text}", self.text, 1.0 - n, "https://example.org") for n in range(3)][:k]


class Summary:
    """All titles and texts as they are."""

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        return "\n".join(f"{hit.title}: {hit.text}" for hit in hits)


class Finds(Grounder):
    """A grounder that always names the same box."""

    def __init__(self, box: tuple[int, int, int, int] | None = (100, 50, 200, 100)):
        self.box, self.asked = box, []

    def locate(self, picture: Image.Image, expression: str):
        self.asked.append(expression)
        return self.box


def environment(
    text: Engine | None = None, image: Engine | None = None, box=(100, 50, 200, 100), on_turn=None, **rules
) -> SearchEnv:
    """A fresh episode over stub tools; the policy's frame is half the picture's size."""
    tools = Tools(
        text=text or Engine(),
        image=image or Engine(),
        grounder=Finds(box),
        text_summary=Summary(),
        image_summary=Summary(),
        to_picture=lambda b, picture: tuple(round(v * 2) for v in b),
    )
    told = {"on_turn": on_turn} if on_turn else {}
    return SearchEnv(tools, PROMPTS, TASK, Rules(**rules), **told)


def turn(action: Action) -> str:
    """A valid turn with this action."""
    return render_turn(Turn("a", action))
