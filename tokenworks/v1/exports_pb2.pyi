from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamRequest(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "tenants")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    tenants: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., tenants: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamChargesRequest(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "tenants")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    tenants: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., tenants: _Optional[_Iterable[str]] = ...) -> None: ...

class ChargedTokens(_message.Message):
    __slots__ = ("kind", "tokens", "rate_nusd_per_mtok", "list_rate_nusd_per_mtok")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RATE_NUSD_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    LIST_RATE_NUSD_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    kind: str
    tokens: int
    rate_nusd_per_mtok: int
    list_rate_nusd_per_mtok: int
    def __init__(self, kind: _Optional[str] = ..., tokens: _Optional[int] = ..., rate_nusd_per_mtok: _Optional[int] = ..., list_rate_nusd_per_mtok: _Optional[int] = ...) -> None: ...

class Charge(_message.Message):
    __slots__ = ("from_unix_ms", "to_unix_ms", "tenant", "workload", "model", "slo_class", "accelerator", "price_book", "billing_from_unix_ms", "billing_to_unix_ms", "invoice", "correction", "tokens", "price_nusd", "credit_nusd", "adjustment_nusd", "requests")
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    PRICE_BOOK_FIELD_NUMBER: _ClassVar[int]
    BILLING_FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BILLING_TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    INVOICE_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    CREDIT_NUSD_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENT_NUSD_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    from_unix_ms: int
    to_unix_ms: int
    tenant: str
    workload: str
    model: str
    slo_class: str
    accelerator: str
    price_book: str
    billing_from_unix_ms: int
    billing_to_unix_ms: int
    invoice: str
    correction: bool
    tokens: _containers.RepeatedCompositeFieldContainer[ChargedTokens]
    price_nusd: int
    credit_nusd: int
    adjustment_nusd: int
    requests: int
    def __init__(self, from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., accelerator: _Optional[str] = ..., price_book: _Optional[str] = ..., billing_from_unix_ms: _Optional[int] = ..., billing_to_unix_ms: _Optional[int] = ..., invoice: _Optional[str] = ..., correction: bool = ..., tokens: _Optional[_Iterable[_Union[ChargedTokens, _Mapping]]] = ..., price_nusd: _Optional[int] = ..., credit_nusd: _Optional[int] = ..., adjustment_nusd: _Optional[int] = ..., requests: _Optional[int] = ...) -> None: ...

class ChargeBatch(_message.Message):
    __slots__ = ("charges", "issuer")
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    charges: _containers.RepeatedCompositeFieldContainer[Charge]
    issuer: str
    def __init__(self, charges: _Optional[_Iterable[_Union[Charge, _Mapping]]] = ..., issuer: _Optional[str] = ...) -> None: ...

class UsageRecord(_message.Message):
    __slots__ = ("minute_unix_ms", "tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class", "amounts")
    MINUTE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    minute_unix_ms: int
    tenant: str
    workload: str
    model: str
    accelerator: str
    worker: str
    pool: str
    slo_class: str
    amounts: BookedAmounts
    def __init__(self, minute_unix_ms: _Optional[int] = ..., tenant: _Optional[str] = ..., workload: _Optional[str] = ..., model: _Optional[str] = ..., accelerator: _Optional[str] = ..., worker: _Optional[str] = ..., pool: _Optional[str] = ..., slo_class: _Optional[str] = ..., amounts: _Optional[_Union[BookedAmounts, _Mapping]] = ...) -> None: ...

