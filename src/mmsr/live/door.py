"""The one door to the outside: every search, page, judge, teacher and summary goes through it, from the record down.

| layer | what it does | what it raises |
|---|---|---|
| record | `Door.answer` keeps a call's outcome, and reads it where it was kept | ReplayMiss |
| patience | `Patient` waits its turn, asks again where that can help, reads refusals | KeyRefused, QuotaGone, … |
| budget | `Paid` counts each try and pays for each success | BudgetSpent |
| wire | `wire.Wire` checks addresses, time and size | Refused, BadAnswer, Unavailable |

    door = Door("record", Path("calls.sqlite"), Budget(money=5.0))
    serper = Service("serper", "https://google.serper.dev", key_env="SERPER_API_KEY", key_header="X-API-KEY")
    call = Call("serper", 1, "POST /search", {"q": "Kenya capital"})
    door.answer(call, lambda: json_text(door.open(serper).post("/search", json=call.body), "serper"))

The lower three are transports of the httpx client that `Door.open` gives. The record lies above them: a call may be two
requests (an upload and its search), and is kept as what was read in it (a page's main text). Mode "live" keeps nothing,
"record" asks what its record does not answer yet, "replay" asks nothing. A recorded run replays to the same numbers, so
one request has one outcome: the first answer kept is everyone's, and a request that failed (not fatally) fails alike
for the rest of the run and in replay; another recording asks it again.

Keys come from the environment at the moment of the call; they stand in no error, no log line and no record.
"""

from __future__ import annotations

import email.utils
import functools
import http.cookiejar
import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, quote_plus

import httpx

from mmsr import __version__
from mmsr.live.limits import (
    BadAnswer,
    Budget,
    KeyRefused,
    Limits,
    QuotaGone,
    RateLimited,
    Refused,
    TokenBucket,
    Unavailable,
)
from mmsr.live.record import Call, Outcome, load, opened, save
from mmsr.live.wire import Wire
from mmsr.tools.base import FatalToolError, ToolError, log_keys

Mode = Literal["live", "record", "replay"]
STRIPES = 1024  # locks that calls with equal keys share, so that eight rollouts with one query pay for it once
SHORTEST_KEY = 12  # characters of anything that a service would call a key
RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
_KEY_TROUBLE = re.compile("api.?key|subscription.?token|invalid token|unauthori[sz]ed", re.IGNORECASE)
_NO_COOKIES = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
_CONTACT = os.environ.get("MMSR_CONTACT", "none given")
USER_AGENT = f"mmsr/{__version__} (multimodal search research kit; contact: {_CONTACT})"


class ReplayMiss(FatalToolError):
    """A replay was asked for a call that was never recorded."""


@dataclass(frozen=True)
class Service:
    """A web service: where it is, which environment variable holds its key, how the key travels, pace and price.

    The key goes in the header `key_header` (as a bearer's in Authorization) or, where `key_param` is given, into the
    address of a GET. `rate` is in calls a second, `price` in US dollars a successful call. `quota` is a pattern of the
    error texts that mean "used up" rather than "slow down"; `help_403` says what a refusal usually means there. `web`
    is True for strangers' pages: their addresses must be global unless `near` (for a world served on loopback), no
    proxy is used, and nothing they say ends a run.
    """

    name: str
    base_url: str
    key_env: str = ""
    key_header: str = ""
    key_param: str = ""
    rate: float = 5.0
    price: float = 0.0
    quota: str = "credit|quota|run out|billing"
    help_403: str = ""
    limits: Limits = field(default_factory=Limits)
    web: bool = False
    near: bool = False

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


