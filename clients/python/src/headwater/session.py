"""Sessions: sequences held open on the cluster."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar, Union

import grpc
import numpy as np
import numpy.typing as npt

from . import frames
from .arrays import Array, Floats, check_finite, narrow_bfloat16, narrow_float16, to_float32
from .errors import DeadlineError, ExistsError, HeadwaterError, ProtocolError, UnknownSessionError, session_error, stream_error
from .holders import Connections, Holder, transient
from .lane import Pending
from .v1 import session_pb2, worker_pb2

Storage = Literal["f32", "f16", "bf16", "int8"]

_STORAGE: dict[str, worker_pb2.StorageType] = {
    "f32": worker_pb2.STORAGE_TYPE_F32,
    "f16": worker_pb2.STORAGE_TYPE_F16,
    "bf16": worker_pb2.STORAGE_TYPE_BF16,
    "int8": worker_pb2.STORAGE_TYPE_I8,
}

SessionCodec = Literal["auto", "raw", "exact", "bf16", "f16", "int8"]
"""How a session's contexts come back: as they are, in frames that return every bit, or in ones that narrow them. auto is raw or
exact, whichever takes less time as it is measured."""

_CODECS: dict[SessionCodec, session_pb2.StepCodec] = {
    "auto": session_pb2.STEP_CODEC_RAW,  # to begin with
    "raw": session_pb2.STEP_CODEC_RAW,
    "exact": session_pb2.STEP_CODEC_EXACT,
    "bf16": session_pb2.STEP_CODEC_BF16,
    "f16": session_pb2.STEP_CODEC_F16,
    "int8": session_pb2.STEP_CODEC_I8,
}
_FRAMES = {
    session_pb2.STEP_CODEC_EXACT: frames.EXACT,
    session_pb2.STEP_CODEC_BF16: frames.BF16,
    session_pb2.STEP_CODEC_F16: frames.F16,
    session_pb2.STEP_CODEC_I8: frames.INT8,
}


def check_codec(codec: str) -> None:
    if codec not in _CODECS:
        raise ValueError(f"codec {codec!r} is none of {', '.join(_CODECS)}")


# How many steps go by until the codec that seems slower is tried again.
_PROBE_EVERY = 256

# About how many bytes of tensors go in one message and its answer, so few that what a holder keeps for messages is little; the
# same where nothing attends, since such steps come as fast as they can be taken; and the most tokens of a step.
_STEP_BYTES = 8 << 20
_APPEND_BYTES = 2 << 20
_STEP_TOKENS = 1 << 16
# How often a step is sent that transient failures keep from being done, and the first pause between, which doubles.
_ATTEMPTS = 4
_FIRST_PAUSE = 0.01
# Seconds that each holder has to drop a fork that was made in vain.
_ABANDON_TIMEOUT = 10.0


@dataclass(frozen=True)
class Layer:
    """Geometry of one layer, how its keys and values are stored, and what its queries see."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int = 0
    """Elements of a value; 0 is head_dim."""
    storage: Storage = "f32"
    causal: bool = True
    window_left: int | None = None
    """Positions seen before the own one; None is all."""
    window_right: int | None = None
    """Positions seen after the own one; None is all."""
    scale: float = 0.0
    """Factor of the scores; 0 is 1/sqrt(head_dim)."""
    softcap: float = 0.0
    alibi_slopes: tuple[float, ...] = ()
    sinks: tuple[float, ...] = ()

    @property
    def group_size(self) -> int:
        return self.n_heads // self.n_kv_heads

    def __post_init__(self) -> None:
        if self.v_dim == 0:
            object.__setattr__(self, "v_dim", self.head_dim)

    def to_proto(self) -> session_pb2.SessionLayer:
        if self.storage not in _STORAGE:
            raise ValueError(f"storage {self.storage!r} is none of {', '.join(_STORAGE)}")
        if self.n_heads < 1 or self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        return session_pb2.SessionLayer(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            v_dim=self.v_dim,
            storage=_STORAGE[self.storage],
            causal=self.causal,
            window_left=-1 if self.window_left is None else self.window_left,
            window_right=-1 if self.window_right is None else self.window_right,
            scale=self.scale,
            softcap=self.softcap,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
        )

    @staticmethod
    def from_proto(p: session_pb2.SessionLayer) -> Layer:
        names = {number: name for name, number in _STORAGE.items()}
        if p.storage not in names or not p.n_kv_heads or p.n_heads % p.n_kv_heads:
            raise ProtocolError(f"a layer of {p.n_heads} heads, {p.n_kv_heads} groups and storage {p.storage}")
        storage: Storage = names[p.storage]  # type: ignore[assignment]
        return Layer(
            p.n_heads, p.n_kv_heads, p.head_dim, p.v_dim, storage, p.causal,
            None if p.window_left < 0 else p.window_left, None if p.window_right < 0 else p.window_right,
            p.scale, p.softcap, tuple(p.alibi_slopes), tuple(p.sinks),
        )  # fmt: skip


