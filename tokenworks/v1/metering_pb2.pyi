from tokenworks.v1 import events_pb2 as _events_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRunawaysRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListRunawaysResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedCompositeFieldContainer[_events_pb2.RunawayFound]
    def __init__(self, found: _Optional[_Iterable[_Union[_events_pb2.RunawayFound, _Mapping]]] = ...) -> None: ...

class LiftRunawayRequest(_message.Message):
    __slots__ = ("tenant", "scope", "name")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    scope: str
    name: str
    def __init__(self, tenant: _Optional[str] = ..., scope: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drift(_message.Message):
    __slots__ = ("kind", "subject", "tenant", "expected", "found", "what", "repaired", "done", "at_unix_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    tenant: str
    expected: int
    found: int
    what: str
    repaired: bool
    done: str
    at_unix_ms: int
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., tenant: _Optional[str] = ..., expected: _Optional[int] = ..., found: _Optional[int] = ..., what: _Optional[str] = ..., repaired: bool = ..., done: _Optional[str] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("standing", "repaired", "requests_checked", "rounds", "round_ended_unix_ms", "generated_tokens", "delivered_tokens", "missing_events", "lost_events", "lag_events", "detail_from_unix_ms", "dropped_lines", "dropped_requests", "dropped_price_nusd", "months")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_CHECKED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_ENDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MISSING_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOST_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LAG_EVENTS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    MONTHS_FIELD_NUMBER: _ClassVar[int]
    standing: _containers.RepeatedCompositeFieldContainer[Drift]
    repaired: _containers.RepeatedCompositeFieldContainer[Drift]
    requests_checked: int
    rounds: int
    round_ended_unix_ms: int
    generated_tokens: int
    delivered_tokens: int
    missing_events: int
    lost_events: int
    lag_events: int
    detail_from_unix_ms: int
    dropped_lines: int
    dropped_requests: int
    dropped_price_nusd: int
    months: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, standing: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ..., repaired: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ..., requests_checked: _Optional[int] = ..., rounds: _Optional[int] = ..., round_ended_unix_ms: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., delivered_tokens: _Optional[int] = ..., missing_events: _Optional[int] = ..., lost_events: _Optional[int] = ..., lag_events: _Optional[int] = ..., detail_from_unix_ms: _Optional[int] = ..., dropped_lines: _Optional[int] = ..., dropped_requests: _Optional[int] = ..., dropped_price_nusd: _Optional[int] = ..., months: _Optional[_Iterable[str]] = ...) -> None: ...

class UsageFilter(_message.Message):
    __slots__ = ("field", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "group_by", "filters")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    group_by: _containers.RepeatedScalarFieldContainer[str]
    filters: _containers.RepeatedCompositeFieldContainer[UsageFilter]
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., group_by: _Optional[_Iterable[str]] = ..., filters: _Optional[_Iterable[_Union[UsageFilter, _Mapping]]] = ...) -> None: ...

