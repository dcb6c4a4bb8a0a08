from __future__ import annotations

import random

import numpy as np
import pytest

from headwater import lane
from headwater.v1 import session_pb2


def test_requests_are_protobuf() -> None:
    step = session_pb2.Step(session=bytes(16), layer=3, hashes=[1, 2**64 - 1], tree_mask=b"ab")
    for id in (0, 1, 127, 128, 300, 2**64 - 1):
        for shapes in ([], [(0, 3)], [(2, 3), (5,)], [(1000, 100), (0,), (3,)]):
            arrays = [np.random.default_rng(7).standard_normal(s).astype(np.float32) for s in shapes]
            parts, size = lane.encode_request(id, step.SerializeToString(), arrays)
            data = b"".join(parts)
            got = session_pb2.LaneRequest.FromString(data)
            assert len(data) == size and got == session_pb2.LaneRequest(id=id, step=step, payload=b"".join(a.tobytes() for a in arrays))


def test_responses_are_protobuf() -> None:
    result = session_pb2.StepResult(length=300, hashes=[5, 2**63], compute_nanos=9)
    for m in (
        session_pb2.LaneResponse(),
        session_pb2.LaneResponse(id=2**64 - 1, result=result, payload=b"x" * 1000),
        session_pb2.LaneResponse(id=7, result=session_pb2.StepResult(error=session_pb2.SessionError(message="no"))),
    ):
        data = m.SerializeToString()
        got = lane.decode_response(data)
        assert (got.id, got.result, bytes(got.payload)) == (m.id, m.result, m.payload)
        # Fields that this version does not know are passed over: a number, 8 bytes, 4 bytes, and a string.
        got = lane.decode_response(b"\x20\x05" + b"\x29" + bytes(8) + b"\x35" + bytes(4) + b"\x3a\x02hi" + data)
        assert (got.id, got.result) == (m.id, m.result)


def test_other_bytes_are_an_error_or_an_answer() -> None:
    random.seed(3)
    good = session_pb2.LaneResponse(id=5, result=session_pb2.StepResult(length=3), payload=b"abc").SerializeToString()
    refused = 0
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            lane.decode_response(bytes(data[: random.randint(0, len(data))]))
        except ValueError:
            refused += 1
    assert refused > 1000
    with pytest.raises(ValueError, match="a field of 100 bytes, 1 are there"):
        lane.decode_response(b"\x1a\x64x")