class BookedAmounts(_message.Message):
    __slots__ = ("requests", "finished_requests", "slo_met_requests", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "delivered_tokens", "price_nusd", "use_cost_nusd", "energy_cost_nusd", "device_ns", "energy_uj", "measured_energy_uj")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    USE_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_COST_NUSD_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    MEASURED_ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    requests: int
    finished_requests: int
    slo_met_requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    delivered_tokens: int
    price_nusd: int
    use_cost_nusd: int
    energy_cost_nusd: int
    device_ns: int
    energy_uj: int
    measured_energy_uj: int
    def __init__(self, requests: _Optional[int] = ..., finished_requests: _Optional[int] = ..., slo_met_requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., delivered_tokens: _Optional[int] = ..., price_nusd: _Optional[int] = ..., use_cost_nusd: _Optional[int] = ..., energy_cost_nusd: _Optional[int] = ..., device_ns: _Optional[int] = ..., energy_uj: _Optional[int] = ..., measured_energy_uj: _Optional[int] = ...) -> None: ...

class UsageBatch(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[UsageRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[UsageRecord, _Mapping]]] = ...) -> None: ...

class Booking(_message.Message):
    __slots__ = ("line", "booked_unix_ms", "request_id", "record")
    LINE_FIELD_NUMBER: _ClassVar[int]
    BOOKED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    line: int
    booked_unix_ms: int
    request_id: str
    record: UsageRecord
    def __init__(self, line: _Optional[int] = ..., booked_unix_ms: _Optional[int] = ..., request_id: _Optional[str] = ..., record: _Optional[_Union[UsageRecord, _Mapping]] = ...) -> None: ...

class BookingBatch(_message.Message):
    __slots__ = ("bookings",)
    BOOKINGS_FIELD_NUMBER: _ClassVar[int]
    bookings: _containers.RepeatedCompositeFieldContainer[Booking]
    def __init__(self, bookings: _Optional[_Iterable[_Union[Booking, _Mapping]]] = ...) -> None: ...

class GetInvoiceRequest(_message.Message):
    __slots__ = ("tenant", "month")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    month: str
    def __init__(self, tenant: _Optional[str] = ..., month: _Optional[str] = ...) -> None: ...

class InvoiceLine(_message.Message):
    __slots__ = ("what", "model", "slo_class", "kind", "month", "tokens", "rate_nusd_per_mtok", "amount_nusd")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RATE_NUSD_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_NUSD_FIELD_NUMBER: _ClassVar[int]
    what: str
    model: str
    slo_class: str
    kind: str
    month: str
    tokens: int
    rate_nusd_per_mtok: int
    amount_nusd: int
    def __init__(self, what: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., kind: _Optional[str] = ..., month: _Optional[str] = ..., tokens: _Optional[int] = ..., rate_nusd_per_mtok: _Optional[int] = ..., amount_nusd: _Optional[int] = ...) -> None: ...

class Invoice(_message.Message):
    __slots__ = ("number", "tenant", "month", "from_unix_ms", "to_unix_ms", "issued_unix_ms", "issuer", "issuer_address", "lines", "total_nusd", "payable_cents", "requests")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    ISSUER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NUSD_FIELD_NUMBER: _ClassVar[int]
    PAYABLE_CENTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    number: str
    tenant: str
    month: str
    from_unix_ms: int
    to_unix_ms: int
    issued_unix_ms: int
    issuer: str
    issuer_address: str
    lines: _containers.RepeatedCompositeFieldContainer[InvoiceLine]
    total_nusd: int
    payable_cents: int
    requests: int
    def __init__(self, number: _Optional[str] = ..., tenant: _Optional[str] = ..., month: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., issued_unix_ms: _Optional[int] = ..., issuer: _Optional[str] = ..., issuer_address: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[InvoiceLine, _Mapping]]] = ..., total_nusd: _Optional[int] = ..., payable_cents: _Optional[int] = ..., requests: _Optional[int] = ...) -> None: ...

class ListInvoicesRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListInvoicesResponse(_message.Message):
    __slots__ = ("invoices",)
    INVOICES_FIELD_NUMBER: _ClassVar[int]
    invoices: _containers.RepeatedCompositeFieldContainer[Invoice]
    def __init__(self, invoices: _Optional[_Iterable[_Union[Invoice, _Mapping]]] = ...) -> None: ...
