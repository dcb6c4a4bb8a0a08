import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from headwater.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_CODEC_UNSPECIFIED: _ClassVar[StepCodec]
    STEP_CODEC_RAW: _ClassVar[StepCodec]
    STEP_CODEC_EXACT: _ClassVar[StepCodec]
    STEP_CODEC_BF16: _ClassVar[StepCodec]
    STEP_CODEC_F16: _ClassVar[StepCodec]
    STEP_CODEC_I8: _ClassVar[StepCodec]
    STEP_CODEC_PARTS: _ClassVar[StepCodec]

class SessionProblem(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_PROBLEM_UNSPECIFIED: _ClassVar[SessionProblem]
    SESSION_PROBLEM_INVALID: _ClassVar[SessionProblem]
    SESSION_PROBLEM_UNKNOWN: _ClassVar[SessionProblem]
    SESSION_PROBLEM_EXISTS: _ClassVar[SessionProblem]
    SESSION_PROBLEM_BEHIND: _ClassVar[SessionProblem]
    SESSION_PROBLEM_AHEAD: _ClassVar[SessionProblem]
    SESSION_PROBLEM_DIFFERENT: _ClassVar[SessionProblem]
    SESSION_PROBLEM_STALE_EPOCH: _ClassVar[SessionProblem]
    SESSION_PROBLEM_OTHER_TRUNCATIONS: _ClassVar[SessionProblem]
    SESSION_PROBLEM_FREED: _ClassVar[SessionProblem]
    SESSION_PROBLEM_OVER_BUDGET: _ClassVar[SessionProblem]
    SESSION_PROBLEM_NOT_FINITE: _ClassVar[SessionProblem]
    SESSION_PROBLEM_LOST: _ClassVar[SessionProblem]
    SESSION_PROBLEM_BUSY: _ClassVar[SessionProblem]
STEP_CODEC_UNSPECIFIED: StepCodec
STEP_CODEC_RAW: StepCodec
STEP_CODEC_EXACT: StepCodec
STEP_CODEC_BF16: StepCodec
STEP_CODEC_F16: StepCodec
STEP_CODEC_I8: StepCodec
STEP_CODEC_PARTS: StepCodec
SESSION_PROBLEM_UNSPECIFIED: SessionProblem
SESSION_PROBLEM_INVALID: SessionProblem
SESSION_PROBLEM_UNKNOWN: SessionProblem
SESSION_PROBLEM_EXISTS: SessionProblem
SESSION_PROBLEM_BEHIND: SessionProblem
SESSION_PROBLEM_AHEAD: SessionProblem
SESSION_PROBLEM_DIFFERENT: SessionProblem
SESSION_PROBLEM_STALE_EPOCH: SessionProblem
SESSION_PROBLEM_OTHER_TRUNCATIONS: SessionProblem
SESSION_PROBLEM_FREED: SessionProblem
SESSION_PROBLEM_OVER_BUDGET: SessionProblem
SESSION_PROBLEM_NOT_FINITE: SessionProblem
SESSION_PROBLEM_LOST: SessionProblem
SESSION_PROBLEM_BUSY: SessionProblem

class Epoch(_message.Message):
    __slots__ = ("counter", "lane", "base", "at", "closed", "holders", "members")
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    counter: int
    lane: bytes
    base: int
    at: int
    closed: bool
    holders: int
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, counter: _Optional[int] = ..., lane: _Optional[bytes] = ..., base: _Optional[int] = ..., at: _Optional[int] = ..., closed: bool = ..., holders: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class SessionConfig(_message.Message):
    __slots__ = ("layers", "tenant", "model", "ttl", "name", "unshared", "replicas")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNSHARED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[SessionLayer]
    tenant: str
    model: bytes
    ttl: _duration_pb2.Duration
    name: str
    unshared: bool
    replicas: int
    def __init__(self, layers: _Optional[_Iterable[_Union[SessionLayer, _Mapping]]] = ..., tenant: _Optional[str] = ..., model: _Optional[bytes] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., name: _Optional[str] = ..., unshared: bool = ..., replicas: _Optional[int] = ...) -> None: ...

class SessionLayer(_message.Message):
    __slots__ = ("n_heads", "n_kv_heads", "head_dim", "v_dim", "storage", "causal", "window_left", "window_right", "scale", "softcap", "alibi_slopes", "sinks", "arithmetic", "stripes")
    N_HEADS_FIELD_NUMBER: _ClassVar[int]
    N_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    V_DIM_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSAL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_LEFT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_RIGHT_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    ALIBI_SLOPES_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    storage: _worker_pb2.StorageType
    causal: bool
    window_left: int
    window_right: int
    scale: float
    softcap: float
    alibi_slopes: _containers.RepeatedScalarFieldContainer[float]
    sinks: _containers.RepeatedScalarFieldContainer[float]
    arithmetic: _worker_pb2.Arithmetic
    stripes: int
    def __init__(self, n_heads: _Optional[int] = ..., n_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., v_dim: _Optional[int] = ..., storage: _Optional[_Union[_worker_pb2.StorageType, str]] = ..., causal: bool = ..., window_left: _Optional[int] = ..., window_right: _Optional[int] = ..., scale: _Optional[float] = ..., softcap: _Optional[float] = ..., alibi_slopes: _Optional[_Iterable[float]] = ..., sinks: _Optional[_Iterable[float]] = ..., arithmetic: _Optional[_Union[_worker_pb2.Arithmetic, str]] = ..., stripes: _Optional[int] = ...) -> None: ...

class HeldLayer(_message.Message):
    __slots__ = ("layer", "groups", "shards")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    shards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., shards: _Optional[_Iterable[int]] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("name", "boot", "address", "layers", "page_bytes", "own_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    boot: bytes
    address: str
    layers: _containers.RepeatedCompositeFieldContainer[HeldLayer]
    page_bytes: int
    own_bytes: int
    def __init__(self, name: _Optional[str] = ..., boot: _Optional[bytes] = ..., address: _Optional[str] = ..., layers: _Optional[_Iterable[_Union[HeldLayer, _Mapping]]] = ..., page_bytes: _Optional[int] = ..., own_bytes: _Optional[int] = ...) -> None: ...

class LayerState(_message.Message):
    __slots__ = ("layer", "length", "hashes", "first", "chain", "before", "append_id")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    APPEND_ID_FIELD_NUMBER: _ClassVar[int]
    layer: int
    length: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    first: int
    chain: int
    before: LayerState
    append_id: int
    def __init__(self, layer: _Optional[int] = ..., length: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., first: _Optional[int] = ..., chain: _Optional[int] = ..., before: _Optional[_Union[LayerState, _Mapping]] = ..., append_id: _Optional[int] = ...) -> None: ...

class SessionState(_message.Message):
    __slots__ = ("session", "epoch", "truncations", "layers", "pinned", "page_bytes", "own_bytes", "name", "tenant", "created", "used", "holders", "config", "truncation_id", "others", "lineage", "served", "other_sides")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_ID_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    OTHER_SIDES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    truncations: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerState]
    pinned: bool
    page_bytes: int
    own_bytes: int
    name: str
    tenant: str
    created: _timestamp_pb2.Timestamp
    used: _timestamp_pb2.Timestamp
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    config: SessionConfig
    truncation_id: int
    others: _containers.RepeatedCompositeFieldContainer[Holder]
    lineage: _containers.RepeatedScalarFieldContainer[int]
    served: int
    other_sides: _containers.RepeatedCompositeFieldContainer[OtherSide]
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., truncations: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ..., pinned: bool = ..., page_bytes: _Optional[int] = ..., own_bytes: _Optional[int] = ..., name: _Optional[str] = ..., tenant: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., config: _Optional[_Union[SessionConfig, _Mapping]] = ..., truncation_id: _Optional[int] = ..., others: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., lineage: _Optional[_Iterable[int]] = ..., served: _Optional[int] = ..., other_sides: _Optional[_Iterable[_Union[OtherSide, _Mapping]]] = ...) -> None: ...

