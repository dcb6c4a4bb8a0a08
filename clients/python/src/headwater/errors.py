"""What can go wrong. Every error is a HeadwaterError whose text is one line: what was being done, to what, who refused it, why.

A program acts on its kind (docs/errors.md): TryAgainError, GoneError or RefusedError. An error of none of these is the program's
own doing, its timeout or a client that it has closed, or a fault of the software.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from .security import in_own_words
from .v1 import coordinator_pb2, session_pb2, worker_pb2

PROTOCOL_KEY = "headwater-protocol"


class HeadwaterError(Exception):
    """A call that did not succeed."""


class TryAgainError(HeadwaterError):
    """The same call may go well later.

    retry_after  seconds after which it may at the earliest; 0 if nobody says
    """

    retry_after: float = 0.0


class GoneError(HeadwaterError):
    """What was asked for is no more: open a new session and append again, or restore a snapshot."""


class RefusedError(HeadwaterError):
    """The same call fails in the same way: change the request."""


class CallError(HeadwaterError):
    """A call that gRPC or the other side ended with a code, which decides about its kind.

    address  whom the call went to
    code     the code
    message  why, in one line
    """

    address: str
    code: grpc.StatusCode
    message: str

    def __init__(self, doing: str, address: str, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{doing}: {address}: {message}")
        self.address = address
        self.code = code
        self.message = message


class DeadlineError(CallError, TimeoutError):
    """A call that took longer than it might."""


class UnreachableError(CallError, TryAgainError):
    """Nobody answers at the address, or the connection broke."""


class _TryAgainCallError(CallError, TryAgainError):
    pass


class OverQuotaError(TryAgainError):
    """The tenant would have more than it may. Of a call on a session it is an OverBudgetError as well.

    tenant       name of the tenant
    quota        what the limit bounds: "sessions", "bytes", "steps_per_second" or "jobs"
    limit        the limit
    used         what the tenant has of it
    """

    tenant: str
    quota: str
    limit: float
    used: float

    def _tell(self, why: worker_pb2.Quota) -> None:
        self.tenant, self.quota, self.limit, self.used = why.tenant, why.kind, why.limit, why.used
        self.retry_after = why.retry_after_millis / 1000


class _OverQuotaCallError(_TryAgainCallError, OverQuotaError):
    pass


class _RefusedCallError(CallError, RefusedError):
    pass


class ProtocolError(HeadwaterError):
    """The other side speaks another protocol version, or answers what it should not."""


class JobError(HeadwaterError):
    """A job that ended without a result. Its kind is that of the code that it failed with; a cancelled one has none.

    job  the job as it ended
    """

    job: coordinator_pb2.Job

    def __init__(self, job: coordinator_pb2.Job) -> None:
        cancelled = job.state == coordinator_pb2.JOB_STATE_CANCELLED
        super().__init__(f"job {job.id} " + ("was cancelled" if cancelled else f"failed: {one_line(job.error)}"))
        self.job = job


class _TryAgainJobError(JobError, TryAgainError):
    pass


class _RefusedJobError(JobError, RefusedError):
    pass


_TRY_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
)
_REFUSED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


def job_error(job: coordinator_pb2.Job) -> JobError:
    """The error of a job that ended without a result."""
    if job.state == coordinator_pb2.JOB_STATE_CANCELLED:
        return JobError(job)
    code = next((c for c in grpc.StatusCode if c.value[0] == job.error_code), grpc.StatusCode.UNKNOWN)
    kinds = [(_TRY_AGAIN, _TryAgainJobError), (_REFUSED, _RefusedJobError)]
    return next((kind for codes, kind in kinds if code in codes), JobError)(job)


@dataclass(frozen=True)
class LostShards:
    """Groups of a layer that no worker holds that answers, and with them the positions that the layer had.

    layer      the layer
    groups     its groups that are lost, ascending
    positions  from 0 on, those included that had left the layer's window; 0 if the caller brought no receipt
    """

    layer: int
    groups: tuple[int, ...]
    positions: int


class SessionError(HeadwaterError):
    """A call on a session that a holder or the coordinator answered with a reason, which decides about its class and kind. The
    session is as it was before, or the same call again makes it whole.

    holder       name of the worker that refused, or the coordinator's address
    problem      the reason, of session_pb2.SessionProblem
    layer        the layer that it is about
    group        of DifferentError: the group
    length       of BehindError, AheadError and DifferentError: positions that the holder has
    epoch        of StaleEpochError: the epoch that the holder has accepted
    truncations  of OtherTruncationsError: the holder's
    lost         of LostError and UnknownSessionError: the shards that no worker holds that answers, ascending by layer. It is empty
                 if there are none, or if nobody knows: a call by a session's id alone knows no layers of a session that no worker
                 holds
    message      why, in one line
    """

    lost: tuple[LostShards, ...]

    def __init__(self, doing: str, why: session_pb2.SessionError, holder: str = "") -> None:
        self.holder = why.holder or holder
        self.problem = why.problem
        self.layer = why.layer
        self.group = why.group
        self.length = why.length
        self.epoch = why.epoch
        self.truncations = why.truncations
        self.lost = ()
        self._lost = why.lost
        self.message = one_line(why.message) or session_pb2.SessionProblem.Name(why.problem)
        self._text = ": ".join(part for part in (doing, self.holder, self.message) if part)
        super().__init__(self._text)

    def tell_lost(self, layers: Sequence[tuple[int, int]]) -> None:
        """Says what is lost of a session whose layers have so many groups and positions."""
        if not isinstance(self, (LostError, UnknownSessionError)):
            return
        told = {one.layer: one.groups for one in self._lost.layers}
        found = []
        for layer, (groups, positions) in enumerate(layers):
            bits = told.get(layer, b"")
            lost = tuple(g for g in range(groups) if self._lost.all or g // 8 < len(bits) and bits[g // 8] >> g % 8 & 1)
            if lost:
                found.append(LostShards(layer, lost, positions))
        if found:
            self.lost = tuple(found)
            self.args = (f"{self._text}; lost: {_lost_text(self.lost)}",)


class InvalidError(SessionError, RefusedError):
    """The request contradicts itself, the session's config or a limit."""


