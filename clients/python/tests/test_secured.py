"""What a client with a certificate or a token does with sessions, through the coordinator and straight to the workers, also where it has
programs do it; and what it is told if its certificate is of another authority or role, or has expired."""

from __future__ import annotations

import datetime
import os
import re
import stat
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from guarded import COORD, Guarded, issue, serving
from test_recovery import LAYERS, Model

import headwater
from headwater.plain_lane import local_socket


@pytest.fixture(params=[False, True], ids=["coordinator", "direct"])
def direct(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def lapsing(guarded: Guarded, role: str, name: str, until: datetime.datetime, folder: Path) -> Path:
    """A folder of a certificate of the cluster's own authority that expires when it is told to, which `coord certs` makes for days alone."""
    text = (guarded.certs / "authority.pem").read_text()
    blocks = {kind: block for block, kind in re.findall(r"(-----BEGIN ([A-Z ]+)-----.*?-----END \2-----\n)", text, re.S)}
    authority = x509.load_pem_x509_certificate(blocks["CERTIFICATE"].encode())
    signer = serialization.load_pem_private_key(blocks["PRIVATE KEY"].encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"headwater://{role}/{name}")]
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role != "client":
        names.append(x509.DNSName(f"{role}.headwater.internal"))
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    made = x509.CertificateBuilder(
        issuer_name=authority.subject,
        subject_name=x509.Name([]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=until - datetime.timedelta(hours=1),
        not_valid_after=until,
        extensions=[
            x509.Extension(x509.SubjectAlternativeName.oid, True, x509.SubjectAlternativeName(names)),
            x509.Extension(x509.ExtendedKeyUsage.oid, False, x509.ExtendedKeyUsage(uses)),
        ],
    ).sign(signer, hashes.SHA256())
    folder.mkdir()
    (folder / "ca.crt").write_bytes((guarded.certs / "ca.crt").read_bytes())
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(private)
    (folder / "tls.key").chmod(0o600)
    return folder


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def test_a_session_is_grown_forked_and_made_anew(guarded: Guarded, who: str, direct: bool, tmp_path: Path) -> None:
    """The rows go where no other client's do, and the program that restores the snapshot is let in as the client is."""
    model = Model(140)
    with headwater.local(workers=1, memory="64MiB") as plain, plain.client() as c, c.open(LAYERS) as s:
        want = [model.grow(s, 0, 70), model.grow(s, 70, 130), model.grow(s, 130, 140)]
    with guarded.dial(who, direct=direct) as client, client.open(LAYERS, name=who) as session:
        assert client.find_session(session.id).tenant == {"certificate": "ann", "token": "bob"}[who]
        got = model.grow(session, 0, 70)
        path = tmp_path / "snapshot"
        as_client = ["--coordinator", client.address, *client._security.flags()]
        subprocess.run([COORD, "sessions", "snapshot", session.id.hex(), path, "--quiet", *as_client], check=True)
        with session.fork() as fork:
            model.grow(fork, 70, 140)
            fork.truncate(70)
            same(model.grow(fork, 70, 130), want[1])
        same(got, want[0])
        same(model.grow(session, 70, 130), want[1])
        subprocess.run([COORD, "sessions", "drop", session.id.hex(), *as_client], check=True, stdout=subprocess.DEVNULL)
        with pytest.raises(headwater.GoneError):
            model.grow(session, 130, 140)
        with session.recover(model.rows, snapshot=path) as made:
            assert len(made) == 130 and client.find_session(made.id).tenant == {"certificate": "ann", "token": "bob"}[who]
            same(model.grow(made, 130, 140), want[2])
            receipt = made.receipt()
            with closing(client.attach(receipt, keep=False)) as again:
                assert len(again) == 140
        assert not client.sessions().sessions


def test_no_step_goes_past_the_certificate(guarded: Guarded, who: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker with a certificate serves no socket of its machine, and if one is there the client does not use it."""
    model = Model(3)
    with guarded.dial(who, direct=True) as client, client.open(LAYERS, workers=1) as session:
        (holder,) = client.find_session(session.id).holders
        assert local_socket(holder.boot) is None
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        folder = tmp_path / f"headwater-lanes-{os.getuid()}"
        folder.mkdir(mode=0o700)
        os.mknod(folder / f"{holder.boot.hex()}.sock", 0o600 | stat.S_IFSOCK)
        assert local_socket(holder.boot) is not None
        with guarded.dial(who, direct=True) as other, closing(other.attach(session.receipt(), keep=False)) as taken:
            assert taken._near is None
            model.grow(taken, 0, 3)


def same(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_job_is_run(guarded: Guarded, who: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((9, heads, 8), np.float32) for heads in (4, 2, 2))
    with headwater.local(workers=1, memory="64MiB") as plain, plain.client() as c:
        want = c.run({"q": q, "k": k, "v": v})
    with guarded.dial(who) as client:
        got = client.run({"q": q, "k": k, "v": v})
        assert got.keys() == want.keys()
        same(list(got.values()), list(want.values()))


@pytest.fixture(scope="module")
def strange(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folders with which nobody is let in, and the words for it."""
    root = tmp_path_factory.mktemp("strange")
    issue(root / "other", ("client", "ann"))
    mixed = root / "mixed"  # knows the cluster's authority, and has a certificate of another one
    mixed.mkdir()
    for name, source in (("ca.crt", guarded.certs), ("tls.crt", root / "other"), ("tls.key", root / "other")):
        (mixed / name).write_bytes((source / "client-ann" / name).read_bytes())
    return {
        "another authority": (mixed, "the certificate of client ann is signed by"),
        "an authority of others": (root / "other" / "client-ann", "an authority that ca.crt does not have|is signed by"),
        "another role": (guarded.certs / "worker-w1", "certificate is that of (a|the) worker"),
        "expired": (lapsing(guarded, "client", "ann", now() - datetime.timedelta(minutes=10), root / "expired"), "expired"),
        "not valid yet": (lapsing(guarded, "client", "ann", now() + datetime.timedelta(days=1), root / "early"), "holds from"),
    }


@pytest.mark.parametrize("what", ["another authority", "an authority of others", "another role", "expired", "not valid yet"])
def test_a_stranger_is_told_what_is_wrong(guarded: Guarded, strange: dict[str, tuple[Path, str]], what: str, direct: bool) -> None:
    folder, says = strange[what]
    with pytest.raises(headwater.RefusedError, match=says) as refused:
        with headwater.Client(guarded.address, timeout=20, tls=folder, direct=direct) as c:
            c.open(LAYERS)
    assert "\n" not in str(refused.value)


def test_a_coordinator_whose_certificate_expires(guarded: Guarded, direct: bool, tmp_path: Path) -> None:
    """It was let in, and is no more: the connection ends with the certificate, and what comes then is refused."""
    ends = now() + datetime.timedelta(seconds=5)
    folder = lapsing(guarded, "coordinator", "c2", ends, tmp_path / "c2")
    with ExitStack() as stack:
        address = serving(stack, "serve", "--name", "c2", "--workers", guarded.workers, "--data-dir", f"{tmp_path}/data", "--tls-dir", str(folder))
        client = stack.enter_context(headwater.Client(address, timeout=20, tls=guarded.certs / "client-ann", direct=direct))
        session = client.open(LAYERS)  # which nobody drops: nobody is let in at the end
        model = Model(70)
        model.grow(session, 0, 70)
        with pytest.raises(headwater.RefusedError, match="expired"):
            while now() < ends + datetime.timedelta(seconds=60):
                with suppress(headwater.TryAgainError):  # the connection breaks within a call
                    client.sessions()
        if direct:  # workers are spoken to without the coordinator
            session.truncate(60)
            model.grow(session, 60, 70)
