"""Plain lanes: lanes on a local socket, without HTTP/2 and without threads (docs/wire.md).

An exchange sends the steps of one call together and waits for their answers, in the thread that makes it. It has a socket to
itself, which is kept for the next one. Closing a socket ends its steps.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from . import constants
from .arrays import Array
from .errors import ProtocolError
from .lane import Buffer, Response, decode_response, encode_request

_MAGIC = b"HWln"
_VERSION = 1
_HELLO = struct.Struct("<4sHH16s")  # magic, version, 0, the lane's id
_ANSWER = struct.Struct("<4sHH")
_HEADER = struct.Struct(">BI")  # kind, bytes
_MESSAGE, _END = 0, 0x80
_BUFFER = 64 << 10
_PARTS = 512  # buffers of one call of sendmsg; systems take 1,024
_CONNECT_SECONDS = 10.0
_KEPT = 8  # sockets that wait for the next exchange


def local_socket(boot: bytes) -> str | None:
    """The socket on which the worker of a boot serves this user's clients on this machine, or None if it does not. A folder that
    somebody else may use is passed over: whoever listens there may be anybody."""
    folder = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"headwater-lanes-{os.getuid()}")
    path = os.path.join(folder, f"{boot.hex()}.sock")
    try:
        of = os.lstat(folder)
        own = stat.S_ISDIR(of.st_mode) and of.st_uid == os.getuid() and not of.st_mode & 0o077
        return path if own and stat.S_ISSOCK(os.lstat(path).st_mode) else None
    except OSError:
        return None


class LaneEndedError(Exception):
    """The holder has ended the lane, and says why."""

    def __init__(self, status: status_pb2.Status) -> None:
        self.status = status
        super().__init__(status.message)


class PlainLane:
    """A lane to a relay, or to a worker on this machine. Safe for threads: each exchange has a socket of its own."""

    def __init__(self, address: str, lane: bytes, ensure: Callable[[], None] = lambda: None) -> None:
        self._address, self._lane = address, lane
        self._ensure = ensure  # that it runs, if it can be started
        self._lock = threading.Lock()  # guards the rest
        self._idle: list[_Socket] = []
        self._busy: set[_Socket] = set()
        self._closed = False

    def send(self, requests: Sequence[tuple[bytes, list[Array]]], deadline: float | None) -> Exchange:
        """Sends steps, each serialized and with its arrays. An OSError says that the relay is not there, and a TimeoutError that
        it has not taken them by the deadline."""
        one = self._take(deadline)
        try:
            one.send([encode_request(i, *request) for i, request in enumerate(requests)], deadline)
        except BaseException:
            self.give(one, whole=False)
            raise
        return Exchange(self, one, len(requests))

    def _take(self, deadline: float | None) -> _Socket:
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is closed")
            if self._idle:
                one = self._idle.pop()
                self._busy.add(one)
                return one
        self._ensure()
        one = _Socket(self._address, self._lane, deadline)
        with self._lock:
            if not self._closed:
                self._busy.add(one)
                return one
        one.close()
        raise ConnectionError("the client is closed")

    def give(self, one: _Socket, whole: bool) -> None:
        """Takes back a socket. If its exchange is not whole it is closed, and so are those that wait: the relay may have ended."""
        with self._lock:
            self._busy.discard(one)
            ended = [] if whole else [one, *self._idle]
            if not whole:
                self._idle.clear()
            elif self._closed or len(self._idle) == _KEPT:
                ended.append(one)
            else:
                self._idle.append(one)
        for each in ended:
            each.close()

    def close(self) -> None:
        """Ends all exchanges. What has not been answered fails."""
        with self._lock:
            self._closed = True
            idle, busy = list(self._idle), list(self._busy)
            self._idle.clear()
        for one in busy:
            one.shut()  # its exchange closes it
        for one in idle:
            one.close()


class Exchange:
    """Steps that were sent together on a socket."""

    def __init__(self, lane: PlainLane, one: _Socket, count: int) -> None:
        self._lane, self._socket, self._count = lane, one, count

    def receive(self, deadline: float | None, take: Callable[[int, Response], None]) -> dict[int, Exception]:
        """Gives each answer to take as it comes, with the number of its request; its payload holds until take returns. Returns
        the errors of requests that have no answer."""
        missing = dict.fromkeys(range(self._count))
        try:
            while missing:
                response = self._socket.receive(deadline)
                if missing.pop(response.id, response) is not None:
                    raise ValueError(f"an answer to step {response.id}, which was not asked")
                take(response.id, response)
        except (OSError, ValueError, LaneEndedError) as e:
            return dict.fromkeys(missing, e)
        finally:
            self._lane.give(self._socket, not missing)
        return {}

    def abandon(self) -> None:
        """Lets the steps go: nobody waits for the answers."""
        self._lane.give(self._socket, whole=False)


class _Socket:
    """One connection. One thread uses it at a time."""

    def __init__(self, address: str, lane: bytes, deadline: float | None) -> None:
        within = time.monotonic() + _CONNECT_SECONDS
        if deadline is not None:
            within = min(within, deadline)
        if address.startswith("unix:"):
            self._socket = socket.socket(socket.AF_UNIX)
        else:
            host, _, port = address.rpartition(":")
            self._socket = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
        self._early = bytearray()  # what came while requests were sent
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0  # of the buffer, what has come and was not read
        try:
            self._limit(within)
            if address.startswith("unix:"):
                self._socket.connect(address.removeprefix("unix:"))
            else:
                self._socket.connect((host.strip("[]"), int(port)))
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(_HELLO.pack(_MAGIC, _VERSION, 0, lane))
            magic, version, _ = _ANSWER.unpack(self._take(_ANSWER.size))
            if magic != _MAGIC or version != _VERSION:
                raise ProtocolError(f"{address} speaks version {version} of plain lanes, this side {_VERSION}: use coord and headwater of one release")
        except BaseException:
            self._socket.close()
            raise

    def _limit(self, deadline: float | None) -> None:
        """Lets the next call on the socket last until then."""
        if deadline is None:
            left = None
        elif (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError("no answer in time")
        if left != self._socket.gettimeout():
            self._socket.settimeout(left)

    def send(self, requests: Sequence[tuple[list[Buffer], int]], deadline: float | None) -> None:
        """Sends requests together, each in pieces and with its size."""
        self._limit(deadline)
        parts: list[Buffer] = []
        size = 0
        for pieces, n in requests:
            parts.append(_HEADER.pack(_MESSAGE, n))
            parts.extend(pieces)
            size += _HEADER.size + n
        if size <= _BUFFER and len(parts) <= _PARTS:  # which the socket has room for
            sent = self._socket.sendmsg(parts)
            if sent == size:
                return
            self._send_rest(b"".join(parts)[sent:], deadline)
            return
        for at in range(0, len(parts), _PARTS):
            self._send_rest(b"".join(parts[at : at + _PARTS]), deadline)

    def _send_rest(self, data: bytes, deadline: float | None) -> None:
        """Sends what may be more than the relay reads before it is read from."""
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        while view:
            left = None if deadline is None else 1000 * max(deadline - time.monotonic(), 0)
            ready = poll.poll(left)
            if not ready:
                raise TimeoutError("the steps were not taken in time")
            if ready[0][1] & ~select.POLLOUT:
                came = self._socket.recv(_BUFFER)
                if not came:
                    raise ConnectionError("the relay has closed the lane")
                self._early += came
            if ready[0][1] & select.POLLOUT:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    pass

    def receive(self, deadline: float | None) -> Response:
        """The next answer."""
        if deadline is not None:  # without one, sending has taken the limit away
            self._limit(deadline)
        kind, size = _HEADER.unpack(self._take(_HEADER.size))
        if kind not in (_MESSAGE, _END) or size > constants.MAX_MESSAGE_BYTES:
            raise ValueError(f"a record of kind {kind} and {size} bytes")
        body = self._take(size)
        if kind == _MESSAGE:
            return decode_response(body)
        status = status_pb2.Status()
        try:
            status.ParseFromString(bytes(body))
        except DecodeError as e:
            raise ValueError(f"the end of a lane: {e}") from e
        raise LaneEndedError(status)

    def _take(self, n: int) -> memoryview:
        """The next n bytes, which hold until the next call."""
        if self._early:
            return self._take_early(n)
        there = self._end - self._at
        if there < n:
            if n > len(self._buffer):
                whole = memoryview(bytearray(n))
                whole[:there] = self._view[self._at : self._end]
                self._at = self._end = 0
                self._fill(whole, there)
                return whole
            if there:  # what was handed out before is read, or copied
                self._view[:there] = bytes(self._view[self._at : self._end])
            self._at, self._end = 0, there
            while self._end < n:
                came = self._socket.recv_into(self._view[self._end :])
                if not came:
                    raise ConnectionError("the relay has closed the lane")
                self._end += came
        taken = self._view[self._at : self._at + n]
        self._at += n
        return taken

    def _take_early(self, n: int) -> memoryview:
        whole = memoryview(bytearray(n))
        there = min(n, len(self._early))
        whole[:there] = self._early[:there]
        del self._early[:there]
        self._fill(whole, there)
        return whole

    def _fill(self, whole: memoryview, at: int) -> None:
        while at < len(whole):
            came = self._socket.recv_into(whole[at:])
            if not came:
                raise ConnectionError("the relay has closed the lane")
            at += came

    def shut(self) -> None:
        """Wakes who waits on the socket."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more

    def close(self) -> None:
        """Ends the connection, and with it what was not answered."""
        self._socket.close()
