"""One careful way to talk HTTP: time-outs, size caps, retries, rate limits, quotas and a budget.

    serper = Service("serper", "https://google.serper.dev", key_env="SERPER_API_KEY", key_header="X-API-KEY")
    Client(serper, Budget()).send("POST", "/search", json={"q": "Kenya"})  # -> Reply(status=200, headers=…, body=b"…")

A call ends in a `Reply` or in one clear error of `limits`, never later than `Limits.total` seconds after its first try.
Keys come from the environment at the moment of the call; they stand in no error, no log line and no record.
"""

from __future__ import annotations

import email.utils
import functools
import json as jsonlib
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import httpcore
import httpx

from mmsr import __version__
from mmsr.live.guard import BlockedAddress, deadline_in, new_client
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

SHORTEST_KEY = 12  # characters of anything that a service would call a key
RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
_KEY_TROUBLE = re.compile("api.?key|subscription.?token|invalid token|unauthori[sz]ed", re.IGNORECASE)
USER_AGENT = (
    f"mmsr/{__version__} (multimodal search research kit; contact: {os.environ.get('MMSR_CONTACT', 'none given')})"
)


@dataclass(frozen=True)
class Service:
    """A web service: where it is, which environment variable holds its key, how the key travels, pace and price.

    The key goes in the header `key_header` (after `key_prefix`) or in the parameter `key_param` (of the form where the
    call has one, else of the address). `quota` is a pattern of the error texts that mean "used up" rather than "slow
    down"; `help_403` says what a refusal usually means there. `price` is in US dollars a successful call. `web` is True
    for strangers' pages: their addresses must be global unless `near` (for a world served on loopback), no proxy is
    used, and nothing they say ends a run.
    """

    name: str
    base_url: str
    key_env: str = ""
    key_header: str = ""
    key_param: str = ""
    key_prefix: str = ""
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


@dataclass(frozen=True)
class Reply:
    """A complete answer: status, headers with lower-case names, body as sent (never compressed)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json_text(self, service: str) -> str:
        """The body as text that is JSON. Raises BadAnswer where it is none."""
        try:
            text = self.body.decode("utf-8-sig")
            jsonlib.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{service} answered with broken JSON ({_short(str(error))}): try again later.") from None
        return text


@functools.lru_cache(maxsize=4096)
def _bucket(name: str, host: str, rate: float) -> TokenBucket:
    """One bucket for all clients of a service in this process: engines limit an account, not an object."""
    return TokenBucket(rate)


@functools.lru_cache(maxsize=8)
def _http(process: int, global_only: bool) -> httpx.Client:
    """Connections are shared by all services of a process, and by no other process (a fork must open its own)."""
    return new_client(global_only)


class _RedactKeys(logging.Filter):
    """httpx logs every address it asks; SerpApi's holds the key."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_hide_params(str(a)) if isinstance(a, httpx.URL) else a for a in record.args)
        return True


def _hide_params(url: str) -> str:
    url = re.sub(r"//[^/@]*@", "//***@", url)
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
        request = {"params": params or None, "json": json, "files": files, "headers": {}}  # params={} drops a query
        if key and service.key_header:
            request["headers"] = {service.key_header: service.key_prefix + key}
        elif key and files:
            request["data"] = {service.key_param: key}
        elif key:
            request["params"] = {**(params or {}), service.key_param: key}
        bucket = _bucket(service.name, urlsplit(service.base_url).netloc, service.rate)
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
                asked = error.retry_after
                wait = _backoff(tries, limits.first_wait) if asked is None else asked
                if tries >= limits.tries or time.monotonic() + wait >= started + limits.total:
                    hint = "" if asked is None else f" It asks to wait {asked:.0f} s."
                    raise type(error)(f"{error}{hint} Gave up after {_count(tries)}.", asked) from None
                time.sleep(wait)

    def _once(self, method: str, path: str, request: dict[str, Any], seconds: float) -> Reply:
        """One try, read as a stream so that size, encoding and time are checked before the bytes are taken."""
        name = self.service.name
        url = self.service.base_url.rstrip("/") + path if path else self.service.base_url
        headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **request["headers"]}
        request = {**request, "headers": headers, "timeout": seconds}
        http = _http(os.getpid(), self.service.web and not self.service.near)
        try:
            with deadline_in(seconds), http.stream(method, url, **request) as answer:
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
        if not service.web and _used_up(reply, said, service.quota):
            raise QuotaGone(f"{text} The account is used up: top it up or choose another engine.")
        if not service.web and (status == 401 or (status in (400, 403, 422) and _KEY_TROUBLE.search(said))):
            where = f"check the key in {service.key_env}" if service.key_env else "it asks for a key and none is set up"
            raise KeyRefused(f"{text} The key is refused: {where}.")
        if status in RETRIED:
            raise (RateLimited if status == 429 else Unavailable)(text, _retry_after(reply.headers))
        raise Refused(f"{text} {service.help_403}" if status == 403 and service.help_403 else text)


def _used_up(reply: Reply, said: str, quota: str) -> bool:
    """Whether a refusal is final for this account: by its status, its words, or Brave's header of two windows.

    Brave counts down a second and a month in one header, "0, 0"; a zero in the last one is the month's.
    """
    windows = reply.headers.get("x-ratelimit-remaining", "").split(",")
    month_over = reply.status == 429 and len(windows) > 1 and windows[-1].strip() == "0"
    by_words = reply.status in (400, 403, 429) and bool(re.search(quota, said, re.IGNORECASE))
    return reply.status in (402, 432, 433) or by_words or month_over


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date; None without one."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None  # absent, or no form that the standard knows


def _backoff(tries: int, first: float) -> float:
    """Seconds before the next try: doubled each time, and drawn so that many callers do not come back together."""
    return first * 2 ** (tries - 1) * random.uniform(0.5, 1.0)


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
    """The body with the key blotted out, plain or escaped: a service may echo what it was sent.

    A placeholder such as "EMPTY", which local servers take, is no secret and may be a word of the answer.
    """
    secret = len(key) >= SHORTEST_KEY
    for form in {key, quote(key, safe=""), quote_plus(key), jsonlib.dumps(key)[1:-1]} if secret else ():
        body = body.replace(form.encode(), b"***")
    return body
