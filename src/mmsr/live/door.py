"""The one door to the outside: every search, page, judge, teacher and summary goes through it.

    door = Door("record", Path("calls.sqlite"), Budget(money=5.0))
    serper = Service("serper", "https://google.serper.dev", key_env="SERPER_API_KEY", key_header="X-API-KEY")
    call = Call("serper", 1, "POST /search", {"q": "Kenya capital"})
    door.answer(call, lambda: json_text(door.open(serper).post("/search", json=call.body), "serper"))

Mode "live" keeps nothing, "record" asks what its record does not answer yet, "replay" asks nothing. A recorded run
replays to the same numbers, so one request has one outcome: the first answer kept is everyone's, and a request that
failed (not fatally) fails alike for the rest of the run and in replay; another recording asks it again. The client of
`Door.open` sends through `Patient` (budget, pace, retries, what a refusal means) and `wire.send` (addresses, time,
size). Keys come from the environment at the moment of the call; they appear in no error, no log line and no record.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.cookiejar
import itertools
import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    SetUpFirst,
    Unavailable,
    bucket,
)
from mmsr.live.record import Call, Outcome, load, opened, save
from mmsr.live.wire import send
from mmsr.tools.base import KEYS, FatalToolError, ToolError

Mode = Literal["live", "record", "replay"]
Check = Callable[[httpx.Response], object]
STRIPES = 1024  # locks that calls with equal keys share, so that eight rollouts with one query pay for it once
SHORTEST_KEY = 12  # characters; "EMPTY", which local servers take, is no secret and may be a word of the answer
SAID = ("code", "status", "message", "detail")  # the fields of an error that services use
RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
_KEY_TROUBLE = re.compile("api.?key|subscription.?token|invalid token|unauthori[sz]ed", re.IGNORECASE)
_NO_COOKIES = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


class ReplayMiss(FatalToolError):
    """A replay was asked for a call that was never recorded."""


@dataclass(frozen=True)
class Service:
    """A web service: where it is, which environment variable holds its key, how the key travels, pace and price."""

    name: str
    base_url: str
    key_env: str = ""
    key_header: str = ""  # the header that holds the key, in Authorization as a bearer token
    key_param: str = ""  # or the query parameter of a GET that holds it
    rate: float = 5.0  # calls a second
    price: float = 0.0  # US dollars for a successful call
    quota: str = "credit|quota|run out|billing"  # the words of an error that mean "used up" rather than "slow down"
    help_403: str = ""  # the setting that a 403 asks for: without it nothing is answered
    limits: Limits = field(default_factory=Limits)
    web: bool = False  # strangers' pages: addresses must be global, no proxy is used, and nothing they say ends a run
    near: bool = False  # except that the address need not be global, such as that of a world on loopback

    def key(self) -> str:
        """The key, or "" where none is needed. Raises KeyRefused where it is missing or cannot be one."""
        key = os.environ.get(self.key_env, "").strip()
        if self.key_env and not key:
            raise KeyRefused(f"{self.name} needs a key: set the environment variable {self.key_env}.")
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise KeyRefused(f"The key in {self.key_env} has spaces or other characters that no key has: set it again.")
        return key


@dataclass
class Door:
    """The door itself. Safe between threads and, for one record, between processes."""

    mode: Mode = "live"
    file: Path | None = None
    budget: Budget = field(default_factory=Budget)
    days: float = 0.0  # a recording asks again for answers that are older than this; 0: for none

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"There is no mode {self.mode!r}: choose live, record or replay.")
        if self.mode != "live":
            if self.file is None:
                raise ValueError(f"Mode {self.mode!r} needs the file of a record.")
            with opened(self.file, write=self.mode == "record"):
                pass  # fails now rather than at the first question
        since = datetime.now(UTC) - timedelta(self.days)  # the same for all of this run
        self._since = since.isoformat(timespec="seconds") if self.days else ""
        self.asked: Counter[str] = Counter()  # calls by back end, however they were answered: alike in every mode
        self.failed: Counter[str] = Counter()  # those of them that gave no answer, such as pages that were not read
        self._counting = threading.Lock()
        self._in_vain: set[str] = set()  # keys of calls that failed in this run
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    def open(self, service: Service, check: Check = lambda reply: None) -> httpx.Client:
        """A client of the service, without redirects, cookies or credentials of the environment.

        `check` reads a success, and raises where it reports a failure: Unavailable is then tried again. Raises
        KeyRefused, and SetUpFirst for a contact that cannot be sent.
        """
        key, headers = service.key(), {"Accept-Encoding": "identity", "User-Agent": user_agent()}
        if key and service.key_header:
            headers[service.key_header] = f"Bearer {key}" if service.key_header == "Authorization" else key
        ours = {"transport": Patient(service, key, self.budget, check), "trust_env": False, "cookies": _NO_COOKIES}
        return httpx.Client(base_url=service.base_url, headers=headers, **ours)

    def answer(self, call: Call, ask: Callable[[], str]) -> str:
        """The text of the answer to `call`; `ask` goes outside and is run only where the mode wants it.

        Raises what `ask` raises, or what it raised when the call was recorded; ReplayMiss for an unrecorded call.
        """
        KEYS.note(call.key)
        with self._counting:
            self.asked[call.backend] += 1
        outcome = _outcome(call, ask) if self.mode == "live" else self._recorded(call, ask)
        if outcome.error:
            with self._counting:
                self.failed[call.backend] += 1
        return outcome.result()

    def _recorded(self, call: Call, ask: Callable[[], str]) -> Outcome:
        """What the record holds of a call; in mode "record" it is asked where there is no answer yet."""
        key = call.key
        with self._stripes[int(key[:8], 16) % STRIPES]:
            kept = load(self.file, key)
            if self.mode == "replay" and kept is None:
                asked = f"{call.backend} {call.path} {short(json.dumps(call.body, ensure_ascii=False), 160)}"
                said = f"The record {self.file} has no answer to {asked} (key {key[:12]})"
                raise ReplayMiss(f"{said}: record it, or ask what was asked then.")
            doubted = kept and (kept.error or kept.created < self._since) and key not in self._in_vain
            if self.mode == "record" and (kept is None or doubted):
                started = time.monotonic()
                outcome = _outcome(call, ask)
                if outcome.error:
                    self._in_vain.add(key)
                kept = save(self.file, call, outcome, time.monotonic() - started, self._since)
            return kept


def user_agent() -> str:
    """How we introduce ourselves, and whom to contact. Raises SetUpFirst where MMSR_CONTACT cannot be sent."""
    contact = os.environ.get("MMSR_CONTACT", "").strip() or "none given"
    if not re.fullmatch(r"[\x20-\x7e]*", contact):
        raise SetUpFirst("MMSR_CONTACT has characters that cannot be sent: set it to an e-mail address or a web page.")
    return f"mmsr/{__version__} (multimodal search research kit; contact: {contact})"


def _outcome(call: Call, ask: Callable[[], str]) -> Outcome:
    try:
        return Outcome(ask().encode("utf-8", "replace").decode())  # live as in the record, which is UTF-8
    except (httpx.InvalidURL, UnicodeError):
        return Outcome(f"{call.backend} was given an address or a text that cannot be sent: check them.", "Refused")
    except FatalToolError:
        raise  # says nothing about the request: the next run must ask again
    except ToolError as error:
        return Outcome(str(error), type(error).__name__)


@contextlib.contextmanager
def understood(service: str) -> Iterator[None]:
    """Within the block an answer is read as if it had the service's format: BadAnswer where it does not."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        said = short(f"{type(error).__name__}: {error}")
        raise BadAnswer(f"{service} answered in a format other than its own ({said}): try again later.") from None


