"""One careful way to talk HTTP: time-outs, size caps, retries, rate limits, quotas and a budget.

    client = Client(Service("serper", "https://google.serper.dev", key_env="SERPER_API_KEY", key_header="X-API-KEY"), Budget())
    client.send("POST", "/search", json={"q": "Kenya capital"})      # -> Reply(status=200, headers=…, body=b"…")

A call ends in a `Reply` or in one clear error, never later than `Limits.total` seconds after its first try. Errors of
class `FatalToolError` end a run (the key is refused, the quota or the budget is gone); every other `ToolError` is an
observation that an episode can go on from. Keys come from the environment at the moment of the call; they stand in no
error, no log line and no record.
"""

from __future__ import annotations

import email.utils
import functools
import json as jsonlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

import httpcore
import httpx

from mmsr import __version__
from mmsr.tools.base import ToolError
from mmsr.tools.guard import BlockedAddress, deadline_in, new_client

RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds before a second try; doubled each time, up to the longest
USER_AGENT = (
    f"mmsr/{__version__} (multimodal search research kit; contact: {os.environ.get('MMSR_CONTACT', 'none given')})"
)


class FatalToolError(ToolError):
    """An error that no further call can mend: the run stops here, with what it has kept."""


class KeyRefused(FatalToolError):
    """The key is missing, malformed or not accepted."""


class QuotaGone(FatalToolError):
    """The account's searches, credits or plan are used up: waiting a minute will not help."""


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
    """Seconds for a whole call with its retries and for one try, number of tries, bytes of one answer."""

    total: float = 60.0
    attempt: float = 20.0
    tries: int = 4
    max_bytes: int = 8_000_000


@dataclass(frozen=True)
class Service:
    """A web service: where it is, which environment variable holds its key, how the key travels, pace and price.

    The key goes in the header `key_header` (after `key_prefix`) or in the parameter `key_param` (of the form where the
    call has one, else of the address). `quota` is a pattern of the error texts that mean "used up" rather than "slow
    down". `price` is in US dollars a successful call. `web` is True for addresses that come from search results: these
    must be global and no proxy is used.
    """

    name: str
    base_url: str
    key_env: str = ""
    key_header: str = ""
    key_param: str = ""
    key_prefix: str = ""
    rate: float = 5.0
    price: float = 0.0
    quota: str = "credit|quota|run out|billing|subscription has (?:expired|ended)"
    limits: Limits = field(default_factory=Limits)
    web: bool = False

    def key(self) -> str:
        """The key, or "" where none is needed. Raises KeyRefused where it is missing or cannot be one."""
        if not self.key_env:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise KeyRefused(f"{self.name} needs a key: set the environment variable {self.key_env}.")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise KeyRefused(f"The key in {self.key_env} has spaces or other characters that no key has: set it again.")
        return key


@dataclass(frozen=True)
class Reply:
    """A complete answer: status, headers with lower-case names, body as sent (never compressed)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, service: str) -> Any:
        """The body as JSON. Raises BadAnswer where it is none."""
        try:
            return jsonlib.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{service} answered with broken JSON ({_short(str(error))}): try again later.") from None


class Budget:
    """Calls and US dollars that one run may spend on outside calls; None means no limit. Safe between threads.

    Each process counts for itself. Calls under way when the money runs out are finished and paid.
    """

    def __init__(self, calls: int | None = None, money: float | None = None) -> None:
        self.calls, self.money = calls, money
        self._lock = threading.Lock()
        self._used: dict[str, dict[str, float]] = {}

    def admit(self, service: str) -> None:
        """Count one call. Raises BudgetSpent instead where nothing is left for it."""
        with self._lock:
            calls = sum(int(used["calls"]) for used in self._used.values())
            money = sum(used["money"] for used in self._used.values())
            if self.calls is not None and calls >= self.calls:
                raise BudgetSpent(f"The budget of {self.calls} outside calls is spent: raise it to go on.")
            if self.money is not None and money >= self.money:
                raise BudgetSpent(f"The budget of ${self.money:.2f} is spent (${money:.4f}): raise it to go on.")
            self._used.setdefault(service, {"calls": 0, "money": 0.0})["calls"] += 1

    def add(self, service: str, money: float) -> None:
        """Count what a call has cost."""
        with self._lock:
            self._used.setdefault(service, {"calls": 0, "money": 0.0})["money"] += money

    def summary(self) -> dict[str, dict[str, float]]:
        """Calls and dollars by service, for a run's manifest."""
        with self._lock:
            return {name: dict(used) for name, used in sorted(self._used.items())}


class TokenBucket:
    """At most `rate` calls a second on average, up to a second's worth at once; callers wait in line."""

    def __init__(self, rate: float) -> None:
        self.rate, self._level, self._at = rate, max(1.0, rate), time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for this caller's turn."""
        with self._lock:
            now = time.monotonic()
            self._level = min(max(1.0, self.rate), self._level + (now - self._at) * self.rate) - 1
            self._at = now
            wait = max(0.0, -self._level / self.rate)
        time.sleep(wait)


@functools.lru_cache(maxsize=256)
def _bucket(name: str, base_url: str, rate: float) -> TokenBucket:
    """One bucket for all clients of a service in this process: engines limit an account, not an object."""
    return TokenBucket(rate)


@functools.lru_cache(maxsize=8)
def _http(process: int, web: bool) -> httpx.Client:
    """Connections are shared by all services of a process, and by no other process (a fork must open its own)."""
    return new_client(web)


