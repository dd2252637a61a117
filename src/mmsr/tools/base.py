"""What every tool takes and gives, local or live (paper §3.2).

text_search.search("Kenya capital", k=5)     -> [Hit(id="ke/capital", title="Kenya: Capital", text=…, score=9.1), …]
image_search.search(crop, k=5)               -> [Hit(id="ke", title="Flag of Kenya", text=…, score=0.98), …]
grounder.locate(picture, "the flag on the left") -> (16, 256, 150, 349), or None where nothing was found
summariser.summarise(question, query, hits)  -> the text the policy reads
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Protocol, TypeVar

from PIL import Image

from mmsr.protocol import Box

T, R = TypeVar("T"), TypeVar("R")


class ToolError(RuntimeError):
    """A tool could not answer; the message says in one sentence what was wrong, where, and what to do."""


class FatalToolError(ToolError):
    """An error that no further call can mend: the run stops here, with what it has kept."""


@dataclass(frozen=True)
class Hit:
    """One result of a search: identifier, title, text, score (higher is better), address where it has one."""

    id: str
    title: str
    text: str
    score: float
    url: str = ""


class TextRetriever(Protocol):
    def search(self, query: str, k: int) -> list[Hit]: ...


class ImageRetriever(Protocol):
    def search(self, picture: Image.Image, k: int) -> list[Hit]: ...


class Grounder(Protocol):
    def locate(self, picture: Image.Image, expression: str) -> Box | None: ...

    def locate_all(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[Box | None]:
        """Many boxes at once, in order; what takes a batch does better than this, one after the other."""
        return [self.locate(picture, expression) for picture, expression in pairs]


class Summariser(Protocol):
    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str: ...


# --- calls side by side, and what they log ----------------------------------------------------------------------------

_KEYS: ContextVar[list[str] | None] = ContextVar("keys", default=None)
_USAGE: ContextVar[list[tuple[str, dict[str, float]]] | None] = ContextVar("usage", default=None)


@contextlib.contextmanager
def _collected(log: ContextVar[list[T] | None]) -> Iterator[list[T]]:
    found: list[T] = []
    token = log.set(found)
    try:
        yield found
    finally:
        log.reset(token)


def keys_used() -> AbstractContextManager[list[str]]:
    """The keys of the outside calls made within the block, for the trajectory's log."""
    return _collected(_KEYS)


def log_keys(keys: Iterable[str]) -> None:
    """Add keys to the innermost `keys_used`, if there is one."""
    log = _KEYS.get()
    if log is not None:
        log.extend(keys)


def usage_spent() -> AbstractContextManager[list[tuple[str, dict[str, float]]]]:
    """What the large models asked within the block use, answer by answer: role, and numbers to be summed by name."""
    return _collected(_USAGE)


def log_usage(role: str, used: dict[str, float]) -> None:
    """Add what an answer took (calls, prompt_tokens, completion_tokens, cost) to the innermost `usage_spent`."""
    log = _USAGE.get()
    if log is not None:
        log.append((role, used))


def in_parallel(work: Callable[[T], R], items: Sequence[T], workers: int) -> list[R | ToolError]:
    """`work` on every item, in order; an item that failed gives its ToolError.

    Raises a FatalToolError at once, as it does an interruption from the keyboard or an error of `work` itself: what has
    not begun is not begun, what runs is finished (and recorded).
    """

    def one(item: T) -> R | ToolError:
        try:
            return work(item)
        except FatalToolError:
            raise
        except ToolError as error:
            return error

    with ThreadPoolExecutor(max(1, min(workers, len(items)))) as pool:
        jobs = [pool.submit(copy_context().run, one, item) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
