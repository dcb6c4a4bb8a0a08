from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ContextCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_CODEC_UNSPECIFIED: _ClassVar[ContextCodec]
    CONTEXT_CODEC_EXACT: _ClassVar[ContextCodec]
    CONTEXT_CODEC_BF16: _ClassVar[ContextCodec]
    CONTEXT_CODEC_F16: _ClassVar[ContextCodec]
    CONTEXT_CODEC_I8: _ClassVar[ContextCodec]

class StorageType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORAGE_TYPE_UNSPECIFIED: _ClassVar[StorageType]
    STORAGE_TYPE_F32: _ClassVar[StorageType]
    STORAGE_TYPE_F16: _ClassVar[StorageType]
    STORAGE_TYPE_BF16: _ClassVar[StorageType]
    STORAGE_TYPE_I8: _ClassVar[StorageType]

class Arithmetic(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARITHMETIC_UNSPECIFIED: _ClassVar[Arithmetic]
    ARITHMETIC_CHAIN: _ClassVar[Arithmetic]
    ARITHMETIC_TILES: _ClassVar[Arithmetic]
    ARITHMETIC_TILES_BF16: _ClassVar[Arithmetic]
    ARITHMETIC_AUTO: _ClassVar[Arithmetic]

class Weight(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHT_UNSPECIFIED: _ClassVar[Weight]
    WEIGHT_QUERY: _ClassVar[Weight]
    WEIGHT_KEY: _ClassVar[Weight]
    WEIGHT_VALUE: _ClassVar[Weight]
    WEIGHT_OUTPUT: _ClassVar[Weight]
    WEIGHT_CONTEXT: _ClassVar[Weight]

class Operand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERAND_UNSPECIFIED: _ClassVar[Operand]
    OPERAND_MASK: _ClassVar[Operand]
    OPERAND_BIAS: _ClassVar[Operand]

class GradientTensor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRADIENT_TENSOR_UNSPECIFIED: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_Q: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_K: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_V: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_BIAS: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_SINKS: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_W_Q: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_W_K: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_W_V: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_W_O: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_B_Q: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_B_K: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_B_V: _ClassVar[GradientTensor]
    GRADIENT_TENSOR_B_O: _ClassVar[GradientTensor]
CONTEXT_CODEC_UNSPECIFIED: ContextCodec
CONTEXT_CODEC_EXACT: ContextCodec
CONTEXT_CODEC_BF16: ContextCodec
CONTEXT_CODEC_F16: ContextCodec
CONTEXT_CODEC_I8: ContextCodec
STORAGE_TYPE_UNSPECIFIED: StorageType
STORAGE_TYPE_F32: StorageType
STORAGE_TYPE_F16: StorageType
STORAGE_TYPE_BF16: StorageType
STORAGE_TYPE_I8: StorageType
ARITHMETIC_UNSPECIFIED: Arithmetic
ARITHMETIC_CHAIN: Arithmetic
ARITHMETIC_TILES: Arithmetic
ARITHMETIC_TILES_BF16: Arithmetic
ARITHMETIC_AUTO: Arithmetic
WEIGHT_UNSPECIFIED: Weight
WEIGHT_QUERY: Weight
WEIGHT_KEY: Weight
WEIGHT_VALUE: Weight
WEIGHT_OUTPUT: Weight
WEIGHT_CONTEXT: Weight
OPERAND_UNSPECIFIED: Operand
OPERAND_MASK: Operand
OPERAND_BIAS: Operand
GRADIENT_TENSOR_UNSPECIFIED: GradientTensor
GRADIENT_TENSOR_Q: GradientTensor
GRADIENT_TENSOR_K: GradientTensor
GRADIENT_TENSOR_V: GradientTensor
GRADIENT_TENSOR_BIAS: GradientTensor
GRADIENT_TENSOR_SINKS: GradientTensor
GRADIENT_TENSOR_W_Q: GradientTensor
GRADIENT_TENSOR_W_K: GradientTensor
GRADIENT_TENSOR_W_V: GradientTensor
GRADIENT_TENSOR_W_O: GradientTensor
GRADIENT_TENSOR_B_Q: GradientTensor
GRADIENT_TENSOR_B_K: GradientTensor
GRADIENT_TENSOR_B_V: GradientTensor
GRADIENT_TENSOR_B_O: GradientTensor

class Quota(_message.Message):
    __slots__ = ("tenant", "kind", "limit", "used", "retry_after_millis")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MILLIS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    kind: str
    limit: float
    used: float
    retry_after_millis: int
    def __init__(self, tenant: _Optional[str] = ..., kind: _Optional[str] = ..., limit: _Optional[float] = ..., used: _Optional[float] = ..., retry_after_millis: _Optional[int] = ...) -> None: ...

class TenantAmounts(_message.Message):
    __slots__ = ("sessions", "bytes", "steps_per_second", "jobs")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    sessions: float
    bytes: int
    steps_per_second: float
    jobs: int
    def __init__(self, sessions: _Optional[float] = ..., bytes: _Optional[int] = ..., steps_per_second: _Optional[float] = ..., jobs: _Optional[int] = ...) -> None: ...

class ShareQuotasRequest(_message.Message):
    __slots__ = ("ask_only", "tenants", "others")
    ASK_ONLY_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    ask_only: bool
    tenants: _containers.RepeatedCompositeFieldContainer[TenantShare]
    others: TenantShare
    def __init__(self, ask_only: bool = ..., tenants: _Optional[_Iterable[_Union[TenantShare, _Mapping]]] = ..., others: _Optional[_Union[TenantShare, _Mapping]] = ...) -> None: ...

class TenantShare(_message.Message):
    __slots__ = ("tenant", "limit", "used", "share")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit: TenantAmounts
    used: TenantAmounts
    share: TenantAmounts
    def __init__(self, tenant: _Optional[str] = ..., limit: _Optional[_Union[TenantAmounts, _Mapping]] = ..., used: _Optional[_Union[TenantAmounts, _Mapping]] = ..., share: _Optional[_Union[TenantAmounts, _Mapping]] = ...) -> None: ...

class ShareQuotasResponse(_message.Message):
    __slots__ = ("tenants",)
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "held", "sessions", "bytes", "steps", "refused")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    held: int
    sessions: float
    bytes: int
    steps: float
    refused: TenantAmounts
    def __init__(self, tenant: _Optional[str] = ..., held: _Optional[int] = ..., sessions: _Optional[float] = ..., bytes: _Optional[int] = ..., steps: _Optional[float] = ..., refused: _Optional[_Union[TenantAmounts, _Mapping]] = ...) -> None: ...

class WatchAttentionRequest(_message.Message):
    __slots__ = ("session", "layer", "group", "positions")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    layer: int
    group: int
    positions: int
    def __init__(self, session: _Optional[bytes] = ..., layer: _Optional[int] = ..., group: _Optional[int] = ..., positions: _Optional[int] = ...) -> None: ...

class WatchAttentionResponse(_message.Message):
    __slots__ = ("position", "first_head", "start", "count", "weights", "before", "sink", "tokens")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_HEAD_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    SINK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    position: int
    first_head: int
    start: int
    count: int
    weights: bytes
    before: _containers.RepeatedScalarFieldContainer[float]
    sink: _containers.RepeatedScalarFieldContainer[float]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, position: _Optional[int] = ..., first_head: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., weights: _Optional[bytes] = ..., before: _Optional[_Iterable[float]] = ..., sink: _Optional[_Iterable[float]] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("name", "boot", "version", "weight", "budget_bytes", "used_bytes", "threads", "kernel", "spare_bytes", "load", "draining", "processor", "processor_features", "zone", "leaving", "matrix_unit", "weight_given")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    SPARE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_FEATURES_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    MATRIX_UNIT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_GIVEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    boot: bytes
    version: str
    weight: int
    budget_bytes: int
    used_bytes: int
    threads: int
    kernel: str
    spare_bytes: int
    load: WorkerLoad
    draining: bool
    processor: str
    processor_features: _containers.RepeatedScalarFieldContainer[str]
    zone: str
    leaving: bool
    matrix_unit: bool
    weight_given: bool
    def __init__(self, name: _Optional[str] = ..., boot: _Optional[bytes] = ..., version: _Optional[str] = ..., weight: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., threads: _Optional[int] = ..., kernel: _Optional[str] = ..., spare_bytes: _Optional[int] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., draining: bool = ..., processor: _Optional[str] = ..., processor_features: _Optional[_Iterable[str]] = ..., zone: _Optional[str] = ..., leaving: bool = ..., matrix_unit: bool = ..., weight_given: bool = ...) -> None: ...

class SetDrainingRequest(_message.Message):
    __slots__ = ("draining", "leaving")
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    leaving: bool
    def __init__(self, draining: bool = ..., leaving: bool = ...) -> None: ...

class SetDrainingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("bus_bytes_per_second", "read_bytes", "steps", "queue_nanos", "layers")
    BUS_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NANOS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    bus_bytes_per_second: int
    read_bytes: int
    steps: int
    queue_nanos: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerLoad]
    def __init__(self, bus_bytes_per_second: _Optional[int] = ..., read_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., queue_nanos: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerLoad, _Mapping]]] = ...) -> None: ...

