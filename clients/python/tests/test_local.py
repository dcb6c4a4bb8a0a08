"""headwater.local: a cluster that lives as long as the process that started it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_processes import ended, in_child

import headwater

LAYER = headwater.Layer(2, 1, 4)
ROW = np.ones((1, 1, 4), np.float32)
SMALL = {"memory": "64MiB", "threads": 1}


def test_a_cluster_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_MEMORY", "1MiB")  # is another's setting
    with headwater.local(workers=2, **SMALL) as cluster:
        assert cluster.running and cluster.workers == 2 and cluster.threads == 1
        assert sorted(cluster.processes) == ["w1", "w2"] and all(Path(f"/proc/{pid}").exists() for pid in cluster.processes.values())
        assert f"{cluster.address}, 2 workers of 1 thread, log {cluster.log}" in repr(cluster)
        with cluster.client() as client, client.open([LAYER]) as session:
            assert "direct" in repr(client)
            session.step(0, ROW[:, [0, 0]], ROW, ROW)
            workers = [w.worker for w in client.status().workers]
            assert [(w.name, w.threads, w.budget_bytes) for w in workers] == [("w1", 1, 64 << 20), ("w2", 1, 64 << 20)]
        with cluster.client(direct=False) as client:
            assert "direct" not in repr(client)
        assert "serving" in cluster.log.read_text()
        process = cluster._process
    assert not cluster.running and process.returncode == 0 and not cluster.log.exists()
    assert "has ended" in repr(cluster)
    cluster.close()


def test_a_session_outlives_a_worker() -> None:
    """Also one whose steps are under way, and a cluster where only the session asks for copies."""
    rng = np.random.default_rng(1)
    layer = headwater.Layer(4, 2, 8)
    q, k, v = (rng.standard_normal((30, heads, 8), np.float32) for heads in (4, 2, 2))
    found = []
    for cluster_has, asked, killed in ((0, None, False), (1, None, True), (0, 1, True)):
        with headwater.local(workers=2, replicas=cluster_has, **SMALL) as cluster, cluster.client(timeout=60) as client:
            with client.open([layer], replicas=asked) as session:
                contexts = []
                for i in range(len(q)):
                    if killed and i == 11:
                        os.kill(cluster.processes["w1"], signal.SIGKILL)
                    contexts.append(session.step(0, q[i : i + 1], k[i : i + 1], v[i : i + 1]).context)
                found.append(np.concatenate(contexts))
        cluster.log.unlink(missing_ok=True)  # which is kept, since a process was killed
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    with pytest.raises(ValueError, match="replicas is 9, not from 0 to 8"):
        headwater.local(replicas=9)


def test_stripes_have_the_bits_of_one_worker() -> None:
    """One group on two workers, each with every second split of it, relayed and direct."""
    rng = np.random.default_rng(1)
    layer = headwater.Layer(4, 1, 8, storage="bf16")
    tokens = 5000
    q, k, v = (rng.standard_normal((tokens, heads, 8), np.float32) for heads in (4, 1, 1))
    found = []
    with headwater.local(workers=2, **SMALL) as cluster:
        for stripes, direct in ((0, False), (2, False), (3, True)):
            with cluster.client(timeout=60, direct=direct) as client, client.open([layer], stripes=stripes) as session:
                assert session.layers[0].stripes == max(stripes, 1)
                held = client.find_session(session.id).holders
                assert len(held) == (2 if stripes else 1)
                contexts = [session.step(0, q[:-3], k[:-3], v[:-3])]
                contexts += [session.step(0, q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(tokens - 3, tokens)]
                session.truncate(3000)
                contexts.append(session.step(0, q[3000:3010], k[3000:3010], v[3000:3010]))
                found.append((np.concatenate([c.context for c in contexts]), np.concatenate([c.lse for c in contexts])))
                with client.attach(session.receipt(), keep=False) as again:
                    again.step(0, q[:1], k[:1], v[:1])
        with cluster.client(timeout=60) as client:
            with pytest.raises(ValueError, match="stripes is 65, not from 0 to 64"):
                client.open([layer], stripes=65)
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="stripes is 2, and a layer with window_left is held whole"):
        headwater.Layer(1, 1, 8, window_left=5, stripes=2)


def test_its_log_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    log = tmp_path / "cluster.log"
    log.write_text("before\n")
    with headwater.local(log=log, **SMALL) as cluster:
        assert cluster.log == log
    assert log.read_text().startswith("before\n") and "serving" in log.read_text()


def test_it_ends_with_its_last_reference() -> None:
    cluster = headwater.local(**SMALL)
    process = cluster._process
    del cluster
    gc.collect()
    assert process.returncode == 0


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("headwater.cluster.LocalCluster", lambda command, *_: asked.append(command))
    for cores, workers, want in ((2, 1, 2), (2, 2, 1), (2, 3, 1), (7, 2, 3)):
        monkeypatch.setattr("headwater.cluster._cores", lambda cores=cores: cores)
        headwater.local(workers)
        assert asked.pop()[-2:] == ["--threads", str(want)]


@pytest.mark.parametrize("how", ["exit", "error", "kill"])
def test_it_ends_with_its_process(how: str) -> None:
    """However that ends, and also while a child that it forked lives on."""
    program = f"""
import os, signal, sys, headwater
cluster = headwater.local(**{SMALL!r})
child = os.fork()
if child == 0:
    os.close(1)
    signal.pause()
print(cluster._process.pid, cluster.log, child, flush=True)
sys.stdin.read()
if {how!r} == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if {how!r} == "error":
    raise RuntimeError
"""
    env = {**os.environ, "PYTHONPATH": str(Path(headwater.__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], text=True, env=env, **pipes) as p:
        pid, log, child = p.stdout.readline().split()
        p.stdin.close()
        try:
            assert ended(int(pid))
        finally:
            os.kill(int(child), signal.SIGKILL)
    assert Path(log).exists() == (how == "kill")
    Path(log).unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_does_not_end_it() -> None:
    with headwater.local(**SMALL) as cluster:
        assert in_child(cluster.close) == "nothing was raised"
        with cluster.client(timeout=60) as client, client.open([LAYER]) as session:
            session.step(0, k=ROW, v=ROW)


def test_a_cluster_that_ended_by_itself_keeps_its_log() -> None:
    with headwater.local(**SMALL) as cluster:
        cluster._process.kill()
        cluster._process.wait()
        assert not cluster.running
    assert cluster.log.exists()
    cluster.log.unlink()


def test_what_keeps_it_from_starting_is_said(tmp_path: Path) -> None:
    for wrong in ({"workers": 0}, {"threads": 0}, {"workers": "two"}, {"memory": 1.5}, {"timeout": "soon"}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            headwater.local(**wrong)
    log = tmp_path / "log"
    with pytest.raises(headwater.HeadwaterError, match=f"coord local: .*--memory.*; its log is {log}$"):
        headwater.local(memory="lots", log=log)
    with pytest.raises(headwater.HeadwaterError, match="^headwater.local needs the program coord, but coord names '/nowhere'"):
        headwater.local(coord="/nowhere")
    program = tmp_path / "coord"
    for text, why in (("echo 'it is broken' >&2; exit 1", "it is broken"), ("exit 7", "it ended with exit code 7"), ("cat", "it did not serve in time")):
        log.unlink()
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o700)
        with pytest.raises(headwater.HeadwaterError, match=f"^start {program} local: {why}; its log is {log}$"):
            headwater.local(coord=program, log=log, timeout=1 if text == "cat" else 60)
    with pytest.raises(FileNotFoundError):
        headwater.local(log=tmp_path / "no" / "log")
