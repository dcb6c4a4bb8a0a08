"""Steps of any sessions done together: batch and step_many.

The way of a batch: its steps are checked, and go in rounds. A round has one message of each layer of a session, since a later one
builds on what the earlier has appended, and each lane is sent its messages together. A round ends when all are answered; a message
that failed for what may pass is sent again in the next one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from . import constants
from .connection import Connection, Sent
from .errors import LostError, ProtocolError, StaleEpochError, UnknownSessionError, UnreachableError, transient
from .lane import Response
from .plain_lane import PlainLane
from .steps import Attention, Piece, Step, Work
from .v1 import session_pb2

if TYPE_CHECKING:
    from .session import Session

_ELSEWHERE = (UnreachableError, LostError, StaleEpochError, UnknownSessionError, ProtocolError)
"""What a worker says, or its silence, where others may have the session by now. The relay finds out."""
_TOGETHER = 256
"""Messages of a round; a relay reads as many of a lane before it answers."""


@dataclass(slots=True)
class Flight:
    """One message under way."""

    step: int  # its place among the steps
    session: Session
    work: Work
    piece: Piece
    request: session_pb2.Step
    sent: float = 0.0
    attempts: int = 0
    near: bool = False  # whether it went to a worker on this machine, and not by the relay
    error: Exception | None = None  # of the last attempt
    way: Iterator[Flight] = iter(())  # the messages that come after it

    @property
    def bytes(self) -> int:
        """About how many bytes of tensors it has there and back."""
        shape = self.work.shape
        key, query = shape.n_kv_heads * (shape.head_dim + shape.v_dim), shape.n_heads * (shape.head_dim + shape.v_dim + 1)
        return 4 * (self.request.append * key + self.request.attend * query)

    @property
    def doing(self) -> str:
        """What is being done, for errors."""
        return f"step layer {self.work.layer} of session {self.session.id.hex()}"

    def fails(self, error: Exception) -> None:
        """Notes why it has no answer."""
        self.error = self.session._connection.step_error(self.doing, error)

    def take(self, answer: Response) -> None:
        """Takes its answer."""
        try:
            self.session._take(self, answer)
        except Exception as e:
            self.error = e


def batch(steps: Sequence[Step], *, timeout: float | None = None) -> list[Attention]:
    """Does steps of any sessions and layers together, and waits for all of them. Steps of one layer of a session are done in
    their order.

    If some fail, the others are done all the same, and the first one's error is raised; length() of their layers says which.
    timeout is for all together, and the shortest of the sessions' own by default.
    """
    if timeout is None:
        timeout = min((s.session.timeout for s in steps if s.session.timeout is not None), default=None)
    return _Batch(steps, None if timeout is None else time.monotonic() + timeout).run()


def step_many(
    sessions: Sequence[Session],
    layer: int,
    q: Sequence[npt.ArrayLike] | None = None,
    k: Sequence[npt.ArrayLike] | None = None,
    v: Sequence[npt.ArrayLike] | None = None,
    positions: Sequence[int | npt.ArrayLike] | None = None,
    *,
    masks: Sequence[npt.ArrayLike | None] | None = None,
    tokens: Sequence[Sequence[int] | npt.ArrayLike | None] | None = None,
    out: Sequence[Any] | None = None,
    out_lse: Sequence[Any] | None = None,
    timeout: float | None = None,
) -> list[Attention]:
    """Steps one layer of several sessions, the rows of a batch, and returns what each found. The steps go in one message, and
    their answers come in one.

    Every argument has one element for each session, which is what Session.step takes: [rows, tokens, heads, d] for rows of
    equal lengths, or a list of [tokens, heads, d] of any lengths. An element of k, v and q may be None where that row appends or
    attends nothing.

    If some rows fail, the others are done all the same, and the first one's error is raised; length() says which. timeout is for
    all together, and the shortest of the sessions' own by default.
    """
    from .session import Session

    rows = list(sessions)
    given: list[tuple[str, Sequence[Any] | None]]
    given = [("q", q), ("k", k), ("v", v), ("positions", positions), ("masks", masks), ("tokens", tokens), ("out", out), ("out_lse", out_lse)]
    for name, values in given:
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{name} has {len(values)} rows for {len(rows)} sessions")
    seen: dict[int, int] = {}
    for i, session in enumerate(rows):
        if not isinstance(session, Session):
            raise TypeError(f"sessions[{i}] is a {type(session).__name__}, not a Session")
        if (first := seen.setdefault(id(session), i)) != i:
            raise ValueError(f"sessions[{i}] is sessions[{first}] again: a row has a session of its own")
    columns: list[Sequence[Any]] = [[None] * len(rows) if values is None else values for _, values in given]
    return batch([Step(session, layer, *(c[i] for c in columns)) for i, session in enumerate(rows)], timeout=timeout)


class _Batch:
    """One call of batch."""

    def __init__(self, steps: Sequence[Step], deadline: float | None) -> None:
        self.steps, self.deadline = steps, deadline
        self.errors: dict[int, Exception] = {}  # by the step's place
        self.results: list[Attention | None] = [None] * len(steps)
        self.prepared: dict[int, Work] = {}  # by the step's place
        self.settled: set[int] = set()
        self.flying: list[Flight] = []

    def run(self) -> list[Attention]:
        # A wrong argument is an error before anything is sent. What builds on an earlier step is looked at after that one.
        layers: dict[tuple[int, int], list[int]] = {}
        for i, step in enumerate(self.steps):
            places = layers.setdefault((id(step.session), step.layer), [])
            if not places:
                self.prepared[i] = step.session._prepare(step)
            places.append(i)
        ways = deque(self.messages(places) for places in layers.values())
        try:
            while ways or self.flying:
                self.gather(ways)
                self.fly()
                self.land(ways)
        finally:
            # After an interruption nobody waits for these.
            for flight in self.flying:
                flight.session._failed(flight.request)
        if self.errors:
            raise self.errors[min(self.errors)]
        return [r for r in self.results if r is not None]

    def messages(self, places: list[int]) -> Iterator[Flight]:
        """The messages of the steps of one layer of a session, each made when the one before is answered."""
        for i in places:
            step = self.steps[i]
            session = step.session
            try:
                if id(session) not in self.settled:  # nothing of it is in flight before its first step
                    left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0)
                    session._settle(f"step layer {step.layer} of session {session.id.hex()}", left)
                    self.settled.add(id(session))
                work = self.prepared.pop(i, None) or session._prepare(step)
            except Exception as e:
                session._explain(e)
                self.errors.setdefault(i, e)
                continue
            for piece in work.pieces:
                if i not in self.errors:
                    yield Flight(i, session, work, piece, session._request(work, piece))
            if i not in self.errors:
                self.results[i] = work.finish()

    def gather(self, ways: deque[Iterator[Flight]]) -> None:
        """Adds to those that are sent again the next message of as many ways as a round has room for."""
        size = 0
        for flight in self.flying:
            size += flight.bytes
        while ways and (not self.flying or size < constants.STEP_BYTES and len(self.flying) < _TOGETHER):
            way = ways.popleft()
            coming = next(way, None)
            if coming is not None:
                coming.way = way
                if ways:
                    size += coming.bytes
                self.flying.append(coming)

    def fly(self) -> None:
        """Sends a round, and waits until each of its messages is answered or has failed."""
        lanes: dict[tuple[Connection, PlainLane | None], list[Flight]] = {}
        for flight in self.flying:
            session = flight.session
            flight.near = session._near is not None
            flight.request.at = session._epoch if flight.near else 0
            lanes.setdefault((session._connection, session._near), []).append(flight)
        sent: list[tuple[list[Flight], Sent]] = []
        try:
            for (connection, near), flights in lanes.items():
                now = time.monotonic()
                for flight in flights:
                    flight.sent, flight.error, flight.attempts = now, None, flight.attempts + 1
                try:
                    requests = [(f.request.SerializeToString(), f.work.payload(f.piece)) for f in flights]
                    sent.append((flights, connection.send(requests, self.deadline, near)))
                except Exception as e:
                    for flight in flights:
                        flight.fails(e)
            while sent:
                flights, way = sent[-1]
                failed = way.receive(self.deadline, lambda i, answer: flights[i].take(answer))
                for i, error in failed.items():
                    flights[i].fails(error)
                sent.pop()
        finally:
            for _, way in sent:
                way.abandon()

    def land(self, ways: deque[Iterator[Flight]]) -> None:
        """Looks at what came of a round. What failed for what may pass is kept to be sent again, after a pause."""
        landed, self.flying = self.flying, []
        pause = 0.0
        for flight in landed:
            if flight.error is None:
                ways.append(flight.way)
                continue
            if flight.near and isinstance(flight.error, _ELSEWHERE):
                flight.session._near = None
                flight.attempts -= 1
                self.flying.append(flight)
                continue
            wait = constants.FIRST_PAUSE_SECONDS * 2 ** (flight.attempts - 1)
            late = self.deadline is not None and time.monotonic() + wait > self.deadline
            if transient(flight.error) and flight.attempts < constants.ATTEMPTS and not late:
                self.flying.append(flight)
                pause = max(pause, wait)
                continue
            flight.session._failed(flight.request)
            flight.session._explain(flight.error)
            self.errors.setdefault(flight.step, flight.error)
            ways.append(flight.way)
        if pause:
            time.sleep(pause)