class LayerLoad(_message.Message):
    __slots__ = ("layer", "steps", "kernel_nanos")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_NANOS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    steps: int
    kernel_nanos: int
    def __init__(self, layer: _Optional[int] = ..., steps: _Optional[int] = ..., kernel_nanos: _Optional[int] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("open", "shard_open", "key_values", "weights", "hidden", "shard_seal", "query", "operand", "shard_close", "output", "gradient")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SHARD_OPEN_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    SHARD_SEAL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    OPERAND_FIELD_NUMBER: _ClassVar[int]
    SHARD_CLOSE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    open: Open
    shard_open: ShardOpen
    key_values: KeyValueBlock
    weights: WeightBlock
    hidden: HiddenBlock
    shard_seal: ShardSeal
    query: QueryBlock
    operand: OperandBlock
    shard_close: ShardClose
    output: OutputBlock
    gradient: GradientBlock
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., shard_open: _Optional[_Union[ShardOpen, _Mapping]] = ..., key_values: _Optional[_Union[KeyValueBlock, _Mapping]] = ..., weights: _Optional[_Union[WeightBlock, _Mapping]] = ..., hidden: _Optional[_Union[HiddenBlock, _Mapping]] = ..., shard_seal: _Optional[_Union[ShardSeal, _Mapping]] = ..., query: _Optional[_Union[QueryBlock, _Mapping]] = ..., operand: _Optional[_Union[OperandBlock, _Mapping]] = ..., shard_close: _Optional[_Union[ShardClose, _Mapping]] = ..., output: _Optional[_Union[OutputBlock, _Mapping]] = ..., gradient: _Optional[_Union[GradientBlock, _Mapping]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("shard_opened", "shard_sealed", "context", "output", "gradient")
    SHARD_OPENED_FIELD_NUMBER: _ClassVar[int]
    SHARD_SEALED_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    shard_opened: ShardOpened
    shard_sealed: ShardSealed
    context: Context
    output: Output
    gradient: Gradient
    def __init__(self, shard_opened: _Optional[_Union[ShardOpened, _Mapping]] = ..., shard_sealed: _Optional[_Union[ShardSealed, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., gradient: _Optional[_Union[Gradient, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("job_id", "problems", "codec")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    codec: ContextCodec
    def __init__(self, job_id: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., codec: _Optional[_Union[ContextCodec, str]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("n_heads", "n_kv_heads", "head_dim", "v_dim", "tokens", "kv_len", "offset", "storage", "causal", "window_left", "window_right", "scale", "softcap", "alibi_slopes", "sinks", "projection", "gradients", "arithmetic")
    N_HEADS_FIELD_NUMBER: _ClassVar[int]
    N_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    V_DIM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_LEN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSAL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_LEFT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_RIGHT_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    ALIBI_SLOPES_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_dim: int
    tokens: int
    kv_len: int
    offset: int
    storage: StorageType
    causal: bool
    window_left: int
    window_right: int
    scale: float
    softcap: float
    alibi_slopes: _containers.RepeatedScalarFieldContainer[float]
    sinks: _containers.RepeatedScalarFieldContainer[float]
    projection: Projection
    gradients: Gradients
    arithmetic: Arithmetic
    def __init__(self, n_heads: _Optional[int] = ..., n_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., v_dim: _Optional[int] = ..., tokens: _Optional[int] = ..., kv_len: _Optional[int] = ..., offset: _Optional[int] = ..., storage: _Optional[_Union[StorageType, str]] = ..., causal: bool = ..., window_left: _Optional[int] = ..., window_right: _Optional[int] = ..., scale: _Optional[float] = ..., softcap: _Optional[float] = ..., alibi_slopes: _Optional[_Iterable[float]] = ..., sinks: _Optional[_Iterable[float]] = ..., projection: _Optional[_Union[Projection, _Mapping]] = ..., gradients: _Optional[_Union[Gradients, _Mapping]] = ..., arithmetic: _Optional[_Union[Arithmetic, str]] = ...) -> None: ...

class Gradients(_message.Message):
    __slots__ = ("given", "mask_heads", "bias_heads", "output_bias")
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    MASK_HEADS_FIELD_NUMBER: _ClassVar[int]
    BIAS_HEADS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BIAS_FIELD_NUMBER: _ClassVar[int]
    given: bool
    mask_heads: int
    bias_heads: int
    output_bias: bool
    def __init__(self, given: bool = ..., mask_heads: _Optional[int] = ..., bias_heads: _Optional[int] = ..., output_bias: bool = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("d_model", "rope_dims", "rope_interleaved", "query_bias", "key_bias", "value_bias")
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    ROPE_DIMS_FIELD_NUMBER: _ClassVar[int]
    ROPE_INTERLEAVED_FIELD_NUMBER: _ClassVar[int]
    QUERY_BIAS_FIELD_NUMBER: _ClassVar[int]
    KEY_BIAS_FIELD_NUMBER: _ClassVar[int]
    VALUE_BIAS_FIELD_NUMBER: _ClassVar[int]
    d_model: int
    rope_dims: int
    rope_interleaved: bool
    query_bias: bool
    key_bias: bool
    value_bias: bool
    def __init__(self, d_model: _Optional[int] = ..., rope_dims: _Optional[int] = ..., rope_interleaved: bool = ..., query_bias: bool = ..., key_bias: bool = ..., value_bias: bool = ...) -> None: ...

class ShardOpen(_message.Message):
    __slots__ = ("problem", "group", "epoch")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    epoch: int
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class ShardOpened(_message.Message):
    __slots__ = ("problem", "group", "reserved_bytes")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    reserved_bytes: int
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., reserved_bytes: _Optional[int] = ...) -> None: ...

class KeyValueBlock(_message.Message):
    __slots__ = ("problem", "groups", "start", "count", "k", "v", "k_scale", "v_scale")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    V_FIELD_NUMBER: _ClassVar[int]
    K_SCALE_FIELD_NUMBER: _ClassVar[int]
    V_SCALE_FIELD_NUMBER: _ClassVar[int]
    problem: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    start: int
    count: int
    k: bytes
    v: bytes
    k_scale: bytes
    v_scale: bytes
    def __init__(self, problem: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., k: _Optional[bytes] = ..., v: _Optional[bytes] = ..., k_scale: _Optional[bytes] = ..., v_scale: _Optional[bytes] = ...) -> None: ...

class WeightBlock(_message.Message):
    __slots__ = ("problem", "weight", "group", "row", "data", "bias")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    problem: int
    weight: Weight
    group: int
    row: int
    data: bytes
    bias: bytes
    def __init__(self, problem: _Optional[int] = ..., weight: _Optional[_Union[Weight, str]] = ..., group: _Optional[int] = ..., row: _Optional[int] = ..., data: _Optional[bytes] = ..., bias: _Optional[bytes] = ...) -> None: ...

class HiddenBlock(_message.Message):
    __slots__ = ("problem", "groups", "start", "x", "cos", "sin")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    COS_FIELD_NUMBER: _ClassVar[int]
    SIN_FIELD_NUMBER: _ClassVar[int]
    problem: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    start: int
    x: bytes
    cos: bytes
    sin: bytes
    def __init__(self, problem: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., x: _Optional[bytes] = ..., cos: _Optional[bytes] = ..., sin: _Optional[bytes] = ...) -> None: ...

class ShardSeal(_message.Message):
    __slots__ = ("problem", "group", "receipt")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    receipt: Receipt
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("length", "hash")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    length: int
    hash: int
    def __init__(self, length: _Optional[int] = ..., hash: _Optional[int] = ...) -> None: ...

class ShardSealed(_message.Message):
    __slots__ = ("problem", "group", "receipt")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    receipt: Receipt
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class ShardClose(_message.Message):
    __slots__ = ("problem", "group")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ...) -> None: ...

class QueryBlock(_message.Message):
    __slots__ = ("problem", "block", "groups", "start", "count", "q", "cos", "sin", "mask_bytes", "mask_heads", "bias_bytes", "bias_heads")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    COS_FIELD_NUMBER: _ClassVar[int]
    SIN_FIELD_NUMBER: _ClassVar[int]
    MASK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MASK_HEADS_FIELD_NUMBER: _ClassVar[int]
    BIAS_BYTES_FIELD_NUMBER: _ClassVar[int]
    BIAS_HEADS_FIELD_NUMBER: _ClassVar[int]
    problem: int
    block: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    start: int
    count: int
    q: bytes
    cos: bytes
    sin: bytes
    mask_bytes: int
    mask_heads: int
    bias_bytes: int
    bias_heads: int
    def __init__(self, problem: _Optional[int] = ..., block: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., q: _Optional[bytes] = ..., cos: _Optional[bytes] = ..., sin: _Optional[bytes] = ..., mask_bytes: _Optional[int] = ..., mask_heads: _Optional[int] = ..., bias_bytes: _Optional[int] = ..., bias_heads: _Optional[int] = ...) -> None: ...

class GradientBlock(_message.Message):
    __slots__ = ("problem", "group", "start", "count", "q", "d_context", "context", "lse", "cos", "sin")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    D_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LSE_FIELD_NUMBER: _ClassVar[int]
    COS_FIELD_NUMBER: _ClassVar[int]
    SIN_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    start: int
    count: int
    q: bytes
    d_context: bytes
    context: bytes
    lse: bytes
    cos: bytes
    sin: bytes
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., q: _Optional[bytes] = ..., d_context: _Optional[bytes] = ..., context: _Optional[bytes] = ..., lse: _Optional[bytes] = ..., cos: _Optional[bytes] = ..., sin: _Optional[bytes] = ...) -> None: ...

class OperandBlock(_message.Message):
    __slots__ = ("operand", "offset", "data")
    OPERAND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    operand: Operand
    offset: int
    data: bytes
    def __init__(self, operand: _Optional[_Union[Operand, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("problem", "group", "block", "epoch", "frame", "compute_nanos", "queue_nanos", "encode_nanos")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NANOS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NANOS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_NANOS_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    block: int
    epoch: int
    frame: bytes
    compute_nanos: int
    queue_nanos: int
    encode_nanos: int
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., block: _Optional[int] = ..., epoch: _Optional[int] = ..., frame: _Optional[bytes] = ..., compute_nanos: _Optional[int] = ..., queue_nanos: _Optional[int] = ..., encode_nanos: _Optional[int] = ...) -> None: ...

class Gradient(_message.Message):
    __slots__ = ("problem", "group", "epoch", "tensor", "first", "data", "last", "compute_nanos", "queue_nanos")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NANOS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NANOS_FIELD_NUMBER: _ClassVar[int]
    problem: int
    group: int
    epoch: int
    tensor: GradientTensor
    first: int
    data: bytes
    last: bool
    compute_nanos: int
    queue_nanos: int
    def __init__(self, problem: _Optional[int] = ..., group: _Optional[int] = ..., epoch: _Optional[int] = ..., tensor: _Optional[_Union[GradientTensor, str]] = ..., first: _Optional[int] = ..., data: _Optional[bytes] = ..., last: bool = ..., compute_nanos: _Optional[int] = ..., queue_nanos: _Optional[int] = ...) -> None: ...

class OutputBlock(_message.Message):
    __slots__ = ("problem", "block", "row", "rows", "count", "context", "start")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    problem: int
    block: int
    row: int
    rows: int
    count: int
    context: bytes
    start: int
    def __init__(self, problem: _Optional[int] = ..., block: _Optional[int] = ..., row: _Optional[int] = ..., rows: _Optional[int] = ..., count: _Optional[int] = ..., context: _Optional[bytes] = ..., start: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("problem", "block", "row", "y", "compute_nanos")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NANOS_FIELD_NUMBER: _ClassVar[int]
    problem: int
    block: int
    row: int
    y: bytes
    compute_nanos: int
    def __init__(self, problem: _Optional[int] = ..., block: _Optional[int] = ..., row: _Optional[int] = ..., y: _Optional[bytes] = ..., compute_nanos: _Optional[int] = ...) -> None: ...