class UnknownSessionError(SessionError, GoneError):
    """The session is not held: it was dropped, evicted or has expired, a worker that held a part has restarted, or it never was."""


class ExistsError(SessionError, RefusedError):
    """The id is taken by a session that was made otherwise."""


class BehindError(SessionError, RefusedError):
    """The holder has fewer positions than the request builds on."""


class AheadError(SessionError, RefusedError):
    """The holder has more positions than the request builds on."""


class DifferentError(SessionError, RefusedError):
    """The holder has other keys or values than the request builds on."""


class StaleEpochError(SessionError, RefusedError):
    """Another client drives the session; Client.attach takes it back."""


class OtherTruncationsError(SessionError, RefusedError):
    """Positions were taken back since, or not yet."""


class FreedError(SessionError, RefusedError):
    """Positions that are needed have been freed, because they left the layer's window."""


class OverBudgetError(SessionError, TryAgainError):
    """There is no room, also after dropping what may be dropped."""


class _OverQuotaSessionError(OverBudgetError, OverQuotaError):
    def __init__(self, doing: str, why: session_pb2.SessionError, holder: str = "") -> None:
        super().__init__(doing, why, holder)
        self._tell(why.quota)


class NotFiniteError(SessionError, RefusedError):
    """A score or a context is not finite."""


class LostError(SessionError, TryAgainError):
    """A worker that holds a part can't be reached or does not answer. Its part is there when it is back, unless it has restarted."""


class BusyError(SessionError, TryAgainError):
    """The holder stops, or has too much to do: later or elsewhere it may be done."""


_problems: dict[int, type[SessionError]] = {
    session_pb2.SESSION_PROBLEM_INVALID: InvalidError,
    session_pb2.SESSION_PROBLEM_UNKNOWN: UnknownSessionError,
    session_pb2.SESSION_PROBLEM_EXISTS: ExistsError,
    session_pb2.SESSION_PROBLEM_BEHIND: BehindError,
    session_pb2.SESSION_PROBLEM_AHEAD: AheadError,
    session_pb2.SESSION_PROBLEM_DIFFERENT: DifferentError,
    session_pb2.SESSION_PROBLEM_STALE_EPOCH: StaleEpochError,
    session_pb2.SESSION_PROBLEM_OTHER_TRUNCATIONS: OtherTruncationsError,
    session_pb2.SESSION_PROBLEM_FREED: FreedError,
    session_pb2.SESSION_PROBLEM_OVER_BUDGET: OverBudgetError,
    session_pb2.SESSION_PROBLEM_NOT_FINITE: NotFiniteError,
    session_pb2.SESSION_PROBLEM_LOST: LostError,
    session_pb2.SESSION_PROBLEM_BUSY: BusyError,
}


def _lost_text(lost: Sequence[LostShards]) -> str:
    """In some words which shards are lost, as the Go client has it."""
    shards, most = sum(len(one.groups) for one in lost), max(one.positions for one in lost)
    named = [f"layer {one.layer} {_plural('group', len(one.groups))} {_runs(one.groups)}" for one in lost[:_LOST_NAMED]]
    if (more := len(lost) - _LOST_NAMED) > 0:
        named.append(f"{more} more {_plural('layer', more)}")
    of = f" of {most} {_plural('position', most)}" if most else ""
    return f"{shards} {_plural('shard', shards)}{of} ({', '.join(named)})"


_LOST_NAMED = 3


def _plural(word: str, n: int) -> str:
    return word if n == 1 else word + "s"


