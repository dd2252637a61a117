"""What bounds the outside calls of a run (time, size, pace, calls, money), and the errors that say so.

Errors of class `FatalToolError` end a run; every other `ToolError` is an observation that an episode can go on from.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsr.files import locked, read_json, write_json
from mmsr.tools.base import FatalToolError, ToolError


class KeyRefused(FatalToolError):
    """The key is missing, malformed or not accepted."""


class QuotaGone(FatalToolError):
    """The account's searches, credits or plan are used up: waiting a minute will not help."""


class SetUpFirst(FatalToolError):
    """The service refuses whatever it is asked until something is set up, which the message names."""


class BudgetSpent(FatalToolError):
    """The run has used the calls or the money it was given."""


class Refused(ToolError):
    """The service understood and said no (HTTP 4xx): this request will not work, another may."""


class BadAnswer(ToolError):
    """The service answered with something that is not its own format: broken, too big or compressed."""


class Unavailable(ToolError):
    """No answer: a time-out, a connection that failed, or HTTP 5xx after every try."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Unavailable):
    """Too many calls for now (HTTP 429), after every try."""


@dataclass(frozen=True)
class Limits:
    """Seconds for a whole call with its retries and for one try; tries, first wait between them, bytes of an answer."""

    total: float = 60.0
    attempt: float = 20.0
    tries: int = 4
    first_wait: float = 0.5
    max_bytes: int = 8_000_000


class Budget:
    """Calls and US dollars that may be spent on outside calls; None means no limit. Safe between threads.

    All processes that name one `file` share its budget. Calls under way when the money runs out are finished and paid.
    """

    def __init__(self, calls: int | None = None, money: float | None = None, file: Path | None = None) -> None:
        self.calls, self.money, self.file = calls, money, file
        self._lock, self._used = threading.Lock(), dict[str, dict[str, float]]()
        self._dearest: dict[str, float] = {}  # call of each service, in dollars
        self._under_way, self._changed = 0, threading.Condition()

    def admit(self, service: str) -> None:
        """Count one call. Raises BudgetSpent instead where nothing is left for it."""
        with self._account() as used:
            calls, money = (sum(one[kind] for one in used.values()) for kind in ("calls", "money"))
            if self.calls is not None and calls >= self.calls:
                raise BudgetSpent(f"The budget of {self.calls} outside calls is spent: raise it to go on.")
            if self.money is not None and money >= self.money:
                raise BudgetSpent(f"The budget of ${self.money:.2f} is spent (${money:.4f}): raise it to go on.")
            used.setdefault(service, {"calls": 0, "money": 0.0})["calls"] += 1

    def add(self, service: str, money: float) -> None:
        """Count what an admitted call has cost."""
        with self._account() as used:
            used[service]["money"] += money
            self._dearest[service] = max(money, self._dearest.get(service, 0.0))

    @contextlib.contextmanager
    def room(self, service: str) -> Iterator[None]:
        """A block for a call of unknown price, which waits until the money is enough for all that are under way.

        Each is taken to cost what the dearest of its service did; while none is known, and at the end, they go singly.
        """

        def enough() -> bool:
            if self.money is None or not self._under_way:
                return True
            price = self._dearest.get(service, math.inf) * (self._under_way + 1)
            return sum(one["money"] for one in self.summary().values()) + price <= self.money

        with self._changed:
            self._changed.wait_for(enough)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def summary(self) -> dict[str, dict[str, float]]:
        """Calls and dollars by service, for a run's manifest."""
        with self._lock:
            return {name: dict(one) for name, one in sorted(self._read().items())}

    @contextlib.contextmanager
    def _account(self) -> Iterator[dict[str, dict[str, float]]]:
        """What is spent, to read and to change, while nobody else can. A change is kept unless the block fails."""
        with self._lock, locked(self.file) if self.file else contextlib.nullcontext():
            used = self._read()
            yield used
            if self.file:
                write_json(self.file, used)

    def _read(self) -> dict[str, dict[str, float]]:
        if self.file is None:
            return self._used
        remedy = "delete it, and the account of what was spent begins anew"
        return read_json(self.file, dict[str, dict[str, int | float]], remedy) if self.file.exists() else {}


class TokenBucket:
    """At most `rate` calls a second on average, up to a second's worth at once; callers wait in line."""

    def __init__(self, rate: float) -> None:
        self._step, self._most = 1 / rate, max(1.0, 1 / rate)  # seconds between calls, and how many may be saved up
        self._turn, self._lock = 0.0, threading.Lock()

    def take(self) -> float:
        """Wait for this caller's turn. Returns the seconds that it took."""
        with self._lock:
            now = time.monotonic()
            self._turn = max(self._turn, now - self._most) + self._step
            wait = max(0.0, self._turn - now)
        time.sleep(wait)
        return wait


@functools.lru_cache(maxsize=4096)
def bucket(service: str, host: bytes, rate: float) -> TokenBucket:
    """One bucket for all clients of a service in this process: engines limit an account, not an object."""
    return TokenBucket(rate)
