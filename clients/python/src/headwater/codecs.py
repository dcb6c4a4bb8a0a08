"""How contexts come back: as they are, or in frames."""

from __future__ import annotations

from typing import Literal

import numpy as np

from . import constants, frames
from .arrays import Floats
from .v1 import session_pb2

SessionCodec = Literal["auto", "raw", "exact", "bf16", "f16", "int8"]
"""How a session's contexts come back: as they are, in frames that return every bit, or in ones that narrow them. auto is raw or
exact, whichever takes less time as it is measured."""

CODECS: dict[SessionCodec, session_pb2.StepCodec] = {
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


def check(codec: str) -> None:
    """Refuses a codec that is none."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r} is none of {', '.join(CODECS)}")


def decode(payload: memoryview, codec: session_pb2.StepCodec, rows: int, heads: int, v_dim: int) -> tuple[Floats, Floats]:
    """The context [rows * v_dim] and LSE [rows] of an answer. heads are those of a group, of which each token has one row each. A
    FrameError says that it can't be read."""
    if codec not in _FRAMES:
        if len(payload) != 4 * rows * (v_dim + 1):
            raise frames.FrameError(f"{len(payload)} bytes for {rows} rows of {v_dim}")
        values = np.frombuffer(payload, "<f4")
        return values[: rows * v_dim], values[rows * v_dim :]
    context, lse = frames.decode(payload, _FRAMES[codec], rows // heads, heads, v_dim)
    return context.reshape(-1), lse.reshape(-1)


class Chooser:
    """Picks between raw and exact contexts by the time that an element takes, kernels and queues apart."""

    def __init__(self) -> None:
        self._steps = 0
        self._costs: dict[session_pb2.StepCodec, float] = {}  # seconds of an element, averaged over some steps

    def codec(self) -> session_pb2.StepCodec:
        """The codec of the next step. Now and then it is the one that seems slower, to see whether it still is."""
        self._steps += 1
        raw, exact = (self._costs.get(c) for c in (session_pb2.STEP_CODEC_RAW, session_pb2.STEP_CODEC_EXACT))
        best = raw is not None and exact is not None and exact < raw
        if self._steps % constants.PROBE_EVERY == 0:
            best = not best
        return session_pb2.STEP_CODEC_EXACT if best else session_pb2.STEP_CODEC_RAW

    def measured(self, codec: session_pb2.StepCodec, seconds: float, elements: int) -> None:
        """Takes in what a step's answer cost."""
        cost = max(seconds, 1e-9) / elements
        before = self._costs.get(codec, cost)
        self._costs[codec] = before + (cost - before) / 8
