"""Client of Headwater, a cluster that computes grouped-query attention.

    with headwater.Client("localhost:7600") as client:
        layers = [headwater.Layer(n_heads=32, n_kv_heads=8, head_dim=128, storage="bf16")] * 2
        with client.open(layers) as session:
            context, lse = session.step(0, q, k, v)

A Session is a sequence held open on the cluster; a job is one shot. Arrays are NumPy's, [tokens, heads, d]; tokens_first and
heads_first turn to and from [1, heads, tokens, d]. Every error that is not of the caller's arguments is a HeadwaterError.
"""

from .arrays import heads_first, narrow_bfloat16, narrow_float16, tokens_first
from .client import Client
from .errors import (
    AheadError,
    BehindError,
    BusyError,
    CallError,
    DeadlineError,
    DifferentError,
    ExistsError,
    FreedError,
    HeadwaterError,
    InvalidError,
    JobError,
    LostError,
    NotFiniteError,
    OtherTruncationsError,
    OverBudgetError,
    ProtocolError,
    SessionError,
    StaleEpochError,
    UnknownSessionError,
    UnreachableError,
)
from .session import Attention, Layer, Receipt, Session, SessionCodec, Step, batch

__all__ = [
    "AheadError",
    "Attention",
    "BehindError",
    "BusyError",
    "CallError",
    "Client",
    "DeadlineError",
    "DifferentError",
    "ExistsError",
    "FreedError",
    "HeadwaterError",
    "InvalidError",
    "JobError",
    "Layer",
    "LostError",
    "NotFiniteError",
    "OtherTruncationsError",
    "OverBudgetError",
    "ProtocolError",
    "Receipt",
    "Session",
    "SessionCodec",
    "SessionError",
    "StaleEpochError",
    "Step",
    "UnknownSessionError",
    "UnreachableError",
    "batch",
    "heads_first",
    "narrow_bfloat16",
    "narrow_float16",
    "tokens_first",
]
