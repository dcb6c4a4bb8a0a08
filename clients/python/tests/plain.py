"""A server of sessions that misbehaves on demand. It appends and attends, and checks nothing: the scripts of test/session hold the
Python client to the rules of sessions, on real workers."""

from __future__ import annotations

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
    """A session: k and v of each position as they were sent, by layer and group."""

    def __init__(self, config: Any, epoch: Any) -> None:
        self.config, self.epoch, self.truncations, self.pinned = config, epoch, 0, False
        self.rows: list[list[list[tuple[bytes, bytes]]]] = [[[] for _ in range(layer.n_kv_heads)] for layer in config.layers]

    def length(self, layer: int) -> int:
        return len(self.rows[layer][0])

    def hashes(self, layer: int) -> list[int]:
        return [self.length(layer)] * len(self.rows[layer])  # any numbers that a client hands back will do

    def state(self, id: bytes) -> Any:
        s = P.SessionState(session=id, epoch=self.epoch, truncations=self.truncations, config=self.config, pinned=self.pinned)
        s.holders.add(name="w1", layers=[P.HeldLayer(layer=i, groups=range(len(groups))) for i, groups in enumerate(self.rows)])
        for i in range(len(self.rows)):
            s.layers.add(layer=i, length=self.length(i), hashes=self.hashes(i))
        return s

    def step(self, s: Any, payload: bytes) -> tuple[Any, bytes]:
        layer, groups = self.config.layers[s.layer], self.rows[s.layer]
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
        assert (s.length, list(s.hashes)) == (self.length(s.layer), self.hashes(s.layer)), "the step builds on another state"
        for i, rows in enumerate(groups):
            rows += [(k[i, j].tobytes(), v[i, j].tobytes()) for j in range(s.append)]
        result = P.StepResult(length=self.length(s.layer), hashes=self.hashes(s.layer), codec=P.STEP_CODEC_RAW)
        if not s.attend:
            return result, b""
        tree = None
        if s.tree:
            bits = np.frombuffer(s.tree_mask, "u1").reshape(s.attend, -1)
            tree = np.unpackbits(bits, axis=1, count=s.tree, bitorder="little").astype(bool)
        contexts, lses = [], []
        for i, rows in enumerate(groups):
            all_k, all_v = (np.stack([WIDEN[layer.storage](np.frombuffer(r[j], "u1")) for r in rows]) for j in (0, 1))
            context, lse = attend(q[i], all_k, all_v, s.query_position, layer, tree)
            contexts.append(context.tobytes())
            lses.append(lse.tobytes())
        return result, b"".join(contexts + lses)


class Node:
    """A server of SessionService on a port of its own."""

    def __init__(self) -> None:
        self.silent: list[Any] = []  # workers that it says did not answer
        self.sessions: dict[bytes, Held] = {}
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

    def create(self, r: Any) -> Any:
        self.sessions[r.session] = Held(r.config, r.epoch)
        return P.CreateSessionResponse(state=self.sessions[r.session].state(r.session))

    def take(self, r: Any) -> Any:
        held = self.find(r.session)
        held.epoch = r.epoch
        return P.TakeSessionResponse(state=held.state(r.session))

    def fork(self, r: Any) -> Any:
        held = self.find(r.session)
        child = self.sessions[r.child] = Held(held.config, r.child_epoch)
        child.rows = [[list(rows) for rows in groups] for groups in held.rows]
        return P.ForkSessionResponse(state=child.state(r.child))

    def truncate(self, r: Any) -> Any:
        held = self.find(r.session)
        held.truncations = r.count
        for layer, groups in enumerate(held.rows):
            for rows in groups:
                del rows[r.lengths[layer] if r.lengths else r.position :]
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
        for r in requests:
            try:
                if self.refuse:
                    self.refuse(r)
                with self.lock:
                    result, payload = self.find(r.step.session).step(r.step, r.payload)
            except Refusal as e:
                result, payload = P.StepResult(error=e.why), b""
            yield P.LaneResponse(id=r.id, result=result, payload=payload)

    def stop(self) -> None:
        self.server.stop(0).wait()
