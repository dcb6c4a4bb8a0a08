"""Processes around a client: the relay that it owns, and the children of a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import headwater
from headwater import programs

LAYER = headwater.Layer(2, 1, 4)
ROW = np.ones((1, 1, 4), np.float32)


def ended(pid: int) -> bool:
    """Waits for a process's end, whose child it ever is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        import select

        return bool(select.select([fd], [], [], 60)[0])
    finally:
        os.close(fd)


def test_a_relay_ends_with_its_client(cluster: str) -> None:
    with headwater.Client(cluster, direct=True) as c:
        process, folder = c._relay._process, Path(c._relay.address.removeprefix("unix:")).parent
        with c.open([LAYER]) as s:
            s.step(0, k=ROW, v=ROW)
        assert process.poll() is None and folder.is_dir()
    assert process.returncode == 0 and not folder.exists()


def test_a_relay_ends_with_a_client_that_nobody_closed(cluster: str) -> None:
    c = headwater.Client(cluster, direct=True)
    process = c._relay._process
    del c
    assert process.returncode == 0


def test_a_session_keeps_its_client(cluster: str) -> None:
    """Whoever has a session and not its client still steps it."""
    s = headwater.Client(cluster, direct=True).open([LAYER])
    with s, s.fork() as fork:
        s.step(0, k=ROW, v=ROW)
        fork.step(0, k=ROW, v=ROW)
    process = s._connection._relay._process
    del s, fork
    assert process.returncode == 0


def test_a_relay_that_was_killed_is_started_again(cluster: str) -> None:
    """Between steps and within one; sessions are with the workers, this one with three."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((9, heads, 4), np.float32) for heads in (6, 3, 3))
    layers = [headwater.Layer(6, 3, 4)]
    with headwater.Client(cluster, timeout=60) as other, other.open(layers) as plain:
        want = plain.step(0, q, k, v).context
    with headwater.Client(cluster, timeout=60, direct=True) as c, c.open(layers) as s:
        address, got = c._relay.address, []
        for i in range(9):
            if i in (3, 4, 7):
                killed = c._relay._process
                killed.kill()
                if i != 7:  # else it may be seen to have ended only when the step breaks
                    killed.wait()
            if i == 6:
                c._relay._process.kill()
                c._relay._process.wait()
                assert c.find_session(s.id).session == s.id
            got.append(s.step(0, q[i : i + 1], k[i : i + 1], v[i : i + 1]).context)
        assert c._relay.address == address and c._relay._process is not killed
    np.testing.assert_array_equal(np.concatenate(got), want)
    assert not Path(address.removeprefix("unix:")).parent.exists()


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_relay_ends_with_its_process(cluster: str, how: str) -> None:
    """However that ends, and also while a child that it forked lives on."""
    program = f"""
import os, signal, sys, headwater
c = headwater.Client({cluster!r}, direct=True)
child = os.fork()
if child == 0:
    os.close(1)
    signal.pause()
print(c._relay._process.pid, c._relay.address, child, flush=True)
sys.stdin.read()
if {how!r} == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(headwater.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as p:
        pid, address, child = p.stdout.readline().split()
        p.stdin.close()
        try:
            assert ended(int(pid))
        finally:
            os.kill(int(child), signal.SIGKILL)
    assert not Path(address.removeprefix("unix:")).parent.exists()


def in_child(do) -> str:
    """Calls do in the child of a fork, and returns the error's text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            do()
            os.write(write, b"nothing was raised")
        except BaseException as e:
            os.write(write, f"{type(e).__name__}: {e}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hung"
    return said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("direct", [False, True])
def test_a_child_of_a_fork_is_told_to_make_its_own(cluster: str, direct: bool) -> None:
    with headwater.Client(cluster, direct=direct) as c, c.open([LAYER]) as s:
        s.step(0, k=ROW, v=ROW)
        for do in (lambda: s.step(0, k=ROW, v=ROW), s.fork, c.status, lambda: c.open([LAYER]), lambda: s.truncate(0)):
            assert in_child(do).startswith("HeadwaterError: this client was made before os.fork")

        def leave() -> None:
            with c:
                pass  # which is the parent's to close

        assert in_child(leave) == "nothing was raised"
        s.step(0, k=ROW, v=ROW)
        assert len(s) == 2


def test_the_program_is_looked_for(cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    coord = os.environ["HEADWATER_COORD"]
    assert programs.find("direct", coord) == coord
    for what, env, given in (("coord names '/nowhere'", coord, "/nowhere"), ("HEADWATER_COORD names '/nowhere'", "/nowhere", None)):
        monkeypatch.setenv("HEADWATER_COORD", env)
        with pytest.raises(headwater.HeadwaterError, match=what):
            headwater.Client(cluster, direct=True, coord=given)
    monkeypatch.delenv("HEADWATER_COORD")
    monkeypatch.setattr(programs, "BESIDE", str(tmp_path / "bin" / "coord"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(headwater.HeadwaterError, match=f"direct needs the program coord, which is neither at {tmp_path}/bin/coord nor on the PATH"):
        headwater.Client(cluster, direct=True)
    for folder in ("path", "bin"):  # the one beside the package is found first
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "coord").symlink_to(coord)
        assert programs.find("direct", None) == str(tmp_path / folder / "coord")
    with headwater.Client(cluster, direct=True) as c:
        assert c.sessions() is not None


def test_a_relay_that_does_not_serve_says_why(cluster: str, tmp_path: Path) -> None:
    program = tmp_path / "coord"
    for text, why in (("echo 'it is broken' >&2; exit 1", "it is broken"), ("echo hello", "hello"), ("exit 1", "it said nothing")):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o700)
        with pytest.raises(headwater.HeadwaterError, match=f"^start {program} relay: {why}$"):
            headwater.Client(cluster, direct=True, coord=program)


def test_a_relay_without_plain_lanes_is_refused(cluster: str, tmp_path: Path) -> None:
    """That of an older release knows no --lanes, and one that serves none says nothing of them."""
    program = tmp_path / "coord"
    for text in ("echo 'coord: unknown flag: --lanes' >&2; exit 2", """echo '{"address": "127.0.0.1:1"}'; cat"""):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o700)
        with pytest.raises(headwater.ProtocolError, match="is of a release that knows no plain lanes"):
            headwater.Client(cluster, direct=True, coord=program)


def test_only_this_user_reaches_the_sockets(cluster: str) -> None:
    with headwater.Client(cluster, direct=True) as c:
        for address in (c._relay.address, c._relay.lanes):
            path = Path(address.removeprefix("unix:"))
            assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_a_long_path_of_temporary_files_is_no_obstacle(cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with headwater.Client(cluster, direct=True) as c:
        assert c._relay.address.startswith("127.0.0.1:")
        with c.open([LAYER]) as s:
            s.step(0, k=ROW, v=ROW)


def test_proxies_are_not_asked(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for direct in (False, True):
        with headwater.Client(cluster, timeout=20, direct=direct) as c, c.open([LAYER]) as s:
            s.step(0, k=ROW, v=ROW)
