"""The lowest of the door's transports: addresses checked where they are connected to, a wall clock, a size limit.

httpx times each read by itself, so a server that drips a byte a second holds a caller for ever: here every read and
write of a call is cut at the call's own deadline. An address that a search result named is resolved here, checked, and
that very address is connected to, so that no second look-up can answer differently (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import queue
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from mmsr.live.limits import BadAnswer, Refused, Unavailable

_DEADLINE: ContextVar[float] = ContextVar("deadline", default=float("inf"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Wire(httpx.BaseTransport):
    """Sends a request of the service `name` once and reads the whole answer, uncompressed, of at most `max_bytes`.

    `guarded` is for strangers' addresses: they must be on the public internet, and no proxy is used. The request's
    time-out bounds all of it. Raises Refused, BadAnswer or Unavailable, with no address in them: it may hold a key.
    """

    name: str
    max_bytes: int
    guarded: bool = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The complete answer. Connections are shared by the services of a process: a fork opens its own."""
        url, seconds = request.url, request.extensions["timeout"]["read"]
        pool = _pool(os.getpid(), self.guarded, "" if self.guarded else _proxy(url))
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        parts = {"headers": request.headers.raw, "content": request.stream, "extensions": request.extensions}
        sent = httpcore.Request(request.method, target, **parts)
        try:
            with _deadline_in(seconds), contextlib.closing(pool.handle_request(sent)) as answer:
                return httpx.Response(answer.status, headers=answer.headers, content=self._read(answer))
        except httpcore.TimeoutException:
            raise Unavailable(f"{self.name} did not answer within {seconds:.1f} s.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            said = f"{type(error).__name__}: {str(error)[:200].rstrip('.')}"
            raise Unavailable(f"{self.name} could not be reached ({said}).") from None
        except httpcore.UnsupportedProtocol:
            raise Refused(f"{self.name} was given an address that is none: check its base URL.") from None

    def _read(self, answer: httpcore.Response) -> bytes:
        if httpx.Headers(answer.headers).get("content-encoding", "identity").lower() not in ("", "identity"):
            raise BadAnswer(f"{self.name} sent a compressed answer though none was asked for: it is refused unread.")
        body = bytearray()
        for chunk in answer.iter_stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise BadAnswer(
                    f"{self.name} sent more than the {self.max_bytes / 1e6:g} MB that are read: it is dropped."
                )
        return bytes(body)


@functools.lru_cache(maxsize=8)
def _pool(process: int, guarded: bool, proxy: str) -> httpcore.ConnectionPool:
    kept = {"max_connections": 100, "max_keepalive_connections": 20, "keepalive_expiry": 5.0}
    ours = {"ssl_context": httpx.create_ssl_context(), "network_backend": _Network(guarded), **kept}
    if not proxy:
        return httpcore.ConnectionPool(**ours)
    through = httpx.Proxy(proxy)
    return httpcore.HTTPProxy(str(through.url), proxy_auth=through.raw_auth, **ours)


def _proxy(url: httpx.URL) -> str:
    """The proxy that the environment names for an address, "" for none."""
    if url.host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(url.host):
        return ""
    found = urllib.request.getproxies().get(url.scheme, "")
    return found if not found or "://" in found else f"http://{found}"


def is_global(address: str) -> bool:
    """Whether this IP address is on the public internet, also when it is an IPv4 address in IPv6 clothes."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_global(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


# --- a network with a clock -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _deadline_in(seconds: float) -> Iterator[None]:
    token = _DEADLINE.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def _left() -> float:
    left = _DEADLINE.get() - time.monotonic()
    if left <= 0:
        raise httpcore.TimeoutException("the call's time is over")
    return left


def _resolve(host: str, port: int) -> list[str]:
    """Addresses of a name within the deadline; the system's look-up has no time-out, so it gets a thread to hang in."""
    answers: queue.Queue[list[str] | Exception] = queue.Queue(1)

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, ValueError) as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=_left())
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from None
    if isinstance(answer, Exception):
        raise httpcore.ConnectError(f"no address for this host name: {getattr(answer, 'strerror', None) or answer}")
    return answer


class _Network(httpcore.NetworkBackend):
    """Opens connections; where it is guarded, to names whose every address is on the public internet."""

    def __init__(self, guarded: bool) -> None:
        self._guarded, self._tcp = guarded, httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> httpcore.NetworkStream:
        addresses = _resolve(host, port)
        for address in addresses:
            if self._guarded and not is_global(address):
                raise Refused(f"{host} leads to {address}, which is not on the public web: it is not fetched.")
        for address in addresses:
            try:
                return _Stream(self._tcp.connect_tcp(address, port, _left(), **options))
            except httpcore.ConnectError:
                if address == addresses[-1]:
                    raise
        raise httpcore.ConnectError("no address for this host name")


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends by the caller's deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner, self.close, self.get_extra_info = inner, inner.close, inner.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), 65536):  # one write loops inside with the full time-out for each piece
            self._inner.write(buffer[start : start + 65536], _left())

    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left()))
