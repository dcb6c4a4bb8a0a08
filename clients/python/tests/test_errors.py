"""Errors: their classes, kinds and texts, by docs/errors.md."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import headwater
from headwater import errors
from headwater.v1 import coordinator_pb2, session_pb2, worker_pb2

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "errors.md").read_text()
KINDS = {"try again": headwater.TryAgainError, "gone": headwater.GoneError, "refused": headwater.RefusedError}


def kind_of(error: BaseException) -> str:
    found = [name for name, kind in KINDS.items() if isinstance(error, kind)]
    assert len(found) < 2
    return found[0] if found else "none"


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, but for its first."""
    part = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")][2:]


def test_every_reason_has_its_class_and_kind() -> None:
    documented = {}
    for row in rows("Reasons of sessions"):
        for reason, name in zip(row[0].split(", "), re.findall(r"`(\w+)`", row[4])):
            documented[reason] = name, row[1]
    assert len(documented) == len(session_pb2.SessionProblem.values()) - 1
    for reason, (name, kind) in documented.items():
        why = session_pb2.SessionError(problem=session_pb2.SessionProblem.Value(f"SESSION_PROBLEM_{reason}"), message="why\nso", holder="w1", length=3)
        error = errors.session_error("do", why)
        assert type(error) is getattr(headwater, name) and kind_of(error) == kind
        assert str(error) == "do: w1: why so" and error.length == 3
    assert kind_of(errors.session_error("do", session_pb2.SessionError(message="?"))) == "none"


def test_a_quota_says_when_to_try_again() -> None:
    quota = worker_pb2.Quota(tenant="ann", kind="bytes", limit=10, used=9, retry_after_millis=1500)
    why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_OVER_BUDGET, message="why", holder="w1", quota=quota)
    error = errors.session_error("do", why)
    assert isinstance(error, headwater.OverQuotaError) and isinstance(error, headwater.OverBudgetError) and kind_of(error) == "try again"
    assert (error.tenant, error.quota, error.limit, error.used, error.retry_after) == ("ann", "bytes", 10, 9, 1.5)
    detail = any_pb2.Any()
    detail.Pack(quota)
    call = errors._meaning("submit", "c:1", grpc.StatusCode.RESOURCE_EXHAUSTED, "why", [detail], False)
    assert isinstance(call, headwater.OverQuotaError) and isinstance(call, errors.CallError) and call.tenant == "ann"
    assert str(call) == "submit: c:1: why" and kind_of(call) == "try again"


def test_what_is_busy_says_when_to_try_again() -> None:
    why = session_pb2.SessionError(problem=session_pb2.SESSION_PROBLEM_BUSY, message="why", holder="w1", retry_after_millis=1500)
    busy = errors.session_error("step", why)
    assert isinstance(busy, headwater.BusyError) and busy.retry_after == 1.5
    why.ClearField("retry_after_millis")  # as of a holder of before
    silent = errors.session_error("step", why)
    assert isinstance(silent, headwater.BusyError) and silent.retry_after == 0
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)))
    full = errors._meaning("submit", "c:1", grpc.StatusCode.RESOURCE_EXHAUSTED, "why", [detail], False)
    assert isinstance(full, headwater.TryAgainError) and full.retry_after == 1.5
    for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):  # of which one is said to have broken
        ended = errors.lane_error("step", "c:1", status_pb2.Status(code=code.value[0], message="why", details=[detail]))
        assert isinstance(ended, headwater.TryAgainError) and ended.retry_after == 1.5


class Refusal(grpc.RpcError, grpc.Call):
    """The error of a call that a server ended with a code, or that gRPC did."""

    def __init__(self, code: grpc.StatusCode, answered: bool = True, details: str = "why") -> None:
        self._code, self._answered, self._details = code, answered, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def initial_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((errors.PROTOCOL_KEY, "1.1"),) if self._answered else ()

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback) -> bool:
        return False


def test_every_code_has_its_kind() -> None:
    documented = {code: row[1] for row in rows("Codes of other calls") for code in row[0].split(", ")}
    assert set(documented) == {c.name for c in grpc.StatusCode} - {"OK"}
    for name, kind in documented.items():
        code = grpc.StatusCode[name]
        error = errors.call_error("do", "host:1", Refusal(code))
        assert isinstance(error, headwater.CallError) and kind_of(error) == kind and str(error) == "do: host:1: why"
        assert isinstance(error, headwater.DeadlineError) == (name == "DEADLINE_EXCEEDED")
        failed = coordinator_pb2.Job(id="j", state=coordinator_pb2.JOB_STATE_FAILED, error="why\nso", error_code=code.value[0])
        assert kind_of(errors.job_error(failed)) == kind and str(errors.job_error(failed)) == "job j failed: why so"
    cancelled = coordinator_pb2.Job(id="j", state=coordinator_pb2.JOB_STATE_CANCELLED, error_code=grpc.StatusCode.NOT_FOUND.value[0])
    assert kind_of(errors.job_error(cancelled)) == "none"


def test_only_silence_is_unreachable() -> None:
    silent = errors.call_error("do", "host:1", Refusal(grpc.StatusCode.UNAVAILABLE, answered=False))
    assert type(silent) is headwater.UnreachableError and kind_of(silent) == "try again"
    assert type(errors.call_error("do", "host:1", Refusal(grpc.StatusCode.UNAVAILABLE))) is not headwater.UnreachableError
    # A relay passes on that its coordinator is silent.
    assert type(errors.call_error("do", "unix:/s", Refusal(grpc.StatusCode.UNAVAILABLE), relayed=True)) is headwater.UnreachableError


def test_a_server_may_notice_a_deadline_first() -> None:
    details = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"
    for code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        error = errors.call_error("do", "host:1", Refusal(code, answered=False, details=details))
        assert type(error) is headwater.DeadlineError


@pytest.mark.parametrize("direct", [False, True])
def test_nobody_there(direct: bool) -> None:
    with headwater.Client("127.0.0.1:1", timeout=20, direct=direct) as c:
        with pytest.raises(headwater.UnreachableError, match="^ask for the status: 127.0.0.1:1: "):
            c.status()
        with pytest.raises(headwater.UnreachableError, match="coordinator 127.0.0.1:1 is unreachable" if direct else "127.0.0.1:1: "):
            c.open([headwater.Layer(1, 1, 4)])


def test_a_client_that_is_closed_says_so() -> None:
    c = headwater.Client("127.0.0.1:1")
    c.close()
    c.close()
    with pytest.raises(headwater.HeadwaterError, match="the client is closed"):
        c.status()
