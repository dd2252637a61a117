"""One request over the wire, below the door: addresses checked as they are connected to, a wall clock, a size limit.

httpx times each read by itself, so a server that drips a byte a second holds a caller for ever: here each call has a
thread and a connection to itself, which end with its time; a whole answer leaves the connection to the next call. The
host that a search result named is looked up here, and what was checked is what is connected to, so that no second
look-up can answer differently (DNS rebinding); such a connection is never used again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread, get_ident
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from mmsr.live.limits import BadAnswer, Refused, Unavailable

_TLS = httpx.create_ssl_context()  # made once: it reads all the certificates
_IDLE: dict[tuple[Any, ...], httpx.HTTPTransport] = {}  # connections to reuse, by process, thread and place
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # IPv6 has no public address outside it
# What Python takes for public and is not: services of a cloud's own network (Azure, Oracle, IBM) and reserved blocks.
_INSIDE = ("168.63.129.16/32", "192.0.0.0/24", "161.26.0.0/16", "166.8.0.0/14", "192.88.99.0/24", "3fff::/20")
_INSIDE = tuple(map(ipaddress.ip_network, _INSIDE))
# A compressed body's forms, as zlib numbers them: "deflate" has a header of its own or, from some servers, none.
_FORMS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}

T = TypeVar("T")


def bounded(work: Callable[[], T], seconds: float) -> T:
    """What `work` gives, done in a thread of its own. Raises TimeoutError after `seconds`; a later result is lost."""
    done: Future[T] = Future()

    def fulfil() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    Thread(target=fulfil, daemon=True).start()
    return done.result(seconds)


def send(request: httpx.Request, name: str, max_bytes: int, guarded: bool = False) -> httpx.Response:
    """Send a request of the service `name` once and read the whole answer, unpacked, of at most `max_bytes`.

    `guarded` is for strangers' addresses: they must be on the public internet, and no proxy is used. The request's
    time-out bounds all of it. Raises Refused, BadAnswer or Unavailable, with no address in them: it may hold a key.
    """
    seconds = request.extensions["timeout"]["read"]
    ends, proxy = time.monotonic() + seconds, None if guarded else _proxy(request.url)
    place = os.getpid(), get_ident(), proxy, request.url.netloc, guarded

    def exchange() -> httpx.Response:
        with contextlib.closing(below.handle_request(_checked(request) if guarded else request)) as answer:
            return _whole(answer, name, max_bytes, ends)

    try:
        with contextlib.ExitStack() as end:  # of the connection after a failure, and so of the thread
            below = end.enter_context(_IDLE.pop(place, None) or httpx.HTTPTransport(_TLS, trust_env=False, proxy=proxy))
            answered = bounded(exchange, seconds)
            if not guarded:
                _IDLE[place] = below
                end.pop_all()
            return answered
    except (TimeoutError, httpx.TimeoutException):
        raise Unavailable(f"{name} did not answer within {seconds:.1f} s.") from None
    except (httpx.UnsupportedProtocol, ValueError, OverflowError):  # such as a port that no machine has
        raise Refused(f"{name} was given something that is not an address: check its base URL.") from None
    except (httpx.TransportError, OSError) as error:
        said = f"{type(error).__name__}: {str(error)[:200].rstrip('.')}"
        raise Unavailable(f"{name} could not be reached ({said}).") from None


def _whole(answer: httpx.Response, name: str, max_bytes: int, ends: float) -> httpx.Response:
    form = answer.headers.pop("content-encoding", "").strip().lower()
    body = bytearray()
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise BadAnswer(f"{name} sent more than the {max_bytes / 1e6:g} MB that are read.")
        if time.monotonic() > ends:
            raise TimeoutError
    try:
        content = _unpacked(bytes(body), form, name, max_bytes)
    except BadAnswer:
        if answer.is_success:
            raise
        content = b""  # for an error, the status is enough
    return httpx.Response(answer.status_code, headers=answer.headers, content=content)


def _unpacked(body: bytes, form: str, name: str, max_bytes: int) -> bytes:
    """A body that was perhaps compressed, though nobody asked for it: what it holds, of at most `max_bytes`."""
    if form in ("", "identity"):
        return body
    for bits in _FORMS.get(form, ()):
        with contextlib.suppress(zlib.error):
            unpacking = zlib.decompressobj(bits)
            content = unpacking.decompress(body, max_bytes + 1)
            if len(content) > max_bytes:
                raise BadAnswer(f"{name} sent, compressed, more than the {max_bytes / 1e6:g} MB that are read.")
            if unpacking.eof:
                return content
    raise BadAnswer(f"{name} sent a compressed answer ({form[:40]}), which nobody asked for and nothing can unpack.")


def _proxy(url: httpx.URL) -> str | None:
    """The proxy that the environment names for an address."""
    if url.host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(url.host):
        return None
    found = urllib.request.getproxies().get(url.scheme)
    return found if not found or "://" in found else f"http://{found}"


def _checked(request: httpx.Request) -> httpx.Request:
    """The request, to the address of its host. Raises Refused where any address of the host is not global."""
    url, host = request.url, request.url.raw_host.decode()
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    for address in found:
        if not is_global(address):
            raise Refused(f"{host} leads to {address}, which is not on the public web: it is not fetched.")
    extensions = request.extensions | {"sni_hostname": host}  # the certificate is still that of the host
    return httpx.Request(request.method, url.copy_with(host=found[0]), headers=request.headers, extensions=extensions)


def is_address(url: str) -> bool:
    """Whether this is an address of the web: of http or https, with a host, and a port that a machine can have."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(httpx.URL(url).host) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        return False


def is_global(address: str) -> bool:
    """Whether this IP address is on the public internet, also when it is an IPv4 address in IPv6 clothes."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        if inner := ip.ipv4_mapped or ip.sixtofour or nat64:
            return is_global(str(inner))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in block for block in _INSIDE))
