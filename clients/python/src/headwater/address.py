"""How addresses are written: the rule of docs/network.md."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit
from urllib.request import getproxies

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_MAX_PATH = 107


def parse_address(text: str, default_port: int) -> str:
    """Reads host:port, [IPv6]:port, host, or unix:/path, and returns the address in its usual form.

    Raises ValueError for anything else, with what to write."""
    if not isinstance(text, str):
        raise TypeError(f"address: a string is expected, not {type(text).__name__}")
    if text.startswith("unix:"):
        return "unix:" + _path(text)
    if "://" in text:
        raise ValueError(f"address {text!r} is a URL: write host:port")
    if not text:
        raise ValueError("the address is empty: write host:port")
    host, port = text, None
    if text.startswith("["):
        match = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", text, re.DOTALL)
        if match is None:
            raise ValueError(f"address {text!r}: its brackets are wrong, write [IPv6]:port")
        host, port = match.group(1), match.group(2)
    elif text.count(":") > 1:
        _check_bare(text)
    elif ":" in text:
        host, port = text.split(":")
    if not host:
        raise ValueError(f"address {text!r} names no host: write localhost{text} for this machine")
    ip = _ip(host)
    if ip is None and (_HOST.fullmatch(host) is None or not host.strip("0123456789.") or host == "unix"):
        raise ValueError(f"address {text!r}: {host!r} is neither an IP address nor a host name")
    number = default_port
    if port is not None:
        if re.fullmatch(r"[0-9]{1,20}", port) is None or not 1 <= int(port) <= 65535:
            raise ValueError(f"address {text!r}: port {port!r} is not a number from 1 to 65535")
        number = int(port)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return f"{ip.ipv4_mapped}:{number}"
        return f"[{ip}]:{number}"
    return f"{ip or host}:{number}"


def through_proxy(address: str) -> str:
    """The address with the proxy that gRPC takes to it, as errors name it."""
    proxies = getproxies()
    for scheme in ("grpc", "https", "http"):
        if scheme in proxies:
            return f"{address} through the proxy {urlsplit(proxies[scheme]).netloc.rpartition('@')[2]}"
    return address


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_bare(text: str) -> None:
    """Refuses an IPv6 address without brackets whose last group may be meant as a port."""
    head, _, tail = text.rpartition(":")
    cut = re.fullmatch(r"[0-9]{1,5}", tail) is not None and int(tail) <= 65535 and _ip(head) is not None
    if _ip(text) is None:
        if cut:
            raise ValueError(f"address {text!r}: an IPv6 address with a port needs brackets: [{head}]:{tail}")
        raise ValueError(f"address {text!r} is neither host:port nor an IPv6 address")
    if cut:
        raise ValueError(f"address {text!r} may mean [{head}]:{tail} or [{text}]: write the brackets")


def _path(text: str) -> str:
    path = text[len("unix:") :]
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            raise ValueError(f"address {text!r}: write unix:/path or unix:///path")
    if not path or path.endswith("/"):
        raise ValueError(f"address {text!r} names no file: write unix:/path")
    if path.startswith("@") or "\0" in path:
        raise ValueError(f"address {text!r}: sockets without a file are not supported: write unix:/path")
    if len(path.encode()) > _MAX_PATH:
        raise ValueError(f"address {text!r}: the path has {len(path.encode())} bytes, at most {_MAX_PATH} are allowed")
    return path
