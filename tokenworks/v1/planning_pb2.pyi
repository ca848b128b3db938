from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WhyRequest(_message.Message):
    __slots__ = ("model", "pool")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    model: str
    pool: str
    def __init__(self, model: _Optional[str] = ..., pool: _Optional[str] = ...) -> None: ...

class ClassReason(_message.Message):
    __slots__ = ("workload_class", "share", "because", "usd_per_request", "told_usd_per_request", "best_pool", "best_told_usd_per_request", "breakeven_usd_per_hour", "batch", "ttft_s", "tpot_s")
    WORKLOAD_CLASS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOLD_USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    BEST_POOL_FIELD_NUMBER: _ClassVar[int]
    BEST_TOLD_USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    BREAKEVEN_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    workload_class: WorkloadClass
    share: float
    because: str
    usd_per_request: float
    told_usd_per_request: float
    best_pool: str
    best_told_usd_per_request: float
    breakeven_usd_per_hour: float
    batch: int
    ttft_s: float
    tpot_s: float
    def __init__(self, workload_class: _Optional[_Union[WorkloadClass, _Mapping]] = ..., share: _Optional[float] = ..., because: _Optional[str] = ..., usd_per_request: _Optional[float] = ..., told_usd_per_request: _Optional[float] = ..., best_pool: _Optional[str] = ..., best_told_usd_per_request: _Optional[float] = ..., breakeven_usd_per_hour: _Optional[float] = ..., batch: _Optional[int] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ...) -> None: ...