class _RedactKeys(logging.Filter):
    """httpx logs every address it asks; SerpApi's holds the key."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_hide_params(str(a)) if isinstance(a, httpx.URL) else a for a in record.args)
        return True


def _hide_params(url: str) -> str:
    return re.sub(r"(?i)([?&](?:api_?key|key|token)=)[^&\s]*", r"\1***", url)


logging.getLogger("httpx").addFilter(_RedactKeys())


class Client:
    """Calls one service. Safe between threads."""

    def __init__(self, service: Service, budget: Budget) -> None:
        self.service, self.budget = service, budget

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
    ) -> Reply:
        """Ask, and ask again where that can help. `path` is added to the service's address ("" for the address itself).

        The wait for this service's token comes on top of `Limits.total`: it is standing in line, not a slow answer.
        Raises the errors of this module.
        """
        service, limits = self.service, self.service.limits
        key = service.key()
        request = {"params": dict(params or {}), "json": json, "files": files, "headers": {}}
        if key and service.key_header:
            request["headers"][service.key_header] = service.key_prefix + key
        elif key:
            request |= {"data": {service.key_param: key}} if files else {}
            request["params"] |= {} if files else {service.key_param: key}
        bucket = _bucket(service.name, service.base_url, service.rate)
        started, tries = time.monotonic(), 0
        while True:
            queued = time.monotonic()
            bucket.take()
            started += time.monotonic() - queued
            self.budget.admit(service.name)
            tries += 1
            left = started + limits.total - time.monotonic()
            try:
                reply = self._once(method, path, request, min(limits.attempt, left))
                self._check(reply, key)
                self.budget.add(service.name, service.price)
                return Reply(reply.status, reply.headers, _without(reply.body, key))
            except Unavailable as error:
                wait = error.retry_after if error.retry_after is not None else _backoff(tries)
                if tries >= limits.tries or time.monotonic() + wait >= started + limits.total:
                    raise type(error)(f"{error} Gave up after {_count(tries)}.", error.retry_after) from None
                time.sleep(wait)

    def _once(self, method: str, path: str, request: dict[str, Any], seconds: float) -> Reply:
        """One try, read as a stream so that size, encoding and time are checked before the bytes are taken."""
        name = self.service.name
        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **request["headers"]}
        try:
            with (
                deadline_in(seconds),
                _http(os.getpid(), self.service.web).stream(
                    method,
                    self.service.base_url.rstrip("/") + path,
                    **(request | {"headers": headers}),
                    timeout=seconds,
                ) as answer,
            ):
                return Reply(answer.status_code, dict(answer.headers), self._read(answer))
        except BlockedAddress as error:
            raise Refused(str(error)) from None
        except (httpcore.TimeoutException, httpx.TimeoutException):
            raise Unavailable(f"{name} did not answer within {seconds:.1f} s.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            # The class and the reason only: an httpx error would carry the address, and with it the key.
            raise Unavailable(f"{name} could not be reached ({type(error).__name__}: {_short(str(error))}).") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol, UnicodeError):
            raise Refused(f"{name} was given an address that is none: check its base URL.") from None

    def _read(self, answer: httpx.Response) -> bytes:
        """The body, raw. Raises BadAnswer where it is compressed or larger than the limit."""
        limit, name = self.service.limits.max_bytes, self.service.name
        if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise BadAnswer(f"{name} sent a compressed answer though none was asked for: it is refused unread.")
        size = answer.headers.get("content-length", "")
        body = bytearray()
        if not (size.isdecimal() and int(size[:19]) > limit):
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise BadAnswer(f"{name} sent more than the {limit / 1e6:g} MB that are read of an answer: it is dropped.")

    def _check(self, reply: Reply, key: str) -> None:
        """Raise the error that a status means; return for a success."""
        if 200 <= reply.status < 300:
            return
        service, status = self.service, reply.status
        said = _said(_without(reply.body, key))
        text = f"{service.name} answered HTTP {status}" + (f" ({said})." if said else ".")
        if status in (402, 432, 433) or (
            status in (400, 403, 429) and (re.search(service.quota, said, re.IGNORECASE) or _month_is_over(reply))
        ):
            raise QuotaGone(f"{text} The account is used up: top it up or choose another engine.")
        if status == 401 or (status in (400, 403, 422) and re.search("api.?key|token|unauthori", said, re.IGNORECASE)):
            where = f"check the key in {service.key_env}" if service.key_env else "it asks for a key and none is set up"
            raise KeyRefused(f"{text} The key is refused: {where}.")
        if status in RETRIED:
            raise (RateLimited if status == 429 else Unavailable)(text, _retry_after(reply.headers))
        raise Refused(text)


def _month_is_over(reply: Reply) -> bool:
    """Brave counts down two windows, a second and a month, in one header; a zero in the last one is the quota."""
    windows = reply.headers.get("x-ratelimit-remaining", "").split(",")
    return reply.status == 429 and len(windows) > 1 and windows[-1].strip() == "0"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date; None without one."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    parsed = email.utils.parsedate_tz(value) if value else None
    return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else None


def _backoff(tries: int) -> float:
    """Seconds before the next try, drawn so that many callers do not come back together."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)


def _said(body: bytes) -> str:
    """The service's own error text: the JSON field that services use for it, else the start of the body."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        found = jsonlib.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else _short(text)
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        parts = [error.get(k) for k in ("code", "status", "message", "detail")]
        error = " ".join(str(p) for p in parts if isinstance(p, str | int)) or jsonlib.dumps(error)
    return _short(str(error))


def _short(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(".")


def _count(tries: int) -> str:
    return "one try" if tries == 1 else f"{tries} tries"


def _without(body: bytes, key: str) -> bytes:
    """The body with the key blotted out, plain or escaped: a service may echo what it was sent."""
    for form in {key, quote(key, safe=""), quote_plus(key), jsonlib.dumps(key)[1:-1]} if key else ():
        body = body.replace(form.encode(), b"***")
    return body
