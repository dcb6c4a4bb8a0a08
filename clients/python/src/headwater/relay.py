"""The relay that a direct client owns: the process `coord relay`, which has the rules of a session's fan-out and speaks to the
workers itself. It ends with this process, however that ends: its standard input is a pipe from here, and it ends when that is
closed."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import address as addresses
from . import programs
from .errors import HeadwaterError, ProtocolError, one_line

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_KEPT = 4096  # bytes of what it says on stderr

_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


class Relay:
    """A running relay. Its address is a Unix socket that only this user may use. Safe for threads."""

    address: str
    lanes: str  # of its plain lanes
    secured: bool  # whether it speaks to the cluster by TLS

    def __init__(
        self, coordinator: str, program: str | os.PathLike[str] | None = None, *, proxy: bool = False, secured: bool = False, flags: Sequence[str] = ()
    ) -> None:
        self.secured = secured
        self._command = [programs.find("direct", program), "relay", "--coordinator", coordinator, "--log-level", "warn", *flags]
        if proxy:
            self._command.append("--proxy")
        self._owner = os.getpid()
        self._lock = threading.Lock()  # guards the rest
        self._closed = False
        self.address, self.lanes = _free_addresses()
        self._start()

    def ensure(self) -> None:
        """Starts the relay again, at its address, if it was killed. Sessions are with the workers, and go on."""
        if self._process.poll() is None:
            return
        with self._lock:
            if not self._closed and self._process.poll() is not None:
                self._release()
                self._start()

    def _start(self) -> None:
        self._said = b""
        try:
            self._process = subprocess.Popen(
                [*self._command, "--listen", self.address, "--lanes", self.lanes], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is this process's
                env=programs.environment(),
            )  # fmt: skip
        except OSError as e:
            raise HeadwaterError(f"start {self._command[0]}: {e}") from e
        _relays.add(self)
        self._listener = threading.Thread(target=self._listen, args=(self._process,), name="headwater-relay", daemon=True)
        self._listener.start()
        try:
            ready = self._ready(self._command[0])
            self.address, self.lanes = addresses.parse(ready["address"]), addresses.parse(ready["lanes"])
        except BaseException:
            self._release()
            raise

    def _ready(self, program: str) -> dict[str, Any]:
        """The line that says that the relay serves."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        try:
            said = json.loads(line)
            if isinstance(said, dict) and isinstance(said.get("address"), str) and isinstance(said.get("lanes"), str):
                return said
        except ValueError:
            pass
        why = f"it did not serve within {_START_SECONDS:g} s"
        if ready:
            self._release()
            why = one_line(self._said.decode(errors="replace").strip().rpartition("\n")[2] or line.decode(errors="replace"))
            if "unknown flag: --lanes" in why or '"address"' in why:
                raise ProtocolError(f"{program} is of a release that knows no plain lanes, {__name__.partition('.')[0]} needs them: use both of one release")
        raise HeadwaterError(f"start {program} relay: {why or 'it said nothing'}")

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Keeps the last of what the relay says, so that it never waits for a reader."""
        assert process.stderr is not None
        while said := process.stderr.read(_KEPT):
            self._said = (self._said + said)[-_KEPT:]

    def _release(self) -> None:
        """Ends the process, waits for it, and closes the pipes."""
        process = self._process
        assert process.stdout is not None and process.stderr is not None
        programs.end(process, _STOP_SECONDS)
        if threading.current_thread() is not self._listener:  # which may be where a client is collected
            self._listener.join()
        process.stdout.close()
        process.stderr.close()
        if self.address.startswith("unix:"):  # what a relay that was killed has left
            path = Path(self.address.removeprefix("unix:"))
            with suppress(OSError):
                path.unlink(missing_ok=True)
                Path(self.lanes.removeprefix("unix:")).unlink(missing_ok=True)
                path.parent.rmdir()

    def close(self) -> None:
        """Ends the relay and waits for it. In the child of a fork it does nothing: the relay is the parent's."""
        if self._owner != os.getpid():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()


def _free_addresses() -> tuple[str, str]:
    """Two Unix sockets, for gRPC and for plain lanes, in a folder that the relay makes and removes. Where the path would be too
    long, ports of loopback."""
    folder = os.path.join(os.path.abspath(tempfile.gettempdir()), f"headwater-{secrets.token_hex(8)}")
    try:
        return addresses.parse(f"unix:{folder}/relay.sock"), addresses.parse(f"unix:{folder}/lanes.sock")
    except ValueError:
        return "127.0.0.1:0", "127.0.0.1:0"


def _forget_relays() -> None:
    """Closes a forked child's ends of the pipes: a relay ends with the process that owns it, not with its children."""
    for relay in list(_relays):
        if relay._process.stdin is not None:
            relay._process.stdin.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_relays)
