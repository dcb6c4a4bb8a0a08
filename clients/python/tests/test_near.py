"""Steps that go to the one worker that holds a session, on this machine, and not by the relay."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headwater
from headwater.plain_lane import local_socket

LAYER = headwater.Layer(4, 2, 8)
rng = np.random.default_rng(1)
Q, K, V = (rng.standard_normal((70, heads, 8), np.float32) for heads in (4, 2, 2))


@pytest.fixture(scope="module")
def alone() -> Iterator[headwater.LocalCluster]:
    """A cluster of one worker."""
    with headwater.local(workers=1, threads=1, memory="64MiB") as cluster:
        yield cluster


def steps(session: headwater.Session, begin: int = 0, end: int = 70) -> np.ndarray:
    """The contexts of these positions, of which most are steps of one token."""
    found = [session.step(0, Q[begin : begin + 9], K[begin : begin + 9], V[begin : begin + 9]).context]
    found += [session.step(0, Q[i : i + 1], K[i : i + 1], V[i : i + 1]).context for i in range(begin + 9, end)]
    return np.concatenate(found)


def test_the_relay_has_no_part_in_steps(alone: headwater.LocalCluster) -> None:
    with alone.client(timeout=30) as c, c.open([LAYER]) as s, s.fork() as fork:
        relay = c._relay._process.pid
        os.kill(relay, signal.SIGSTOP)
        try:
            got = steps(s)
            headwater.step_many([s, fork], 0, [Q[:1], Q[:1]], [K[:1], K[:1]], [V[:1], V[:1]])
        finally:
            os.kill(relay, signal.SIGCONT)
        assert (len(s), len(fork)) == (71, 1)
        s.truncate(3)  # which the relay does
        again = s.step(0, Q[3:4], K[3:4], V[3:4]).context
    np.testing.assert_array_equal(again, got[3:4])


@pytest.mark.parametrize("storage", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("codec", ["auto", "exact", "f16"])
def test_the_bits_are_those_of_the_coordinator(alone: headwater.LocalCluster, storage: headwater.Storage, codec: headwater.SessionCodec) -> None:
    layer = headwater.Layer(4, 2, 8, storage=storage)
    found = []
    for direct in (False, True):
        with alone.client(direct=direct) as c, c.open([layer], codec=codec) as s:
            found.append(steps(s))
            assert (s._near is not None) is direct
    np.testing.assert_array_equal(*found)


def test_errors_are_those_of_the_way_by_the_relay(alone: headwater.LocalCluster) -> None:
    with alone.client() as c, c.open([LAYER]) as s, alone.client() as other:
        large = np.full((1, 4, 8), 3e38, np.float32)
        s.step(0, k=K[:1], v=V[:1])
        with pytest.raises(headwater.NotFiniteError):
            s.step(0, q=large, k=large[:, :2], v=V[:1])
        assert s._near is not None and len(s) == 1
        with other.attach(s.id) as mine:
            with pytest.raises(headwater.StaleEpochError):
                s.step(0, k=K[:1], v=V[:1])
            steps(mine, 1)
            mine.drop()
            with pytest.raises(headwater.UnknownSessionError):
                s.step(0, k=K[:1], v=V[:1])


def test_a_worker_that_has_ended_is_lost() -> None:
    with headwater.local(workers=1, threads=1, memory="64MiB") as cluster, cluster.client(timeout=60) as c:
        s = c.open([LAYER])
        steps(s)
        os.kill(cluster.processes["w1"], signal.SIGKILL)
        with pytest.raises((headwater.LostError, headwater.UnreachableError)):
            s.step(0, k=K[:1], v=V[:1])
        assert s._near is None
    cluster.log.unlink()  # which is kept, since a process was killed


def test_a_socket_that_others_may_have_made_is_not_used(alone: headwater.LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with alone.client() as c, c.open([LAYER]) as s:
        boot = c.find_session(s.id).holders[0].boot
        assert s._near is not None
    real = local_socket(boot)
    assert real is not None and os.stat(real).st_mode & 0o777 == 0o600
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / f"headwater-lanes-{os.getuid()}"
    assert local_socket(boot) is None  # there is none
    folder.mkdir(mode=0o700)
    os.link(real, folder / Path(real).name)
    assert local_socket(boot) is not None
    folder.chmod(0o750)
    assert local_socket(boot) is None
    with alone.client() as c, c.open([LAYER]) as s:
        assert s._near is None
        steps(s)
