"""A cluster on this machine for all tests."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import headwater

ROOT = Path(__file__).resolve().parents[3]
COORD = os.environ.setdefault("HEADWATER_COORD", str(ROOT / "bin" / "coord"))

from guarded import Guarded  # noqa: E402  it looks for the program there

PATIENCE = 600  # seconds
MODEL_PATIENCE = 1800


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Bounds each test with its fixtures, so that one that waits for what does not come fails, where it waits. It is no measure of
    anything: a test that takes so long has hung."""
    patience = MODEL_PATIENCE if "model" in item.path.parts[:-1] else PATIENCE

    def late(_signal: int, _frame: object) -> None:
        pytest.fail(f"{item.name} hangs: within {patience} s it has not ended")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(patience)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# `make test-model` runs these.
collect_ignore = [] if importlib.util.find_spec("torch") else ["model"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a coordinator with three workers, of the binaries in bin/."""
    command = [COORD, "local", "--workers", "3", "--memory", "64MiB", "--output", "json", "--end-with-input"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if found := re.search(r"127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("coord local: " + "".join(seen))
        yield found[0]
        process.terminate()
        process.communicate()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A cluster with certificates."""
    with ExitStack() as stack:
        yield Guarded(tmp_path_factory.mktemp("guarded"), stack)


@pytest.fixture(params=["certificate", "token"])
def who(request: pytest.FixtureRequest) -> str:
    """By what a client is let in."""
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["coordinator", "direct"])
def client(request: pytest.FixtureRequest, cluster: str) -> Iterator[headwater.Client]:
    """A client whose steps go through the coordinator, then one with a relay of its own."""
    with headwater.Client(cluster, timeout=60, direct=request.param) as c:
        yield c
