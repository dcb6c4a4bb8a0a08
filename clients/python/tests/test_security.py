"""A cluster with certificates, and who is let in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from guarded import COORD, issue, serving

import headwater
from headwater import Layer


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A coordinator and a worker with certificates: their addresses, and the folder of their authority."""
    root = tmp_path_factory.mktemp("secured")
    issue(root / "certs", ("coordinator", "c1"), ("worker", "w1"), ("client", "ann"))
    with ExitStack() as stack:
        worker = serving(stack, "worker", "serve", "--name", "w1", "--memory", "64MiB", "--tls-dir", f"{root}/certs/worker-w1")
        (root / "bob.token").write_text(subprocess.run([COORD, "tenants", "add", "bob", "--file", root / "tenants"], check=True, stdout=subprocess.PIPE, text=True).stdout)
        coordinator = serving(
            stack, "serve", "--name", "c1", "--workers", f"w1={worker}", "--data-dir", f"{root}/data", "--tls-dir", f"{root}/certs/coordinator-c1", "--tenants", f"{root}/tenants"
        )
        yield coordinator, worker, root / "certs"


@pytest.mark.parametrize("direct", [False, True])
def test_a_client_with_a_certificate_is_let_in(secured: tuple[str, str, Path], direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, _, folder = secured
    monkeypatch.setenv("HEADWATER_TLS_DIR", str(folder / "client-ann"))
    with headwater.Client(coordinator, timeout=60, direct=direct) as c, c.open([Layer(4, 2, 8)]) as s:
        v = np.arange(16, dtype=np.float32).reshape(1, 2, 8)
        context, _ = s.step(0, np.ones((1, 4, 8), np.float32), v, v)
        assert np.array_equal(context, np.repeat(v, 2, axis=1))
        issue(folder, ("client", "ann"))  # anew: a later call has another channel
        s.step(0, np.ones((1, 4, 8), np.float32), v, v)
        assert c.sessions()


def test_a_token_stands_for_a_certificate(secured: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, _, folder = secured
    file = folder.parent / "bob.token"
    (tmp_path / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    layers, token = [Layer(4, 2, 8)], file.read_text().strip()
    with headwater.Client(coordinator, timeout=60, tls=folder / "client-ann") as ann, ann.open(layers) as hers:
        with headwater.Client(coordinator, timeout=60, tls=tmp_path, token=token) as bob, bob.open(layers) as his:
            v = np.arange(16, dtype=np.float32).reshape(1, 2, 8)
            his.step(0, np.ones((1, 4, 8), np.float32), v, v)
            assert [s.session for s in bob.sessions().sessions] == [his.id]
            assert [s.session for s in ann.sessions().sessions] == [hers.id]
            with pytest.raises(headwater.GoneError):
                bob.attach(hers.id)
            assert token not in repr(bob)
        monkeypatch.setenv("HEADWATER_TOKEN_FILE", str(file))
        with headwater.Client(coordinator, timeout=60, tls=tmp_path) as bob:
            assert bob.sessions().caches
    with headwater.Client(coordinator, timeout=60, tls=tmp_path, token="hwt_wrong") as nobody:
        with pytest.raises(headwater.HeadwaterError, match="its token is no tenant's"):
            nobody.sessions()
    for given in (token, file):
        with headwater.Client(coordinator, timeout=60, tls=tmp_path, token=given, direct=True) as bob, bob.open(layers) as his:
            his.step(0, np.ones((1, 4, 8), np.float32), v, v)
            assert [s.tenant for s in bob.sessions().sessions] == ["bob"]
            assert bob._relay is not None and token not in " ".join(bob._relay._command)
            kept = Path(bob._relay._command[bob._relay._command.index("--token-file") + 1])
            assert kept == file or kept.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="it is sent by TLS alone"):
        headwater.Client(coordinator, tls="", token=token)


def test_others_are_told_why_they_are_not(secured: tuple[str, str, Path], tmp_path: Path) -> None:
    coordinator, worker, folder = secured
    issue(tmp_path / "other", ("client", "ann"))
    for address, tls, says in (
        (coordinator, "", "it speaks no TLS: give it a certificate"),
        (coordinator, tmp_path / "other" / "client-ann", "a certificate of an authority that ca.crt does not have"),
        (coordinator, folder / "worker-w1", "the caller's certificate is that of a worker"),
        (worker, folder / "client-ann", "is no coordinator by its certificate"),
    ):
        with headwater.Client(address, timeout=20, tls=tls) as c, pytest.raises(headwater.RefusedError, match=says):
            c.jobs()


def test_plain_text_stays_on_this_machine(cluster: str, tmp_path: Path) -> None:
    for address in ("192.0.2.1", "[2001:db8::1]:7600"):
        with pytest.raises(ValueError, match="is another machine, and there is no certificate: give one by tls="):
            headwater.Client(address)
        headwater.Client(address, insecure=True).close()
    headwater.Client("localhost").close()
    with pytest.raises(ValueError, match="ca.crt can't be read: No such file or directory; `coord certs issue client NAME` makes it"):
        headwater.Client(cluster, tls=tmp_path)
    with pytest.raises(ValueError, match="contradict each other"):
        headwater.Client(cluster, tls=tmp_path, insecure=True)
    issue(tmp_path / "own", ("client", "ann"))
    with headwater.Client(cluster, timeout=20, tls=tmp_path / "own" / "client-ann") as c, pytest.raises(headwater.RefusedError, match="speaks no TLS: it was started without --tls-dir"):
        c.sessions()