class OtherSide(_message.Message):
    __slots__ = ("worker", "address", "epoch", "positions", "page_bytes")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    address: str
    epoch: int
    positions: int
    page_bytes: int
    def __init__(self, worker: _Optional[str] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ..., positions: _Optional[int] = ..., page_bytes: _Optional[int] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("session", "epoch", "config", "held", "tokens", "workers", "begin", "call")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    config: SessionConfig
    held: _containers.RepeatedCompositeFieldContainer[HeldLayer]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    workers: int
    begin: _containers.RepeatedCompositeFieldContainer[BeginLayer]
    call: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., config: _Optional[_Union[SessionConfig, _Mapping]] = ..., held: _Optional[_Iterable[_Union[HeldLayer, _Mapping]]] = ..., tokens: _Optional[_Iterable[int]] = ..., workers: _Optional[int] = ..., begin: _Optional[_Iterable[_Union[BeginLayer, _Mapping]]] = ..., call: _Optional[int] = ...) -> None: ...

class BeginLayer(_message.Message):
    __slots__ = ("layer", "first", "hashes", "length")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    layer: int
    first: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    length: int
    def __init__(self, layer: _Optional[int] = ..., first: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., length: _Optional[int] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class TakeSessionRequest(_message.Message):
    __slots__ = ("session", "epoch", "expect", "truncations", "check_only")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    CHECK_ONLY_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    expect: _containers.RepeatedCompositeFieldContainer[LayerState]
    truncations: int
    check_only: bool
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., expect: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ..., truncations: _Optional[int] = ..., check_only: bool = ...) -> None: ...

class TakeSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session", "epoch", "truncations", "child", "child_epoch", "position", "expect", "call")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    CHILD_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    truncations: int
    child: bytes
    child_epoch: Epoch
    position: int
    expect: _containers.RepeatedCompositeFieldContainer[LayerState]
    call: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., truncations: _Optional[int] = ..., child: _Optional[bytes] = ..., child_epoch: _Optional[_Union[Epoch, _Mapping]] = ..., position: _Optional[int] = ..., expect: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ..., call: _Optional[int] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class TruncateSessionRequest(_message.Message):
    __slots__ = ("session", "epoch", "truncations", "position", "lengths", "check_only", "expect", "id", "count")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    CHECK_ONLY_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    truncations: int
    position: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    check_only: bool
    expect: _containers.RepeatedCompositeFieldContainer[LayerState]
    id: int
    count: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., truncations: _Optional[int] = ..., position: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., check_only: bool = ..., expect: _Optional[_Iterable[_Union[LayerState, _Mapping]]] = ..., id: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TruncateSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class PinSessionRequest(_message.Message):
    __slots__ = ("session", "pinned")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    pinned: bool
    def __init__(self, session: _Optional[bytes] = ..., pinned: bool = ...) -> None: ...

class PinSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class DropSessionRequest(_message.Message):
    __slots__ = ("session", "epoch", "call", "served")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: Epoch
    call: int
    served: int
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., call: _Optional[int] = ..., served: _Optional[int] = ...) -> None: ...

class DropSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("sessions", "caches_only", "limit", "after", "holders_only", "prefix", "others")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CACHES_ONLY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_ONLY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    caches_only: bool
    limit: int
    after: bytes
    holders_only: bool
    prefix: PrefixQuery
    others: bool
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ..., caches_only: bool = ..., limit: _Optional[int] = ..., after: _Optional[bytes] = ..., holders_only: bool = ..., prefix: _Optional[_Union[PrefixQuery, _Mapping]] = ..., others: bool = ...) -> None: ...

