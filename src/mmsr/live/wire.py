"""The lowest of the door's transports: addresses checked where they are connected to, a wall clock, a size limit.

httpx times each read by itself, so a server that drips a byte a second holds a caller for ever: here each call has a
thread and a connection of its own, which end with its time. The host that a search result named is looked up here, and
what was checked is what is connected to, so that no second look-up can answer differently (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
import urllib.request
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import httpx

from mmsr.live.limits import BadAnswer, Refused, Unavailable

_TLS = httpx.create_ssl_context()  # made once: it reads all the certificates
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
        seconds = request.extensions["timeout"]["read"]
        ends, proxy = time.monotonic() + seconds, None if self.guarded else _proxy(request.url)
        reply: Future[httpx.Response] = Future()
        try:
            with httpx.HTTPTransport(_TLS, trust_env=False, proxy=proxy) as below:  # whose end is the thread's, too
                Thread(target=self._fulfil, args=(reply, below, request, ends), daemon=True).start()
                return reply.result(seconds)
        except (TimeoutError, httpx.TimeoutException):
            raise Unavailable(f"{self.name} did not answer within {seconds:.1f} s.") from None
        except httpx.UnsupportedProtocol:
            raise Refused(f"{self.name} was given an address that is none: check its base URL.") from None
        except (httpx.TransportError, OSError) as error:
            said = f"{type(error).__name__}: {str(error)[:200].rstrip('.')}"
            raise Unavailable(f"{self.name} could not be reached ({said}).") from None

    def _fulfil(self, reply: Future, below: httpx.HTTPTransport, request: httpx.Request, ends: float) -> None:
        try:
            reply.set_result(self._answer(below, request, ends))
        except Exception as error:
            reply.set_exception(error)

    def _answer(self, below: httpx.HTTPTransport, request: httpx.Request, ends: float) -> httpx.Response:
        with contextlib.closing(below.handle_request(_checked(request) if self.guarded else request)) as answer:
            if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
                raise BadAnswer(f"{self.name} sent a compressed answer, which nobody asked for: it is refused unread.")
            body = bytearray()
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > self.max_bytes:
                    raise BadAnswer(f"{self.name} sent more than the {self.max_bytes / 1e6:g} MB that are read.")
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
