"""The client of a coordinator: sessions and jobs."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from . import codecs, options, safetensors
from .arrays import Array
from .codecs import SessionCodec
from .connection import METADATA, Connection
from .constants import ATTEMPTS, LISTED, MAX_REPLICAS, MAX_STRIPES
from .errors import ExistsError, ProtocolError, SessionError, StaleEpochError, job_error, lost_of, session_error
from .jobs import CODECS, Codec, Verdict, open_source
from .layer import Layer, Receipt, settled
from .options import plain
from .relay import Relay
from .security import Security
from .session import Session, abandon, new_id
from .steps import token_ids
from .v1 import coordinator_pb2, session_pb2

R = TypeVar("R", bound=Message)

_ENDED = (coordinator_pb2.JOB_STATE_SUCCEEDED, coordinator_pb2.JOB_STATE_FAILED, coordinator_pb2.JOB_STATE_CANCELLED)
_PIECE = 1 << 20
_MOST_WORKERS = (1 << 31) - 1


class Client:
    """A client of the coordinator at an address: host:port, host, [IPv6]:port or unix:/path. The first call connects. Threads may
    share it; it is a context manager, which closes its connections. A process that was forked makes its own.

    direct has the steps of sessions go to the workers and not through the coordinator: the client starts a relay, `coord relay`,
    on this machine and speaks to it over a Unix socket. The relay ends with the client or its process. coord is the program to
    start; by default it is the environment's HEADWATER_COORD, then one beside this package, then `coord` on the PATH.

    tls is the folder of the client's certificate, as `coord certs issue client NAME` makes it; by default what the environment's
    HEADWATER_TLS_DIR says, and "" is none. Without one, plain text stays within this machine, unless insecure is True
    (HEADWATER_INSECURE).

    hedge_share is the most of all attends of direct sessions with copies that are asked of another worker as well, since the first
    is late: 0.05 by default, one of twenty, and 0 for none.

    token is the tenant's token, as `coord tenants add NAME` prints it, or the path of a file that has it; by default the file that
    the environment's HEADWATER_TOKEN_FILE names, if there is a folder. The folder then needs no certificate, only ca.crt.

    No proxy is taken, whatever the environment says, unless proxy is True.

    address  the coordinator's address, in its usual form
    timeout  seconds that a call may take, jobs' apart; None is no limit
    """

    address: str
    timeout: float | None

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = None,
        direct: bool = False,
        coord: str | os.PathLike[str] | None = None,
        proxy: bool = False,
        tls: str | os.PathLike[str] | None = None,
        insecure: bool | None = None,
        token: str | os.PathLike[str] | None = None,
        hedge_share: float | None = None,
    ) -> None:
        if hedge_share is not None and not 0 <= hedge_share <= 1:
            raise ValueError(f"hedge_share is {hedge_share}, must be from 0 to 1")
        self._security = security = Security(tls, insecure, token)
        self._coordinator = Connection(address, proxy=proxy, security=security)
        self.address = self._coordinator.address
        self.timeout = None if timeout is None else options.number("timeout", timeout)
        self._relay: Relay | None = None
        self._holder = self._coordinator
        if direct:
            hedges = [] if hedge_share is None else ["--hedge-share", repr(float(hedge_share))]
            self._relay = Relay(self.address, coord, proxy=proxy, secured=bool(security.folder), flags=[*security.flags(), *hedges])
            self._holder = Connection(self._relay.address, relay=self._relay)
        # Also where nobody closes it: gRPC's threads would outlive their use, and the relay the client.
        self._finalize = weakref.finalize(self, _close, self._holder, self._coordinator, self._relay)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<headwater.Client {self.address}{', direct' if self._relay else ''}>"

    def close(self) -> None:
        """Ends the connections and all calls on them, and the relay. Sessions that are open stay until their TTL."""
        self._finalize()

    # Sessions.

    def open(
        self,
        layers: Sequence[Layer],
        *,
        tokens: Sequence[int] | npt.ArrayLike = (),
        tenant: str = "",
        model: bytes = b"",
        name: str = "",
        ttl: float = 0,
        workers: int = 0,
        replicas: int | None = None,
        stripes: int = 0,
        codec: SessionCodec = "auto",
        keep: bool = False,
        shared: bool = True,
    ) -> Session:
        """Makes a session on the cluster. Its first step continues at its prefix.

        tokens are the ids of the tokens that it begins with: whole pages of them that the cluster has already, from a session
        of the same tenant, model and layers, need not be appended. model is a fingerprint with the adapters. ttl is the time
        without use in seconds after which it may be dropped, workers the most that may hold it; 0 is the cluster's own. replicas
        is at how many workers beside its owner a copy of each part lies, if there are enough; None is the cluster's own. The
        session outlives so many of its workers. stripes is in how many stripes each group of a layer without a left window is held,
        so that more workers than groups hold it, with the same bits; 0 is as the layers say. codec is
        how contexts come back: those by which bits are lost are used only by name. keep lets the session stay on the cluster at
        the end of a `with`, until its TTL; else it is dropped then. If it is not to be shared, it begins with nobody's prefix and
        leaves none. A call that fails leaves no session.
        """
        codecs.check(codec)
        shapes = tuple(layers)
        for i, layer in enumerate(shapes):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}] is a {type(layer).__name__}, not a Layer")
        if not shapes:
            raise ValueError("layers: there is none")
        if options.whole("stripes", stripes, 0, MAX_STRIPES):
            shapes = tuple(replace(layer, stripes=stripes) if layer.window_left is None else layer for layer in shapes)
        if not isinstance(model, bytes):
            raise TypeError(f"model is a {type(model).__name__}, not bytes")
        config = session_pb2.SessionConfig(
            layers=[layer.to_proto() for layer in shapes],
            tenant=_text("tenant", tenant),
            model=model,
            name=_text("name", name),
            unshared=not shared,
        )
        if replicas is not None:
            config.replicas = options.whole("replicas", replicas, 0, MAX_REPLICAS)
        if (seconds := _seconds("ttl", ttl)) > 0:
            config.ttl.CopyFrom(_duration(seconds))
        most = options.whole("workers", workers, 0, _MOST_WORKERS)
        return self._create("open", config, shapes, token_ids("tokens", tokens), most, codec, keep)

    def _create(
        self, what: str, config: session_pb2.SessionConfig, layers: tuple[Layer, ...], tokens: list[int], workers: int, codec: SessionCodec, keep: bool
    ) -> Session:
        """Makes a session of a config."""
        id = secrets.token_bytes(16)
        request = session_pb2.CreateSessionRequest(session=id, epoch=self._epoch(1), config=config, tokens=tokens, workers=workers, call=new_id())
        doing = f"{what} session {id.hex()}"
        try:
            state = self._call(doing, "CreateSession", request, session_pb2.CreateSessionResponse).state
            if any(layer.arithmetic == "auto" for layer in layers):
                layers = _took(doing, layers, state)
                del config.layers[:]
                config.layers.extend(layer.to_proto() for layer in layers)
            return Session(self._holder, id, config, layers, state, timeout=self.timeout, codec=codec, keep=keep, owner=self)
        except BaseException as e:
            if not isinstance(e, ExistsError):
                abandon(self._holder, id, self.timeout, request.call)
            raise

    def attach(self, session: bytes | str | Receipt, *, codec: SessionCodec = "auto", keep: bool = True) -> Session:
        """Takes up a session that is on the cluster, by its id or a receipt: from now on this client drives it, and another one
        that did is refused. With a receipt, whoever has less than it says, or other keys and values, refuses. Where an append had
        not reached all workers, the session ends before it; its length says where it stands. keep is as in open, but that the
        session stays by default."""
        codecs.check(codec)
        receipt = session if isinstance(session, Receipt) else None
        id = _id(session.session if isinstance(session, Receipt) else session)
        doing = f"attach to session {id.hex()}"
        try:
            return self._attach(doing, id, receipt, codec, keep)
        except SessionError as e:
            if receipt is not None:
                e.tell_lost([(len(hashes), length) for length, hashes in receipt.layers])
            raise

    def _attach(self, doing: str, id: bytes, receipt: Receipt | None, codec: SessionCodec, keep: bool) -> Session:
        found = self._find(doing, id)
        layers = tuple(Layer.from_proto(layer) for layer in found.config.layers)
        request = session_pb2.TakeSessionRequest(session=id)
        if receipt is not None:
            if len(receipt.layers) != len(layers):
                raise ValueError(f"{doing}: the receipt has {len(receipt.layers)} layers, the session {len(layers)}")
            request.truncations = receipt.truncations
            for i, (length, hashes) in enumerate(receipt.layers):
                request.expect.add(layer=i, length=length, hashes=hashes)
        counter = found.epoch.counter
        for attempt in range(ATTEMPTS):
            request.epoch.CopyFrom(self._epoch(counter + 1))
            try:
                state = self._call(doing, "TakeSession", request, session_pb2.TakeSessionResponse).state
                return Session(self._holder, id, found.config, layers, state, timeout=self.timeout, codec=codec, keep=keep, owner=self)
            except StaleEpochError as e:  # another client has stepped it meanwhile
                if attempt == ATTEMPTS - 1:
                    raise
                counter = e.epoch.counter
        raise AssertionError("unreachable")

    def sessions(self) -> session_pb2.ListSessionsResponse:
        """All sessions on the cluster, by id, and each worker's cache; and as silent the workers that did not answer, whose
        sessions and caches are missing."""
        found = session_pb2.ListSessionsResponse()
        silent: dict[str, session_pb2.SilentWorker] = {}
        request = session_pb2.ListSessionsRequest(limit=LISTED)
        while True:
            response = self._call("list sessions", "ListSessions", request, session_pb2.ListSessionsResponse)
            # A coordinator that knows no limits begins anew, and had told all.
            more = [s for s in response.sessions if s.session > request.after]
            found.sessions.extend(more)
            silent |= {w.worker: w for w in response.silent}
            if len(more) != LISTED:
                found.caches.extend(response.caches)
                found.silent.extend(silent.values())
                return found
            request.after = more[-1].session

    def find_session(self, session: bytes | str) -> session_pb2.SessionState:
        """What the cluster has of a session. It may be used while another client drives it. Where a worker that did not answer
        may hold the session, or the rest of it, a LostError names the worker."""
        id = _id(session)
        return self._find(f"find session {id.hex()}", id)

    def _find(self, doing: str, id: bytes) -> session_pb2.SessionState:
        request = session_pb2.ListSessionsRequest(sessions=[id])
        response = self._call(doing, "ListSessions", request, session_pb2.ListSessionsResponse)
        found = response.sessions[0] if len(response.sessions) == 1 else None
        lost = session_pb2.LostShards(all=True) if found is None else lost_of(found)
        if found is not None and not (response.silent and lost.layers):
            return found
        if response.silent:
            why = _silent(response.silent, lost)
        else:
            why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_UNKNOWN, message="no worker holds it", lost=lost)
        error = session_error(doing, why)
        if found is not None:
            error.tell_lost([(layer.n_kv_heads * max(layer.stripes, 1), 0) for layer in found.config.layers])
        raise error

    def drop_session(self, session: bytes | str) -> None:
        """Ends a session on the cluster, whoever drives it."""
        id = _id(session)
        request = session_pb2.DropSessionRequest(session=id)
        self._call(f"drop session {id.hex()}", "DropSession", request, session_pb2.DropSessionResponse)

    def _call(self, doing: str, method: str, request: Message, answer: type[R]) -> R:
        return self._holder.call(doing, f"SessionService/{method}", request, answer, self.timeout)

    def _epoch(self, counter: int) -> session_pb2.Epoch:
        return session_pb2.Epoch(counter=counter, lane=self._holder.lane)

    # Jobs.

    def submit(
        self,
        job: str | os.PathLike[str] | Mapping[str, npt.ArrayLike],
        *,
        options: Mapping[str, Any] | None = None,
        key: str = "",
        name: str = "",
        codec: Codec = "exact",
        deadline: float = 0,
    ) -> coordinator_pb2.Job:
        """Submits a job and returns it as the coordinator took it. The job is the path of a safetensors file or an npz archive,
        or its tensors by name (docs/job-file.md).

        options override the file's; numbers and arrays of NumPy are taken. The same key with the same content is the same job.
        codec is that of contexts on their way within the cluster; all but exact are lossy. deadline is the longest time in seconds
        that the job may run.
        """
        if codec not in CODECS:
            raise ValueError(f"codec {codec!r} is none of {', '.join(CODECS)}")
        chosen = {field: plain(field, value) for field, value in (options or {}).items()}
        limit = _seconds("deadline", deadline)
        source, own_name = open_source(job)
        name = _text("name", name) or own_name
        digest = hashlib.sha256()
        for piece in source.pieces(_PIECE):
            digest.update(piece)
        begin = coordinator_pb2.SubmitBegin(
            key=_text("key", key),
            name=name,
            size_bytes=source.size,
            sha256=digest.digest(),
            header=source.header,
            overrides=json.dumps(chosen).encode() if chosen else b"",
            codec=CODECS[codec],
        )
        if limit > 0:
            begin.deadline.CopyFrom(_duration(limit))
        doing = f"submit {name}"
        wanted = Verdict()

        def requests() -> Iterator[coordinator_pb2.SubmitRequest]:
            yield coordinator_pb2.SubmitRequest(begin=begin)
            if wanted.wait():
                for piece in source.pieces(_PIECE):
                    yield coordinator_pb2.SubmitRequest(data=piece)

        stub = self._coordinator.channel().stream_stream(
            "/headwater.v1.CoordinatorService/Submit",
            request_serializer=coordinator_pb2.SubmitRequest.SerializeToString,
            response_deserializer=coordinator_pb2.SubmitResponse.FromString,
        )
        call = stub(requests(), metadata=METADATA)
        taken = None
        send = False
        try:
            with self._coordinator.errors(doing):
                for response in call:
                    if taken is None:
                        send = response.send
                        wanted.say(send)
                        taken = response.job
                    else:
                        taken, send = response.job, False
        finally:
            wanted.say(False)
            call.cancel()  # type: ignore[no-untyped-call]
        self._coordinator.check_version(call.initial_metadata())
        if taken is None or send:
            raise ProtocolError(f"{doing}: the answer ended early")
        result: coordinator_pb2.Job = taken
        return result

    def job(self, id: str) -> coordinator_pb2.Job:
        """A job by id, key or content hash."""
        request = coordinator_pb2.GetJobRequest(id=_text("id", id))
        return self._ask(f"get job {id}", "GetJob", request, coordinator_pb2.GetJobResponse).job

    def jobs(self) -> Sequence[coordinator_pb2.Job]:
        """All jobs that the coordinator keeps, newest first."""
        request = coordinator_pb2.ListJobsRequest()
        return self._ask("list jobs", "ListJobs", request, coordinator_pb2.ListJobsResponse).jobs

    def cancel(self, id: str) -> coordinator_pb2.Job:
        """Ends a job, or does nothing to one that has ended, and returns it."""
        request = coordinator_pb2.CancelJobRequest(id=_text("id", id))
        return self._ask(f"cancel job {id}", "CancelJob", request, coordinator_pb2.CancelJobResponse).job

    def delete(self, id: str) -> coordinator_pb2.Job:
        """Forgets a job that has ended, with its result, and returns it."""
        request = coordinator_pb2.DeleteJobRequest(id=_text("id", id))
        return self._ask(f"delete job {id}", "DeleteJob", request, coordinator_pb2.DeleteJobResponse).job

    def wait(self, id: str, *, timeout: float | None = None) -> coordinator_pb2.Job:
        """Waits for a job's end, and returns it if it succeeded. A JobError says that it did not. timeout is in seconds."""
        doing = f"watch job {id}"
        request = coordinator_pb2.WatchJobRequest(id=_text("id", id))
        stub = self._coordinator.channel().unary_stream(
            "/headwater.v1.CoordinatorService/WatchJob",
            request_serializer=coordinator_pb2.WatchJobRequest.SerializeToString,
            response_deserializer=coordinator_pb2.WatchJobResponse.FromString,
        )
        job: coordinator_pb2.Job | None = None
        with self._coordinator.errors(doing):
            for response in stub(request, timeout=timeout, metadata=METADATA):
                job = response.job
        if job is None or job.state not in _ENDED:
            raise ProtocolError(f"{doing}: the answer ended early")
        if job.state != coordinator_pb2.JOB_STATE_SUCCEEDED:
            raise job_error(job)
        return job

    def result(self, id: str) -> dict[str, Array]:
        """The tensors of a job's result, whose SHA-256 has been checked."""
        doing = f"download the result of job {id}"
        request = coordinator_pb2.DownloadResultRequest(id=_text("id", id))
        stub = self._coordinator.channel().unary_stream(
            "/headwater.v1.CoordinatorService/DownloadResult",
            request_serializer=coordinator_pb2.DownloadResultRequest.SerializeToString,
            response_deserializer=coordinator_pb2.DownloadResultResponse.FromString,
        )
        job: coordinator_pb2.Job | None = None
        pieces = []
        with self._coordinator.errors(doing):
            for response in stub(request, metadata=METADATA):
                if job is None:
                    job = response.job
                pieces.append(response.data)
        data = b"".join(pieces)
        if job is None or hashlib.sha256(data).hexdigest() != job.result_sha256:
            raise ProtocolError(f"{doing}: the bytes are not those of the result")
        return safetensors.load(data)[0]

    def run(self, job: str | os.PathLike[str] | Mapping[str, npt.ArrayLike], **options: Any) -> dict[str, Array]:
        """Submits a job as submit does, waits for its end and returns its result. options are the job's: causal=True,
        scale=np.float32(0.25)."""
        taken = self.submit(job, options=options or None)
        self.wait(taken.id)
        return self.result(taken.id)

    def status(self) -> coordinator_pb2.StatusResponse:
        """The coordinator and its workers."""
        return self._ask("ask for the status", "Status", coordinator_pb2.StatusRequest(), coordinator_pb2.StatusResponse)

    def _ask(self, doing: str, method: str, request: Message, answer: type[R]) -> R:
        return self._coordinator.call(doing, f"CoordinatorService/{method}", request, answer, self.timeout)


