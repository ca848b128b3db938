from tokenworks.v1 import events_pb2 as _events_pb2
from tokenworks.v1 import metering_pb2 as _metering_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetForecastRequest(_message.Message):
    __slots__ = ("tenant", "filters", "days", "level")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    DAYS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    filters: _containers.RepeatedCompositeFieldContainer[_metering_pb2.UsageFilter]
    days: int
    level: float
    def __init__(self, tenant: _Optional[str] = ..., filters: _Optional[_Iterable[_Union[_metering_pb2.UsageFilter, _Mapping]]] = ..., days: _Optional[int] = ..., level: _Optional[float] = ...) -> None: ...

class Forecast(_message.Message):
    __slots__ = ("method", "because", "level", "step_hours", "history_steps", "points", "horizon", "month", "budgets", "now_unix_ms")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    STEP_HOURS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_STEPS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    method: str
    because: str
    level: float
    step_hours: int
    history_steps: int
    points: _containers.RepeatedCompositeFieldContainer[ForecastPoint]
    horizon: ForecastTotal
    month: ForecastTotal
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetOutlook]
    now_unix_ms: int
    def __init__(self, method: _Optional[str] = ..., because: _Optional[str] = ..., level: _Optional[float] = ..., step_hours: _Optional[int] = ..., history_steps: _Optional[int] = ..., points: _Optional[_Iterable[_Union[ForecastPoint, _Mapping]]] = ..., horizon: _Optional[_Union[ForecastTotal, _Mapping]] = ..., month: _Optional[_Union[ForecastTotal, _Mapping]] = ..., budgets: _Optional[_Iterable[_Union[BudgetOutlook, _Mapping]]] = ..., now_unix_ms: _Optional[int] = ...) -> None: ...

class ForecastPoint(_message.Message):
    __slots__ = ("from_unix_ms", "expected_nusd", "low_nusd", "high_nusd")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NUSD_FIELD_NUMBER: _ClassVar[int]
    LOW_NUSD_FIELD_NUMBER: _ClassVar[int]
    HIGH_NUSD_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    expected_nusd: float
    low_nusd: float
    high_nusd: float
    def __init__(self, from_unix_ms: _Optional[int] = ..., expected_nusd: _Optional[float] = ..., low_nusd: _Optional[float] = ..., high_nusd: _Optional[float] = ...) -> None: ...

class ForecastTotal(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "billed_nusd", "expected_nusd", "low_nusd", "high_nusd")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BILLED_NUSD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NUSD_FIELD_NUMBER: _ClassVar[int]
    LOW_NUSD_FIELD_NUMBER: _ClassVar[int]
    HIGH_NUSD_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    billed_nusd: int
    expected_nusd: float
    low_nusd: float
    high_nusd: float
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., billed_nusd: _Optional[int] = ..., expected_nusd: _Optional[float] = ..., low_nusd: _Optional[float] = ..., high_nusd: _Optional[float] = ...) -> None: ...

class BudgetOutlook(_message.Message):
    __slots__ = ("budget", "tenant", "scope", "subject", "unit", "period", "limit", "spent", "to_unix_ms", "days", "soonest_days", "latest_days")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DAYS_FIELD_NUMBER: _ClassVar[int]
    SOONEST_DAYS_FIELD_NUMBER: _ClassVar[int]
    LATEST_DAYS_FIELD_NUMBER: _ClassVar[int]
    budget: int
    tenant: str
    scope: str
    subject: str
    unit: str
    period: str
    limit: int
    spent: int
    to_unix_ms: int
    days: float
    soonest_days: float
    latest_days: float
    def __init__(self, budget: _Optional[int] = ..., tenant: _Optional[str] = ..., scope: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[str] = ..., limit: _Optional[int] = ..., spent: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., days: _Optional[float] = ..., soonest_days: _Optional[float] = ..., latest_days: _Optional[float] = ...) -> None: ...

class ListAnomaliesRequest(_message.Message):
    __slots__ = ("tenant", "from_unix_ms")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    from_unix_ms: int
    def __init__(self, tenant: _Optional[str] = ..., from_unix_ms: _Optional[int] = ...) -> None: ...

class ListAnomaliesResponse(_message.Message):
    __slots__ = ("found", "watched", "learning", "threshold_score", "threshold_ratio")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    LEARNING_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_RATIO_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedCompositeFieldContainer[_events_pb2.SpendAnomalyFound]
    watched: int
    learning: int
    threshold_score: float
    threshold_ratio: float
    def __init__(self, found: _Optional[_Iterable[_Union[_events_pb2.SpendAnomalyFound, _Mapping]]] = ..., watched: _Optional[int] = ..., learning: _Optional[int] = ..., threshold_score: _Optional[float] = ..., threshold_ratio: _Optional[float] = ...) -> None: ...

class GetPromisesRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class Promises(_message.Message):
    __slots__ = ("classes", "total", "month_unix_ms", "now_unix_ms")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    MONTH_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[PromiseOutlook]
    total: PromiseOutlook
    month_unix_ms: int
    now_unix_ms: int
    def __init__(self, classes: _Optional[_Iterable[_Union[PromiseOutlook, _Mapping]]] = ..., total: _Optional[_Union[PromiseOutlook, _Mapping]] = ..., month_unix_ms: _Optional[int] = ..., now_unix_ms: _Optional[int] = ...) -> None: ...

class PromiseOutlook(_message.Message):
    __slots__ = ("slo_class", "finished_requests", "slo_met_requests", "attainment", "price_nusd", "credited_nusd", "expected_credit_nusd", "most_credit_nusd", "expected_price_nusd")
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    CREDITED_NUSD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    MOST_CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    slo_class: str
    finished_requests: int
    slo_met_requests: int
    attainment: float
    price_nusd: int
    credited_nusd: int
    expected_credit_nusd: float
    most_credit_nusd: float
    expected_price_nusd: float
    def __init__(self, slo_class: _Optional[str] = ..., finished_requests: _Optional[int] = ..., slo_met_requests: _Optional[int] = ..., attainment: _Optional[float] = ..., price_nusd: _Optional[int] = ..., credited_nusd: _Optional[int] = ..., expected_credit_nusd: _Optional[float] = ..., most_credit_nusd: _Optional[float] = ..., expected_price_nusd: _Optional[float] = ...) -> None: ...