class PrefixQuery(_message.Message):
    __slots__ = ("config", "tokens")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    config: SessionConfig
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, config: _Optional[_Union[SessionConfig, _Mapping]] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefixHolding(_message.Message):
    __slots__ = ("layers", "positions")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[HeldLayer]
    positions: int
    def __init__(self, layers: _Optional[_Iterable[_Union[HeldLayer, _Mapping]]] = ..., positions: _Optional[int] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "caches", "silent", "prefixes")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CACHES_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionState]
    caches: _containers.RepeatedCompositeFieldContainer[CacheState]
    silent: _containers.RepeatedCompositeFieldContainer[SilentWorker]
    prefixes: _containers.RepeatedCompositeFieldContainer[PrefixHolding]
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionState, _Mapping]]] = ..., caches: _Optional[_Iterable[_Union[CacheState, _Mapping]]] = ..., silent: _Optional[_Iterable[_Union[SilentWorker, _Mapping]]] = ..., prefixes: _Optional[_Iterable[_Union[PrefixHolding, _Mapping]]] = ...) -> None: ...

class SilentWorker(_message.Message):
    __slots__ = ("worker", "address", "error")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    worker: str
    address: str
    error: str
    def __init__(self, worker: _Optional[str] = ..., address: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class CacheState(_message.Message):
    __slots__ = ("worker", "used_bytes", "free_bytes", "budget_bytes", "prefix_bytes", "prefix_asked", "prefix_hits", "prefix_saved_bytes", "evicted", "queued_steps", "queued_tokens", "lanes", "sessions", "room_bytes", "pages", "row_bytes", "session_bytes")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_ASKED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    ROOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSION_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    used_bytes: int
    free_bytes: int
    budget_bytes: int
    prefix_bytes: int
    prefix_asked: int
    prefix_hits: int
    prefix_saved_bytes: int
    evicted: int
    queued_steps: int
    queued_tokens: int
    lanes: int
    sessions: int
    room_bytes: int
    pages: _containers.RepeatedCompositeFieldContainer[PageState]
    row_bytes: int
    session_bytes: int
    def __init__(self, worker: _Optional[str] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., prefix_bytes: _Optional[int] = ..., prefix_asked: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., prefix_saved_bytes: _Optional[int] = ..., evicted: _Optional[int] = ..., queued_steps: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., lanes: _Optional[int] = ..., sessions: _Optional[int] = ..., room_bytes: _Optional[int] = ..., pages: _Optional[_Iterable[_Union[PageState, _Mapping]]] = ..., row_bytes: _Optional[int] = ..., session_bytes: _Optional[int] = ...) -> None: ...

class PageState(_message.Message):
    __slots__ = ("page_bytes", "used", "free")
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    page_bytes: int
    used: int
    free: int
    def __init__(self, page_bytes: _Optional[int] = ..., used: _Optional[int] = ..., free: _Optional[int] = ...) -> None: ...

class ExportSessionRequest(_message.Message):
    __slots__ = ("session", "layer", "start", "count", "tokens", "groups", "stored_hashes", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    STORED_HASHES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    layer: int
    start: int
    count: int
    tokens: bool
    groups: _containers.RepeatedScalarFieldContainer[int]
    stored_hashes: bool
    epoch: Epoch
    def __init__(self, session: _Optional[bytes] = ..., layer: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., tokens: bool = ..., groups: _Optional[_Iterable[int]] = ..., stored_hashes: bool = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class ExportSessionResponse(_message.Message):
    __slots__ = ("group", "start", "count", "k", "v", "k_scale", "v_scale", "hash_before", "hash_after", "tokens")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    V_FIELD_NUMBER: _ClassVar[int]
    K_SCALE_FIELD_NUMBER: _ClassVar[int]
    V_SCALE_FIELD_NUMBER: _ClassVar[int]
    HASH_BEFORE_FIELD_NUMBER: _ClassVar[int]
    HASH_AFTER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    group: int
    start: int
    count: int
    k: bytes
    v: bytes
    k_scale: bytes
    v_scale: bytes
    hash_before: int
    hash_after: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., k: _Optional[bytes] = ..., v: _Optional[bytes] = ..., k_scale: _Optional[bytes] = ..., v_scale: _Optional[bytes] = ..., hash_before: _Optional[int] = ..., hash_after: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class AdoptSessionRequest(_message.Message):
    __slots__ = ("filled", "session", "epoch", "state")
    FILLED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    filled: bytes
    session: bytes
    epoch: Epoch
    state: SessionState
    def __init__(self, filled: _Optional[bytes] = ..., session: _Optional[bytes] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class AdoptSessionResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class LaneRequest(_message.Message):
    __slots__ = ("id", "step", "payload")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    id: int
    step: Step
    payload: bytes
    def __init__(self, id: _Optional[int] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("session", "epoch", "truncations", "layer", "length", "hashes", "append", "attend", "query_position", "encoding", "codec", "tree", "tree_mask", "tokens", "append_id", "chain", "answers", "at", "trace")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    ATTEND_FIELD_NUMBER: _ClassVar[int]
    QUERY_POSITION_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    TREE_MASK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    APPEND_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    truncations: int
    layer: int
    length: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    append: int
    attend: int
    query_position: int
    encoding: _worker_pb2.StorageType
    codec: StepCodec
    tree: int
    tree_mask: bytes
    tokens: _containers.RepeatedScalarFieldContainer[int]
    append_id: int
    chain: int
    answers: bytes
    at: int
    trace: bytes
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., truncations: _Optional[int] = ..., layer: _Optional[int] = ..., length: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., append: _Optional[int] = ..., attend: _Optional[int] = ..., query_position: _Optional[int] = ..., encoding: _Optional[_Union[_worker_pb2.StorageType, str]] = ..., codec: _Optional[_Union[StepCodec, str]] = ..., tree: _Optional[int] = ..., tree_mask: _Optional[bytes] = ..., tokens: _Optional[_Iterable[int]] = ..., append_id: _Optional[int] = ..., chain: _Optional[int] = ..., answers: _Optional[bytes] = ..., at: _Optional[int] = ..., trace: _Optional[bytes] = ...) -> None: ...

class LaneResponse(_message.Message):
    __slots__ = ("id", "result", "payload")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    id: int
    result: StepResult
    payload: bytes
    def __init__(self, id: _Optional[int] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("error", "length", "hashes", "compute_nanos", "queue_nanos", "codec", "chain")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NANOS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NANOS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    error: SessionError
    length: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    compute_nanos: int
    queue_nanos: int
    codec: StepCodec
    chain: int
    def __init__(self, error: _Optional[_Union[SessionError, _Mapping]] = ..., length: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., compute_nanos: _Optional[int] = ..., queue_nanos: _Optional[int] = ..., codec: _Optional[_Union[StepCodec, str]] = ..., chain: _Optional[int] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("problem", "message", "layer", "length", "epoch", "truncations", "group", "holder", "quota", "lost", "retry_after_millis")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATIONS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MILLIS_FIELD_NUMBER: _ClassVar[int]
    problem: SessionProblem
    message: str
    layer: int
    length: int
    epoch: Epoch
    truncations: int
    group: int
    holder: str
    quota: _worker_pb2.Quota
    lost: LostShards
    retry_after_millis: int
    def __init__(self, problem: _Optional[_Union[SessionProblem, str]] = ..., message: _Optional[str] = ..., layer: _Optional[int] = ..., length: _Optional[int] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., truncations: _Optional[int] = ..., group: _Optional[int] = ..., holder: _Optional[str] = ..., quota: _Optional[_Union[_worker_pb2.Quota, _Mapping]] = ..., lost: _Optional[_Union[LostShards, _Mapping]] = ..., retry_after_millis: _Optional[int] = ...) -> None: ...

class LostShards(_message.Message):
    __slots__ = ("all", "layers")
    ALL_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    all: bool
    layers: _containers.RepeatedCompositeFieldContainer[LostLayer]
    def __init__(self, all: bool = ..., layers: _Optional[_Iterable[_Union[LostLayer, _Mapping]]] = ...) -> None: ...

class LostLayer(_message.Message):
    __slots__ = ("layer", "groups")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    groups: bytes
    def __init__(self, layer: _Optional[int] = ..., groups: _Optional[bytes] = ...) -> None: ...