@dataclass(frozen=True)
class Receipt:
    """What a client knows that the cluster holds. One that brings it to Client.attach is never shown less."""

    session: bytes
    truncations: int
    layers: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each layer its length and the chained hash of each group."""

    def to_json(self) -> str:
        layers = [{"length": length, "hashes": hashes} for length, hashes in self.layers]
        return json.dumps({"session": self.session.hex(), "truncations": self.truncations, "layers": layers})

    @staticmethod
    def from_json(text: str) -> Receipt:
        """Reads what to_json writes; a ValueError says that it is something else."""
        try:
            r = json.loads(text)
            layers = tuple((int(one["length"]), tuple(int(h) for h in one["hashes"])) for one in r["layers"])
            return Receipt(bytes.fromhex(r["session"]), int(r["truncations"]), layers)
        except (KeyError, TypeError) as e:
            raise ValueError(f"this is no receipt: {e}") from e


class Attention(NamedTuple):
    """What queries found."""

    context: Floats
    """[tokens, n_heads, v_dim]"""
    lse: Floats
    """Log-sum-exp of the scores, [tokens, n_heads]"""


@dataclass
class Step:
    """A step for batch(): see Session.step for what its fields are."""

    session: Session
    layer: int
    q: npt.ArrayLike | None = None
    k: npt.ArrayLike | None = None
    v: npt.ArrayLike | None = None
    positions: int | npt.ArrayLike | None = None
    mask: npt.ArrayLike | None = None
    tokens: Sequence[int] | None = None
    out: Floats | None = None
    out_lse: Floats | None = None


@dataclass
class _Work:
    """A step as it is sent: arrays by group, and the spans of them that are still to do."""

    step: Step
    layer: Layer
    queries: int
    appended: int
    q: Array  # [queries, groups, group size * head_dim] in f32
    k: Array  # [appended, groups, head_dim] in the encoding
    v: Array
    encoding: worker_pb2.StorageType
    position: int
    mask: npt.NDArray[np.bool_] | None
    result: Attention
    pieces: list[tuple[slice, slice]] = field(default_factory=list)  # of appended and of queries


@dataclass
class _Flight:
    """One message to each holder of a layer under way."""

    work: _Work
    piece: tuple[slice, slice]
    request: session_pb2.Step  # but for hashes
    length: int
    holders: list[Holder]
    pending: list[Pending | Exception]
    sent: float = 0.0


class _Chooser:
    """Picks between raw and exact contexts by the time that an element takes, kernels and queues apart."""

    def __init__(self) -> None:
        self._steps = 0
        self._costs: dict[session_pb2.StepCodec, float] = {}  # seconds of an element, averaged over some steps

    def codec(self) -> session_pb2.StepCodec:
        self._steps += 1
        choices = [session_pb2.STEP_CODEC_RAW, session_pb2.STEP_CODEC_EXACT]
        raw, exact = (self._costs.get(c) for c in choices)
        best = raw is not None and exact is not None and exact < raw
        if self._steps % _PROBE_EVERY == 0:
            best = not best
        return choices[best]

    def measured(self, codec: session_pb2.StepCodec, seconds: float, elements: int) -> None:
        cost = max(seconds, 1e-9) / elements
        before = self._costs.get(codec, cost)
        self._costs[codec] = before + (cost - before) / 8


class Session:
    """A sequence held open on the cluster; Client.open makes one. One thread uses it at a time, different sessions are
    independent. A session is also a context manager, which closes it: it stays on the cluster until its TTL."""

    def __init__(
        self,
        connections: Connections,
        id: bytes,
        layers: Sequence[Layer],
        holders: list[Holder],
        state: session_pb2.SessionState,
        timeout: float | None,
        codec: SessionCodec = "raw",
    ) -> None:
        self.id = id
        self.codec = codec
        """How contexts come back."""
        self._chooser = _Chooser()
        self.layers = tuple(layers)
        self.timeout = timeout
        """Seconds that a call may take; None is no limit."""
        self._connections = connections
        self._holders = holders
        self._closed = False
        self._epoch = 0
        self._truncations = 0
        self._state: list[tuple[int, list[int]]] = []
        self._unsure = False  # a step has failed, and some holders may have appended what it brought
        self._update(state)
        self.prefix = len(self)
        """Positions that were there when the session was opened, and need not be appended."""

    def __len__(self) -> int:
        """Positions that all layers have."""
        return min(length for length, _ in self._state)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<headwater.Session {self.id.hex()}, {len(self)} positions, {len(self.layers)} layers>"

    def length(self, layer: int) -> int:
        """Positions that a layer has; within a token, earlier layers have one more."""
        return self._state[layer][0]

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
        tokens: Sequence[int] | None = None,
        out: Floats | None = None,
        out_lse: Floats | None = None,
    ) -> Attention:
        """Appends k [tokens, n_kv_heads, head_dim] and v [tokens, n_kv_heads, v_dim] to a layer, then lets
        q [query tokens, n_heads, head_dim] attend over all that is there; both or either.

        Arrays are float32, float16 or ml_dtypes.bfloat16, and are narrowed to the layer's storage type by the rules of
        docs/numerics.md. positions are those of the query tokens, or the first one's; they follow each other, and by default
        are the newest. mask [query tokens, n] shows, for trees of drafts, which of the n newest positions a query sees. tokens
        are the ids of the appended tokens, so that others find them as a prefix.

        Context [query tokens, n_heads, v_dim] and LSE [query tokens, n_heads] are written to out and out_lse where given:
        C-contiguous and float32. The bits do not depend on how tokens are cut into steps.
        """
        return batch([Step(self, layer, q, k, v, positions, mask, tokens, out, out_lse)])[0]

    def truncate(self, position: int) -> None:
        """Takes back the positions from this one on, in every layer that has them."""
        self._check_open()
        if position < 0:
            raise ValueError(f"position {position}")
        self._cut(position)

    def fork(self, position: int | None = None) -> Session:
        """Makes a session that begins with the positions of this one, or those before position. Memory is shared until one
        of both appends."""
        self._check_open()
        self._settle()
        child = secrets.token_bytes(16)
        request = session_pb2.ForkSessionRequest(
            session=self.id,
            epoch=self._own_epoch(),
            truncations=self._truncations,
            child=child,
            child_epoch=session_pb2.Epoch(counter=1, lane=self._connections.lane),
            position=position,
        )
        try:
            states = self._each("fork", "ForkSession", request, session_pb2.ForkSessionResponse)
            state = self._level(child, session_pb2.Epoch(counter=1, lane=self._connections.lane), states)
            return Session(self._connections, child, self.layers, self._holders, state, self.timeout, self.codec)
        except HeadwaterError as e:
            if not isinstance(e, ExistsError):
                self._abandon(child)
            raise

    def pin(self, pinned: bool = True) -> None:
        """Keeps the session from being dropped for want of room or use, or no longer."""
        self._check_open()
        request = session_pb2.PinSessionRequest(session=self.id, pinned=pinned)
        self._each("pin", "PinSession", request, session_pb2.PinSessionResponse)

    def drop(self) -> None:
        """Ends the session on the cluster and frees its memory."""
        self._check_open()
        request = session_pb2.DropSessionRequest(session=self.id, epoch=self._own_epoch())
        doing = f"drop session {self.id.hex()}"

        def drop(holder: Holder) -> session_pb2.DropSessionResponse | UnknownSessionError:
            try:
                answer = session_pb2.DropSessionResponse
                return self._connections.call(doing, holder.address, "SessionService/DropSession", request, answer, self.timeout)
            except UnknownSessionError as e:
                return e

        # One that does not know it is no error unless none does.
        answers = self._connections.each(self._holders, drop)
        unknown = [a for a in answers if isinstance(a, UnknownSessionError)]
        if len(unknown) == len(answers):
            raise unknown[0]
        self._closed = True

    def close(self) -> None:
        """Lets go of the session, which stays on the cluster until its TTL; Client.attach takes it up again."""
        self._closed = True

    # What follows is the session's own.

    def _check_open(self) -> None:
        if self._closed:
            raise HeadwaterError(f"session {self.id.hex()} is closed")

    def _own_epoch(self) -> session_pb2.Epoch:
        return session_pb2.Epoch(counter=self._epoch, lane=self._connections.lane)

    def _each(self, doing: str, method: str, request: _Control, answer: type[_Answer]) -> list[session_pb2.SessionState]:
        doing = f"{doing} session {self.id.hex()}"

        def one(holder: Holder) -> _Answer:
            return self._connections.call(doing, holder.address, f"SessionService/{method}", request, answer, self.timeout)

        return [a.state for a in self._connections.each(self._holders, one)]

    def _abandon(self, child: bytes) -> None:
        """Drops what was made of a fork in vain. What can not be dropped ends by its TTL."""
        request = session_pb2.DropSessionRequest(session=child)
        timeout = min(self.timeout or _ABANDON_TIMEOUT, _ABANDON_TIMEOUT)
        for holder in self._holders:
            try:
                self._connections.call(
                    "drop a fork", holder.address, "SessionService/DropSession", request, session_pb2.DropSessionResponse, timeout
                )
            except HeadwaterError:
                pass

    def _cut(self, position: int | None) -> None:
        """Cuts every layer to position, and to what this client knows to be there: what a failed step has left goes as well."""
        known = [length for length, _ in self._state]
        lengths = known if position is None else [min(position, length) for length in known]
        request = session_pb2.TruncateSessionRequest(
            session=self.id, epoch=self._own_epoch(), truncations=self._truncations, position=max(lengths), lengths=lengths
        )
        # Where one may have freed what another still has, none begins before all have agreed.
        if len(self._holders) > 1 and any(layer.window_left is not None for layer in self.layers):
            request.check_only = True
            self._each("truncate", "TruncateSession", request, session_pb2.TruncateSessionResponse)
            request.check_only = False
        states = self._each("truncate", "TruncateSession", request, session_pb2.TruncateSessionResponse)
        self._update(_join(self.layers, self._holders, states, self.id))
        self._unsure = False

    def _settle(self) -> None:
        """Makes sure, after a step that failed, that every holder has what this client knows to be there and no more. What
        some of them have appended is taken back, so that the next step, the same or another, finds the session as it was."""
        if not self._unsure:
            return
        doing = f"ask for session {self.id.hex()}"
        request = session_pb2.ListSessionsRequest(sessions=[self.id])

        def held(holder: Holder) -> bool:
            answer = session_pb2.ListSessionsResponse
            found = self._connections.call(doing, holder.address, "SessionService/ListSessions", request, answer, self.timeout)
            if len(found.sessions) != 1:
                why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_UNKNOWN, message="it is not held")
                raise session_error(doing, why, holder.name)
            state = found.sessions[0]
            want = [
                (i, length, [hashes[g] for g in groups])
                for i, ((length, hashes), groups) in enumerate(zip(self._state, holder.groups))
                if groups
            ]
            have = [(one.layer, one.length, list(one.hashes)) for one in state.layers]
            return state.truncations == self._truncations and have == want

        if not all(self._connections.each(self._holders, held)):
            self._cut(None)
        self._unsure = False

    def _level(
        self, id: bytes, epoch: session_pb2.Epoch, states: Sequence[session_pb2.SessionState]
    ) -> session_pb2.SessionState:
        """One state of those of all holders, after each layer has been cut to what all of its holders have. Who has counted one
        truncation less than others has not cut yet."""
        least = [min((one.length for s in states for one in s.layers if one.layer == i), default=0) for i in range(len(self.layers))]
        truncations = {s.truncations for s in states}
        if len(truncations) > 1 or any(one.layer < len(least) and one.length != least[one.layer] for s in states for one in s.layers):
            request = session_pb2.TruncateSessionRequest(
                session=id, epoch=epoch, truncations=min(truncations), position=max(least), lengths=least
            )
            states = self._each("truncate", "TruncateSession", request, session_pb2.TruncateSessionResponse)
        return _join(self.layers, self._holders, states, id)

    def _update(self, state: session_pb2.SessionState) -> None:
        if len(state.layers) != len(self.layers):
            raise ProtocolError(f"session {self.id.hex()}: {len(state.layers)} of {len(self.layers)} layers are told of")
        lengths = []
        for i, (told, layer) in enumerate(zip(state.layers, self.layers)):
            if told.layer != i or len(told.hashes) != layer.n_kv_heads:
                raise ProtocolError(f"session {self.id.hex()}: layer {told.layer} with {len(told.hashes)} hashes is not layer {i}")
            lengths.append((told.length, list(told.hashes)))
        self._state, self._epoch, self._truncations = lengths, state.epoch.counter, state.truncations

    def _prepare(self, step: Step) -> _Work:
        """Checks a step, narrows its arrays and cuts it into messages."""
        self._check_open()
        if not 0 <= step.layer < len(self.layers):
            raise IndexError(f"layer {step.layer} of {len(self.layers)}")
        layer = self.layers[step.layer]
        groups = layer.n_kv_heads
        empty: Array = np.empty((0, groups, 0), np.float32)
        q, k, v = empty, empty, empty
        encoding = worker_pb2.STORAGE_TYPE_F32
        queries = appended = 0
        if step.q is not None:
            q = to_float32(step.q)
            check_finite("q", q)
            queries = _shape("q", q, layer.n_heads, layer.head_dim)
            q = q.reshape(queries, groups, layer.group_size * layer.head_dim)
        if (step.k is None) != (step.v is None):
            raise ValueError("k and v are appended together")
        if step.k is not None and step.v is not None:
            k, v = np.asarray(step.k), np.asarray(step.v)
            appended = _shape("k", k, groups, layer.head_dim)
            if _shape("v", v, groups, layer.v_dim) != appended:
                raise ValueError(f"v has {v.shape[0]} tokens, k has {appended}")
            # One holder would refuse it, and others have it already.
            check_finite("k", k)
            check_finite("v", v)
            k, v, encoding = _encode(k, v, layer)
        if queries == 0 and appended == 0:
            raise ValueError("nothing is appended and nothing attends")
        if step.tokens is not None and len(step.tokens) != appended:
            raise ValueError(f"{len(step.tokens)} ids for {appended} tokens")
        length = self._state[step.layer][0]
        position = length + appended - queries
        if step.positions is not None and queries > 0:
            position = _first(step.positions, queries)
        if queries and not 0 <= position <= length + appended - queries:
            raise ValueError(f"{queries} queries from position {position}, the layer has {length + appended} then")
        mask = None
        if step.mask is not None:
            mask = np.asarray(step.mask, np.bool_)
            if mask.ndim != 2 or mask.shape[0] != queries or mask.shape[1] < 1:
                raise ValueError(f"a mask of shape {mask.shape} for {queries} queries")
        out = _room("out", step.out, (queries, layer.n_heads, layer.v_dim))
        lse = _room("out_lse", step.out_lse, (queries, layer.n_heads))
        work = _Work(step, layer, queries, appended, q, k, v, encoding, position, mask, Attention(out, lse))
        row, bound = 4 * groups * (layer.head_dim + layer.v_dim), _APPEND_BYTES
        if queries:
            row, bound = row + 4 * layer.n_heads * (layer.head_dim + layer.v_dim + 1), _STEP_BYTES
        most = max(1, min(bound // row, _STEP_TOKENS))
        # In pieces, a query must see what one message would show it: only where it sees nothing after its own position may it
        # attend before the rest is appended.
        if appended <= most and queries <= most:
            work.pieces = [(slice(0, appended), slice(0, queries))]
        elif layer.causal and mask is None and appended == queries and step.positions is None:
            work.pieces = [(slice(at, min(at + most, appended)),) * 2 for at in range(0, appended, most)]
        else:
            none = slice(0, 0)
            work.pieces = [(slice(at, min(at + most, appended)), none) for at in range(0, appended, most)]
            work.pieces += [(none, slice(at, min(at + most, queries))) for at in range(0, queries, most)]
        return work

    def _send(self, work: _Work, piece: tuple[slice, slice]) -> _Flight:
        """Sends one message to each holder of the layer."""
        step, (appended, queries) = work.step, piece
        length, hashes = self._state[step.layer]
        attend = queries.stop - queries.start
        request = session_pb2.Step(
            session=self.id,
            epoch=self._epoch,
            truncations=self._truncations,
            layer=step.layer,
            length=length,
            append=appended.stop - appended.start,
            attend=attend,
            query_position=work.position + queries.start if attend else 0,
            encoding=work.encoding,
            codec=self._chooser.codec() if self.codec == "auto" and attend else _CODECS[self.codec],
        )
        if step.tokens is not None:
            request.tokens.extend(step.tokens[appended])
        if work.mask is not None and attend:
            request.tree = work.mask.shape[1]
            request.tree_mask = np.packbits(work.mask[queries], axis=1, bitorder="little").tobytes()
        flight = _Flight(work, piece, request, length, [h for h in self._holders if h.groups[step.layer]], [])
        self._launch(flight)
        return flight

    def _launch(self, flight: _Flight) -> None:
        flight.sent = time.monotonic()
        work, (appended, queries) = flight.work, flight.piece
        hashes = self._state[work.step.layer][1]
        flight.pending = []
        for holder in flight.holders:
            groups = holder.groups[work.step.layer]
            del flight.request.hashes[:]
            flight.request.hashes.extend([hashes[g] for g in groups])
            payload = [_by_group(a, groups) for a in (work.q[queries], work.k[appended], work.v[appended])]
            try:
                stream = self._connections.stream(holder.address)
                flight.pending.append(stream.send(flight.request.SerializeToString(), payload))
            except (grpc.RpcError, ConnectionError, ValueError) as e:
                flight.pending.append(e)

    def _land(self, flight: _Flight, deadline: float | None) -> None:
        """Waits for a message's answers, sending it again after what may pass, and takes contexts and hashes."""
        doing = f"step layer {flight.work.step.layer} of session {self.id.hex()}"
        for attempt in range(_ATTEMPTS):
            errors: list[HeadwaterError] = []
            answers = []
            for holder, pending in zip(flight.holders, flight.pending):
                try:
                    if isinstance(pending, Exception):
                        raise pending
                    answer = pending.result(None if deadline is None else deadline - time.monotonic())
                    if answer.result.HasField("error"):
                        errors.append(session_error(doing, answer.result.error, holder.name))
                    answers.append(answer)
                except grpc.RpcError as e:
                    errors.append(stream_error(doing, holder.address, e))
                except (ConnectionError, ValueError) as e:
                    why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_BUSY, message=str(e))
                    errors.append(session_error(doing, why, holder.name))
                except TimeoutError as e:
                    raise DeadlineError(doing, holder.name, grpc.StatusCode.DEADLINE_EXCEEDED, "it has not answered in time") from e
            if not errors:
                break
            worst = min(errors, key=transient)
            if attempt == _ATTEMPTS - 1 or not transient(worst):
                raise worst
            time.sleep(_FIRST_PAUSE * 2**attempt)
            self._launch(flight)
        work, layer, queries = flight.work, flight.work.layer, flight.piece[1]
        attend = queries.stop - queries.start
        after = flight.length + flight.request.append
        hashes = list(self._state[work.step.layer][1])
        for holder, answer in zip(flight.holders, answers):
            groups = holder.groups[work.step.layer]
            rows = attend * len(groups) * layer.group_size
            if answer.result.length != after or len(answer.result.hashes) != len(groups):
                raise ProtocolError(f"{doing}: {holder.name} answers with length {answer.result.length} and {len(answer.result.hashes)} hashes")
            if attend and answer.result.codec != flight.request.codec:
                raise ProtocolError(f"{doing}: {holder.name} answers in codec {answer.result.codec}, not {flight.request.codec}")
            context, lse = _decode(answer.payload, flight.request.codec if attend else session_pb2.STEP_CODEC_RAW, rows, layer, f"{doing}: {holder.name}")
            _take(work.result.context[queries], context, groups, layer.n_kv_heads)
            _take(work.result.lse[queries], lse, groups, layer.n_kv_heads)
            for g, h in zip(groups, answer.result.hashes):
                hashes[g] = h
        if self.codec == "auto" and attend:
            working = max((a.result.compute_nanos + a.result.queue_nanos for a in answers), default=0) / 1e9
            elements = attend * layer.n_heads * layer.v_dim
            self._chooser.measured(flight.request.codec, time.monotonic() - flight.sent - working, elements)
        self._state[work.step.layer] = (after, hashes)


