"""Lanes: the streams that carry steps, and their messages, whose tensors protobuf does not copy.

A LaneRequest is its id, a Step and the payload. The Step is small and made by protobuf; the message around it is written
here, so that the tensors are copied once, into the message. Of a LaneResponse, the payload is a view.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from .arrays import Array
from .v1 import session_pb2

Buffer = bytes | memoryview
METHOD = "/headwater.v1.SessionService/Lane"
METADATA_KEY = "headwater-lane"


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def encode_request(id: int, step: bytes, payload: Iterable[Array]) -> tuple[list[Buffer], int]:
    """A LaneRequest in pieces, a serialized Step and arrays in C order one after the other, and how many bytes they are."""
    parts: list[Buffer] = [b""]
    size = 0
    for a in payload:
        n = a.nbytes
        if n:
            size += n
            parts.append(a.data)
    head = b"\x08" + _varint(id) + b"\x12" + _varint(len(step)) + step
    if size:
        head += b"\x1a" + _varint(size)
    parts[0] = head
    return parts, len(head) + size


@dataclass(slots=True)
class Response:
    """A LaneResponse. The payload is a view of what was received."""

    id: int
    result: session_pb2.StepResult
    payload: memoryview


def _number(data: Buffer, at: int) -> tuple[int, int]:
    """The varint at a place, and the place after it."""
    n = shift = 0
    while at < len(data) and shift <= 63:
        b = data[at]
        at += 1
        n |= (b & 0x7F) << shift
        if b < 0x80:
            return n, at
        shift += 7
    raise ValueError("a lane's answer ends within a number")


def decode_response(data: Buffer) -> Response:
    """Reads a LaneResponse; a ValueError says that it is none."""
    view = memoryview(data)
    id, result, payload = 0, view[:0], view[:0]
    at, end = 0, len(data)
    while at < end:
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == 0:
            n, at = _number(data, at)
            if tag == 0x08:
                id = n
            continue
        if kind == 2:
            size, at = _number(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a lane's answer has a field of type {kind}")
        if size > end - at:
            raise ValueError(f"a lane's answer has a field of {size} bytes, {end - at} are there")
        if tag == 0x12:
            result = view[at : at + size]
        elif tag == 0x1A:
            payload = view[at : at + size]
        at += size
    try:
        parsed = session_pb2.StepResult.FromString(bytes(result))
    except DecodeError as e:
        raise ValueError(f"a lane's answer: {e}") from e
    return Response(id, parsed, payload)


class Pending:
    """An answer that will come: result() waits for it."""

    def __init__(self) -> None:
        self._ready = threading.Lock()
        self._ready.acquire()
        self._response: Response | None = None
        self._error: Exception | None = None

    def _set(self, response: Response | None, error: Exception | None) -> None:
        self._response, self._error = response, error
        self._ready.release()

    def result(self, timeout: float | None) -> Response:
        """The answer, or the error that ended the stream; TimeoutError after so many seconds."""
        if not self._ready.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise TimeoutError("no answer in time")
        self._ready.release()
        if self._error is not None:
            raise self._error
        assert self._response is not None
        return self._response


class Streamed:
    """Steps that were sent together on a stream."""

    def __init__(self, pending: list[Pending]) -> None:
        self._pending = pending

    def receive(self, deadline: float | None, take: Callable[[int, Response], None]) -> dict[int, Exception]:
        """Gives each answer to take, with the number of its request; its payload holds until take returns. Returns the errors of
        requests that have no answer."""
        failed: dict[int, Exception] = {}
        for i, pending in enumerate(self._pending):
            try:
                answer = pending.result(None if deadline is None else deadline - time.monotonic())
            except Exception as e:
                failed[i] = e
            else:
                take(i, answer)
        return failed

    def abandon(self) -> None:
        """Lets the steps go: nobody waits for the answers, which come and are passed over."""


class Stream:
    """A lane's stream to one holder. Any threads may send; a thread of its own receives, until close or an error."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _next, _pending and _error
        self._next = 1
        self._pending: dict[int, Pending] = {}
        self._error: Exception | None = None
        call = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=decode_response)
        self._call = call(self._outgoing(), metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="headwater-lane", daemon=True)
        self._reader.start()

    @property
    def broken(self) -> bool:
        """Whether the stream has ended."""
        with self._lock:
            return self._error is not None

    def send(self, requests: Sequence[tuple[bytes, list[Array]]]) -> Streamed:
        """Sends steps, each serialized and with its arrays, which are copied before this returns."""
        pending = [Pending() for _ in requests]
        with self._lock:
            if self._error is not None:
                raise self._error
            for one, (step, payload) in zip(pending, requests):
                id = self._next
                self._next += 1
                self._pending[id] = one
                # Within the lock, because steps of a session are done in the order sent.
                self._requests.put(b"".join(encode_request(id, step, payload)[0]))
        return Streamed(pending)

    def close(self) -> None:
        """Ends the stream and waits for its thread. What has not been answered fails."""
        self._requests.put(None)
        self._call.cancel()  # type: ignore[no-untyped-call]
        if threading.current_thread() is not self._reader:  # which may be where a client is collected
            self._reader.join()

    def _outgoing(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        error: Exception = ConnectionError("the holder has ended the lane")
        try:
            for response in self._call:
                with self._lock:
                    pending = self._pending.pop(response.id, None)
                if pending is not None:
                    pending._set(response, None)
        except (grpc.RpcError, ValueError) as e:
            error = e
        with self._lock:
            self._error = error
            unanswered = list(self._pending.values())
            self._pending.clear()
        self._requests.put(None)
        for pending in unanswered:
            pending._set(None, error)
