"""What can go wrong. Every error is a HeadwaterError whose text is one line."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from .v1 import coordinator_pb2, session_pb2


class HeadwaterError(Exception):
    """A call that did not succeed."""


class CallError(HeadwaterError):
    """A call that gRPC or the other side ended with this code."""

    def __init__(self, doing: str, address: str, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{doing}: {address}: {message}")
        self.address = address
        self.code = code
        self.message = message


class DeadlineError(CallError, TimeoutError):
    """A call that took longer than it might."""


class UnreachableError(CallError):
    """Nobody answers at the address, or the connection broke."""


class ProtocolError(HeadwaterError):
    """The other side speaks another protocol version, or answers what it should not."""


class JobError(HeadwaterError):
    """A job that ended without a result."""

    def __init__(self, job: coordinator_pb2.Job) -> None:
        cancelled = job.state == coordinator_pb2.JOB_STATE_CANCELLED
        super().__init__(f"job {job.id} " + ("was cancelled" if cancelled else f"failed: {one_line(job.error)}"))
        self.job = job


class SessionError(HeadwaterError):
    """A call on a session that was refused. The session is as it was before, or the same call again makes it whole."""

    def __init__(self, doing: str, why: session_pb2.SessionError, holder: str = "") -> None:
        self.holder = why.holder or holder
        """Name of the worker that refused, or the coordinator's address."""
        self.problem = why.problem
        self.layer = why.layer
        self.group = why.group
        """For DifferentError."""
        self.length = why.length
        """For BehindError, AheadError and DifferentError: positions that the holder has."""
        self.epoch = why.epoch
        """For StaleEpochError: the epoch that the holder has accepted."""
        self.truncations = why.truncations
        """For OtherTruncationsError: the holder's."""
        self.message = one_line(why.message) or session_pb2.SessionProblem.Name(why.problem)
        super().__init__(": ".join(part for part in (doing, self.holder, self.message) if part))


class InvalidError(SessionError):
    """The request contradicts itself, the session's config or a limit."""


class UnknownSessionError(SessionError):
    """The session is not held: it was never made, was dropped, or the holder has restarted."""


class ExistsError(SessionError):
    """The id is taken by a session that was made otherwise."""


class BehindError(SessionError):
    """The holder has fewer positions than the request builds on."""


class AheadError(SessionError):
    """The holder has more positions than the request builds on."""


class DifferentError(SessionError):
    """The holder has other keys or values than the request builds on."""


class StaleEpochError(SessionError):
    """Another client drives the session; Client.attach takes it back."""


class OtherTruncationsError(SessionError):
    """Positions were taken back since, or not yet."""


class FreedError(SessionError):
    """Positions that are needed have been freed, because they left the layer's window."""


class OverBudgetError(SessionError):
    """There is no room, also after dropping what may be dropped."""


class NotFiniteError(SessionError):
    """A score or a context is not finite."""


class LostError(SessionError):
    """A holder is lost, and its part of the session with it."""


class BusyError(SessionError):
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


def session_error(doing: str, why: session_pb2.SessionError, holder: str = "") -> SessionError:
    """The error of a problem."""
    return _problems.get(why.problem, SessionError)(doing, why, holder)


def one_line(text: str) -> str:
    return " ".join(text.split())


def call_error(doing: str, address: str, error: grpc.RpcError) -> HeadwaterError:
    """What the error of a call means: a SessionError where its status carries one."""
    if not isinstance(error, grpc.Call):
        return CallError(doing, address, grpc.StatusCode.UNKNOWN, one_line(str(error)))
    code, message = error.code(), one_line(error.details() or "")
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            why = session_pb2.SessionError()
            if detail.Unpack(why):
                return session_error(doing, why, address)
    except (DecodeError, ValueError):
        pass  # a status whose details can not be read still has its code
    kinds = {grpc.StatusCode.UNAVAILABLE: UnreachableError, grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError}
    return kinds.get(code, CallError)(doing, address, code, message or code.name)


def stream_error(doing: str, address: str, error: grpc.RpcError) -> HeadwaterError:
    """What the end of a lane means for a step: a refusal of what was sent, or else that it broke."""
    e = call_error(doing, address, error)
    if isinstance(e, CallError) and e.code not in _REFUSALS:
        return UnreachableError(doing, address, e.code, e.message)
    return e


_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
