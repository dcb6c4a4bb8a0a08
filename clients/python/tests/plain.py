"""A holder of sessions in plain NumPy, for what a cluster does not do on demand: the rules of docs/sessions.md over lists, with
nothing shared or paged. It holds all groups, as whoever a client speaks to seems to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from headwater.v1 import session_pb2, worker_pb2

P = session_pb2
WIDEN = {
    worker_pb2.STORAGE_TYPE_F32: lambda b: b.view("<f4").copy(),
    worker_pb2.STORAGE_TYPE_F16: lambda b: b.view("<f2").astype("<f4"),
    worker_pb2.STORAGE_TYPE_BF16: lambda b: (b.view("<u2").astype("<u4") << 16).view("<f4"),
}
SIZE = {worker_pb2.STORAGE_TYPE_F32: 4, worker_pb2.STORAGE_TYPE_F16: 2, worker_pb2.STORAGE_TYPE_BF16: 2}


class Refusal(Exception):
    def __init__(self, problem: int, message: str = "refused", **fields: Any) -> None:
        self.why = P.SessionError(problem=problem, message=message, **fields)


def attend(q: Any, k: Any, v: Any, first: int, layer: Any, tree: Any = None) -> tuple[Any, Any]:
    """q [queries, heads, head_dim] of one group from position first over k, v [positions, d], in float64."""
    scores = np.einsum("qhd,pd->qhp", q.astype(float), k.astype(float)) * (layer.scale or 1 / np.sqrt(layer.head_dim))
    queries, positions = len(q), len(k)
    own, seen = np.arange(first, first + queries)[:, None], np.arange(positions)[None]
    visible = np.ones((queries, positions), bool)
    if layer.causal:
        visible &= seen <= own
    if layer.window_left >= 0:
        visible &= seen >= own - layer.window_left
    if tree is not None:
        visible[:, positions - tree.shape[1] :] &= tree
    scores = np.where(visible[:, None], scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    return ((p / total) @ v.astype(float)).astype("f4"), (top + np.log(total))[..., 0].astype("f4")


class Held:
    """A session at one holder."""

    def __init__(self, config: Any, epoch: Any) -> None:
        self.config, self.epoch = config, epoch
        self.groups = [tuple(range(layer.n_kv_heads)) for layer in config.layers]
        self.truncations, self.cut, self.pinned = 0, 0, False  # cut is the id of the newest truncation
        self.chains = [0] * len(config.layers)
        self.newest: dict[int, tuple[int, int, int]] = {}  # by layer, the newest append: its id, and length and chain before it
        # by layer and group: k and v of each position, and the hash after it
        self.rows: dict[tuple[int, int], list[tuple[Any, Any, int]]] = {(i, g): [] for i, gs in enumerate(self.groups) for g in gs}

    def hashes(self, layer: int) -> list[int]:
        return [self.rows[layer, g][-1][2] if self.rows[layer, g] else 0 for g in self.groups[layer]]

    def length(self, layer: int) -> int:
        return len(self.rows[layer, self.groups[layer][0]])

    def state(self, id: bytes, worker: str = "w1") -> Any:
        s = P.SessionState(session=id, epoch=self.epoch, truncations=self.truncations, config=self.config, pinned=self.pinned)
        held = [P.HeldLayer(layer=i, groups=gs) for i, gs in enumerate(self.groups)]
        s.holders.add(name=worker, layers=held)
        for i in range(len(self.groups)):
            s.layers.add(layer=i, length=self.length(i), hashes=self.hashes(i), chain=self.chains[i])
        return s

    def start(self, want: Any) -> int:
        """The length that a truncation starts from at a layer, which it names."""
        id, length, chain = self.newest.get(want.layer, (0, 0, 0))
        if (want.length, want.chain) == (self.length(want.layer), self.chains[want.layer]):
            return int(want.length)
        if want.append_id and (want.append_id, want.length, want.chain) == (id, length, chain):
            return length
        raise Refusal(P.SESSION_PROBLEM_AHEAD, length=self.length(want.layer))

    def step(self, s: Any, payload: bytes) -> tuple[Any, bytes]:
        layer, groups = self.config.layers[s.layer], self.groups[s.layer]
        size = layer.n_heads // layer.n_kv_heads
        data = np.frombuffer(payload, "u1")

        def cut(shape: tuple[int, ...], width: int) -> Any:
            nonlocal data
            n = int(np.prod(shape)) * width
            part, data = data[:n], data[n:]
            assert len(part) == n, "the payload is too short"
            return part.reshape(*shape[:-1], shape[-1] * width)

        q = cut((len(groups), s.attend, size, layer.head_dim), 4).view("<f4")
        width = SIZE[s.encoding]
        k = cut((len(groups), s.append, layer.head_dim), width)
        v = cut((len(groups), s.append, layer.v_dim), width)
        assert len(data) == 0, "the payload is too long"
        if s.truncations != self.truncations:
            raise Refusal(P.SESSION_PROBLEM_OTHER_TRUNCATIONS, truncations=self.truncations)
        have = self.length(s.layer)
        if s.append and not s.append_id:
            raise Refusal(P.SESSION_PROBLEM_INVALID, "an append has an id")
        if have == s.length + s.append and s.append and have > s.length:
            if self.newest.get(s.layer) != (s.append_id, s.length, s.chain):
                raise Refusal(P.SESSION_PROBLEM_DIFFERENT, length=have)
            hashes = [self.rows[s.layer, g][s.length - 1][2] if s.length else 0 for g in groups]
            if hashes != list(s.hashes) or any(
                self.chain(hashes[i], s.length, k[i], v[i])[-1][2] != self.rows[s.layer, g][-1][2] for i, g in enumerate(groups)
            ):
                raise Refusal(P.SESSION_PROBLEM_DIFFERENT, length=have)
        elif have != s.length:
            raise Refusal(P.SESSION_PROBLEM_BEHIND if have < s.length else P.SESSION_PROBLEM_AHEAD, length=have)
        elif self.hashes(s.layer) != list(s.hashes) or self.chains[s.layer] != s.chain:
            raise Refusal(P.SESSION_PROBLEM_DIFFERENT, length=have)
        else:
            for i, g in enumerate(groups):
                h = s.hashes[i]
                self.rows[s.layer, g] += self.chain(h, s.length, k[i], v[i])
            if s.append:
                self.newest[s.layer] = (s.append_id, s.length, s.chain)
                text = s.chain.to_bytes(8, "little") + s.append_id.to_bytes(8, "little") + s.length.to_bytes(8, "little")
                self.chains[s.layer] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        result = P.StepResult(
            length=self.length(s.layer), hashes=self.hashes(s.layer), codec=P.STEP_CODEC_RAW, chain=self.chains[s.layer]
        )
        if not s.attend:
            return result, b""
        tree = None
        if s.tree:
            bits = np.frombuffer(s.tree_mask, "u1").reshape(s.attend, -1)
            tree = np.unpackbits(bits, axis=1, count=s.tree, bitorder="little").astype(bool)
        contexts, lses = [], []
        for i, g in enumerate(groups):
            rows = self.rows[s.layer, g]
            widen = WIDEN[layer.storage]
            all_k, all_v = (np.stack([widen(np.frombuffer(r[j], "u1")) for r in rows]) for j in (0, 1))
            context, lse = attend(q[i], all_k, all_v, s.query_position, layer, tree)
            contexts.append(context.tobytes())
            lses.append(lse.tobytes())
        return result, b"".join(contexts + lses)

    @staticmethod
    def chain(h: int, at: int, k: Any, v: Any) -> list[tuple[bytes, bytes, int]]:
        rows = []
        for i in range(len(k)):
            row = k[i].tobytes(), v[i].tobytes()
            text = h.to_bytes(8, "little") + (at + i).to_bytes(8, "little") + row[0] + row[1]
            h = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            rows.append((*row, h))
        return rows


class Node:
    """A server of SessionService on a port of its own."""

    def __init__(self) -> None:
        self.silent: list[Any] = []  # workers that it says did not answer
        self.sessions: dict[bytes, Held] = {}
        self.lanes: list[str] = []
        self.refuse: Callable[[Any], None] | None = None  # asked before each step; may raise Refusal
        self.lock = threading.Lock()
        self.server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 32 << 20)])
        unary = {
            "CreateSession": (P.CreateSessionRequest, "create"),
            "TakeSession": (P.TakeSessionRequest, "take"),
            "ForkSession": (P.ForkSessionRequest, "fork"),
            "TruncateSession": (P.TruncateSessionRequest, "truncate"),
            "PinSession": (P.PinSessionRequest, "pin"),
            "DropSession": (P.DropSessionRequest, "drop"),
            "ListSessions": (P.ListSessionsRequest, "list"),
        }
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                self.guard(do), request_deserializer=request.FromString, response_serializer=lambda m: m.SerializeToString()
            )
            for method, (request, do) in unary.items()
        }
        handlers["Lane"] = grpc.stream_stream_rpc_method_handler(
            self.lane, request_deserializer=P.LaneRequest.FromString, response_serializer=P.LaneResponse.SerializeToString
        )
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("headwater.v1.SessionService", handlers),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def guard(self, do: str) -> Callable[[Any, Any], Any]:
        def handle(request: Any, context: Any) -> Any:
            try:
                with self.lock:
                    return getattr(self, do)(request)
            except Refusal as e:
                detail = any_pb2.Any()
                detail.Pack(e.why)
                code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
                context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=e.why.message, details=[detail])))

        return handle

    def find(self, id: bytes) -> Held:
        if id not in self.sessions:
            raise Refusal(P.SESSION_PROBLEM_UNKNOWN, f"session {id.hex()} is not held")
        return self.sessions[id]

    def owned(self, request: Any) -> Held:
        held = self.find(request.session)
        if (request.epoch.counter, request.epoch.lane) != (held.epoch.counter, held.epoch.lane):
            raise Refusal(P.SESSION_PROBLEM_STALE_EPOCH, epoch=held.epoch)
        return held

    def create(self, r: Any) -> Any:
        if r.session in self.sessions:
            raise Refusal(P.SESSION_PROBLEM_EXISTS)
        self.sessions[r.session] = Held(r.config, r.epoch)
        return P.CreateSessionResponse(state=self.sessions[r.session].state(r.session))

    def take(self, r: Any) -> Any:
        held = self.find(r.session)
        if (r.epoch.counter, r.epoch.lane) < (held.epoch.counter, held.epoch.lane):
            raise Refusal(P.SESSION_PROBLEM_STALE_EPOCH, epoch=held.epoch)
        for one in r.expect:
            if held.length(one.layer) < one.length:
                raise Refusal(P.SESSION_PROBLEM_BEHIND, length=held.length(one.layer))
        held.epoch = r.epoch
        return P.TakeSessionResponse(state=held.state(r.session))

    def fork(self, r: Any) -> Any:
        held = self.owned(r)
        child = Held(held.config, r.child_epoch)
        named = {one.layer: one.length for one in r.expect}
        if any(held.length(i) < n for i, n in named.items()) or len(named) != len(held.groups):
            raise Refusal(P.SESSION_PROBLEM_BEHIND)
        child.rows = {key: rows[: r.position if r.HasField("position") else named[key[0]]] for key, rows in held.rows.items()}
        self.sessions[r.child] = child
        return P.ForkSessionResponse(state=child.state(r.child))

    def truncate(self, r: Any) -> Any:
        held = self.owned(r)
        if r.id and held.cut == r.id:
            return P.TruncateSessionResponse(state=held.state(r.session))
        if held.truncations != r.truncations:
            raise Refusal(P.SESSION_PROBLEM_OTHER_TRUNCATIONS, truncations=held.truncations)
        starts = {one.layer: held.start(one) for one in r.expect}
        if r.check_only:
            return P.TruncateSessionResponse()
        held.truncations, held.cut = r.count, r.id
        for (layer, _), rows in held.rows.items():
            del rows[min(r.lengths[layer] if r.lengths else r.position, starts[layer]) :]
        held.chains, held.newest = [r.id] * len(held.chains), {}
        return P.TruncateSessionResponse(state=held.state(r.session))

    def pin(self, r: Any) -> Any:
        held = self.find(r.session)
        held.pinned = r.pinned
        return P.PinSessionResponse(state=held.state(r.session))

    def drop(self, r: Any) -> Any:
        self.find(r.session)
        del self.sessions[r.session]
        return P.DropSessionResponse()

    def list(self, r: Any) -> Any:
        ids = [i for i in (r.sessions or sorted(self.sessions)) if i in self.sessions]
        return P.ListSessionsResponse(sessions=[self.sessions[i].state(i) for i in ids], silent=self.silent)

    def lane(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        lane = dict(context.invocation_metadata())["headwater-lane"]
        self.lanes.append(lane)
        for r in requests:
            try:
                if self.refuse:
                    self.refuse(r)
                with self.lock:
                    held = self.find(r.step.session)
                    if held.epoch.lane.hex() != lane or held.epoch.counter != r.step.epoch:
                        raise Refusal(P.SESSION_PROBLEM_STALE_EPOCH, epoch=held.epoch)
                    result, payload = held.step(r.step, r.payload)
            except Refusal as e:
                result, payload = P.StepResult(error=e.why), b""
            yield P.LaneResponse(id=r.id, result=result, payload=payload)

    def stop(self) -> None:
        self.server.stop(0).wait()
