from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokensGenerated(_message.Message):
    __slots__ = ("worker", "pool", "accelerator", "entries", "at_unix_ms", "energy_source")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pool: str
    accelerator: str
    entries: _containers.RepeatedCompositeFieldContainer[TokenEntry]
    at_unix_ms: int
    energy_source: str
    def __init__(self, worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[TokenEntry, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ..., energy_source: _Optional[str] = ...) -> None: ...

class TokenEntry(_message.Message):
    __slots__ = ("request_id", "tenant", "workload", "model", "slo_class", "from_index", "count", "prompt_tokens", "cached_prompt_tokens", "device_ns", "energy_uj", "last", "traceparent", "funding")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    FROM_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    from_index: int
    count: int
    prompt_tokens: int
    cached_prompt_tokens: int
    device_ns: int
    energy_uj: int
    last: bool
    traceparent: str
    funding: _containers.RepeatedCompositeFieldContainer[Funding]
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., from_index: _Optional[int] = ..., count: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., device_ns: _Optional[int] = ..., energy_uj: _Optional[int] = ..., last: bool = ..., traceparent: _Optional[str] = ..., funding: _Optional[_Iterable[_Union[Funding, _Mapping]]] = ...) -> None: ...

class Funding(_message.Message):
    __slots__ = ("funder", "holds")
    FUNDER_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    funder: str
    holds: _containers.RepeatedCompositeFieldContainer[Hold]
    def __init__(self, funder: _Optional[str] = ..., holds: _Optional[_Iterable[_Union[Hold, _Mapping]]] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("budget", "subject", "window", "amount")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    budget: int
    subject: str
    window: int
    amount: int
    def __init__(self, budget: _Optional[int] = ..., subject: _Optional[str] = ..., window: _Optional[int] = ..., amount: _Optional[int] = ...) -> None: ...

class LatencyObserved(_message.Message):
    __slots__ = ("worker", "pool", "accelerator", "model", "requests", "steps", "at_unix_ms")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pool: str
    accelerator: str
    model: str
    requests: _containers.RepeatedCompositeFieldContainer[RequestLatency]
    steps: _containers.RepeatedCompositeFieldContainer[StepSample]
    at_unix_ms: int
    def __init__(self, worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., model: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[RequestLatency, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepSample, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class RequestLatency(_message.Message):
    __slots__ = ("request_id", "slo_class", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "queue_s", "ttft_s", "tpot_s", "worst_gap_s", "batch", "kv_cache_usage", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    WORST_GAP_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    slo_class: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    queue_s: float
    ttft_s: float
    tpot_s: float
    worst_gap_s: float
    batch: int
    kv_cache_usage: float
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., slo_class: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., worst_gap_s: _Optional[float] = ..., batch: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class StepSample(_message.Message):
    __slots__ = ("prefill_tokens", "decode_sequences", "kv_tokens", "step_s", "attended_tokens")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    decode_sequences: int
    kv_tokens: int
    step_s: float
    attended_tokens: int
    def __init__(self, prefill_tokens: _Optional[int] = ..., decode_sequences: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., step_s: _Optional[float] = ..., attended_tokens: _Optional[int] = ...) -> None: ...

class RequestAdmitted(_message.Message):
    __slots__ = ("request_id", "router", "tenant", "workload", "model", "slo_class", "prompt_tokens", "max_tokens", "worker", "pool", "plan", "at_unix_ms", "price_book", "funding", "session_id", "key", "team", "conversation", "within")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    router: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    prompt_tokens: int
    max_tokens: int
    worker: str
    pool: str
    plan: str
    at_unix_ms: int
    price_book: str
    funding: _containers.RepeatedCompositeFieldContainer[Funding]
    session_id: str
    key: str
    team: str
    conversation: str
    within: str
    def __init__(self, request_id: _Optional[str] = ..., router: _Optional[str] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., worker: _Optional[str] = ..., pool: _Optional[str] = ..., plan: _Optional[str] = ..., at_unix_ms: _Optional[int] = ..., price_book: _Optional[str] = ..., funding: _Optional[_Iterable[_Union[Funding, _Mapping]]] = ..., session_id: _Optional[str] = ..., key: _Optional[str] = ..., team: _Optional[str] = ..., conversation: _Optional[str] = ..., within: _Optional[str] = ...) -> None: ...

class RequestFinished(_message.Message):
    __slots__ = ("request_id", "router", "tenant", "workload", "model", "slo_class", "worker", "pool", "accelerator", "delivered_from", "delivered_count", "prompt_tokens", "cached_prompt_tokens", "outcome", "ttft_s", "tpot_s", "e2e_s", "slo_met", "trace_id", "at_unix_ms", "admitted_unix_ms", "price_book", "plan", "funding")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FROM_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    router: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    worker: str
    pool: str
    accelerator: str
    delivered_from: int
    delivered_count: int
    prompt_tokens: int
    cached_prompt_tokens: int
    outcome: str
    ttft_s: float
    tpot_s: float
    e2e_s: float
    slo_met: bool
    trace_id: str
    at_unix_ms: int
    admitted_unix_ms: int
    price_book: str
    plan: str
    funding: _containers.RepeatedCompositeFieldContainer[Funding]
    def __init__(self, request_id: _Optional[str] = ..., router: _Optional[str] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., delivered_from: _Optional[int] = ..., delivered_count: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., outcome: _Optional[str] = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., e2e_s: _Optional[float] = ..., slo_met: bool = ..., trace_id: _Optional[str] = ..., at_unix_ms: _Optional[int] = ..., admitted_unix_ms: _Optional[int] = ..., price_book: _Optional[str] = ..., plan: _Optional[str] = ..., funding: _Optional[_Iterable[_Union[Funding, _Mapping]]] = ...) -> None: ...

class WorkerHeartbeat(_message.Message):
    __slots__ = ("worker", "pool", "accelerator", "engine", "models", "address", "epoch", "sequence", "state", "running", "waiting", "waiting_prefill_tokens", "kv_cache_usage", "kv_capacity_tokens", "context_tokens", "max_batch", "max_waiting", "slowdown", "power_w", "busy_ns", "generated_tokens", "energy_uj", "simulated", "rate_nusd_per_hour", "failed_because", "at_unix_ms", "steps", "prefill_chunk_tokens", "power_source", "utilisation", "http_url", "features", "restarts", "tokenizer", "utilisation_source", "waiting_by_priority", "prefill_tokens_by_priority", "step_s", "region", "vendor", "data_classes", "spot")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    RATE_NUSD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    FAILED_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POWER_SOURCE_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    HTTP_URL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_SOURCE_FIELD_NUMBER: _ClassVar[int]
    WAITING_BY_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_BY_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASSES_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pool: str
    accelerator: str
    engine: str
    models: _containers.RepeatedScalarFieldContainer[str]
    address: str
    epoch: str
    sequence: int
    state: str
    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_cache_usage: float
    kv_capacity_tokens: int
    context_tokens: int
    max_batch: int
    max_waiting: int
    slowdown: float
    power_w: float
    busy_ns: int
    generated_tokens: int
    energy_uj: int
    simulated: bool
    rate_nusd_per_hour: int
    failed_because: str
    at_unix_ms: int
    steps: int
    prefill_chunk_tokens: int
    power_source: str
    utilisation: float
    http_url: str
    features: _containers.RepeatedScalarFieldContainer[str]
    restarts: int
    tokenizer: str
    utilisation_source: str
    waiting_by_priority: _containers.RepeatedScalarFieldContainer[int]
    prefill_tokens_by_priority: _containers.RepeatedScalarFieldContainer[int]
    step_s: float
    region: str
    vendor: str
    data_classes: _containers.RepeatedScalarFieldContainer[str]
    spot: bool
    def __init__(self, worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., engine: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., address: _Optional[str] = ..., epoch: _Optional[str] = ..., sequence: _Optional[int] = ..., state: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_prefill_tokens: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., kv_capacity_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., max_batch: _Optional[int] = ..., max_waiting: _Optional[int] = ..., slowdown: _Optional[float] = ..., power_w: _Optional[float] = ..., busy_ns: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., energy_uj: _Optional[int] = ..., simulated: bool = ..., rate_nusd_per_hour: _Optional[int] = ..., failed_because: _Optional[str] = ..., at_unix_ms: _Optional[int] = ..., steps: _Optional[int] = ..., prefill_chunk_tokens: _Optional[int] = ..., power_source: _Optional[str] = ..., utilisation: _Optional[float] = ..., http_url: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., restarts: _Optional[int] = ..., tokenizer: _Optional[str] = ..., utilisation_source: _Optional[str] = ..., waiting_by_priority: _Optional[_Iterable[int]] = ..., prefill_tokens_by_priority: _Optional[_Iterable[int]] = ..., step_s: _Optional[float] = ..., region: _Optional[str] = ..., vendor: _Optional[str] = ..., data_classes: _Optional[_Iterable[str]] = ..., spot: bool = ...) -> None: ...

class PrefixesChanged(_message.Message):
    __slots__ = ("worker", "epoch", "sequence", "reset", "held", "dropped", "at_unix_ms")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: str
    sequence: int
    reset: bool
    held: _containers.RepeatedScalarFieldContainer[int]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    at_unix_ms: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[str] = ..., sequence: _Optional[int] = ..., reset: bool = ..., held: _Optional[_Iterable[int]] = ..., dropped: _Optional[_Iterable[int]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class PlacementsUsed(_message.Message):
    __slots__ = ("worker", "router", "epoch", "taken", "ended", "at_unix_ms")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    router: str
    epoch: str
    taken: _containers.RepeatedScalarFieldContainer[str]
    ended: _containers.RepeatedCompositeFieldContainer[PlacementEnded]
    at_unix_ms: int
    def __init__(self, worker: _Optional[str] = ..., router: _Optional[str] = ..., epoch: _Optional[str] = ..., taken: _Optional[_Iterable[str]] = ..., ended: _Optional[_Iterable[_Union[PlacementEnded, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class PlacementEnded(_message.Message):
    __slots__ = ("request_id", "outcome", "delivered_tokens", "prompt_tokens", "cached_prompt_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcome: str
    delivered_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., outcome: _Optional[str] = ..., delivered_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ...) -> None: ...

class PlacementsMade(_message.Message):
    __slots__ = ("router", "address", "placed", "at_unix_ms", "spent", "waiting", "refused")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    router: str
    address: str
    placed: _containers.RepeatedCompositeFieldContainer[PlacedAtWorker]
    at_unix_ms: int
    spent: _containers.RepeatedCompositeFieldContainer[TenantSpending]
    waiting: int
    refused: int
    def __init__(self, router: _Optional[str] = ..., address: _Optional[str] = ..., placed: _Optional[_Iterable[_Union[PlacedAtWorker, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ..., spent: _Optional[_Iterable[_Union[TenantSpending, _Mapping]]] = ..., waiting: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...

class TenantSpending(_message.Message):
    __slots__ = ("tenant", "spent_nusd")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SPENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    spent_nusd: int
    def __init__(self, tenant: _Optional[str] = ..., spent_nusd: _Optional[int] = ...) -> None: ...

class RequestsAnswered(_message.Message):
    __slots__ = ("router", "request_ids", "at_unix_ms")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    router: str
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    at_unix_ms: int
    def __init__(self, router: _Optional[str] = ..., request_ids: _Optional[_Iterable[str]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class PlacedAtWorker(_message.Message):
    __slots__ = ("worker", "epoch", "requests", "prefill_tokens", "prompt_tokens")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: str
    requests: int
    prefill_tokens: int
    prompt_tokens: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[str] = ..., requests: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class CreditChanged(_message.Message):
    __slots__ = ("tenant", "limit_nusd", "spent_nusd", "remaining_nusd", "unlimited", "exhausted", "suspended", "at_unix_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    SPENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_NUSD_FIELD_NUMBER: _ClassVar[int]
    UNLIMITED_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit_nusd: int
    spent_nusd: int
    remaining_nusd: int
    unlimited: bool
    exhausted: bool
    suspended: bool
    at_unix_ms: int
    def __init__(self, tenant: _Optional[str] = ..., limit_nusd: _Optional[int] = ..., spent_nusd: _Optional[int] = ..., remaining_nusd: _Optional[int] = ..., unlimited: bool = ..., exhausted: bool = ..., suspended: bool = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class BudgetsSet(_message.Message):
    __slots__ = ("tenant", "budgets", "at_unix_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetTerms]
    at_unix_ms: int
    def __init__(self, tenant: _Optional[str] = ..., budgets: _Optional[_Iterable[_Union[BudgetTerms, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class BudgetTerms(_message.Message):
    __slots__ = ("budget", "scope", "subject", "unit", "period", "limit", "hard", "notify_percents", "set_unix_ms")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_PERCENTS_FIELD_NUMBER: _ClassVar[int]
    SET_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    budget: int
    scope: str
    subject: str
    unit: str
    period: str
    limit: int
    hard: bool
    notify_percents: _containers.RepeatedScalarFieldContainer[int]
    set_unix_ms: int
    def __init__(self, budget: _Optional[int] = ..., scope: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[str] = ..., limit: _Optional[int] = ..., hard: bool = ..., notify_percents: _Optional[_Iterable[int]] = ..., set_unix_ms: _Optional[int] = ...) -> None: ...

class BudgetReached(_message.Message):
    __slots__ = ("tenant", "budget", "scope", "subject", "unit", "period", "window", "limit", "spent", "percent", "hard", "at_unix_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    budget: int
    scope: str
    subject: str
    unit: str
    period: str
    window: int
    limit: int
    spent: int
    percent: int
    hard: bool
    at_unix_ms: int
    def __init__(self, tenant: _Optional[str] = ..., budget: _Optional[int] = ..., scope: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[str] = ..., window: _Optional[int] = ..., limit: _Optional[int] = ..., spent: _Optional[int] = ..., percent: _Optional[int] = ..., hard: bool = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class CreditRecalled(_message.Message):
    __slots__ = ("meter", "budget", "subject", "window", "at_unix_ms")
    METER_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    meter: str
    budget: int
    subject: str
    window: int
    at_unix_ms: int
    def __init__(self, meter: _Optional[str] = ..., budget: _Optional[int] = ..., subject: _Optional[str] = ..., window: _Optional[int] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class LeaseAsked(_message.Message):
    __slots__ = ("holder", "epoch", "lines", "unused", "linger_ms", "ended")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    LINGER_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    holder: str
    epoch: str
    lines: _containers.RepeatedCompositeFieldContainer[LeaseLine]
    unused: _containers.RepeatedCompositeFieldContainer[Unused]
    linger_ms: int
    ended: bool
    def __init__(self, holder: _Optional[str] = ..., epoch: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[LeaseLine, _Mapping]]] = ..., unused: _Optional[_Iterable[_Union[Unused, _Mapping]]] = ..., linger_ms: _Optional[int] = ..., ended: bool = ...) -> None: ...

class LeaseLine(_message.Message):
    __slots__ = ("budget", "subject", "window", "granted", "returned", "idle", "least", "want", "stuck")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    budget: int
    subject: str
    window: int
    granted: int
    returned: int
    idle: int
    least: int
    want: int
    stuck: int
    def __init__(self, budget: _Optional[int] = ..., subject: _Optional[str] = ..., window: _Optional[int] = ..., granted: _Optional[int] = ..., returned: _Optional[int] = ..., idle: _Optional[int] = ..., least: _Optional[int] = ..., want: _Optional[int] = ..., stuck: _Optional[int] = ...) -> None: ...

class Unused(_message.Message):
    __slots__ = ("request_id", "tenant", "holds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    holds: _containers.RepeatedCompositeFieldContainer[Hold]
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., holds: _Optional[_Iterable[_Union[Hold, _Mapping]]] = ...) -> None: ...

class LeaseGranted(_message.Message):
    __slots__ = ("refused", "ttl_ms", "grants", "at_unix_ms")
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    refused: str
    ttl_ms: int
    grants: _containers.RepeatedCompositeFieldContainer[LeaseGrant]
    at_unix_ms: int
    def __init__(self, refused: _Optional[str] = ..., ttl_ms: _Optional[int] = ..., grants: _Optional[_Iterable[_Union[LeaseGrant, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("budget", "subject", "window", "granted", "limit", "spent", "short", "coming", "recalled")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    SHORT_FIELD_NUMBER: _ClassVar[int]
    COMING_FIELD_NUMBER: _ClassVar[int]
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    budget: int
    subject: str
    window: int
    granted: int
    limit: int
    spent: int
    short: bool
    coming: bool
    recalled: bool
    def __init__(self, budget: _Optional[int] = ..., subject: _Optional[str] = ..., window: _Optional[int] = ..., granted: _Optional[int] = ..., limit: _Optional[int] = ..., spent: _Optional[int] = ..., short: bool = ..., coming: bool = ..., recalled: bool = ...) -> None: ...

class PriceBookOpened(_message.Message):
    __slots__ = ("label", "body_json", "first_unix_ms", "recorded_unix_ms")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RECORDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    label: str
    body_json: str
    first_unix_ms: int
    recorded_unix_ms: int
    def __init__(self, label: _Optional[str] = ..., body_json: _Optional[str] = ..., first_unix_ms: _Optional[int] = ..., recorded_unix_ms: _Optional[int] = ...) -> None: ...

class PricesRerated(_message.Message):
    __slots__ = ("rerating", "from_unix_ms", "to_unix_ms", "recorded_unix_ms")
    RERATING_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RECORDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    rerating: str
    from_unix_ms: int
    to_unix_ms: int
    recorded_unix_ms: int
    def __init__(self, rerating: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., recorded_unix_ms: _Optional[int] = ...) -> None: ...

class DriftFound(_message.Message):
    __slots__ = ("meter", "kind", "subject", "tenant", "expected", "found", "what", "repaired", "done", "at_unix_ms")
    METER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    meter: str
    kind: str
    subject: str
    tenant: str
    expected: int
    found: int
    what: str
    repaired: bool
    done: str
    at_unix_ms: int
    def __init__(self, meter: _Optional[str] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., tenant: _Optional[str] = ..., expected: _Optional[int] = ..., found: _Optional[int] = ..., what: _Optional[str] = ..., repaired: bool = ..., done: _Optional[str] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class RunawayFound(_message.Message):
    __slots__ = ("found_by", "tenant", "scope", "name", "kind", "grade", "dry_run", "observed", "usual", "unit", "allowed_rps", "cap_tokens", "evidence", "at_unix_ms", "until_unix_ms")
    FOUND_BY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GRADE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    USUAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_RPS_FIELD_NUMBER: _ClassVar[int]
    CAP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    found_by: str
    tenant: str
    scope: str
    name: str
    kind: str
    grade: str
    dry_run: bool
    observed: float
    usual: float
    unit: str
    allowed_rps: float
    cap_tokens: int
    evidence: str
    at_unix_ms: int
    until_unix_ms: int
    def __init__(self, found_by: _Optional[str] = ..., tenant: _Optional[str] = ..., scope: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[str] = ..., grade: _Optional[str] = ..., dry_run: bool = ..., observed: _Optional[float] = ..., usual: _Optional[float] = ..., unit: _Optional[str] = ..., allowed_rps: _Optional[float] = ..., cap_tokens: _Optional[int] = ..., evidence: _Optional[str] = ..., at_unix_ms: _Optional[int] = ..., until_unix_ms: _Optional[int] = ...) -> None: ...

class SpendAnomalyFound(_message.Message):
    __slots__ = ("found_by", "tenant", "workload", "hour_unix_ms", "under_way", "spent_nusd", "usual_nusd", "threshold_nusd", "score", "hours", "evidence", "at_unix_ms")
    FOUND_BY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    HOUR_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    SPENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    USUAL_NUSD_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_NUSD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    found_by: str
    tenant: str
    workload: str
    hour_unix_ms: int
    under_way: bool
    spent_nusd: int
    usual_nusd: int
    threshold_nusd: int
    score: float
    hours: int
    evidence: str
    at_unix_ms: int
    def __init__(self, found_by: _Optional[str] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., hour_unix_ms: _Optional[int] = ..., under_way: bool = ..., spent_nusd: _Optional[int] = ..., usual_nusd: _Optional[int] = ..., threshold_nusd: _Optional[int] = ..., score: _Optional[float] = ..., hours: _Optional[int] = ..., evidence: _Optional[str] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class GapRequested(_message.Message):
    __slots__ = ("publisher", "epoch", "sequences", "ranges")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    epoch: str
    sequences: _containers.RepeatedScalarFieldContainer[int]
    ranges: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    def __init__(self, publisher: _Optional[str] = ..., epoch: _Optional[str] = ..., sequences: _Optional[_Iterable[int]] = ..., ranges: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ...) -> None: ...

class GapAnswered(_message.Message):
    __slots__ = ("sent", "last", "sent_ranges", "lacking")
    SENT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    SENT_RANGES_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    sent: _containers.RepeatedScalarFieldContainer[int]
    last: int
    sent_ranges: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    lacking: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    def __init__(self, sent: _Optional[_Iterable[int]] = ..., last: _Optional[int] = ..., sent_ranges: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ..., lacking: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ...) -> None: ...

class ControlRequested(_message.Message):
    __slots__ = ("drain", "move_streams")
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    MOVE_STREAMS_FIELD_NUMBER: _ClassVar[int]
    drain: Drain
    move_streams: MoveStreams
    def __init__(self, drain: _Optional[_Union[Drain, _Mapping]] = ..., move_streams: _Optional[_Union[MoveStreams, _Mapping]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class MoveStreams(_message.Message):
    __slots__ = ("epoch", "request_ids", "because")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    because: str
    def __init__(self, epoch: _Optional[str] = ..., request_ids: _Optional[_Iterable[str]] = ..., because: _Optional[str] = ...) -> None: ...

class ControlAnswered(_message.Message):
    __slots__ = ("accepted", "message")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    message: str
    def __init__(self, accepted: bool = ..., message: _Optional[str] = ...) -> None: ...