def _close(holder: Connection, coordinator: Connection, relay: Relay | None) -> None:
    holder.close()
    coordinator.close()
    if relay is not None:
        relay.close()


def _id(session: bytes | str) -> bytes:
    """A session's id, of its 16 bytes or their 32 hexadecimal digits."""
    if isinstance(session, str):
        try:
            id = bytes.fromhex(session)
        except ValueError:
            raise ValueError(f"session {session!r} is not of hexadecimal digits") from None
    elif isinstance(session, (bytes, bytearray, memoryview)):
        id = bytes(session)
    else:
        raise TypeError(f"session is a {type(session).__name__}, not the id of one or a Receipt")
    if len(id) != 16:
        raise ValueError(f"session {id.hex()!r} has {len(id)} bytes, an id has 16")
    return id


def _took(doing: str, layers: tuple[Layer, ...], state: session_pb2.SessionState) -> tuple[Layer, ...]:
    """The layers with the arithmetic that the coordinator has taken."""
    made = settled(layers, [Layer.from_proto(layer) for layer in state.config.layers])
    if len(made) != len(layers) or any(layer.arithmetic == "auto" for layer in made):
        raise ProtocolError(f"{doing}: the coordinator does not say in which arithmetic the layers are")
    return made


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, not a str")
    return value


def _seconds(name: str, value: float) -> float:
    seconds = options.number(name, value)
    if seconds < 0:
        raise ValueError(f"{name} is {seconds} seconds, not at least 0")
    return seconds


def _silent(workers: Sequence[session_pb2.SilentWorker], lost: session_pb2.LostShards) -> session_pb2.SessionError:
    """Why a session is lost that workers which did not answer may hold."""
    what = "the session" if lost.all else "the rest of the session"
    others = "; nor did " + ", ".join(w.worker for w in workers[1:]) if len(workers) > 1 else ""
    message = f"it did not answer, and may hold {what}: {workers[0].error}{others}"
    return session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_LOST, message=message, holder=workers[0].worker, lost=lost)


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
