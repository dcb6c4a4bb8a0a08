"""Addresses are read by the rule of internal/address in Go, whose table of right and wrong ones is taken from there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import headwater
from headwater import address

RULES = Path(__file__).resolve().parents[3] / "internal" / "address" / "address_test.go"


def table(name: str) -> list[tuple[str, str]]:
    """The pairs of texts in the first table of a Go test."""
    source = RULES.read_text().split(f"func {name}(")[1].split("\n\t} {\n")[0]
    found = re.findall(r'^\t\t\{("(?:[^"\\]|\\.)*"), ("(?:[^"\\]|\\.)*"|`[^`]*`)\},', source, re.M)
    assert len(found) > 10
    return [(unquote(a), unquote(b)) for a, b in found]


def unquote(text: str) -> str:
    return text[1:-1] if text.startswith("`") else text[1:-1].encode().decode("unicode_escape")


def test_addresses_are_read_by_one_rule() -> None:
    for text, want in table("TestAddressesAreReadByOneRule"):
        assert address.parse(text) == want
        assert address.parse(address.parse(text)) == want


def test_wrong_addresses_are_refused_with_what_to_write() -> None:
    for text, says in table("TestWrongAddressesAreRefusedWithWhatToWrite"):
        with pytest.raises(ValueError) as e:
            headwater.Client(text)
        assert says.replace('"', "'") in str(e.value), text
    for wrong in (None, 7600, b"host"):
        with pytest.raises(TypeError, match="an address is a str"):
            headwater.Client(wrong)  # type: ignore[arg-type]


def test_targets() -> None:
    assert address.target("[::1]:7600") == "dns:///[::1]:7600"
    assert address.target("unix:/a b/c%.sock") == "unix:///a%20b/c%25.sock"


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
