"""Plain lanes against a server that does what it is told."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.rpc import status_pb2

from headwater.errors import ProtocolError
from headwater.lane import Response
from headwater.plain_lane import LaneEndedError, PlainLane
from headwater.v1 import session_pb2

LANE = bytes(range(16))
Serve = Callable[[socket.socket], None]


def record(kind: int, body: bytes) -> bytes:
    return struct.pack(">BI", kind, len(body)) + body


def answer(id: int, payload: bytes = b"") -> bytes:
    return record(0, session_pb2.LaneResponse(id=id, payload=payload).SerializeToString())


def take(conn: socket.socket) -> session_pb2.LaneRequest:
    kind, size = struct.unpack(">BI", conn.recv(5, socket.MSG_WAITALL))
    assert kind == 0
    return session_pb2.LaneRequest.FromString(conn.recv(size, socket.MSG_WAITALL) if size else b"")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., PlainLane]]:
    """Serves connections, one after the other, and makes a lane to them."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def start(*each: Serve, version: int = 1) -> PlainLane:
        def run() -> None:
            try:
                for one in each:
                    conn, _ = listener.accept()
                    with conn:
                        assert conn.recv(24, socket.MSG_WAITALL) == b"HWln" + struct.pack("<HH", 1, 0) + LANE
                        conn.sendall(b"HWln" + struct.pack("<HH", version, 0))
                        one(conn)
            except BaseException as e:
                failures.append(e)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return PlainLane(f"unix:{tmp_path}/s", LANE, lambda: None)

    yield start
    for t in threads:
        t.join(30)
    listener.close()
    assert not failures


def ask(lane: PlainLane, payloads: list[int], seconds: float | None = 20) -> tuple[dict[int, bytes], dict[int, Exception]]:
    deadline = None if seconds is None else time.monotonic() + seconds
    got: dict[int, bytes] = {}

    def keep(i: int, response: Response) -> None:
        got[i] = bytes(response.payload)

    requests = [(b"", [np.full(n, i, np.uint8)]) for i, n in enumerate(payloads)]
    return got, lane.send(requests, deadline).receive(deadline, keep)


def test_steps_go_and_come_together(serve: Callable[..., PlainLane]) -> None:
    sizes = [5, 0, 70_000, 3, 1 << 20, 9]

    def echo(conn: socket.socket) -> None:
        for _ in range(2):  # the second exchange has the same socket
            requests = [take(conn) for _ in sizes]
            conn.sendall(b"".join(answer(r.id, r.payload) for r in reversed(requests)))
        assert conn.recv(1) == b""

    lane = serve(echo)
    for _ in range(2):
        got, failed = ask(lane, sizes)
        assert not failed and got == {i: bytes([i]) * n for i, n in enumerate(sizes)}
    lane.close()


def test_a_client_reads_while_it_sends(serve: Callable[..., PlainLane]) -> None:
    """A server that answers each step before it reads the next one."""

    def one_by_one(conn: socket.socket) -> None:
        for _ in range(8):
            r = take(conn)
            conn.sendall(answer(r.id, r.payload))

    lane = serve(one_by_one)
    got, failed = ask(lane, [2 << 20] * 8)
    assert not failed and [len(got[i]) for i in range(8)] == [2 << 20] * 8
    lane.close()


def test_what_has_no_answer_fails_and_the_next_exchange_connects_anew(serve: Callable[..., PlainLane]) -> None:
    ended = status_pb2.Status(code=8, message="no more")

    def half(conn: socket.socket) -> None:
        take(conn), take(conn)
        conn.sendall(answer(1) + record(128, ended.SerializeToString()))

    def closes(conn: socket.socket) -> None:
        take(conn)
        conn.sendall(answer(0, b"12345")[:-2])

    def other(conn: socket.socket) -> None:
        take(conn)
        conn.sendall(answer(7))

    def strange(conn: socket.socket) -> None:
        take(conn)
        conn.sendall(record(3, b""))

    def large(conn: socket.socket) -> None:
        take(conn)
        conn.sendall(struct.pack(">BI", 0, 1 << 31))

    def silent(conn: socket.socket) -> None:
        take(conn)
        assert conn.recv(1) == b""  # the client has closed it at its deadline

    def good(conn: socket.socket) -> None:
        conn.sendall(answer(take(conn).id))

    lane = serve(half, closes, other, strange, large, silent, good)
    got, failed = ask(lane, [1, 1])
    assert list(got) == [1] and isinstance(failed[0], LaneEndedError) and failed[0].status == ended
    for kind, why in ((ConnectionError, "closed the lane"), (ValueError, "step 7"), (ValueError, "kind 3"), (ValueError, "2147483648 bytes")):
        got, failed = ask(lane, [1])
        assert not got and isinstance(failed[0], kind) and why in str(failed[0])
    got, failed = ask(lane, [1], 0.05)
    assert not got and isinstance(failed[0], TimeoutError)
    assert ask(lane, [1]) == ({0: b""}, {})
    lane.close()


def test_another_version_is_refused(serve: Callable[..., PlainLane]) -> None:
    lane = serve(lambda conn: None, version=2)
    with pytest.raises(ProtocolError, match="speaks version 2 of plain lanes, this side 1"):
        ask(lane, [1])


def test_closing_wakes_who_waits(serve: Callable[..., PlainLane]) -> None:
    began = threading.Event()

    def wait(conn: socket.socket) -> None:
        take(conn)
        began.set()
        assert conn.recv(1) == b""

    lane = serve(wait)
    threading.Thread(target=lambda: (began.wait(), lane.close())).start()
    got, failed = ask(lane, [1], None)
    assert not got and isinstance(failed[0], ConnectionError)
    with pytest.raises(ConnectionError, match="the client is closed"):
        ask(lane, [1])
