"""Sessions: sequences held open on the cluster.

The way of a step: prepare checks it and cuts it into messages (steps.py), batch sends them on the lane and again after what may
pass (together.py), and _take takes context and hashes of an answer. Whoever is spoken to, a coordinator or a relay, looks
like one holder of all groups; the rest of the rules stands there.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from . import codecs, constants, options, recovery
from .codecs import CODECS, SessionCodec
from .connection import Connection
from .errors import (
    ExistsError,
    FreedError,
    HeadwaterError,
    InvalidError,
    ProtocolError,
    SessionError,
    StaleEpochError,
    UnknownSessionError,
    session_error,
)
from .frames import FrameError
from .lane import Response
from .layer import Layer, Receipt
from .plain_lane import PlainLane
from .recovery import KeptRows
from .steps import Attention, Piece, Step, Work, prepare
from .together import Flight, batch
from .v1 import session_pb2

if TYPE_CHECKING:
    from .client import Client

_Answer = TypeVar("_Answer", bound=Message)


class Session:
    """A sequence held open on the cluster; Client.open makes one. One thread uses it at a time, different sessions are
    independent. It is a context manager, whose end is close: a session that was opened or forked is dropped unless it is to be
    kept or another client has taken it up, and one that was attached stays.

    id       the session's id, 16 bytes
    layers   its layers
    codec    how contexts come back
    timeout  seconds that a call may take; None is no limit
    keep     whether close, and the end of a `with`, leave the session on the cluster
    prefix   positions that were there when the session was opened, and need not be appended
    """

    id: bytes
    layers: tuple[Layer, ...]
    codec: SessionCodec
    timeout: float | None
    keep: bool
    prefix: int

    def __init__(
        self,
        connection: Connection,
        id: bytes,
        config: session_pb2.SessionConfig,
        layers: Sequence[Layer],
        state: session_pb2.SessionState,
        *,
        timeout: float | None,
        codec: SessionCodec,
        keep: bool,
        owner: Client,
    ) -> None:
        self.id, self.layers, self.codec, self.timeout, self.keep = id, tuple(layers), codec, timeout, keep
        self._config = config
        self._connection = connection
        self._owner = owner  # the client, which would close the connection if nobody had it
        self._chooser = codecs.Chooser()
        self._near: PlainLane | None = None  # to the one worker that holds all, if it is on this machine
        self._closed = False
        self._epoch = 0
        self._truncations = 0
        self._state: list[tuple[int, list[int]]] = []  # of each layer its length and its groups' hashes
        self._chains: list[int] = []  # of each layer, of the appends and truncations that have made it
        self._unsure: dict[int, int] = {}  # by layer, the id of an append that failed and may have been done
        self._cutting: session_pb2.TruncateSessionRequest | None = None  # that may have been done, and comes before all else
        self._update(state)
        self.prefix = len(self)

    def __len__(self) -> int:
        """Positions that all layers have."""
        return min(self.length(i) for i in range(len(self._state)))

    def __bool__(self) -> bool:
        """Always true, also without a position."""
        return True

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except HeadwaterError:
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<headwater.Session {self.id.hex()}, {len(self)} positions, {len(self.layers)} layers>"

    def length(self, layer: int) -> int:
        """Positions that a layer has; within a token, earlier layers have one more."""
        length = self._state[layer][0]
        return length if self._cutting is None else min(length, self._cutting.lengths[layer])

    def receipt(self) -> Receipt:
        """The session's receipt as of now."""
        return Receipt(self.id, self._truncations, tuple((length, tuple(hashes)) for length, hashes in self._state))

    def step(
        self,
        layer: int,
        q: npt.ArrayLike | None = None,
        k: npt.ArrayLike | None = None,
        v: npt.ArrayLike | None = None,
        positions: int | npt.ArrayLike | None = None,
        *,
        mask: npt.ArrayLike | None = None,
        tokens: Sequence[int] | npt.ArrayLike | None = None,
        out: Any = None,
        out_lse: Any = None,
    ) -> Attention:
        """Appends k [tokens, n_kv_heads, head_dim] and v [tokens, n_kv_heads, v_dim] to a layer, then lets
        q [query tokens, n_heads, head_dim] attend over all that is there; both or either.

        Arrays are float32, float16 or ml_dtypes.bfloat16, or CPU tensors of PyTorch, and are narrowed to the layer's storage
        type by the rules of docs/numerics.md. positions are those of the query tokens, or the first one's; they follow each
        other, and by default are the newest. mask [query tokens, n] shows, for trees of drafts, which of the n newest positions
        a query sees. tokens are the ids of the appended tokens, so that others find them as a prefix.

        Context [query tokens, n_heads, v_dim] and LSE [query tokens, n_heads] are written to out and out_lse where given, arrays
        or tensors of any strides: float32 where they lie if that is this machine's memory, float16 and bfloat16 narrowed. The bits do not depend on how tokens are cut into steps. After an error the session is as it
        was before the step.
        """
        return batch([Step(self, layer, q, k, v, positions, mask, tokens, out, out_lse)])[0]

    def truncate(self, position: int) -> None:
        """Takes back the positions from this one on, in every layer that has them. If the outcome is not known, as after a
        deadline, it counts as done, and the next call makes it whole."""
        self._check_open()
        doing = f"truncate session {self.id.hex()}"
        self._cut(doing, options.whole("position", position, 0, constants.MAX_POSITIONS), self.timeout)

    def fork(self, position: int | None = None, *, keep: bool = False) -> Session:
        """Makes a session that begins with the positions of this one, or those before position. Memory is shared until one
        of both appends. keep is as in Client.open."""
        self._check_open()
        doing = f"fork session {self.id.hex()}"
        at = None if position is None else options.whole("position", position, 0, constants.MAX_POSITIONS)
        self._settle(doing, self.timeout)
        child = secrets.token_bytes(16)
        request = session_pb2.ForkSessionRequest(
            session=self.id,
            epoch=self._own_epoch(),
            truncations=self._truncations,
            child=child,
            child_epoch=session_pb2.Epoch(counter=1, lane=self._connection.lane),
            position=at,
            expect=self._known(),
            call=new_id(),
        )
        try:
            state = self._call(doing, "ForkSession", request, session_pb2.ForkSessionResponse).state
            return Session(
                self._connection, child, self._config, self.layers, state, timeout=self.timeout, codec=self.codec, keep=keep, owner=self._owner
            )
        except BaseException as e:
            if not isinstance(e, ExistsError):
                abandon(self._connection, child, self.timeout, request.call)
            raise

    def recover(self, rows: KeptRows | None = None, *, snapshot: str | os.PathLike[str] | None = None) -> Session:
        """Makes a session like this one, which is lost in part or gone: with the same layers and positions, and so the same contexts
        and receipts from there on.

        rows(layer, start, count) supplies keys and values of a layer from a position on, as they were appended; it is called layer
        by layer and ascending, for all positions, those of a prefix as well. snapshot is the path of a snapshot of the session, of
        now or of an earlier time (docs/snapshot.md): then rows are asked only from its end on. If a row differs in any bit as it is
        stored, a DifferentError is raised, and nothing of the new session stays. If it goes well, this session is closed, and what
        workers still have of it is dropped. SessionError.lost says what was lost of it.
        """
        self._check_open()
        return recovery.recover(self, self._owner, rows, snapshot)

    def pin(self, pinned: bool = True) -> None:
        """Keeps the session from being dropped for want of room or use, or no longer."""
        self._check_open()
        request = session_pb2.PinSessionRequest(session=self.id, pinned=pinned)
        self._call(f"pin session {self.id.hex()}", "PinSession", request, session_pb2.PinSessionResponse)

    def drop(self) -> None:
        """Ends the session on the cluster and frees its memory."""
        self._check_open()
        request = session_pb2.DropSessionRequest(session=self.id, epoch=self._own_epoch())
        self._call(f"drop session {self.id.hex()}", "DropSession", request, session_pb2.DropSessionResponse)
        self._closed = True

    def close(self) -> None:
        """Ends the use of the session. One that was opened or forked is dropped; one that was attached, or that is to be kept
        (keep), stays on the cluster until its TTL, and Client.attach takes it up again. A session may be closed twice."""
        try:
            if not (self._closed or self.keep):
                self.drop()
        except (UnknownSessionError, StaleEpochError):
            pass  # it has ended already, or another client drives it
        finally:
            self._closed = True

    # What follows is the session's own.

    def _abandon(self) -> None:
        """Drops what is left of it, whoever drives it; what can't be dropped ends by its TTL."""
        abandon(self._connection, self.id, self.timeout, 0)
        self._closed = True

    def _known_hashes(self, layer: int) -> list[int] | None:
        """The hashes of a layer's groups; None if a truncation is under way, of which they are not known."""
        length, hashes = self._state[layer]
        return hashes if length == self.length(layer) else None


    def _check_open(self) -> None:
        if self._closed:
            raise HeadwaterError(f"session {self.id.hex()} is closed")

    def _own_epoch(self) -> session_pb2.Epoch:
        return session_pb2.Epoch(counter=self._epoch, lane=self._connection.lane)

    def _call(self, doing: str, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        return self._call_within(self.timeout, doing, method, request, answer)

    def _call_within(self, timeout: float | None, doing: str, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        try:
            return self._connection.call(doing, f"SessionService/{method}", request, answer, timeout)
        except SessionError as e:
            self._explain(e)
            raise

    def _explain(self, error: BaseException) -> None:
        """Has the error of a call on this session say what is lost of it."""
        if isinstance(error, SessionError):
            error.tell_lost([(layer.shards, self.length(i)) for i, layer in enumerate(self.layers)])

    def _cut(self, doing: str, position: int | None, timeout: float | None) -> None:
        """Cuts every layer to position, and to what this client knows to be there: what a failed step has left goes as well,
        and what is still on its way of one is refused, since it was sent before the truncation."""
        if self._cutting is not None:
            self._finish_cut(doing, timeout)
        known = [length for length, _ in self._state]
        lengths = known if position is None else [min(position, length) for length in known]
        self._cutting = session_pb2.TruncateSessionRequest(
            session=self.id,
            epoch=self._own_epoch(),
            truncations=self._truncations,
            count=self._truncations + 1,
            id=new_id(),
            lengths=lengths,
            expect=self._known(),
        )
        self._finish_cut(doing, timeout)

    def _finish_cut(self, doing: str, timeout: float | None) -> None:
        """Does the truncation that is under way. By its id it is known to who has done it."""
        request, answer = self._cutting, session_pb2.TruncateSessionResponse
        assert request is not None
        try:
            self._update(self._call_within(timeout, doing, "TruncateSession", request, answer).state)
        except (FreedError, InvalidError):
            self._cutting = None  # nobody has done it
            raise

    def _known(self) -> list[session_pb2.LayerState]:
        """What this client knows to be there."""
        return [
            session_pb2.LayerState(layer=i, length=length, hashes=hashes, chain=self._chains[i], append_id=self._unsure.get(i, 0))
            for i, (length, hashes) in enumerate(self._state)
        ]

    def _settle(self, doing: str, timeout: float | None) -> None:
        """Makes sure, after a call that failed, that what is held is what this client knows to be there and no more."""
        if self._cutting is not None:
            self._finish_cut(doing, timeout)
        elif self._unsure:
            self._cut(doing, None, timeout)

    def _update(self, state: session_pb2.SessionState) -> None:
        if len(state.layers) != len(self.layers):
            raise ProtocolError(f"session {self.id.hex()}: it tells of {len(state.layers)} of {len(self.layers)} layers")
        lengths = []
        for i, (told, layer) in enumerate(zip(state.layers, self.layers)):
            if told.layer != i or len(told.hashes) != layer.shards:
                raise ProtocolError(f"session {self.id.hex()}: layer {told.layer} with {len(told.hashes)} hashes is not layer {i}")
            lengths.append((told.length, list(told.hashes)))
        # An epoch that others have stepped on this client's behalf has its own counter as its base.
        self._state, self._epoch, self._truncations = lengths, state.epoch.base or state.epoch.counter, state.truncations
        self._chains, self._unsure, self._cutting = [told.chain for told in state.layers], {}, None
        self._near = self._find_near(state)

    def _find_near(self, state: session_pb2.SessionState) -> PlainLane | None:
        """The lane to the worker that holds all of the session, if that is on this machine and no other one has been left out."""
        if len(state.holders) != 1 or state.epoch.base or state.epoch.closed:
            return None
        one = state.holders[0]
        if len(one.layers) != len(self.layers) or any(len(held.groups) != layer.n_kv_heads for held, layer in zip(one.layers, self.layers)):
            return None
        return self._connection.near(one.boot)

    def _prepare(self, step: Step) -> Work:
        self._check_open()
        if type(step.layer) is not int or not 0 <= step.layer < len(self.layers):
            step.layer = options.whole("layer", step.layer, 0, len(self.layers) - 1)
        return prepare(step, self.layers[step.layer], self.length(step.layer), self._near is not None)

    def _request(self, work: Work, piece: Piece) -> session_pb2.Step:
        """One message of a step, but for its tensors."""
        appended, queries = piece
        length, hashes = self._state[work.layer]
        attend = queries.stop - queries.start
        request = session_pb2.Step(
            session=self.id,
            epoch=self._epoch,
            truncations=self._truncations,
            layer=work.layer,
            length=length,
            hashes=hashes,
            append=appended.stop - appended.start,
            attend=attend,
            query_position=work.position + queries.start if attend else 0,
            encoding=work.encoding,
            codec=self._chooser.codec() if self.codec == "auto" and attend and self._near is None else CODECS[self.codec],
            tokens=None if work.tokens is None else work.tokens[appended],
            chain=self._chains[work.layer],
        )
        if request.append:
            request.append_id = new_id()
        if work.mask is not None and attend:
            request.tree = work.mask.shape[1]
            request.tree_mask = _pack(work.mask[queries])
        return request

    def _take(self, flight: Flight, answer: Response) -> None:
        """Takes context and hashes of a message's answer, or raises the error that its refusal means."""
        work, request, result = flight.work, flight.request, answer.result
        address = self._connection.address
        if result.HasField("error"):
            raise session_error(flight.doing, result.error, address)
        layer = work.shape
        after = request.length + request.append
        if result.length != after or len(result.hashes) != layer.shards:
            raise ProtocolError(f"{flight.doing}: {address} answers with length {result.length} and {len(result.hashes)} hashes")
        if request.attend:
            if result.codec != request.codec:
                raise ProtocolError(f"{flight.doing}: {address} answers in codec {result.codec}, not {request.codec}")
            rows = request.attend * layer.n_heads
            try:
                context, lse = codecs.decode(answer.payload, request.codec, rows, layer.group_size, layer.v_dim)
            except FrameError as e:
                raise ProtocolError(f"{flight.doing}: {address} answers with a context that can't be read: {e}") from e
            work.take(flight.piece, context, lse)
            if self.codec == "auto" and self._near is None:
                working = (result.compute_nanos + result.queue_nanos) / 1e9
                self._chooser.measured(request.codec, time.monotonic() - flight.sent - working, rows * layer.v_dim)
        self._state[work.layer] = (after, list(result.hashes))
        self._chains[work.layer] = result.chain

    def _failed(self, request: session_pb2.Step) -> None:
        """Notes that nobody knows whether a message's append was done."""
        if request.append:
            self._unsure[request.layer] = request.append_id


def _pack(mask: npt.NDArray[np.bool_]) -> bytes:
    return np.packbits(mask, axis=1, bitorder="little").tobytes()


_ids = random.Random()  # seeded by the system
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.seed)


def new_id() -> int:
    """A random id of an append, a truncation or a call, not 0."""
    return _ids.getrandbits(64) or 1



def abandon(connection: Connection, session: bytes, timeout: float | None, call: int) -> None:
    """Drops what a call may have made in vain, or will make when it arrives. What can't be dropped ends by its TTL."""
    request = session_pb2.DropSessionRequest(session=session, call=call)
    doing = f"drop session {session.hex()}"
    try:
        limit = min(timeout or constants.ABANDON_SECONDS, constants.ABANDON_SECONDS)
        connection.call(doing, "SessionService/DropSession", request, session_pb2.DropSessionResponse, limit)
    except HeadwaterError:
        pass
