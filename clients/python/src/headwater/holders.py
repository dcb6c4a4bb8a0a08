"""Who holds a session, and the connections to them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from .address import through_proxy
from .errors import BusyError, HeadwaterError, ProtocolError, UnreachableError, call_error
from .lane import METADATA_KEY, Stream
from .v1 import session_pb2

PROTOCOL = "1.0"
PROTOCOL_KEY = "headwater-protocol"
DEFAULT_PORT = 7600

_OPTIONS = [
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
# The variables that name a proxy are meant for the way out of the cluster.
_NO_PROXY = [("grpc.enable_http_proxy", 0)]

R = TypeVar("R", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class Holder:
    """A worker that holds some groups of a session's layers, or the coordinator, which looks like one that holds all."""

    name: str
    address: str
    groups: tuple[tuple[int, ...], ...]  # by layer, ascending


def parse_holders(holders: Sequence[session_pb2.Holder], groups: Sequence[int]) -> list[Holder]:
    """Reads who holds a session's layers, of so many groups each: every group has one holder."""
    owners = [[0] * n for n in groups]
    parsed = []
    for h in holders:
        own: list[tuple[int, ...]] = [()] * len(groups)
        for held in h.layers:
            if held.layer >= len(groups) or any(g >= groups[held.layer] for g in held.groups):
                raise ProtocolError(f"holder {h.name} has groups that layer {held.layer} has not")
            own[held.layer] = tuple(held.groups)
            for g in held.groups:
                owners[held.layer][g] += 1
        parsed.append(Holder(h.name, h.address, tuple(own)))
    for layer, counts in enumerate(owners):
        if any(n != 1 for n in counts):
            raise ProtocolError(f"not every group of layer {layer} has one holder")
    return parsed


class Connections:
    """Channels by address, and this client's lane over them. Safe for threads. That to the coordinator is kept; one to a worker
    is closed after its last user, which is a call or the lane's stream, so that none is left of a worker that is gone."""

    def __init__(self, coordinator: str, *, proxy: bool = False) -> None:
        self._options = _OPTIONS if proxy else _OPTIONS + _NO_PROXY
        self._proxy = proxy
        self.lane = secrets.token_bytes(16)
        self._coordinator = coordinator
        self._lock = threading.Lock()  # guards the rest
        self._channels: dict[str, tuple[grpc.Channel, int]] = {}  # and the users of each
        self._streams: dict[str, Stream] = {}
        self._tasks: ThreadPoolExecutor | None = None
        self._closed = False

    def named(self, address: str) -> str:
        """The address as errors name it: with the proxy, if one is taken."""
        return through_proxy(address) if self._proxy else address

    def coordinator(self) -> grpc.Channel:
        """The channel to the coordinator, which lives until close."""
        with self._lock:
            return self._take(self._coordinator)

    def _take(self, address: str) -> grpc.Channel:
        if self._closed:
            raise HeadwaterError("the client is closed")
        channel, users = self._channels.get(address) or (grpc.insecure_channel(address, options=self._options), 0)
        self._channels[address] = channel, users + 1
        return channel

    def _release(self, address: str) -> None:
        with self._lock:
            if self._closed or address == self._coordinator:
                return
            channel, users = self._channels[address]
            if users > 1:
                self._channels[address] = channel, users - 1
                return
            del self._channels[address]
        channel.close()

    @contextmanager
    def _use(self, address: str) -> Iterator[grpc.Channel]:
        with self._lock:
            channel = self._take(address)
        try:
            yield channel
        finally:
            self._release(address)

    def stream(self, address: str) -> Stream:
        """The lane's stream to a holder; a new one if the last has broken."""
        with self._lock:
            stream = self._streams.get(address)
            if stream is None or stream.broken:
                metadata = ((PROTOCOL_KEY, PROTOCOL), (METADATA_KEY, self.lane.hex()))
                stream = self._streams[address] = Stream(self._take(address), metadata, lambda: self._ended(address))
            return stream

    def _ended(self, address: str) -> None:
        with self._lock:
            stream = self._streams.get(address)
            if stream is not None and stream.broken:  # else another has taken its place
                del self._streams[address]
        self._release(address)

    def call(
        self, doing: str, address: str, method: str, request: Message, answer: type[R], timeout: float | None = None
    ) -> R:
        """Makes a unary call, and refuses a side of another major version."""
        with self._use(address) as channel:
            stub = channel.unary_unary(
                f"/headwater.v1.{method}", request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
            )
            try:
                response, call = stub.with_call(request, timeout=timeout, metadata=((PROTOCOL_KEY, PROTOCOL),))
            except grpc.RpcError as e:
                raise call_error(doing, self.named(address), e) from e
        check_version(address, call.initial_metadata())
        result: R = response
        return result

    def each(self, holders: Sequence[Holder], do: Callable[[Holder], T]) -> list[T]:
        """Calls do for all holders beside each other. Of several errors, it raises one that asking again does not heal."""
        if len(holders) == 1:
            return [do(holders[0])]
        with self._lock:
            if self._tasks is None:
                self._tasks = ThreadPoolExecutor(thread_name_prefix="headwater")
            futures = [self._tasks.submit(do, h) for h in holders]
        errors = [e for f in futures if (e := f.exception()) is not None]
        if errors:
            raise min(errors, key=transient)
        return [f.result() for f in futures]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            streams, channels, tasks = list(self._streams.values()), [c for c, _ in self._channels.values()], self._tasks
            self._streams.clear()
            self._channels.clear()
        for stream in streams:
            stream.close()
        if tasks is not None:
            tasks.shutdown()
        for channel in channels:
            channel.close()


def transient(error: BaseException) -> bool:
    """Whether the same call may go well soon."""
    return isinstance(error, (UnreachableError, BusyError))


def check_version(address: str, metadata: Sequence[tuple[str, str | bytes]] | None) -> None:
    """Refuses a peer of another major version. One that says nothing is let be."""
    for key, value in metadata or ():
        if key == PROTOCOL_KEY and str(value).partition(".")[0] != PROTOCOL.partition(".")[0]:
            raise ProtocolError(f"{address} speaks headwater protocol {value!r}, this side {PROTOCOL}: the major versions differ")
