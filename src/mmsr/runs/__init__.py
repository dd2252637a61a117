"""Runs of the notebooks: papermill, comparisons, training on many processes, the agent of a run."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """A request that cannot be met: nothing has begun, and the message says why in one sentence."""


class RunFailed(Exception):
    """A cell of a notebook raised, or its kernel died; the message says which cell and how."""


def reason(error: BaseException) -> str:
    """Why, in one line: what the system says of a file, else the first line of the message."""
    said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return said.partition("\n")[0].rstrip(".")


@contextlib.contextmanager
def refusing(*errors: type[Exception], saying: str = "") -> Iterator[None]:
    """Errors of these kinds become `UsageError`, with their own message, or as the reason for what `saying` states."""
    try:
        yield
    except errors as error:
        raise UsageError(f"{saying}: {reason(error)}." if saying else str(error)) from error
