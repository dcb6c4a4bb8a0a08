"""Addresses, by the rules that every Headwater program has (docs/network.md; internal/address in Go):

    host:port       a host name or an IPv4 address, and a port
    [IPv6]:port     brackets keep an IPv6 address and a port apart
    unix:/path      a Unix socket; unix:///path is the same

The port may be left out, and so may the brackets of an IPv6 address that can't be mistaken for an address with a port.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from urllib.request import getproxies

from .constants import DEFAULT_PORT

_MOST_PATH = 107
_MOST_HOST = 253
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PORT = re.compile(r"[0-9]+")


def parse(address: str) -> str:
    """The address in its usual form, always with a port. A ValueError says what to write."""
    if not isinstance(address, str):
        raise TypeError(f"an address is a str, not {type(address).__name__}")
    if address.startswith("unix:"):
        return "unix:" + _path(address)
    scheme, found, _ = address.partition("://")
    if found:
        raise ValueError(f"address {address!r} is a URL: write host:port without {scheme}://")
    if not address:
        raise ValueError("the address is empty: write host:port")
    host, port = address, str(DEFAULT_PORT)
    if address.startswith("["):
        host, found, rest = address[1:].partition("]")
        if not found or not host or "[" in host or "]" in rest or (rest and not rest.startswith(":")):
            raise ValueError(f"address {address!r}: its brackets are wrong, write [IPv6]:port")
        port = rest[1:] if rest else port
    elif address.count(":") > 1:
        _check_bare(address)
    elif ":" in address:
        host, _, port = address.partition(":")
    if not host:
        raise ValueError(f"address {address!r} names no host: write localhost:{port} for this machine")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"address {address!r}: port {port!r} is not a number from 0 to 65535")
    if int(port) == 0:
        raise ValueError(f"address {address!r}: port 0 can't be dialed, a port is 1 to 65535")
    return f"{_host(address, host)}:{int(port)}"


def target(address: str) -> str:
    """A parsed address as gRPC takes it."""
    if not address.startswith("unix:"):
        return f"dns:///{urllib.parse.quote(address, safe=':[]')}"
    return "unix://" + urllib.parse.quote(os.path.abspath(address.removeprefix("unix:")))


def through_proxy(address: str) -> str:
    """The address with the proxy that gRPC takes to it, as errors name it."""
    proxies = getproxies()
    for scheme in ("grpc", "https", "http"):
        if scheme in proxies:
            return f"{address} through the proxy {urllib.parse.urlsplit(proxies[scheme]).netloc.rpartition('@')[2]}"
    return address


def _host(address: str, host: str) -> str:
    """A host in its usual form, with the brackets of an IPv6 address."""
    _, found, zone = host.partition("%")
    if found and _is_ip(host.partition("%")[0]) and not _HOST.fullmatch(zone):
        raise ValueError(f"address {address!r}: zone {zone!r} is no name of an interface")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        if host == "unix":
            raise ValueError(f"address {address!r}: a host can't be named unix: write its address") from None
        if len(host) > _MOST_HOST:
            raise ValueError(f"address {address!r}: the host name has {len(host)} bytes, at most {_MOST_HOST} are allowed") from None
        if not _HOST.fullmatch(host) or not host.strip("0123456789."):
            raise ValueError(f"address {address!r}: {host!r} is neither an IP address nor a host name") from None
        return host
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"[{ip}]"


def _check_bare(address: str) -> None:
    """Refuses an IPv6 address without brackets whose last group may be meant as a port."""
    head, _, tail = address.rpartition(":")
    whole, cut = _is_ip(address), _is_ip(head)
    number = bool(_PORT.fullmatch(tail)) and int(tail) <= 65535
    if not whole and cut and number:
        raise ValueError(f"address {address!r}: an IPv6 address with a port needs brackets: [{head}]:{tail}")
    if not whole:
        raise ValueError(f"address {address!r} is neither host:port nor an IPv6 address")
    if cut and number:
        raise ValueError(f"address {address!r} may mean [{head}]:{tail} or [{address}]: write the brackets")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _path(address: str) -> str:
    """The path of a Unix socket."""
    path = address.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            raise ValueError(f"address {address!r}: write unix:/path or unix:///path")
    if path.startswith("@") or "\0" in path:
        raise ValueError(f"address {address!r}: sockets without a file are not supported: write unix:/path")
    clean = os.path.normpath(path) if path else ""
    if path in ("", "/") or path.endswith("/") or os.path.basename(clean) in ("", ".", ".."):
        raise ValueError(f"address {address!r} names no file: write unix:/path")
    if len(os.fsencode(path)) > _MOST_PATH:
        raise ValueError(f"address {address!r}: the path has {len(os.fsencode(path))} bytes, at most {_MOST_PATH} are allowed")
    return clean
