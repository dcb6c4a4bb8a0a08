"""The connection to one server: a coordinator, or the relay that this client owns."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from . import address as addresses
from . import constants
from .arrays import Array
from .errors import (
    PROTOCOL_KEY,
    DeadlineError,
    HeadwaterError,
    ProtocolError,
    UnreachableError,
    call_error,
    lane_error,
    one_line,
    session_error,
    stream_error,
)
from .lane import METADATA_KEY, Stream, Streamed
from .plain_lane import Exchange, LaneEndedError, PlainLane, local_socket
from .relay import Relay
from .security import Security, Stamp
from .v1 import session_pb2

METADATA = ((PROTOCOL_KEY, constants.PROTOCOL),)

_OPTIONS = [
    ("grpc.max_receive_message_length", 2 * constants.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", constants.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", int(1000 * constants.KEEPALIVE_SECONDS)),
    ("grpc.keepalive_timeout_ms", int(1000 * constants.KEEPALIVE_TIMEOUT_SECONDS)),
    ("grpc.initial_reconnect_backoff_ms", int(100 * constants.RECONNECT_SECONDS)),
    ("grpc.max_reconnect_backoff_ms", int(1000 * constants.RECONNECT_SECONDS)),
]

# The variables that name a proxy are meant for the way out of the cluster.
_NO_PROXY = [("grpc.enable_http_proxy", 0)]

R = TypeVar("R", bound=Message)
Sent = Streamed | Exchange
"""Steps that were sent together."""


class Connection:
    """A channel, and this client's lane over it. Safe for threads. The first call connects."""

    def __init__(self, address: str, *, relay: Relay | None = None, proxy: bool = False, security: Security | None = None) -> None:
        self.address = addresses.parse(address)
        self._relay, self._proxy = relay, proxy
        self._security = security or Security("")
        if relay is None:
            self._security.check(self.address, proxy)
        self._to_sockets = relay is not None and not relay.secured
        self.lane = secrets.token_bytes(16)
        self._plain = None if relay is None else PlainLane(relay.lanes, self.lane, relay.ensure)
        self._process = os.getpid()
        self._lock = threading.Lock()  # guards the rest
        self._channel: grpc.Channel | None = None
        self._stamp: Stamp = ()  # of the certificate that the channel has
        self._before: list[grpc.Channel] = []  # with certificates of before
        self._stream: Stream | None = None
        self._near: dict[bytes, PlainLane | None] = {}  # by the worker's boot
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._closed

    def _check(self) -> None:
        """Refuses a process other than the one that connected, before any lock is taken: gRPC's threads end with a fork, and
        locks may be held for ever."""
        if self._process != os.getpid():
            raise HeadwaterError("this client was made before os.fork, and can't be used in the child: make a client there")
        if self._closed:
            raise HeadwaterError("the client is closed")

    def channel(self) -> grpc.Channel:
        """The channel, which lives until close."""
        self._check()
        if self._relay is not None:
            self._relay.ensure()
        with self._lock:
            return self._open()

    def _open(self) -> grpc.Channel:
        if self._closed:
            raise HeadwaterError("the client is closed")
        stamp: Stamp = ()
        if self._security.folder:
            try:
                stamp = self._security.stamp()
            except ValueError:  # as while they are being replaced
                stamp = self._stamp
        if self._channel is None or stamp != self._stamp:
            options = _OPTIONS if self._proxy else _OPTIONS + _NO_PROXY
            if self._channel is not None:
                self._before.append(self._channel)
            self._channel, self._stamp = self._security.channel(addresses.target(self.address), list(options)), stamp
        return self._channel

    def send(self, requests: Sequence[tuple[bytes, list[Array]]], deadline: float | None, near: PlainLane | None = None) -> Sent:
        """Sends steps together on the lane, each serialized and with its arrays: on the plain lane of a worker that is near or of
        the relay, or as gRPC to a server that is not this client's relay. An error means what step_error says."""
        self._check()
        if (plain := near or self._plain) is not None:
            return plain.send(requests, deadline)
        with self._lock:
            if self._stream is None or self._stream.broken:
                self._stream = Stream(self._open(), (*METADATA, (METADATA_KEY, self.lane.hex())))
            stream = self._stream
        return stream.send(requests)

    def near(self, boot: bytes) -> PlainLane | None:
        """The lane to the worker of a boot, if this client goes directly to workers in plain text and this one serves it on this
        machine. A client with a certificate or a token leaves its steps to the relay, which shows it: a socket's lane is nobody's."""
        if not self._to_sockets:
            return None
        with self._lock:
            if boot not in self._near:
                path = local_socket(boot)
                self._near[boot] = None if path is None or self._closed else PlainLane("unix:" + path, self.lane)
            return self._near[boot]

    def step_error(self, doing: str, error: Exception) -> Exception:
        """What it means for a step that it could not be sent, or has no answer."""
        if isinstance(error, HeadwaterError):
            return error
        if self._closed:
            return HeadwaterError(f"{doing}: the client is closed")
        if isinstance(error, grpc.RpcError):
            return stream_error(doing, self.address, error)
        if isinstance(error, LaneEndedError):
            return lane_error(doing, self.address, error.status)
        if isinstance(error, TimeoutError):
            return DeadlineError(doing, self.address, grpc.StatusCode.DEADLINE_EXCEEDED, "it has not answered in time")
        if isinstance(error, OSError):
            return UnreachableError(doing, self.address, grpc.StatusCode.UNAVAILABLE, one_line(str(error)))
        if isinstance(error, ValueError):
            why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_BUSY, message=str(error))
            return session_error(doing, why, self.address)
        return error

    def call(self, doing: str, method: str, request: Message, answer: type[R], timeout: float | None = None) -> R:
        """Makes a unary call, and refuses a server of another major version."""
        stub = self.channel().unary_unary(
            f"/headwater.v1.{method}", request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        with self.errors(doing):
            response, call = stub.with_call(request, timeout=timeout, metadata=METADATA)
        self.check_version(call.initial_metadata())
        result: R = response
        return result

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Makes errors of gRPC what they mean."""
        try:
            yield
        except grpc.RpcError as e:
            if self._closed:
                raise HeadwaterError(f"{doing}: the client is closed") from e
            name = addresses.through_proxy(self.address) if self._proxy else self.address
            raise call_error(doing, name, e, self._relay is not None) from e
        except ValueError as e:
            if self._closed:  # gRPC's own words for it
                raise HeadwaterError(f"{doing}: the client is closed") from e
            raise

    def check_version(self, metadata: Sequence[tuple[str, str | bytes]] | None) -> None:
        """Refuses a server of another major version. One that says nothing is let be."""
        own = constants.PROTOCOL
        for key, value in metadata or ():
            if key == PROTOCOL_KEY and str(value).partition(".")[0] != own.partition(".")[0]:
                raise ProtocolError(f"{self.address} speaks headwater protocol {value!r}, this side {own}: the major versions differ")

    def close(self) -> None:
        """Ends the channel and all calls on it. In the child of a fork it does nothing: they are the parent's."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            stream, channels = self._stream, [c for c in (*self._before, self._channel) if c is not None]
            self._stream = self._channel = None
            lanes = [self._plain, *self._near.values()]
        for lane in lanes:
            if lane is not None:
                lane.close()
        if stream is not None:
            stream.close()
        for channel in channels:
            channel.close()
