"""Runs of the notebooks: papermill, manifests, comparisons, trainings on many processes, the agent of a run."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """A request that cannot be met: nothing has begun, and the message says why in one sentence."""


class RunFailed(Exception):
    """A cell of a notebook raised, or its kernel died; the message says which cell and how."""


@contextlib.contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Errors of these kinds, whose messages are such sentences, become `UsageError`."""
    try:
        yield
    except errors as error:
        raise UsageError(str(error)) from error