def _runs(numbers: Sequence[int]) -> str:
    """Ascending numbers, runs of them as FIRST-LAST."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def lost_of(found: session_pb2.SessionState) -> session_pb2.LostShards:
    """What is lost of a session that a coordinator found: what no holder has that its epoch names."""
    held: dict[int, set[int]] = {}
    for holder in found.holders:
        if not found.epoch.members or holder.name in found.epoch.members:
            for of in holder.layers:
                held.setdefault(of.layer, set()).update(of.shards or of.groups)
    lost = session_pb2.LostShards()
    for i, layer in enumerate(found.config.layers):
        shards = layer.n_kv_heads * max(layer.stripes, 1)
        groups = set(range(shards)) - held.get(i, set())
        if groups:
            lost.layers.add(layer=i, groups=sum(1 << g for g in groups).to_bytes((shards + 7) // 8, "little"))
    return lost


def session_error(doing: str, why: session_pb2.SessionError, holder: str = "") -> SessionError:
    """The error of a problem."""
    if why.problem == session_pb2.SESSION_PROBLEM_OVER_BUDGET and why.HasField("quota"):
        return _OverQuotaSessionError(doing, why, holder)
    error = _problems.get(why.problem, SessionError)(doing, why, holder)
    if isinstance(error, TryAgainError):
        error.retry_after = why.retry_after_millis / 1000
    return error


def transient(error: BaseException) -> bool:
    """Whether the same call may go well soon."""
    return isinstance(error, (UnreachableError, BusyError))


def one_line(text: str) -> str:
    return " ".join(text.split())


def call_error(doing: str, address: str, error: grpc.RpcError, relayed: bool = False) -> HeadwaterError:
    """What the error of a call means: a SessionError if its status carries one. A relay has no say of its own: if it answers
    that something is unavailable, it passes on that nobody answers."""
    if not isinstance(error, grpc.Call):
        return CallError(doing, address, grpc.StatusCode.UNKNOWN, one_line(str(error)))
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None  # one whose details can not be read still has its code
    details = () if status is None else status.details
    if error.code() is grpc.StatusCode.UNAVAILABLE and not _answered(error) and (said := in_own_words(error.details() or "")):
        return _RefusedCallError(doing, address, grpc.StatusCode.UNAUTHENTICATED, said)
    code, text = error.code(), error.details() or ""
    if code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN) and _CANCELLED_BY_SERVER in text:
        code, text = grpc.StatusCode.DEADLINE_EXCEEDED, ""
    return _meaning(doing, address, code, text, details, relayed or not _answered(error))


# A server ends a call so whose deadline has passed by its clock. gRPC says this if it has not noticed by its own.
_CANCELLED_BY_SERVER = "RST_STREAM with error code 8"


def _meaning(doing: str, address: str, code: grpc.StatusCode, text: str, details: Iterable[Any], unreached: bool) -> HeadwaterError:
    """What a status means. unreached is whether UNAVAILABLE means that nobody answers."""
    message = one_line(text)
    after = 0.0
    try:
        for detail in details:
            later = error_details_pb2.RetryInfo()
            if detail.Unpack(later):
                after = max(later.retry_delay.ToMicroseconds() / 1e6, 0.0)
            why = session_pb2.SessionError()
            if detail.Unpack(why):
                return session_error(doing, why, address)
            quota = worker_pb2.Quota()
            if detail.Unpack(quota):
                over = _OverQuotaCallError(doing, address, code, message or code.name)
                over._tell(quota)
                return over
    except (DecodeError, ValueError):
        pass  # a status whose details can not be read still has its code
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(doing, address, code, message or "it has not answered in time")
    if code is grpc.StatusCode.UNAVAILABLE and unreached:
        return UnreachableError(doing, address, code, message or "nobody answers")
    kinds = [(_TRY_AGAIN, _TryAgainCallError), (_REFUSED, _RefusedCallError)]
    error = next((kind for codes, kind in kinds if code in codes), CallError)(doing, address, code, message or code.name)
    if isinstance(error, TryAgainError):
        error.retry_after = after
    return error


def _answered(error: grpc.Call) -> bool:
    """Whether a Headwater server gave the code, and not gRPC for want of one."""
    return any(key == PROTOCOL_KEY for key, _ in error.initial_metadata() or ())


def stream_error(doing: str, address: str, error: grpc.RpcError) -> HeadwaterError:
    """What the end of a lane means for a step: a refusal of what was sent, or else that it broke."""
    return _ended(doing, address, call_error(doing, address, error))


def lane_error(doing: str, address: str, status: status_pb2.Status) -> HeadwaterError:
    """What the end of a plain lane means for a step, as stream_error says."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _ended(doing, address, _meaning(doing, address, code, status.message, status.details, unreached=False))


def _ended(doing: str, address: str, e: HeadwaterError) -> HeadwaterError:
    if isinstance(e, CallError) and not isinstance(e, RefusedError) and e.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        broke = UnreachableError(doing, address, e.code, e.message)
        if isinstance(e, TryAgainError):
            broke.retry_after = e.retry_after
        return broke
    return e


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