class PoolReason(_message.Message):
    __slots__ = ("pool", "accelerator", "workers", "status", "rate_usd_per_hour", "utilisation", "shadow_usd_per_device_s", "binding", "saving_usd_per_hour", "classes", "evidence", "limits")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RATE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    SHADOW_USD_PER_DEVICE_S_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    SAVING_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    accelerator: str
    workers: int
    status: str
    rate_usd_per_hour: float
    utilisation: float
    shadow_usd_per_device_s: float
    binding: str
    saving_usd_per_hour: float
    classes: _containers.RepeatedCompositeFieldContainer[ClassReason]
    evidence: Evidence
    limits: _containers.RepeatedCompositeFieldContainer[PlanLimit]
    def __init__(self, pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., workers: _Optional[int] = ..., status: _Optional[str] = ..., rate_usd_per_hour: _Optional[float] = ..., utilisation: _Optional[float] = ..., shadow_usd_per_device_s: _Optional[float] = ..., binding: _Optional[str] = ..., saving_usd_per_hour: _Optional[float] = ..., classes: _Optional[_Iterable[_Union[ClassReason, _Mapping]]] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ..., limits: _Optional[_Iterable[_Union[PlanLimit, _Mapping]]] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class WorkloadClass(_message.Message):
    __slots__ = ("slo_class", "prompt_tokens_from", "prompt_tokens_to", "completion_tokens_from", "completion_tokens_to", "demand_rps", "mean_prompt_tokens", "mean_completion_tokens", "within")
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FROM_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TO_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FROM_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_TO_FIELD_NUMBER: _ClassVar[int]
    DEMAND_RPS_FIELD_NUMBER: _ClassVar[int]
    MEAN_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEAN_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    slo_class: str
    prompt_tokens_from: int
    prompt_tokens_to: int
    completion_tokens_from: int
    completion_tokens_to: int
    demand_rps: float
    mean_prompt_tokens: float
    mean_completion_tokens: float
    within: str
    def __init__(self, slo_class: _Optional[str] = ..., prompt_tokens_from: _Optional[int] = ..., prompt_tokens_to: _Optional[int] = ..., completion_tokens_from: _Optional[int] = ..., completion_tokens_to: _Optional[int] = ..., demand_rps: _Optional[float] = ..., mean_prompt_tokens: _Optional[float] = ..., mean_completion_tokens: _Optional[float] = ..., within: _Optional[str] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("workload_class", "pool", "share", "feasible", "device_s_per_request", "usd_per_request")
    WORKLOAD_CLASS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_S_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    workload_class: int
    pool: str
    share: float
    feasible: bool
    device_s_per_request: float
    usd_per_request: float
    def __init__(self, workload_class: _Optional[int] = ..., pool: _Optional[str] = ..., share: _Optional[float] = ..., feasible: bool = ..., device_s_per_request: _Optional[float] = ..., usd_per_request: _Optional[float] = ...) -> None: ...

class TimingCoefficients(_message.Message):
    __slots__ = ("prefill_overhead_s", "prefill_s_per_token", "decode_base_s", "decode_s_per_sequence", "decode_s_per_kv_token", "prefill_s_per_attended_token")
    PREFILL_OVERHEAD_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DECODE_BASE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_PER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_PER_KV_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_PER_ATTENDED_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefill_overhead_s: float
    prefill_s_per_token: float
    decode_base_s: float
    decode_s_per_sequence: float
    decode_s_per_kv_token: float
    prefill_s_per_attended_token: float
    def __init__(self, prefill_overhead_s: _Optional[float] = ..., prefill_s_per_token: _Optional[float] = ..., decode_base_s: _Optional[float] = ..., decode_s_per_sequence: _Optional[float] = ..., decode_s_per_kv_token: _Optional[float] = ..., prefill_s_per_attended_token: _Optional[float] = ...) -> None: ...

class PoolPlan(_message.Message):
    __slots__ = ("pool", "accelerator", "workers", "shadow_usd_per_device_s", "utilisation", "timing", "observations", "mean_error", "rate_usd_per_hour", "step_s", "max_batch")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_USD_PER_DEVICE_S_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    MEAN_ERROR_FIELD_NUMBER: _ClassVar[int]
    RATE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    pool: str
    accelerator: str
    workers: int
    shadow_usd_per_device_s: float
    utilisation: float
    timing: TimingCoefficients
    observations: int
    mean_error: float
    rate_usd_per_hour: float
    step_s: float
    max_batch: int
    def __init__(self, pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., workers: _Optional[int] = ..., shadow_usd_per_device_s: _Optional[float] = ..., utilisation: _Optional[float] = ..., timing: _Optional[_Union[TimingCoefficients, _Mapping]] = ..., observations: _Optional[int] = ..., mean_error: _Optional[float] = ..., rate_usd_per_hour: _Optional[float] = ..., step_s: _Optional[float] = ..., max_batch: _Optional[int] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("cost_usd_per_hour", "baseline_cost_usd_per_hour", "unserved_rps")
    COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    BASELINE_COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_RPS_FIELD_NUMBER: _ClassVar[int]
    cost_usd_per_hour: float
    baseline_cost_usd_per_hour: float
    unserved_rps: float
    def __init__(self, cost_usd_per_hour: _Optional[float] = ..., baseline_cost_usd_per_hour: _Optional[float] = ..., unserved_rps: _Optional[float] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("latency_events", "token_events", "request_events", "window_s", "traceparents", "trigger", "seen_unix_ms")
    LATENCY_EVENTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_EVENTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_EVENTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENTS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    latency_events: int
    token_events: int
    request_events: int
    window_s: float
    traceparents: _containers.RepeatedScalarFieldContainer[str]
    trigger: str
    seen_unix_ms: int
    def __init__(self, latency_events: _Optional[int] = ..., token_events: _Optional[int] = ..., request_events: _Optional[int] = ..., window_s: _Optional[float] = ..., traceparents: _Optional[_Iterable[str]] = ..., trigger: _Optional[str] = ..., seen_unix_ms: _Optional[int] = ...) -> None: ...

class PlanLimit(_message.Message):
    __slots__ = ("name", "of", "unit", "used", "most", "usd_per_unit", "exceeded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    USD_PER_UNIT_FIELD_NUMBER: _ClassVar[int]
    EXCEEDED_FIELD_NUMBER: _ClassVar[int]
    name: str
    of: str
    unit: str
    used: float
    most: float
    usd_per_unit: float
    exceeded: bool
    def __init__(self, name: _Optional[str] = ..., of: _Optional[str] = ..., unit: _Optional[str] = ..., used: _Optional[float] = ..., most: _Optional[float] = ..., usd_per_unit: _Optional[float] = ..., exceeded: bool = ...) -> None: ...

class ReplicaTarget(_message.Message):
    __slots__ = ("pool", "accelerator", "replicas", "ready", "forecast_rps", "cold_start_s", "because")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FORECAST_RPS_FIELD_NUMBER: _ClassVar[int]
    COLD_START_S_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    pool: str
    accelerator: str
    replicas: int
    ready: int
    forecast_rps: float
    cold_start_s: float
    because: str
    def __init__(self, pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., replicas: _Optional[int] = ..., ready: _Optional[int] = ..., forecast_rps: _Optional[float] = ..., cold_start_s: _Optional[float] = ..., because: _Optional[str] = ...) -> None: ...

class RoutingPlan(_message.Message):
    __slots__ = ("model", "version", "made_unix_ms", "classes", "shares", "pools", "prediction", "evidence", "status", "solve_s", "advisory", "limits", "canary_share", "rolled_back", "because", "targets")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MADE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SOLVE_S_FIELD_NUMBER: _ClassVar[int]
    ADVISORY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    made_unix_ms: int
    classes: _containers.RepeatedCompositeFieldContainer[WorkloadClass]
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    pools: _containers.RepeatedCompositeFieldContainer[PoolPlan]
    prediction: Prediction
    evidence: Evidence
    status: str
    solve_s: float
    advisory: bool
    limits: _containers.RepeatedCompositeFieldContainer[PlanLimit]
    canary_share: float
    rolled_back: str
    because: str
    targets: _containers.RepeatedCompositeFieldContainer[ReplicaTarget]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., made_unix_ms: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[WorkloadClass, _Mapping]]] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolPlan, _Mapping]]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ..., status: _Optional[str] = ..., solve_s: _Optional[float] = ..., advisory: bool = ..., limits: _Optional[_Iterable[_Union[PlanLimit, _Mapping]]] = ..., canary_share: _Optional[float] = ..., rolled_back: _Optional[str] = ..., because: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[ReplicaTarget, _Mapping]]] = ...) -> None: ...