def _decode(payload: memoryview, codec: session_pb2.StepCodec, rows: int, layer: Layer, doing: str) -> tuple[Floats, Floats]:
    """A holder's context and LSE of so many rows, by group."""
    if codec not in _FRAMES:
        if len(payload) != 4 * rows * (layer.v_dim + 1):
            raise ProtocolError(f"{doing} answers with {len(payload)} bytes for {rows} rows of {layer.v_dim}")
        values = np.frombuffer(payload, "<f4")
        return values[: rows * layer.v_dim], values[rows * layer.v_dim :]
    try:
        context, lse = frames.decode(payload, _FRAMES[codec], rows // layer.group_size, layer.group_size, layer.v_dim)
    except frames.FrameError as e:
        raise ProtocolError(f"{doing} answers with a context that can not be read: {e}") from e
    return context.reshape(-1), lse.reshape(-1)


def batch(steps: Sequence[Step], *, timeout: float | None = None) -> list[Attention]:
    """Does steps of any sessions and layers, all in flight at once, and waits for all of them. Steps of one layer of a
    session are done in their order.

    If some fail, the others are done all the same, and the first one's error is raised; length() of their layers says which.
    timeout is for all together, and the shortest of the sessions' own by default.
    """
    if timeout is None:
        timeout = min((s.session.timeout for s in steps if s.session.timeout is not None), default=None)
    deadline = None if timeout is None else time.monotonic() + timeout
    works = [s.session._prepare(s) if i == 0 or not _follows(steps, i) else None for i, s in enumerate(steps)]
    errors: dict[int, Exception] = {}
    flying: dict[tuple[int, int], tuple[int, _Flight]] = {}
    results: list[Attention | None] = [None] * len(steps)

    settled: set[int] = set()

    def land(key: tuple[int, int]) -> None:
        i, flight = flying.pop(key)
        try:
            flight.work.step.session._land(flight, deadline)
        except Exception as e:
            flight.work.step.session._unsure = True
            errors.setdefault(i, e)

    for i, step in enumerate(steps):
        key = (id(step.session), step.layer)
        try:
            if id(step.session) not in settled:  # nothing of it is in flight before its first step
                step.session._settle()
                settled.add(id(step.session))
            if key in flying:
                land(key)
            work = works[i] or step.session._prepare(step)
            results[i] = work.result
            for piece in work.pieces:
                if key in flying:
                    land(key)
                if i in errors:
                    break
                flying[key] = (i, step.session._send(work, piece))
        except Exception as e:
            errors.setdefault(i, e)
    for key in list(flying):
        land(key)
    if errors:
        raise errors[min(errors)]
    return [r for r in results if r is not None]


def _follows(steps: Sequence[Step], i: int) -> bool:
    """Whether an earlier step is of the same layer of the same session, and changes what this one builds on."""
    return any(s.session is steps[i].session and s.layer == steps[i].layer for s in steps[:i])


_Answer = TypeVar(
    "_Answer", session_pb2.TruncateSessionResponse, session_pb2.ForkSessionResponse, session_pb2.PinSessionResponse
)
_Control = Union[session_pb2.TruncateSessionRequest, session_pb2.ForkSessionRequest, session_pb2.PinSessionRequest]


def _join(
    layers: Sequence[Layer], holders: Sequence[Holder], states: Sequence[session_pb2.SessionState], id: bytes
) -> session_pb2.SessionState:
    """One state of those of all holders. They must have the same lengths and truncations."""
    if len(holders) == 1:
        return states[0]
    whole = session_pb2.SessionState(session=id, epoch=states[0].epoch, truncations=states[0].truncations)
    told: list[tuple[set[int], dict[int, int]]] = [(set(), {}) for _ in layers]
    for holder, state in zip(holders, states):
        if state.truncations != whole.truncations:
            raise ProtocolError(f"session {id.hex()}: holders have taken positions back {whole.truncations} and {state.truncations} times")
        for one in state.layers:
            if one.layer >= len(layers) or len(one.hashes) != len(holder.groups[one.layer]):
                raise ProtocolError(f"session {id.hex()}: {holder.name} has {len(one.hashes)} hashes of layer {one.layer}")
            lengths, hashes = told[one.layer]
            if one.hashes:
                lengths.add(one.length)
            hashes.update(zip(holder.groups[one.layer], one.hashes))
    for i, (layer, (lengths, hashes)) in enumerate(zip(layers, told)):
        if len(lengths) != 1 or len(hashes) != layer.n_kv_heads:
            raise ProtocolError(f"session {id.hex()}: holders of layer {i} have {sorted(lengths)} positions of {len(hashes)} groups")
        whole.layers.add(layer=i, length=lengths.pop(), hashes=[hashes[g] for g in range(layer.n_kv_heads)])
    return whole


def _shape(name: str, a: Array, heads: int, dim: int) -> int:
    """The tokens of [tokens, heads, dim]."""
    if a.ndim != 3 or a.shape[1:] != (heads, dim):
        raise ValueError(f"{name} has shape {list(a.shape)}, not [tokens, {heads}, {dim}]")
    return int(a.shape[0])


def _encode(k: Array, v: Array, layer: Layer) -> tuple[Array, Array, worker_pb2.StorageType]:
    """k and v as they are sent: in the storage type where narrowing halves them, else in float32 for the holder to narrow."""
    if layer.storage == "bf16":
        return narrow_bfloat16(k), narrow_bfloat16(v), worker_pb2.STORAGE_TYPE_BF16
    if layer.storage == "f16":
        return narrow_float16(k), narrow_float16(v), worker_pb2.STORAGE_TYPE_F16
    return to_float32(k), to_float32(v), worker_pb2.STORAGE_TYPE_F32


def _by_group(a: Array, groups: tuple[int, ...]) -> Array:
    """Of [tokens, groups, width] the part of some groups, [groups, tokens, width], in C order."""
    if len(groups) != a.shape[1]:
        a = a[:, list(groups)]
    return np.ascontiguousarray(a.transpose(1, 0, 2))


def _take(out: Floats, values: Floats, groups: tuple[int, ...], all_groups: int) -> None:
    """Puts values [groups, tokens, ...] into out [tokens, heads, ...]."""
    if out.size == 0:
        return
    tokens = out.shape[0]
    by_group = out.reshape(tokens, all_groups, -1)
    by_group[:, list(groups)] = values.reshape(len(groups), tokens, -1).transpose(1, 0, 2)


def _first(positions: int | npt.ArrayLike, queries: int) -> int:
    """The first of positions that follow each other."""
    p = np.asarray(positions)
    if p.ndim == 2 and p.shape[0] == 1:  # as transformers have position_ids
        p = p[0]
    if not np.issubdtype(p.dtype, np.integer) or p.ndim > 1 or (p.ndim == 1 and p.shape[0] != queries):
        raise ValueError(f"positions of shape {list(p.shape)} and type {p.dtype} for {queries} queries")
    if p.ndim == 0:
        return int(p)
    if (np.diff(p) != 1).any():
        raise ValueError("positions do not follow each other")
    return int(p[0])


def _room(name: str, out: Floats | None, shape: tuple[int, ...]) -> Floats:
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"{name} has shape {list(out.shape)} and type {out.dtype}, not {list(shape)} of float32 in C order")
    return out
