"""The client of a coordinator: sessions and jobs."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from . import safetensors
from .address import parse_address
from .arrays import Array
from .errors import HeadwaterError, JobError, ProtocolError, SessionError, StaleEpochError, call_error, session_error
from .holders import DEFAULT_PORT, PROTOCOL, PROTOCOL_KEY, Connections, Holder, check_version, parse_holders
from .session import Layer, Receipt, Session, SessionCodec, check_codec
from .v1 import coordinator_pb2, session_pb2, worker_pb2

R = TypeVar("R", bound=Message)
Codec = Literal["exact", "bf16", "f16", "int8"]

_CODECS: dict[str, worker_pb2.ContextCodec] = {
    "exact": worker_pb2.CONTEXT_CODEC_EXACT,
    "bf16": worker_pb2.CONTEXT_CODEC_BF16,
    "f16": worker_pb2.CONTEXT_CODEC_F16,
    "int8": worker_pb2.CONTEXT_CODEC_I8,
}
_ENDED = (coordinator_pb2.JOB_STATE_SUCCEEDED, coordinator_pb2.JOB_STATE_FAILED, coordinator_pb2.JOB_STATE_CANCELLED)
_PIECE = 1 << 20
_LISTED = 1000  # sessions that are asked for at once


class Client:
    """A client of the coordinator at host:port, host, [IPv6]:port, or unix:/path. The first call connects. Threads may share
    it; it is a context manager, which closes its connections. Sessions stay on the cluster until their TTL.

    No proxy is taken, whatever the environment says, unless proxy is True."""

    def __init__(self, address: str, *, timeout: float | None = None, proxy: bool = False) -> None:
        self.address = parse_address(address, DEFAULT_PORT)
        self.timeout = timeout
        """Seconds that a call may take, jobs' apart; None is no limit."""
        self._connections = Connections(self.address, proxy=proxy)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections and all calls on them."""
        self._connections.close()

    # Sessions.

    def open(
        self,
        layers: Sequence[Layer],
        *,
        tokens: Sequence[int] = (),
        tenant: str = "",
        model: bytes = b"",
        name: str = "",
        ttl: float = 0,
        workers: int = 0,
        direct: bool = False,
        codec: SessionCodec = "raw",
    ) -> Session:
        """Makes a session on the cluster. Its first step continues at its prefix.

        tokens are the ids of the tokens that it begins with: whole pages of them that the cluster has already, from a session
        of the same tenant, model and layers, need not be appended. model is a fingerprint with the adapters. ttl is the time
        without use in seconds after which it may be dropped, workers the most that may hold it; 0 is the cluster's own. direct
        has steps go to the workers and not through the coordinator. codec is how contexts come back: those by which bits are lost
        are used only by name.
        """
        check_codec(codec)
        session = secrets.token_bytes(16)
        config = session_pb2.SessionConfig(layers=[layer.to_proto() for layer in layers], tenant=tenant, model=model, name=name)
        if ttl > 0:
            config.ttl.CopyFrom(_duration(ttl))
        request = session_pb2.CreateSessionRequest(
            session=session, epoch=self._epoch(1), config=config, tokens=tokens, workers=workers
        )
        response = self._call(f"open session {session.hex()}", "SessionService/CreateSession", request, session_pb2.CreateSessionResponse)
        try:
            return self._session(session, tuple(layers), response.state, direct, codec)
        except HeadwaterError:
            try:
                self.drop_session(session)
            except HeadwaterError:
                pass  # it ends by its TTL
            raise

    def attach(self, session: bytes | Receipt, *, direct: bool = False, codec: SessionCodec = "raw") -> Session:
        """Takes up a session that is on the cluster: from now on this client drives it, and another one that did is refused.
        With a receipt, whoever has less than it says, or other keys and values, refuses. Where an append had not reached all
        workers, the session ends before it; its length says where it stands."""
        check_codec(codec)
        receipt = session if isinstance(session, Receipt) else None
        id = receipt.session if receipt is not None else bytes(session)  # type: ignore[arg-type]
        doing = f"attach to session {id.hex()}"
        found = self.find_session(id)
        layers = tuple(Layer.from_proto(layer) for layer in found.config.layers)
        request = session_pb2.TakeSessionRequest(session=id)
        if receipt is not None:
            request.truncations = receipt.truncations
            for i, (length, hashes) in enumerate(receipt.layers):
                request.expect.add(layer=i, length=length, hashes=hashes)
        counter = found.epoch.counter
        for attempt in range(4):
            request.epoch.CopyFrom(self._epoch(counter + 1))
            try:
                response = self._call(doing, "SessionService/TakeSession", request, session_pb2.TakeSessionResponse)
                return self._session(id, layers, response.state, direct, codec)
            except StaleEpochError as e:  # another client has stepped it meanwhile
                if attempt == 3:
                    raise
                counter = e.epoch.counter
        raise AssertionError("unreachable")

    def sessions(self) -> session_pb2.ListSessionsResponse:
        """All sessions on the cluster, by id, and each worker's cache; and as silent the workers that did not answer, whose
        sessions and caches are missing."""
        found = session_pb2.ListSessionsResponse()
        silent: dict[str, session_pb2.SilentWorker] = {}
        request = session_pb2.ListSessionsRequest(limit=_LISTED)
        while True:
            response = self._call("list sessions", "SessionService/ListSessions", request, session_pb2.ListSessionsResponse)
            # A coordinator that knows no limits begins anew, and had told all.
            more = [s for s in response.sessions if s.session > request.after]
            found.sessions.extend(more)
            silent |= {w.worker: w for w in response.silent}
            if len(more) != _LISTED:
                found.caches.extend(response.caches)
                found.silent.extend(silent.values())
                return found
            request.after = more[-1].session

    def find_session(self, session: bytes) -> session_pb2.SessionState:
        """What the cluster has of a session. It may be used while another client drives it. Where a worker that did not answer
        may hold the session, or the rest of it, a LostError names the worker."""
        doing = f"find session {session.hex()}"
        request = session_pb2.ListSessionsRequest(sessions=[session])
        response = self._call(doing, "SessionService/ListSessions", request, session_pb2.ListSessionsResponse)
        found = response.sessions[0] if len(response.sessions) == 1 else None
        if response.silent and (found is None or not _whole(found)):
            raise _silent(doing, response.silent, "the session" if found is None else "the rest of the session")
        if found is None:
            why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_UNKNOWN, message="no worker holds it")
            raise session_error(doing, why)
        return found

    def drop_session(self, session: bytes) -> None:
        """Ends a session on the cluster, whoever drives it."""
        request = session_pb2.DropSessionRequest(session=session)
        self._call(f"drop session {session.hex()}", "SessionService/DropSession", request, session_pb2.DropSessionResponse)

    def _session(
        self, id: bytes, layers: tuple[Layer, ...], state: session_pb2.SessionState, direct: bool, codec: SessionCodec
    ) -> Session:
        holders = [Holder(self.address, self.address, tuple(tuple(range(layer.n_kv_heads)) for layer in layers))]
        if direct:
            holders = parse_holders(state.holders, [layer.n_kv_heads for layer in layers])
        return Session(self._connections, id, layers, holders, state, self.timeout, codec)

    def _epoch(self, counter: int) -> session_pb2.Epoch:
        return session_pb2.Epoch(counter=counter, lane=self._connections.lane)

    # Jobs.

    def submit(
        self,
        job: str | os.PathLike[str] | Mapping[str, Array],
        *,
        options: Mapping[str, Any] | None = None,
        key: str = "",
        name: str = "",
        codec: Codec = "exact",
        deadline: float = 0,
    ) -> coordinator_pb2.Job:
        """Submits a job, a safetensors file or its tensors (docs/job-file.md), and returns it as the coordinator took it.

        options override the file's. The same key with the same content is the same job. codec is that of contexts on their way
        within the cluster; all but exact are lossy. deadline is the longest time in seconds that the job may run.
        """
        source: _Path | safetensors.File
        if isinstance(job, Mapping):
            source, name = safetensors.File(job), name or "job"
        else:
            source, name = _Path(job), name or os.path.basename(os.fspath(job))
        digest = hashlib.sha256()
        for piece in source.pieces(_PIECE):
            digest.update(piece)
        begin = coordinator_pb2.SubmitBegin(
            key=key,
            name=name,
            size_bytes=source.size,
            sha256=digest.digest(),
            header=source.header,
            overrides=json.dumps(options).encode() if options else b"",
            codec=_CODECS[codec],
        )
        if deadline > 0:
            begin.deadline.CopyFrom(_duration(deadline))
        doing = f"submit {name}"
        wanted = _Verdict()

        def requests() -> Iterator[coordinator_pb2.SubmitRequest]:
            yield coordinator_pb2.SubmitRequest(begin=begin)
            if wanted.wait():
                for piece in source.pieces(_PIECE):
                    yield coordinator_pb2.SubmitRequest(data=piece)

        stub = self._connections.coordinator().stream_stream(
            "/headwater.v1.CoordinatorService/Submit",
            request_serializer=coordinator_pb2.SubmitRequest.SerializeToString,
            response_deserializer=coordinator_pb2.SubmitResponse.FromString,
        )
        call = stub(requests(), metadata=((PROTOCOL_KEY, PROTOCOL),))
        taken = None
        send = False
        try:
            for response in call:
                if taken is None:
                    send = response.send
                    wanted.say(send)
                    taken = response.job
                else:
                    taken, send = response.job, False
        except grpc.RpcError as e:
            raise call_error(doing, self._connections.named(self.address), e) from e
        finally:
            wanted.say(False)
            call.cancel()  # type: ignore[no-untyped-call]
        check_version(self.address, call.initial_metadata())
        if taken is None or send:
            raise ProtocolError(f"{doing}: the answer ended early")
        result: coordinator_pb2.Job = taken
        return result

    def job(self, id: str) -> coordinator_pb2.Job:
        """A job by id, key or content hash."""
        request = coordinator_pb2.GetJobRequest(id=id)
        return self._call(f"get job {id}", "CoordinatorService/GetJob", request, coordinator_pb2.GetJobResponse).job

    def jobs(self) -> Sequence[coordinator_pb2.Job]:
        """All jobs that the coordinator keeps, newest first."""
        request = coordinator_pb2.ListJobsRequest()
        return self._call("list jobs", "CoordinatorService/ListJobs", request, coordinator_pb2.ListJobsResponse).jobs

    def cancel(self, id: str) -> coordinator_pb2.Job:
        """Ends a job, or does nothing to one that has ended, and returns it."""
        request = coordinator_pb2.CancelJobRequest(id=id)
        return self._call(f"cancel job {id}", "CoordinatorService/CancelJob", request, coordinator_pb2.CancelJobResponse).job

    def wait(self, id: str, *, timeout: float | None = None) -> coordinator_pb2.Job:
        """Waits for a job's end, and returns it if it succeeded. A JobError says that it did not."""
        doing = f"watch job {id}"
        request = coordinator_pb2.WatchJobRequest(id=id)
        stub = self._connections.coordinator().unary_stream(
            "/headwater.v1.CoordinatorService/WatchJob",
            request_serializer=coordinator_pb2.WatchJobRequest.SerializeToString,
            response_deserializer=coordinator_pb2.WatchJobResponse.FromString,
        )
        job: coordinator_pb2.Job | None = None
        try:
            for response in stub(request, timeout=timeout, metadata=((PROTOCOL_KEY, PROTOCOL),)):
                job = response.job
        except grpc.RpcError as e:
            raise call_error(doing, self._connections.named(self.address), e) from e
        if job is None or job.state not in _ENDED:
            raise ProtocolError(f"{doing}: the answer ended early")
        if job.state != coordinator_pb2.JOB_STATE_SUCCEEDED:
            raise JobError(job)
        return job

    def result(self, id: str) -> dict[str, Array]:
        """The tensors of a job's result, whose SHA-256 has been checked."""
        doing = f"download the result of job {id}"
        request = coordinator_pb2.DownloadResultRequest(id=id)
        stub = self._connections.coordinator().unary_stream(
            "/headwater.v1.CoordinatorService/DownloadResult",
            request_serializer=coordinator_pb2.DownloadResultRequest.SerializeToString,
            response_deserializer=coordinator_pb2.DownloadResultResponse.FromString,
        )
        job: coordinator_pb2.Job | None = None
        pieces = []
        try:
            for response in stub(request, metadata=((PROTOCOL_KEY, PROTOCOL),)):
                if job is None:
                    job = response.job
                pieces.append(response.data)
        except grpc.RpcError as e:
            raise call_error(doing, self._connections.named(self.address), e) from e
        data = b"".join(pieces)
        if job is None or hashlib.sha256(data).hexdigest() != job.result_sha256:
            raise ProtocolError(f"{doing}: the bytes are not those of the result")
        return safetensors.load(data)[0]

    def run(self, job: str | os.PathLike[str] | Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """Submits a job as submit does, waits for its end and returns its result."""
        taken = self.submit(job, options=options or None)
        self.wait(taken.id)
        return self.result(taken.id)

    def status(self) -> coordinator_pb2.StatusResponse:
        """The coordinator and its workers."""
        request = coordinator_pb2.StatusRequest()
        return self._call("ask for the status", "CoordinatorService/Status", request, coordinator_pb2.StatusResponse)

    def _call(self, doing: str, method: str, request: Message, answer: type[R]) -> R:
        return self._connections.call(doing, self.address, method, request, answer, self.timeout)


def _whole(state: session_pb2.SessionState) -> bool:
    """Whether the holders that are told of have all of a session."""
    try:
        parse_holders(state.holders, [layer.n_kv_heads for layer in state.config.layers])
    except ProtocolError:
        return False
    return True


def _silent(doing: str, workers: Sequence[session_pb2.SilentWorker], what: str) -> SessionError:
    """The error of a session that workers which did not answer may hold."""
    others = "; nor did " + ", ".join(w.worker for w in workers[1:]) if len(workers) > 1 else ""
    message = f"it did not answer, and may hold {what}: {workers[0].error}{others}"
    why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_LOST, message=message, holder=workers[0].worker)
    return session_error(doing, why)


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


class _Verdict:
    """Whether a job's bytes are wanted. What is said first counts."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._wanted = False

    def say(self, wanted: bool) -> None:
        if not self._said.is_set():
            self._wanted = wanted
            self._said.set()

    def wait(self) -> bool:
        self._said.wait()
        return self._wanted


class _Path:
    """A safetensors file on disk, in pieces."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self.size = os.path.getsize(path)
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if self.size < 8 or size > self.size - 8:
                raise ValueError(f"{os.fspath(path)} is no safetensors file")
            f.seek(0)
            self.header = f.read(8 + size)

    def pieces(self, most: int) -> Iterator[bytes]:
        with open(self._path, "rb") as f:
            while piece := f.read(most):
                yield piece