class ListDecisionsRequest(_message.Message):
    __slots__ = ("model", "most")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    model: str
    most: int
    def __init__(self, model: _Optional[str] = ..., most: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("plan", "made_unix_ms", "trigger", "status", "demand_rps", "unserved_rps", "predicted_usd_per_request", "realised_usd_per_request", "requests", "finished_requests", "slo_met_requests", "canary_share", "fate", "because")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MADE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_RPS_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_RPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    REALISED_USD_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    plan: str
    made_unix_ms: int
    trigger: str
    status: str
    demand_rps: float
    unserved_rps: float
    predicted_usd_per_request: float
    realised_usd_per_request: float
    requests: int
    finished_requests: int
    slo_met_requests: int
    canary_share: float
    fate: str
    because: str
    def __init__(self, plan: _Optional[str] = ..., made_unix_ms: _Optional[int] = ..., trigger: _Optional[str] = ..., status: _Optional[str] = ..., demand_rps: _Optional[float] = ..., unserved_rps: _Optional[float] = ..., predicted_usd_per_request: _Optional[float] = ..., realised_usd_per_request: _Optional[float] = ..., requests: _Optional[int] = ..., finished_requests: _Optional[int] = ..., slo_met_requests: _Optional[int] = ..., canary_share: _Optional[float] = ..., fate: _Optional[str] = ..., because: _Optional[str] = ...) -> None: ...

class ListDecisionsResponse(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...

class PoolChange(_message.Message):
    __slots__ = ("pool", "add_workers", "rate_factor")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ADD_WORKERS_FIELD_NUMBER: _ClassVar[int]
    RATE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    pool: str
    add_workers: int
    rate_factor: float
    def __init__(self, pool: _Optional[str] = ..., add_workers: _Optional[int] = ..., rate_factor: _Optional[float] = ...) -> None: ...

class WhatIfRequest(_message.Message):
    __slots__ = ("model", "demand_factor", "pools")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FACTOR_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    model: str
    demand_factor: float
    pools: _containers.RepeatedCompositeFieldContainer[PoolChange]
    def __init__(self, model: _Optional[str] = ..., demand_factor: _Optional[float] = ..., pools: _Optional[_Iterable[_Union[PoolChange, _Mapping]]] = ...) -> None: ...

class WhatIfResponse(_message.Message):
    __slots__ = ("now", "then")
    NOW_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    now: RoutingPlan
    then: RoutingPlan
    def __init__(self, now: _Optional[_Union[RoutingPlan, _Mapping]] = ..., then: _Optional[_Union[RoutingPlan, _Mapping]] = ...) -> None: ...