def json_text(reply: httpx.Response, service: str) -> str:
    """The body of a reply as text that is JSON. Raises BadAnswer where it is not."""
    with understood(service):
        text = reply.content.decode("utf-8-sig")
        json.loads(text)
    return text


@dataclass(frozen=True)
class Patient(httpx.BaseTransport):
    """Asks at the service's pace, and again where it can help, within `Limits.total` seconds, not counting the queue.

    Each try counts against the budget, each success is paid for; every other status becomes the error that it means.
    """

    service: Service
    key: str
    budget: Budget
    check: Check

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        limits, key_param = self.service.limits, self.service.key_param
        pace = bucket(self.service.name, request.url.netloc, self.service.rate)
        if self.key and key_param and request.method == "GET":  # not earlier: httpx logs the address that it was asked
            url = request.url.copy_merge_params({key_param: self.key})
            request = httpx.Request("GET", url, headers=request.headers, extensions=request.extensions)
        ends = time.monotonic() + limits.total
        for tries in itertools.count(1):
            ends += pace.take()
            seconds = min(limits.attempt, ends - time.monotonic())
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
            try:
                return self._tried(request)
            except Unavailable as error:
                asked = error.retry_after
                # Doubled each time, and drawn at random so that many callers do not come back together.
                wait = limits.first_wait * 2 ** (tries - 1) * random.uniform(0.5, 1.0) if asked is None else asked
                if tries >= limits.tries or time.monotonic() + wait >= ends:
                    hint = "" if asked is None else f" It asks for a wait of {asked:.0f} s."
                    count = "one try" if tries == 1 else f"{tries} tries"
                    raise type(error)(f"{error}{hint} Gave up after {count}.", asked) from None
                time.sleep(wait)

    def _tried(self, request: httpx.Request) -> httpx.Response:
        service = self.service
        self.budget.admit(service.name)
        reply = send(request, service.name, service.limits.max_bytes, guarded=service.web and not service.near)
        status = reply.status_code
        reply = httpx.Response(status, headers=reply.headers, content=_without(reply.content, self.key))
        if reply.is_success:
            self.budget.add(service.name, service.price)
            self.check(reply)
            return reply
        said = _said(reply.content)
        text = f"{service.name} answered HTTP {status}" + (f" ({said})." if said else ".")
        if status == 403 and service.help_403:
            raise SetUpFirst(f"{text} {service.help_403}")
        if not service.web and _used_up(reply, said, service.quota):
            raise QuotaGone(f"{text} The account is used up: top it up or choose another engine.")
        if not service.web and (status == 401 or (status in (400, 403, 422) and _KEY_TROUBLE.search(said))):
            where = f"check the key in {service.key_env}" if service.key_env else "it asks for a key and none is set up"
            raise KeyRefused(f"{text} The key is refused: {where}.")
        if status in RETRIED:
            raise (RateLimited if status == 429 else Unavailable)(text, _retry_after(reply.headers))
        raise Refused(text)