class UsageKey(_message.Message):
    __slots__ = ("tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class", "from_unix_ms", "team", "key", "session")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    workload: str
    model: str
    accelerator: str
    worker: str
    pool: str
    slo_class: str
    from_unix_ms: int
    team: str
    key: str
    session: str
    def __init__(self, tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., accelerator: _Optional[str] = ..., worker: _Optional[str] = ..., pool: _Optional[str] = ..., slo_class: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., team: _Optional[str] = ..., key: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("key", "requests", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "delivered_tokens", "price_nusd", "use_cost_nusd", "energy_cost_nusd", "device_ns", "energy_uj", "finished_requests", "slo_met_requests", "measured_energy_uj", "idle_cost_nusd", "house_cost_nusd", "carbon_ug", "credit_nusd", "adjustment_nusd", "margin_nusd", "paid_ns", "price_usd_per_mtok", "cost_usd_per_mtok", "tokens_per_joule", "utilisation", "slo_attainment")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    USE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    IDLE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    HOUSE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    CARBON_UG_FIELD_NUMBER: _ClassVar[int]
    CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    MARGIN_NUSD_FIELD_NUMBER: _ClassVar[int]
    PAID_NS_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_JOULE_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    SLO_ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    key: UsageKey
    requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    delivered_tokens: int
    price_nusd: int
    use_cost_nusd: int
    energy_cost_nusd: int
    device_ns: int
    energy_uj: int
    finished_requests: int
    slo_met_requests: int
    measured_energy_uj: int
    idle_cost_nusd: int
    house_cost_nusd: int
    carbon_ug: int
    credit_nusd: int
    adjustment_nusd: int
    margin_nusd: int
    paid_ns: int
    price_usd_per_mtok: float
    cost_usd_per_mtok: float
    tokens_per_joule: float
    utilisation: float
    slo_attainment: float
    def __init__(self, key: _Optional[_Union[UsageKey, _Mapping]] = ..., requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., delivered_tokens: _Optional[int] = ..., price_nusd: _Optional[int] = ..., use_cost_nusd: _Optional[int] = ..., energy_cost_nusd: _Optional[int] = ..., device_ns: _Optional[int] = ..., energy_uj: _Optional[int] = ..., finished_requests: _Optional[int] = ..., slo_met_requests: _Optional[int] = ..., measured_energy_uj: _Optional[int] = ..., idle_cost_nusd: _Optional[int] = ..., house_cost_nusd: _Optional[int] = ..., carbon_ug: _Optional[int] = ..., credit_nusd: _Optional[int] = ..., adjustment_nusd: _Optional[int] = ..., margin_nusd: _Optional[int] = ..., paid_ns: _Optional[int] = ..., price_usd_per_mtok: _Optional[float] = ..., cost_usd_per_mtok: _Optional[float] = ..., tokens_per_joule: _Optional[float] = ..., utilisation: _Optional[float] = ..., slo_attainment: _Optional[float] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("rows", "total", "lag_events", "at_risk_nusd", "expected_credit_nusd", "running_requests", "idle_rule")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LAG_EVENTS_FIELD_NUMBER: _ClassVar[int]
    AT_RISK_NUSD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_RULE_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    total: UsageRow
    lag_events: int
    at_risk_nusd: int
    expected_credit_nusd: float
    running_requests: int
    idle_rule: str
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., total: _Optional[_Union[UsageRow, _Mapping]] = ..., lag_events: _Optional[int] = ..., at_risk_nusd: _Optional[int] = ..., expected_credit_nusd: _Optional[float] = ..., running_requests: _Optional[int] = ..., idle_rule: _Optional[str] = ...) -> None: ...

class WatchUsageRequest(_message.Message):
    __slots__ = ("group_by", "filters", "every_ms")
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    EVERY_MS_FIELD_NUMBER: _ClassVar[int]
    group_by: _containers.RepeatedScalarFieldContainer[str]
    filters: _containers.RepeatedCompositeFieldContainer[UsageFilter]
    every_ms: int
    def __init__(self, group_by: _Optional[_Iterable[str]] = ..., filters: _Optional[_Iterable[_Union[UsageFilter, _Mapping]]] = ..., every_ms: _Optional[int] = ...) -> None: ...

class UsageDelta(_message.Message):
    __slots__ = ("rows", "at_unix_ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    at_unix_ms: int
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class SetBudgetRequest(_message.Message):
    __slots__ = ("tenant", "limit_nusd", "unlimited", "unit", "scope", "subject", "period", "limit", "soft", "notify_percents", "lift")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    UNLIMITED_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_PERCENTS_FIELD_NUMBER: _ClassVar[int]
    LIFT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit_nusd: int
    unlimited: bool
    unit: str
    scope: str
    subject: str
    period: str
    limit: int
    soft: bool
    notify_percents: _containers.RepeatedScalarFieldContainer[int]
    lift: bool
    def __init__(self, tenant: _Optional[str] = ..., limit_nusd: _Optional[int] = ..., unlimited: bool = ..., unit: _Optional[str] = ..., scope: _Optional[str] = ..., subject: _Optional[str] = ..., period: _Optional[str] = ..., limit: _Optional[int] = ..., soft: bool = ..., notify_percents: _Optional[_Iterable[int]] = ..., lift: bool = ...) -> None: ...

class ListBudgetsRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListBudgetsResponse(_message.Message):
    __slots__ = ("budgets",)
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetState]
    def __init__(self, budgets: _Optional[_Iterable[_Union[BudgetState, _Mapping]]] = ...) -> None: ...

class BudgetState(_message.Message):
    __slots__ = ("budget", "tenant", "scope", "subject", "unit", "period", "limit", "soft", "notify_percents", "accounts")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_PERCENTS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    budget: int
    tenant: str
    scope: str
    subject: str
    unit: str
    period: str
    limit: int
    soft: bool
    notify_percents: _containers.RepeatedScalarFieldContainer[int]
    accounts: _containers.RepeatedCompositeFieldContainer[BudgetAccount]
    def __init__(self, budget: _Optional[int] = ..., tenant: _Optional[str] = ..., scope: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[str] = ..., limit: _Optional[int] = ..., soft: bool = ..., notify_percents: _Optional[_Iterable[int]] = ..., accounts: _Optional[_Iterable[_Union[BudgetAccount, _Mapping]]] = ...) -> None: ...

class BudgetAccount(_message.Message):
    __slots__ = ("subject", "from_unix_ms", "to_unix_ms", "spent", "held", "remaining")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    subject: str
    from_unix_ms: int
    to_unix_ms: int
    spent: int
    held: int
    remaining: int
    def __init__(self, subject: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., spent: _Optional[int] = ..., held: _Optional[int] = ..., remaining: _Optional[int] = ...) -> None: ...

class GetBudgetRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("tenant", "limit_nusd", "unlimited", "spent_nusd", "remaining_nusd", "exhausted", "state")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    UNLIMITED_FIELD_NUMBER: _ClassVar[int]
    SPENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_NUSD_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit_nusd: int
    unlimited: bool
    spent_nusd: int
    remaining_nusd: int
    exhausted: bool
    state: BudgetState
    def __init__(self, tenant: _Optional[str] = ..., limit_nusd: _Optional[int] = ..., unlimited: bool = ..., spent_nusd: _Optional[int] = ..., remaining_nusd: _Optional[int] = ..., exhausted: bool = ..., state: _Optional[_Union[BudgetState, _Mapping]] = ...) -> None: ...

class GetRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class BillSegment(_message.Message):
    __slots__ = ("worker", "accelerator", "pool", "from_index", "count", "device_ns", "energy_uj", "use_cost_nusd", "energy_cost_nusd", "measured_energy_uj")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    FROM_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    USE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    MEASURED_ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    worker: str
    accelerator: str
    pool: str
    from_index: int
    count: int
    device_ns: int
    energy_uj: int
    use_cost_nusd: int
    energy_cost_nusd: int
    measured_energy_uj: int
    def __init__(self, worker: _Optional[str] = ..., accelerator: _Optional[str] = ..., pool: _Optional[str] = ..., from_index: _Optional[int] = ..., count: _Optional[int] = ..., device_ns: _Optional[int] = ..., energy_uj: _Optional[int] = ..., use_cost_nusd: _Optional[int] = ..., energy_cost_nusd: _Optional[int] = ..., measured_energy_uj: _Optional[int] = ...) -> None: ...

class RequestBill(_message.Message):
    __slots__ = ("request_id", "tenant", "workload", "model", "slo_class", "outcome", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "delivered_tokens", "price_nusd", "use_cost_nusd", "energy_cost_nusd", "margin_nusd", "segments", "price_book", "trace_id", "slo_met", "ttft_s", "tpot_s", "admitted_unix_ms", "finished_unix_ms", "idle_cost_nusd", "house_cost_nusd", "carbon_ug", "credit_nusd", "admitted_price_book", "postings", "settled")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    USE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    MARGIN_NUSD_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_S_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IDLE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    HOUSE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    CARBON_UG_FIELD_NUMBER: _ClassVar[int]
    CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    POSTINGS_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    outcome: str
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    delivered_tokens: int
    price_nusd: int
    use_cost_nusd: int
    energy_cost_nusd: int
    margin_nusd: int
    segments: _containers.RepeatedCompositeFieldContainer[BillSegment]
    price_book: str
    trace_id: str
    slo_met: bool
    ttft_s: float
    tpot_s: float
    admitted_unix_ms: int
    finished_unix_ms: int
    idle_cost_nusd: int
    house_cost_nusd: int
    carbon_ug: int
    credit_nusd: int
    admitted_price_book: str
    postings: _containers.RepeatedCompositeFieldContainer[BillPosting]
    settled: bool
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., outcome: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., delivered_tokens: _Optional[int] = ..., price_nusd: _Optional[int] = ..., use_cost_nusd: _Optional[int] = ..., energy_cost_nusd: _Optional[int] = ..., margin_nusd: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[BillSegment, _Mapping]]] = ..., price_book: _Optional[str] = ..., trace_id: _Optional[str] = ..., slo_met: bool = ..., ttft_s: _Optional[float] = ..., tpot_s: _Optional[float] = ..., admitted_unix_ms: _Optional[int] = ..., finished_unix_ms: _Optional[int] = ..., idle_cost_nusd: _Optional[int] = ..., house_cost_nusd: _Optional[int] = ..., carbon_ug: _Optional[int] = ..., credit_nusd: _Optional[int] = ..., admitted_price_book: _Optional[str] = ..., postings: _Optional[_Iterable[_Union[BillPosting, _Mapping]]] = ..., settled: bool = ...) -> None: ...

class BillPosting(_message.Message):
    __slots__ = ("account", "worker", "hour_unix_ms", "amount_nusd", "carbon_ug")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    HOUR_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_NUSD_FIELD_NUMBER: _ClassVar[int]
    CARBON_UG_FIELD_NUMBER: _ClassVar[int]
    account: str
    worker: str
    hour_unix_ms: int
    amount_nusd: int
    carbon_ug: int
    def __init__(self, account: _Optional[str] = ..., worker: _Optional[str] = ..., hour_unix_ms: _Optional[int] = ..., amount_nusd: _Optional[int] = ..., carbon_ug: _Optional[int] = ...) -> None: ...
