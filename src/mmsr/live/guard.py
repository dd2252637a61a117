"""The transport under `fetch`: a wall clock over every read and write, and an address check at connect time.

httpx times each read by itself, so a server that drips a byte a second holds a caller for ever: here every read and
write of a call is cut at the call's own deadline. An address that a search result named is resolved here, checked, and
that very address is connected to, so that no second look-up can answer differently (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import contextvars
import http.cookiejar
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

from mmsr.tools.base import ToolError

_DEADLINE: contextvars.ContextVar[float] = contextvars.ContextVar("deadline", default=float("inf"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class BlockedAddress(ToolError):
    """A name that leads to a private, local or otherwise special address, where no page of the web is."""


@contextlib.contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """All network reads and writes of this block, in this thread, end within `seconds`."""
    token = _DEADLINE.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def _left(timeout: float | None, error: type[httpcore.TimeoutException]) -> float:
    left = _DEADLINE.get() - time.monotonic()
    if left <= 0:
        raise error("the call's time is over")
    return left if timeout is None else min(timeout, left)


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


def _resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """Addresses of a name within the deadline; the system's look-up has no time-out, so it gets a thread to hang in."""
    answers: queue.Queue[list[str] | OSError] = queue.Queue(1)

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, ValueError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(timeout, httpcore.ConnectTimeout))
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from None
    if isinstance(answer, OSError):
        raise httpcore.ConnectError(f"no address for this host name: {answer.strerror or answer}")
    return answer


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends by the caller's deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), 65536):  # one write loops inside with the full time-out for each piece
            self._inner.write(buffer[start : start + 65536], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Opens connections; with `global_only`, to addresses on the public internet alone."""

    def __init__(self, global_only: bool) -> None:
        self._global_only, self._tcp = global_only, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, timeout)
        allowed = [a for a in addresses if not self._global_only or is_global(a)]
        if not allowed:
            raise BlockedAddress(f"{host} leads to {addresses[0]}, which is not on the public web: it is not fetched.")
        for address in allowed:
            try:
                limit = _left(timeout, httpcore.ConnectTimeout)
                return _Stream(self._tcp.connect_tcp(address, port, limit, local_address, socket_options))
            except httpcore.ConnectError:
                if address == allowed[-1]:
                    raise
        raise AssertionError("unreachable: the last address either connects or raises")


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()


def _proxy(address: str, shared: dict[str, Any]) -> httpcore.HTTPProxy:
    proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    url = httpcore.URL(scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/")
    return httpcore.HTTPProxy(url, proxy_auth=proxy.raw_auth, **shared)


class _Transport(httpx.BaseTransport):
    """httpx over an httpcore pool with our own network; a proxy of the environment serves all but the web's pages."""

    def __init__(self, global_only: bool) -> None:
        shared: dict[str, Any] = {
            "ssl_context": httpx.create_ssl_context(),
            "max_connections": 100,
            "max_keepalive_connections": 20,
            "keepalive_expiry": 5.0,
            "network_backend": _Backend(global_only),
        }
        self._direct = httpcore.ConnectionPool(**shared)
        found = {} if global_only else urllib.request.getproxies()
        self._proxies = {s: _proxy(found[s], shared) for s in ("http", "https") if s in found}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        near = url.host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(url.host)
        pool = self._direct if near else self._proxies.get(url.scheme, self._direct)
        answer = pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    def close(self) -> None:
        for pool in (self._direct, *self._proxies.values()):
            pool.close()


def new_client(global_only: bool) -> httpx.Client:
    """A client without redirects, cookies or credentials of the environment; `global_only` for strangers' addresses."""
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.Client(transport=_Transport(global_only), follow_redirects=False, trust_env=False, cookies=no_cookies)
