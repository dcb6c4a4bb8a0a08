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

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_UPLOADING: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_UNREACHABLE: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_UPLOADING: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_UNREACHABLE: JobState

class SubmitRequest(_message.Message):
    __slots__ = ("begin", "data", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: SubmitBegin
    data: bytes
    end: SubmitEnd
    def __init__(self, begin: _Optional[_Union[SubmitBegin, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[SubmitEnd, _Mapping]] = ...) -> None: ...

class SubmitBegin(_message.Message):
    __slots__ = ("key", "name", "size_bytes", "sha256", "header", "overrides", "codec", "deadline")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    key: str
    name: str
    size_bytes: int
    sha256: bytes
    header: bytes
    overrides: bytes
    codec: _worker_pb2.ContextCodec
    deadline: _duration_pb2.Duration
    def __init__(self, key: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., header: _Optional[bytes] = ..., overrides: _Optional[bytes] = ..., codec: _Optional[_Union[_worker_pb2.ContextCodec, str]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SubmitEnd(_message.Message):
    __slots__ = ("hash",)
    HASH_FIELD_NUMBER: _ClassVar[int]
    hash: int
    def __init__(self, hash: _Optional[int] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job", "send")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    job: Job
    send: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., send: bool = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "key", "name", "state", "error", "error_code", "content_hash", "size_bytes", "kind", "created", "started", "ended", "attempts", "progress", "report", "result_sha256", "result_bytes", "codec", "crashes", "tenant", "arithmetics", "heard")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    RESULT_SHA256_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ARITHMETICS_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    id: str
    key: str
    name: str
    state: JobState
    error: str
    error_code: int
    content_hash: str
    size_bytes: int
    kind: str
    created: _timestamp_pb2.Timestamp
    started: _timestamp_pb2.Timestamp
    ended: _timestamp_pb2.Timestamp
    attempts: int
    progress: Progress
    report: Report
    result_sha256: str
    result_bytes: int
    codec: _worker_pb2.ContextCodec
    crashes: int
    tenant: str
    arithmetics: _containers.RepeatedScalarFieldContainer[_worker_pb2.Arithmetic]
    heard: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., key: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., error: _Optional[str] = ..., error_code: _Optional[int] = ..., content_hash: _Optional[str] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., result_sha256: _Optional[str] = ..., result_bytes: _Optional[int] = ..., codec: _Optional[_Union[_worker_pb2.ContextCodec, str]] = ..., crashes: _Optional[int] = ..., tenant: _Optional[str] = ..., arithmetics: _Optional[_Iterable[_Union[_worker_pb2.Arithmetic, str]]] = ..., heard: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("loaded_bytes", "load_bytes", "units_done", "units", "phase")
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNITS_DONE_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    loaded_bytes: int
    load_bytes: int
    units_done: int
    units: int
    phase: str
    def __init__(self, loaded_bytes: _Optional[int] = ..., load_bytes: _Optional[int] = ..., units_done: _Optional[int] = ..., units: _Optional[int] = ..., phase: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("workers", "plan", "elapsed", "workers_lost")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_LOST_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerReport]
    plan: bytes
    elapsed: _duration_pb2.Duration
    workers_lost: int
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerReport, _Mapping]]] = ..., plan: _Optional[bytes] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., workers_lost: _Optional[int] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("name", "bytes_out", "bytes_in_raw", "bytes_in_wire", "compute", "wire", "units", "lost")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_RAW_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_WIRE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes_out: int
    bytes_in_raw: int
    bytes_in_wire: int
    compute: _duration_pb2.Duration
    wire: _duration_pb2.Duration
    units: int
    lost: bool
    def __init__(self, name: _Optional[str] = ..., bytes_out: _Optional[int] = ..., bytes_in_raw: _Optional[int] = ..., bytes_in_wire: _Optional[int] = ..., compute: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., wire: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., units: _Optional[int] = ..., lost: bool = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("limit", "after", "brief")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BRIEF_FIELD_NUMBER: _ClassVar[int]
    limit: int
    after: JobPlace
    brief: bool
    def __init__(self, limit: _Optional[int] = ..., after: _Optional[_Union[JobPlace, _Mapping]] = ..., brief: bool = ...) -> None: ...

class JobPlace(_message.Message):
    __slots__ = ("created", "id")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    created: _timestamp_pb2.Timestamp
    id: str
    def __init__(self, created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., id: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "more")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    more: bool
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., more: bool = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DownloadResultRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DownloadResultResponse(_message.Message):
    __slots__ = ("job", "data")
    JOB_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    job: Job
    data: bytes
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("name", "version", "protocol", "workers", "jobs", "started", "panics", "tenants", "auto_arithmetic")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PANICS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    AUTO_ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    protocol: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    jobs: _containers.RepeatedCompositeFieldContainer[StateCount]
    started: _timestamp_pb2.Timestamp
    panics: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    auto_arithmetic: _worker_pb2.Arithmetic
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., protocol: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., jobs: _Optional[_Iterable[_Union[StateCount, _Mapping]]] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., panics: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., auto_arithmetic: _Optional[_Union[_worker_pb2.Arithmetic, str]] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "limit", "used")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit: _worker_pb2.TenantAmounts
    used: _worker_pb2.TenantAmounts
    def __init__(self, tenant: _Optional[str] = ..., limit: _Optional[_Union[_worker_pb2.TenantAmounts, _Mapping]] = ..., used: _Optional[_Union[_worker_pb2.TenantAmounts, _Mapping]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker", "address", "error", "answers", "weight_share")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SHARE_FIELD_NUMBER: _ClassVar[int]
    worker: _worker_pb2.DescribeResponse
    address: str
    error: str
    answers: AnswerTimes
    weight_share: float
    def __init__(self, worker: _Optional[_Union[_worker_pb2.DescribeResponse, _Mapping]] = ..., address: _Optional[str] = ..., error: _Optional[str] = ..., answers: _Optional[_Union[AnswerTimes, _Mapping]] = ..., weight_share: _Optional[float] = ...) -> None: ...

class AnswerTimes(_message.Message):
    __slots__ = ("count", "p50_nanos", "p95_nanos", "waiting", "beside", "compared")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    P50_NANOS_FIELD_NUMBER: _ClassVar[int]
    P95_NANOS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    count: int
    p50_nanos: int
    p95_nanos: int
    waiting: int
    beside: float
    compared: int
    def __init__(self, count: _Optional[int] = ..., p50_nanos: _Optional[int] = ..., p95_nanos: _Optional[int] = ..., waiting: _Optional[int] = ..., beside: _Optional[float] = ..., compared: _Optional[int] = ...) -> None: ...

class StateCount(_message.Message):
    __slots__ = ("state", "count")
    STATE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    count: int
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., count: _Optional[int] = ...) -> None: ...
