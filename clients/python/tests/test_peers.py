"""Jobs of one coordinator through another one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import headwater
from headwater.v1 import coordinator_pb2

COORD = os.environ["HEADWATER_COORD"]


class Two:
    """Two coordinators of one worker, first and second, which find each other by gossip."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.first, gossip = self._start("first", "serve", "--name", "first", "--data-dir", f"{root}/first")
        self.second, _ = self._start("second", "serve", "--name", "second", "--data-dir", f"{root}/second", "--join", gossip)
        self._start("w1", "worker", "serve", "--name", "w1", "--memory", "64MiB", "--join", gossip)

    def _start(self, name: str, *command: str) -> tuple[str, str]:
        """Starts a process, and returns the addresses of its service and of its gossip."""
        command = (COORD, *command, "--listen", "127.0.0.1:0", "--gossip", "127.0.0.1:0", "--log-format", "json")
        process = self.processes[name] = self._stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        self._stack.callback(process.kill)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("{") and (said := json.loads(line))["msg"] == "serving":
                return said["address"], said["gossip"]
        pytest.fail(f"{name} did not serve")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(tmp_path, stack)


def counts(client: headwater.Client) -> dict[int, int]:
    return {c.state: c.count for c in client.status().jobs}


def test_jobs_of_another_coordinator(two: Two) -> None:
    """They are watched, fetched, submitted again, listed, counted, cancelled and deleted. Those of one that is dead are unreachable."""
    rng = np.random.default_rng(1)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in {"q": (5, 6, 16), "k": (40, 2, 16), "v": (40, 2, 8)}.items()}
    with headwater.Client(two.first, timeout=60) as first, headwater.Client(two.second, timeout=60) as second:
        job = first.submit(tensors, options={"causal": True}, key="one")
        first.wait(job.id)
        deadline = time.monotonic() + 60
        while True:  # until gossip has told the second of the first
            try:
                assert second.job("one").id == job.id
                break
            except headwater.RefusedError:
                assert time.monotonic() < deadline
        own = second.submit(tensors, options={"causal": True}, key="two")
        assert second.wait(job.id).id == job.id and second.wait(own.id).id == own.id
        for name, want in first.result(job.id).items():
            assert (second.result(job.id)[name] == want).all()
        assert second.submit(tensors, options={"causal": True}, key="one").id == job.id
        assert second.cancel(job.id).state == coordinator_pb2.JOB_STATE_SUCCEEDED
        for client in (first, second):
            assert [j.id for j in client.jobs()] == [own.id, job.id]
            assert counts(client) == {coordinator_pb2.JOB_STATE_SUCCEEDED: 2}

        gone = first.submit(tensors, key="three")
        first.wait(gone.id)
        assert second.delete(gone.id).id == gone.id
        with pytest.raises(headwater.RefusedError, match=f"^get job {gone.id}: "):
            first.job(gone.id)

        second.jobs()  # what it remembers is from now
        two.processes["first"].kill()
        two.processes["first"].wait()
        assert {j.id: j.state for j in second.jobs()} == {own.id: coordinator_pb2.JOB_STATE_SUCCEEDED, job.id: coordinator_pb2.JOB_STATE_UNREACHABLE}
        assert counts(second) == {coordinator_pb2.JOB_STATE_SUCCEEDED: 1, coordinator_pb2.JOB_STATE_UNREACHABLE: 1}
        with pytest.raises(headwater.TryAgainError, match="coordinator first ") as failed:
            second.job(job.id)
        assert not isinstance(failed.value, headwater.UnreachableError)
