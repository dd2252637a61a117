"""One request over the wire, below the door: addresses checked where they are connected to, a wall clock, a size limit.

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
from concurrent.futures import Future
from threading import Thread, get_ident
from typing import Any

import httpx

from mmsr.live.limits import BadAnswer, Refused, Unavailable

_TLS = httpx.create_ssl_context()  # made once: it reads all the certificates
_IDLE: dict[tuple[Any, ...], httpx.HTTPTransport] = {}  # connections to go on with, by process, thread and place
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def send(request: httpx.Request, name: str, max_bytes: int, guarded: bool = False) -> httpx.Response:
    """Send a request of the service `name` once and read the whole answer, uncompressed, of at most `max_bytes`.

    `guarded` is for strangers' addresses: they must be on the public internet, and no proxy is used. The request's
    time-out bounds all of it. Raises Refused, BadAnswer or Unavailable, with no address in them: it may hold a key.
    """
    seconds = request.extensions["timeout"]["read"]
    ends, proxy = time.monotonic() + seconds, None if guarded else _proxy(request.url)
    place = os.getpid(), get_ident(), proxy, request.url.netloc, guarded
    reply: Future[httpx.Response] = Future()

    def fulfil() -> None:
        try:
            with contextlib.closing(below.handle_request(_checked(request) if guarded else request)) as answer:
                whole = _whole(answer, name, max_bytes, ends)
            reply.set_result(whole)
        except Exception as error:
            reply.set_exception(error)

    try:
        with contextlib.ExitStack() as end:  # of the connection after a failure, and so of the thread
            below = end.enter_context(_IDLE.pop(place, None) or httpx.HTTPTransport(_TLS, trust_env=False, proxy=proxy))
            Thread(target=fulfil, daemon=True).start()
            answered = reply.result(seconds)
            if not guarded:
                _IDLE[place] = below
                end.pop_all()
            return answered
    except (TimeoutError, httpx.TimeoutException):
        raise Unavailable(f"{name} did not answer within {seconds:.1f} s.") from None
    except httpx.UnsupportedProtocol:
        raise Refused(f"{name} was given an address that is none: check its base URL.") from None
    except (httpx.TransportError, OSError) as error:
        said = f"{type(error).__name__}: {str(error)[:200].rstrip('.')}"
        raise Unavailable(f"{name} could not be reached ({said}).") from None


def _whole(answer: httpx.Response, name: str, max_bytes: int, ends: float) -> httpx.Response:
    if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise BadAnswer(f"{name} sent a compressed answer, which nobody asked for: it is refused unread.")
    body = bytearray()
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise BadAnswer(f"{name} sent more than the {max_bytes / 1e6:g} MB that are read.")
        if time.monotonic() > ends:
            raise TimeoutError
    return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body))


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


def is_global(address: str) -> bool:
    """Whether this IP address is on the public internet, also when it is an IPv4 address in IPv6 clothes."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        if inner := ip.ipv4_mapped or ip.sixtofour or nat64:
            return is_global(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
