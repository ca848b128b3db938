from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListPricesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenedPrices(_message.Message):
    __slots__ = ("label", "body_json", "effective_unix_ms", "recorded_unix_ms", "in_force")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RECORDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    label: str
    body_json: str
    effective_unix_ms: int
    recorded_unix_ms: int
    in_force: bool
    def __init__(self, label: _Optional[str] = ..., body_json: _Optional[str] = ..., effective_unix_ms: _Optional[int] = ..., recorded_unix_ms: _Optional[int] = ..., in_force: bool = ...) -> None: ...

class PastRerating(_message.Message):
    __slots__ = ("rerating", "from_unix_ms", "to_unix_ms", "recorded_unix_ms", "finished")
    RERATING_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RECORDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    rerating: str
    from_unix_ms: int
    to_unix_ms: int
    recorded_unix_ms: int
    finished: bool
    def __init__(self, rerating: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., recorded_unix_ms: _Optional[int] = ..., finished: bool = ...) -> None: ...

class ListPricesResponse(_message.Message):
    __slots__ = ("books", "reratings")
    BOOKS_FIELD_NUMBER: _ClassVar[int]
    RERATINGS_FIELD_NUMBER: _ClassVar[int]
    books: _containers.RepeatedCompositeFieldContainer[OpenedPrices]
    reratings: _containers.RepeatedCompositeFieldContainer[PastRerating]
    def __init__(self, books: _Optional[_Iterable[_Union[OpenedPrices, _Mapping]]] = ..., reratings: _Optional[_Iterable[_Union[PastRerating, _Mapping]]] = ...) -> None: ...

class OpenPricesRequest(_message.Message):
    __slots__ = ("body_json", "effective_unix_ms")
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    body_json: str
    effective_unix_ms: int
    def __init__(self, body_json: _Optional[str] = ..., effective_unix_ms: _Optional[int] = ...) -> None: ...

class RerateRequest(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "dry_run")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    dry_run: bool
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., dry_run: bool = ...) -> None: ...

class RepricedTenant(_message.Message):
    __slots__ = ("tenant", "requests", "before_nusd", "after_nusd")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_NUSD_FIELD_NUMBER: _ClassVar[int]
    AFTER_NUSD_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    requests: int
    before_nusd: int
    after_nusd: int
    def __init__(self, tenant: _Optional[str] = ..., requests: _Optional[int] = ..., before_nusd: _Optional[int] = ..., after_nusd: _Optional[int] = ...) -> None: ...

class Rerated(_message.Message):
    __slots__ = ("rerating", "tenants", "looked_at", "entries")
    RERATING_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    rerating: str
    tenants: _containers.RepeatedCompositeFieldContainer[RepricedTenant]
    looked_at: int
    entries: int
    def __init__(self, rerating: _Optional[str] = ..., tenants: _Optional[_Iterable[_Union[RepricedTenant, _Mapping]]] = ..., looked_at: _Optional[int] = ..., entries: _Optional[int] = ...) -> None: ...

class GetFleetBillRequest(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ...) -> None: ...

class WorkerBill(_message.Message):
    __slots__ = ("hour_unix_ms", "worker", "pool", "accelerator", "paid_ns", "warm_up_ns", "energy_uj", "bill_nusd", "use_nusd", "energy_nusd", "idle_nusd", "house_nusd", "carbon_ug", "settled")
    class HouseNusdEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    HOUR_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    PAID_NS_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_NS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    BILL_NUSD_FIELD_NUMBER: _ClassVar[int]
    USE_NUSD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_NUSD_FIELD_NUMBER: _ClassVar[int]
    IDLE_NUSD_FIELD_NUMBER: _ClassVar[int]
    HOUSE_NUSD_FIELD_NUMBER: _ClassVar[int]
    CARBON_UG_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    hour_unix_ms: int
    worker: str
    pool: str
    accelerator: str
    paid_ns: int
    warm_up_ns: int
    energy_uj: int
    bill_nusd: int
    use_nusd: int
    energy_nusd: int
    idle_nusd: int
    house_nusd: _containers.ScalarMap[str, int]
    carbon_ug: int
    settled: bool
    def __init__(self, hour_unix_ms: _Optional[int] = ..., worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., paid_ns: _Optional[int] = ..., warm_up_ns: _Optional[int] = ..., energy_uj: _Optional[int] = ..., bill_nusd: _Optional[int] = ..., use_nusd: _Optional[int] = ..., energy_nusd: _Optional[int] = ..., idle_nusd: _Optional[int] = ..., house_nusd: _Optional[_Mapping[str, int]] = ..., carbon_ug: _Optional[int] = ..., settled: bool = ...) -> None: ...

class FleetBill(_message.Message):
    __slots__ = ("workers", "total", "idle_rule")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    IDLE_RULE_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerBill]
    total: WorkerBill
    idle_rule: str
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerBill, _Mapping]]] = ..., total: _Optional[_Union[WorkerBill, _Mapping]] = ..., idle_rule: _Optional[str] = ...) -> None: ...