def _used_up(reply: httpx.Response, said: str, quota: str) -> bool:
    """Whether a refusal is final for this account: by its status, its words, or Brave's header."""
    windows = reply.headers.get("x-ratelimit-remaining", "").split(",")  # left in this second, and in this month
    month_over = reply.status_code == 429 and len(windows) > 1 and windows[-1].strip() == "0"
    by_words = reply.status_code in (400, 403, 429) and bool(re.search(quota, said, re.IGNORECASE))
    return reply.status_code in (402, 432, 433) or by_words or month_over


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date; None without one."""
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError, OverflowError):  # absent, or no form that the standard knows
        if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _said(body: bytes) -> str:
    """The service's own error text: the JSON field that services use for it, else the start of the body."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "" if text.lstrip().startswith("<") else short(text)
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        parts = [str(error[name]) for name in SAID if isinstance(error.get(name), str | int)]
        error = " ".join(parts) or json.dumps(error)
    return short(str(error))


def short(text: str, length: int = 200) -> str:
    """The start of somebody else's text on one line, to quote within a sentence."""
    return " ".join(text.split())[:length].rstrip(".")


def _without(body: bytes, key: str) -> bytes:
    """The body with the key blotted out, plain or escaped: a service may echo what it was sent."""
    if len(key) >= SHORTEST_KEY:
        for form in {key, quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1]}:
            body = body.replace(form.encode(), b"***")
    return body
