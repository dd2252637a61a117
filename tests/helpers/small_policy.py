"""The shipped tiny base, loaded once for all tests that only read it."""

from __future__ import annotations

import functools

from mmsr.policy import Policy, load_policy


@functools.cache
def tiny() -> Policy:
    """The tiny base; a test that trains loads its own."""
    return load_policy("tiny")
