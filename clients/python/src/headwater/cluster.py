"""A cluster on this machine that lives as long as this process: `coord local`, whose standard input is a pipe from here. The
cluster ends when the pipe is closed, and so with this process, however that ends."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from . import constants, options, programs
from .client import Client
from .errors import HeadwaterError, one_line

_STOP_SECONDS = 40.0  # longer than coord local takes at most
_ABANDON_SECONDS = 5.0  # for a cluster that did not come up
_MOST_WORKERS = 1 << 10
_MOST_THREADS = 1 << 12
_READ = 1 << 16

_pipes: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def local(
    workers: int = 1,
    *,
    threads: int | None = None,
    memory: int | str | None = None,
    replicas: int = 0,
    log: str | os.PathLike[str] | None = None,
    coord: str | os.PathLike[str] | None = None,
    timeout: float = 60,
) -> LocalCluster:
    """Starts a cluster on this machine, of a coordinator and workers on free ports of the loopback interface, and waits until it
    can work.

        with headwater.local(workers=2) as cluster, cluster.client() as client:
            ...

    It ends with its `with`, with close(), and with this process, however that ends.

    threads are each worker's kernel threads, by default an equal share of this process's cores. memory is each worker's budget
    for keys and values, in bytes or as "2GiB"; by default an equal share of three quarters of the machine's. replicas is at how
    many workers beside its owner a copy of each part of a session lies: it outlives so many of its workers. The processes write
    their logs to the file log; by default that is a temporary one, which is removed when the cluster has ended well. coord is the
    program to start, found as Client finds it. timeout is how many seconds the start may take.
    """
    count = options.whole("workers", workers, 1, _MOST_WORKERS)
    each = max(1, _cores() // count) if threads is None else options.whole("threads", threads, 1, _MOST_THREADS)
    command = [programs.find("headwater.local", coord), "local", "--output", "json", "--end-with-input"]
    command += ["--workers", str(count), "--threads", str(each)]
    if memory is not None:
        command += ["--memory", memory if isinstance(memory, str) else str(options.whole("memory", memory, 1, 1 << 62))]
    if options.whole("replicas", replicas, 0, constants.MAX_REPLICAS):
        command += ["--replicas", str(int(replicas))]
    return LocalCluster(command, count, each, log, options.number("timeout", timeout))


class LocalCluster:
    """A cluster that local() has started. It is a context manager, which ends it.

    address    the coordinator's host:port
    workers    how many workers it has
    threads    kernel threads of each worker
    processes  the id of each worker's process, by its name
    log        the file of its processes' logs
    """

    address: str
    workers: int
    threads: int
    processes: dict[str, int]
    log: Path

    def __init__(self, command: list[str], workers: int, threads: int, log: str | os.PathLike[str] | None, timeout: float) -> None:
        self.workers, self.threads = workers, threads
        self._program = command[0]
        if log is None:
            fd, name = tempfile.mkstemp(prefix="headwater-local-", suffix=".log")
            self.log = Path(name)
        else:
            self.log = Path(log)
            fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        begin = os.fstat(fd).st_size
        try:
            process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=fd,
                start_new_session=True,  # the terminal's Ctrl-C is this process's
                env=programs.environment(),
            )  # fmt: skip
        except OSError as e:
            if log is None:
                self.log.unlink()
            raise HeadwaterError(f"start {command[0]} local: {e}") from e
        finally:
            os.close(fd)
        assert process.stdin is not None
        _pipes.add(process.stdin)
        self._process = process
        self._end = weakref.finalize(self, _end, process, self.log if log is None else None, os.getpid())
        try:
            said = self._ready(time.monotonic() + timeout)
            self.address, self.processes = str(said["coordinator"]), dict(said["processes"])
        except BaseException as e:
            self._end.detach()
            _release(process, _ABANDON_SECONDS)
            if not isinstance(e, _NotReady):
                raise
            why = str(e) or one_line(_last_line(self.log, begin)) or f"it ended with exit code {process.returncode}"
            raise HeadwaterError(f"start {command[0]} local: {why}; its log is {self.log}") from None

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.running else ", which has ended"
        return f"<headwater.LocalCluster {self.address}, {_count(self.workers, 'worker')} of {_count(self.threads, 'thread')}, log {self.log}{state}>"

    @property
    def running(self) -> bool:
        """Whether the cluster is there: it was not closed, and has not ended by itself."""
        return self._process.poll() is None

    def client(self, *, timeout: float | None = None, direct: bool = True) -> Client:
        """Makes a client of the cluster, which the caller closes; see Client. Its steps go directly to the workers."""
        return Client(self.address, timeout=timeout, direct=direct, coord=self._program, tls="", insecure=False)

    def close(self) -> None:
        """Ends the cluster and waits for it; its sessions and jobs are gone. In the child of a fork it does nothing: the cluster is
        the parent's."""
        self._end()

    def _ready(self, deadline: float) -> dict[str, Any]:
        """Reads what the program prints when the cluster can work."""
        out, said = self._process.stdout, b""
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while selector.select(deadline - time.monotonic()):
                more = out.read(_READ)
                said += more
                with suppress(ValueError):
                    found: Any = json.loads(said)
                    if isinstance(found, dict) and isinstance(found.get("coordinator"), str) and isinstance(found.get("processes"), dict):
                        return found
                if not more or len(said) > _READ:
                    raise _NotReady
        raise _NotReady("it did not serve in time")


class _NotReady(Exception):
    """Why a program does not serve; empty if its log says it."""


def _end(process: subprocess.Popen[bytes], log: Path | None, owner: int) -> None:
    """Ends the cluster, and removes its log if it has ended well. What it is given is the owner's, and not its children's."""
    if owner != os.getpid():
        return
    _release(process, _STOP_SECONDS)
    if log is not None and process.returncode == 0:
        log.unlink(missing_ok=True)


def _release(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ends the process and closes its pipes."""
    assert process.stdout is not None
    programs.end(process, patience)
    process.stdout.close()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(path: Path, begin: int) -> str:
    """The last line that was written to a log after its first bytes."""
    with open(path, "rb") as f:
        f.seek(max(begin, os.fstat(f.fileno()).st_size - _READ))
        return f.read().decode(errors="replace").strip().rpartition("\n")[2]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _forget_pipes() -> None:
    """Closes a forked child's ends of the pipes: a cluster ends with the process that owns it, not with its children."""
    for pipe in list(_pipes):
        pipe.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pipes)
