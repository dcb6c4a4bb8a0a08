"""Client of Headwater, a cluster that computes grouped-query attention.

    with headwater.Client("localhost:7600") as client:
        layers = [headwater.Layer(n_heads=32, n_kv_heads=8, head_dim=128, storage="bf16")] * 2
        with client.open(layers) as session:
            context, lse = session.step(0, q, k, v)

local() starts a cluster on this machine. A Cache is for models of transformers. A Session is a sequence held open on the cluster; a
job is one shot. Arrays are NumPy's, [tokens, heads, d]; tokens_first and heads_first turn to and from [1, heads, tokens, d]. Every
error that is not of the caller's arguments is a HeadwaterError.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from . import plugin as _plugin
from .arrays import heads_first, narrow_bfloat16, narrow_float16, tokens_first
from .client import Client
from .cluster import LocalCluster, local
from .codecs import SessionCodec
from .errors import (
    AheadError,
    BehindError,
    BusyError,
    CallError,
    DeadlineError,
    DifferentError,
    ExistsError,
    FreedError,
    GoneError,
    HeadwaterError,
    InvalidError,
    JobError,
    LostError,
    LostShards,
    NotFiniteError,
    OtherTruncationsError,
    OverBudgetError,
    OverQuotaError,
    ProtocolError,
    RefusedError,
    SessionError,
    StaleEpochError,
    TryAgainError,
    UnknownSessionError,
    UnreachableError,
)
from .jobs import Codec
from .layer import Arithmetic, Layer, Receipt, Storage
from .session import Session
from .steps import Attention, Step
from .together import batch, step_many

if TYPE_CHECKING:
    from .transformers import Cache as Cache

_plugin.install()


def __getattr__(name: str) -> Any:
    if name == "Cache":  # which needs torch, so it is imported once it is asked for
        from .transformers import Cache

        return Cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AheadError",
    "Arithmetic",
    "Attention",
    "BehindError",
    "BusyError",
    "CallError",
    "Client",
    "Codec",
    "DeadlineError",
    "DifferentError",
    "ExistsError",
    "FreedError",
    "GoneError",
    "HeadwaterError",
    "InvalidError",
    "JobError",
    "Layer",
    "LocalCluster",
    "LostError",
    "LostShards",
    "NotFiniteError",
    "OtherTruncationsError",
    "OverBudgetError",
    "OverQuotaError",
    "ProtocolError",
    "Receipt",
    "RefusedError",
    "Session",
    "SessionCodec",
    "SessionError",
    "StaleEpochError",
    "Step",
    "Storage",
    "TryAgainError",
    "UnknownSessionError",
    "UnreachableError",
    "__version__",
    "batch",
    "heads_first",
    "local",
    "narrow_bfloat16",
    "narrow_float16",
    "step_many",
    "tokens_first",
]
