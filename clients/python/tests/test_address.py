"""Addresses, by the rule of docs/network.md, as the Go client reads them."""

from __future__ import annotations

import pytest

import headwater
from headwater.address import parse_address


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("localhost", "localhost:7600"),
        ("localhost:1", "localhost:1"),
        ("10.0.0.1", "10.0.0.1:7600"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("coord-0.coord.headwater.svc:7601", "coord-0.coord.headwater.svc:7601"),
        ("::1", "[::1]:7600"),
        ("[::1]", "[::1]:7600"),
        ("[fd77::1]:7601", "[fd77::1]:7601"),
        ("[fd77::1:7601]", "[fd77::1:7601]:7600"),
        ("fd77::a:beef", "[fd77::a:beef]:7600"),
        ("2001:db8:0:0:0:0:0:1", "[2001:db8::1]:7600"),
        ("[10.0.0.1]:7601", "10.0.0.1:7601"),
        ("::ffff:10.0.0.1", "10.0.0.1:7600"),
        ("[fe80::1%eth0]:7601", "[fe80::1%eth0]:7601"),
        ("unix:/run/coord.sock", "unix:/run/coord.sock"),
        ("unix:///run/coord.sock", "unix:/run/coord.sock"),
        ("unix:coord.sock", "unix:coord.sock"),
    ],
)
def test_addresses_are_read(text: str, want: str) -> None:
    assert parse_address(text, 7600) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (":7600", "write localhost:7600"),
        ("host:", "port ''"),
        ("localhost:99999", "not a number from 1 to 65535"),
        ("host:0", "not a number from 1 to 65535"),
        ("host:http", "not a number from 1 to 65535"),
        ("host:+1", "not a number from 1 to 65535"),
        ("host:\u0661", "not a number from 1 to 65535"),
        ("fd77::1:7601", r"may mean \[fd77::1\]:7601 or \[fd77::1:7601\]"),
        ("1:2:3:4:5:6:7:8:9", r"needs brackets: \[1:2:3:4:5:6:7:8\]:9"),
        ("a:b:c", "neither host:port nor an IPv6 address"),
        ("[[fd77::1]]:7600", "brackets are wrong"),
        ("[fd77::1]7600", "brackets are wrong"),
        ("http://host:7600", "is a URL"),
        ("300.0.0.1:7600", "neither an IP address nor a host name"),
        ("a b:7600", "neither an IP address nor a host name"),
        ("unix:", "names no file"),
        ("unix:@name", "without a file"),
        ("unix://host/path", "write unix:/path"),
        ("unix:/" + "a" * 107, "108 bytes, at most 107"),
    ],
)
def test_wrong_addresses_are_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        headwater.Client(text)


def test_no_proxy_is_taken_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the environment does not exist, so a call through it fails with its name."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "")
    with headwater.Client("127.0.0.1:1", timeout=5) as client, pytest.raises(headwater.UnreachableError) as plain:
        client.status()
    assert ":1" in str(plain.value) and "proxy" not in str(plain.value)
    with headwater.Client("127.0.0.1:1", timeout=5, proxy=True) as client, pytest.raises(headwater.UnreachableError) as proxied:
        client.status()
    assert "through the proxy 127.0.0.1:9" in str(proxied.value)