@dataclass
class Door:
    """The door itself. Safe between threads and, for one record, between processes; pickles to other processes."""

    mode: Mode = "live"
    file: Path | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"There is no mode {self.mode!r}: choose live, record or replay.")
        if self.mode != "live":
            if self.file is None:
                raise ValueError(f"Mode {self.mode!r} needs the file of a record.")
            with opened(self.file, write=self.mode == "record"):
                pass  # fails now rather than at the first question
        self.asked: Counter[str] = Counter()  # calls by back end, however they were answered: alike in every mode
        self._counting = threading.Lock()
        self._failed: set[str] = set()
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    def __reduce__(self) -> tuple:
        return Door, (self.mode, self.file, self.budget)

    def open(self, service: Service) -> httpx.Client:
        """A client of the service, without redirects, cookies or credentials of the environment. Raises KeyRefused."""
        key, headers = service.key(), {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if key and service.key_header:
            headers[service.key_header] = f"Bearer {key}" if service.key_header == "Authorization" else key
        wire = Wire(service.name, service.limits.max_bytes, guarded=service.web and not service.near)
        stack = Patient(service, key, Paid(service, self.budget, wire))
        ours = {"headers": headers, "transport": stack, "trust_env": False, "cookies": _NO_COOKIES}
        return httpx.Client(base_url=service.base_url, **ours)

    def answer(self, call: Call, ask: Callable[[], str]) -> str:
        """The text of the answer to `call`; `ask` goes outside and is run only where the mode wants it.

        Raises what `ask` raises, or what it raised when the call was recorded; ReplayMiss for an unrecorded call.
        """
        key = call.key
        log_keys([key])
        with self._counting:
            self.asked[call.backend] += 1
        if self.mode == "live":
            return _sent(call, ask)
        with self._stripes[int(key[:8], 16) % STRIPES]:
            kept = load(self.file, key)
            if self.mode == "replay" and kept is None:
                asked = json.dumps(call.body, ensure_ascii=False, sort_keys=True)
                raise ReplayMiss(
                    f"The record {self.file} has no answer to {call.backend} {call.path} {_short(asked, 160)} "
                    f"(key {key[:12]}): record it, or ask what was asked then."
                )
            if self.mode == "record" and (kept is None or (kept.error and key not in self._failed)):
                kept = self._asked_and_kept(call, ask)
            return kept.result()

    def _asked_and_kept(self, call: Call, ask: Callable[[], str]) -> Outcome:
        started = time.monotonic()
        try:
            outcome = Outcome(_sent(call, ask))
        except FatalToolError:
            raise  # says nothing about the request: the next run must ask again
        except ToolError as error:
            outcome = Outcome(str(error), type(error).__name__)
            self._failed.add(call.key)
        return save(self.file, call, outcome, time.monotonic() - started)


def _sent(call: Call, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (httpx.InvalidURL, UnicodeError):
        raise Refused(f"{call.backend} was given an address or a text that cannot be sent: check them.") from None


def json_text(reply: httpx.Response, service: str) -> str:
    """The body of a reply as text that is JSON. Raises BadAnswer where it is none."""
    try:
        text = reply.content.decode("utf-8-sig")
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{service} answered with broken JSON ({_short(str(error))}): try again later.") from None
    return text


# --- the transports over the wire -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paid(httpx.BaseTransport):
    """Counts a try against the budget and pays for a success. Raises BudgetSpent where nothing is left."""

    service: Service
    budget: Budget
    below: httpx.BaseTransport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.budget.admit(self.service.name)
        reply = self.below.handle_request(request)
        if reply.is_success:
            self.budget.add(self.service.name, self.service.price)
        return reply


@dataclass(frozen=True)
class Patient(httpx.BaseTransport):
    """Asks at the service's pace, and again where that can help, within `Limits.total` seconds of the first try.

    The wait for the pace comes on top: it is standing in line, not a slow answer. A success is returned, without the
    key where the service echoes it; every other status becomes the error that it means.
    """

    service: Service
    key: str
    below: httpx.BaseTransport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        limits, key_param = self.service.limits, self.service.key_param
        bucket = _bucket(self.service.name, request.url.netloc, self.service.rate)
        if self.key and key_param and request.method == "GET":  # not earlier: httpx logs the address that it was asked
            url = request.url.copy_merge_params({key_param: self.key})
            request = httpx.Request("GET", url, headers=request.headers, extensions=request.extensions)
        ends, tries = time.monotonic() + limits.total, 0
        while True:
            ends += bucket.take()
            tries += 1
            seconds = min(limits.attempt, ends - time.monotonic())
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
            try:
                return self._checked(self.below.handle_request(request))
            except Unavailable as error:
                asked = error.retry_after
                # Doubled each time, and drawn so that many callers do not come back together.
                wait = limits.first_wait * 2 ** (tries - 1) * random.uniform(0.5, 1.0) if asked is None else asked
                if tries >= limits.tries or time.monotonic() + wait >= ends:
                    hint = "" if asked is None else f" It asks to wait {asked:.0f} s."
                    count = "one try" if tries == 1 else f"{tries} tries"
                    raise type(error)(f"{error}{hint} Gave up after {count}.", asked) from None
                time.sleep(wait)

    def _checked(self, reply: httpx.Response) -> httpx.Response:
        service, status = self.service, reply.status_code
        reply = httpx.Response(status, headers=reply.headers, content=_without(reply.content, self.key))
        if reply.is_success:
            return reply
        said = _said(reply.content)
        text = f"{service.name} answered HTTP {status}" + (f" ({said})." if said else ".")
        if not service.web and _used_up(reply, said, service.quota):
            raise QuotaGone(f"{text} The account is used up: top it up or choose another engine.")
        if not service.web and (status == 401 or (status in (400, 403, 422) and _KEY_TROUBLE.search(said))):
            where = f"check the key in {service.key_env}" if service.key_env else "it asks for a key and none is set up"
            raise KeyRefused(f"{text} The key is refused: {where}.")
        if status in RETRIED:
            raise (RateLimited if status == 429 else Unavailable)(text, _retry_after(reply.headers))
        raise Refused(f"{text} {service.help_403}" if status == 403 and service.help_403 else text)


@functools.lru_cache(maxsize=4096)
def _bucket(name: str, host: bytes, rate: float) -> TokenBucket:
    """One bucket for all clients of a service in this process: engines limit an account, not an object."""
    return TokenBucket(rate)


def _used_up(reply: httpx.Response, said: str, quota: str) -> bool:
    """Whether a refusal is final for this account: by its status, its words, or Brave's header of two windows.

    Brave counts down a second and a month in one header, "0, 0"; a zero in the last one is the month's.
    """
    windows = reply.headers.get("x-ratelimit-remaining", "").split(",")
    month_over = reply.status_code == 429 and len(windows) > 1 and windows[-1].strip() == "0"
    by_words = reply.status_code in (400, 403, 429) and bool(re.search(quota, said, re.IGNORECASE))
    return reply.status_code in (402, 432, 433) or by_words or month_over


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date; None without one."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None  # absent, or no form that the standard knows


def _said(body: bytes) -> str:
    """The service's own error text: the JSON field that services use for it, else the start of the body."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else _short(text)
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        parts = [error.get(k) for k in ("code", "status", "message", "detail")]
        error = " ".join(str(p) for p in parts if isinstance(p, str | int)) or json.dumps(error)
    return _short(str(error))


def _short(text: str, length: int = 200) -> str:
    return " ".join(text.split())[:length].rstrip(".")


def _without(body: bytes, key: str) -> bytes:
    """The body with the key blotted out, plain or escaped: a service may echo what it was sent.

    A placeholder such as "EMPTY", which local servers take, is no secret and may be a word of the answer.
    """
    secret = len(key) >= SHORTEST_KEY
    for form in {key, quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1]} if secret else ():
        body = body.replace(form.encode(), b"***")
    return body
