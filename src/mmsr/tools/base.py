"""What every tool takes and gives, local or live (paper §3.2).

text_search.search("Kenya capital", k=5)     -> [Hit(id="ke/capital", title="Kenya: Capital", text=…, score=9.1), …]
image_search.search(crop, k=5)               -> [Hit(id="ke", title="Flag of Kenya", text=…, score=0.98), …]
grounder.locate(picture, "the flag on the left") -> (16, 256, 150, 349), or None where nothing was found
summariser.summarise(question, query, hits)  -> the text the policy reads
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from mmsr.protocol import Box

T, R = TypeVar("T"), TypeVar("R")


class ToolError(RuntimeError):
    """A tool could not answer; the message says in one sentence what was wrong, where, and what to do."""


class FatalToolError(ToolError):
    """An error that no further call can mend: the run stops here, with what it has kept."""


@dataclass(frozen=True)
class Hit:
    """One result of a search: identifier, title, text, score (higher is better), address where it has one.

    A lone surrogate is dropped from its texts: no tokenizer reads it, and no file can hold it.
    """

    id: str
    title: str
    text: str
    score: float
    url: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "title", "text", "url"):
            object.__setattr__(self, name, getattr(self, name).encode("utf-8", "ignore").decode())


class Corpus(Protocol):
    """Pages of text, pictures by their titles, and what searches them: `world.snapshot.World`, `world.own.OwnWorld`."""

    pages: Mapping[str, Any]
    flags: Sequence[Any]

    def flag(self, iso: str) -> Image.Image: ...
    def text_search(self) -> TextRetriever: ...
    def picture_search(self) -> ImageRetriever: ...


class TextRetriever(Protocol):
    def search(self, query: str, k: int) -> list[Hit]: ...


class ImageRetriever(Protocol):
    def search(self, picture: Image.Image, k: int) -> list[Hit]: ...


class Grounder(Protocol):
    def locate(self, picture: Image.Image, expression: str) -> Box | None: ...

    def locate_all(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[Box | None]:
        """Many boxes, in order: here one after the other; a grounder that takes batches does better."""
        return [self.locate(picture, expression) for picture, expression in pairs]


class Summariser(Protocol):
    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str: ...


# --- calls side by side, and what they log ----------------------------------------------------------------------------


class Log(Generic[T]):
    """What calls note about themselves, for whoever listens around them: the innermost listener of this thread."""

    def __init__(self, name: str) -> None:
        self._listener: ContextVar[list[T] | None] = ContextVar(name, default=None)

    @contextlib.contextmanager
    def heard(self) -> Iterator[list[T]]:
        """What is noted within the block."""
        noted: list[T] = []
        token = self._listener.set(noted)
        try:
            yield noted
        finally:
            self._listener.reset(token)

    def note(self, *entries: T) -> None:
        """Tell the listener, if there is one."""
        if (noted := self._listener.get()) is not None:
            noted.extend(entries)


KEYS = Log[str]("keys")  # of outside calls, for the trajectory
USAGE = Log[tuple[str, dict[str, float]]](
    "usage"
)  # of large models, by role: calls, prompt and completion tokens, cost


def in_parallel(work: Callable[[T], R], items: Sequence[T], workers: int) -> list[R | ToolError]:
    """`work` on every item, in order; an item that failed gives its ToolError. Keys are noted in the items' order.

    Raises a FatalToolError, a keyboard interrupt or an error of `work` itself at once: what has not begun is dropped,
    what is running finishes (and is recorded).
    """

    noted: list[list[str]] = [[] for _ in items]  # whoever answers first: a replayed trajectory logs the same

    def one(place: int) -> R | ToolError:
        try:
            with KEYS.heard() as noted[place]:
                return work(items[place])
        except FatalToolError:
            raise
        except ToolError as error:
            return error

    with ThreadPoolExecutor(max(1, min(workers, len(items)))) as pool:
        jobs = [pool.submit(copy_context().run, one, place) for place in range(len(items))]
        try:
            results = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    KEYS.note(*chain(*noted))
    return results
