from tokenworks.v1 import events_pb2 as _events_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "tool_calls_json", "tool_call_id", "name")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    tool_calls_json: str
    tool_call_id: str
    name: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., tool_calls_json: _Optional[str] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos", "n", "frequency_penalty", "presence_penalty", "logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    n: int
    frequency_penalty: float
    presence_penalty: float
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: bool = ..., n: _Optional[int] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logprobs: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "text", "token_ids", "chat", "sampling", "slo_class", "workload", "session_id", "resume_from", "resumed_token_ids", "resumed_text", "response_format_json", "tools_json", "tool_choice_json", "resumed_tokenizer", "avoid_workers", "resumed_ttft_s", "resumed_s", "place_lost", "deadline_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TEXT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOLS_JSON_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_JSON_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    AVOID_WORKERS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    RESUMED_S_FIELD_NUMBER: _ClassVar[int]
    PLACE_LOST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    text: str
    token_ids: TokenIds
    chat: Chat
    sampling: Sampling
    slo_class: str
    workload: str
    session_id: str
    resume_from: int
    resumed_token_ids: TokenIds
    resumed_text: str
    response_format_json: str
    tools_json: str
    tool_choice_json: str
    resumed_tokenizer: str
    avoid_workers: _containers.RepeatedScalarFieldContainer[str]
    resumed_ttft_s: float
    resumed_s: float
    place_lost: bool
    deadline_ms: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., slo_class: _Optional[str] = ..., workload: _Optional[str] = ..., session_id: _Optional[str] = ..., resume_from: _Optional[int] = ..., resumed_token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., resumed_text: _Optional[str] = ..., response_format_json: _Optional[str] = ..., tools_json: _Optional[str] = ..., tool_choice_json: _Optional[str] = ..., resumed_tokenizer: _Optional[str] = ..., avoid_workers: _Optional[_Iterable[str]] = ..., resumed_ttft_s: _Optional[float] = ..., resumed_s: _Optional[float] = ..., place_lost: bool = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("text", "logprob", "top")
    class Alternative(_message.Message):
        __slots__ = ("text", "logprob")
        TEXT_FIELD_NUMBER: _ClassVar[int]
        LOGPROB_FIELD_NUMBER: _ClassVar[int]
        text: str
        logprob: float
        def __init__(self, text: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    text: str
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob.Alternative]
    def __init__(self, text: _Optional[str] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob.Alternative, _Mapping]]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "first_index", "token_ids", "text", "token_count", "finish", "logprobs", "tool_calls_json")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_JSON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    first_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    token_count: int
    finish: Finish
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    tool_calls_json: str
    def __init__(self, request_id: _Optional[str] = ..., first_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., token_count: _Optional[int] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., tool_calls_json: _Optional[str] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "usage", "price_nusd", "segments")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PRICE_NUSD_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    usage: Usage
    price_nusd: int
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., price_nusd: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("worker", "accelerator", "from_index", "count")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    FROM_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    accelerator: str
    from_index: int
    count: int
    def __init__(self, worker: _Optional[str] = ..., accelerator: _Optional[str] = ..., from_index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("request_id", "worker", "address", "token", "model", "plan", "expires_unix_ms", "http_url", "slo_class", "trace_id", "tokenizer", "accelerator")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    HTTP_URL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    worker: str
    address: str
    token: str
    model: str
    plan: str
    expires_unix_ms: int
    http_url: str
    slo_class: str
    trace_id: str
    tokenizer: str
    accelerator: str
    def __init__(self, request_id: _Optional[str] = ..., worker: _Optional[str] = ..., address: _Optional[str] = ..., token: _Optional[str] = ..., model: _Optional[str] = ..., plan: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ..., http_url: _Optional[str] = ..., slo_class: _Optional[str] = ..., trace_id: _Optional[str] = ..., tokenizer: _Optional[str] = ..., accelerator: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("worker", "pool", "accelerator", "feasible", "rejected_because", "score_usd", "use_usd", "energy_usd", "shadow_usd", "slo_risk_usd", "prefix_saving_usd", "predicted_queue_s", "predicted_ttft_s", "predicted_tpot_s", "miss_probability", "expected_cached_tokens")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    SCORE_USD_FIELD_NUMBER: _ClassVar[int]
    USE_USD_FIELD_NUMBER: _ClassVar[int]
    ENERGY_USD_FIELD_NUMBER: _ClassVar[int]
    SHADOW_USD_FIELD_NUMBER: _ClassVar[int]
    SLO_RISK_USD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SAVING_USD_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_S_FIELD_NUMBER: _ClassVar[int]
    MISS_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pool: str
    accelerator: str
    feasible: bool
    rejected_because: str
    score_usd: float
    use_usd: float
    energy_usd: float
    shadow_usd: float
    slo_risk_usd: float
    prefix_saving_usd: float
    predicted_queue_s: float
    predicted_ttft_s: float
    predicted_tpot_s: float
    miss_probability: float
    expected_cached_tokens: int
    def __init__(self, worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., feasible: bool = ..., rejected_because: _Optional[str] = ..., score_usd: _Optional[float] = ..., use_usd: _Optional[float] = ..., energy_usd: _Optional[float] = ..., shadow_usd: _Optional[float] = ..., slo_risk_usd: _Optional[float] = ..., prefix_saving_usd: _Optional[float] = ..., predicted_queue_s: _Optional[float] = ..., predicted_ttft_s: _Optional[float] = ..., predicted_tpot_s: _Optional[float] = ..., miss_probability: _Optional[float] = ..., expected_cached_tokens: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("request_id", "tenant", "model", "slo_class", "workload", "prompt_tokens", "expected_completion_tokens", "picked_worker", "plan", "plan_age_s", "candidates", "trace_id", "decided_unix_ms", "decision_us", "outcome", "waited_s", "median_completion", "p90_completion", "known_answers")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PICKED_WORKER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    DECIDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DECISION_US_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    P90_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    model: str
    slo_class: str
    workload: str
    prompt_tokens: int
    expected_completion_tokens: int
    picked_worker: str
    plan: str
    plan_age_s: float
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    trace_id: str
    decided_unix_ms: int
    decision_us: float
    outcome: str
    waited_s: float
    median_completion: LengthQuantile
    p90_completion: LengthQuantile
    known_answers: float
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., slo_class: _Optional[str] = ..., workload: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., expected_completion_tokens: _Optional[int] = ..., picked_worker: _Optional[str] = ..., plan: _Optional[str] = ..., plan_age_s: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., trace_id: _Optional[str] = ..., decided_unix_ms: _Optional[int] = ..., decision_us: _Optional[float] = ..., outcome: _Optional[str] = ..., waited_s: _Optional[float] = ..., median_completion: _Optional[_Union[LengthQuantile, _Mapping]] = ..., p90_completion: _Optional[_Union[LengthQuantile, _Mapping]] = ..., known_answers: _Optional[float] = ...) -> None: ...

class LengthQuantile(_message.Message):
    __slots__ = ("tokens", "least", "most")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    tokens: float
    least: float
    most: float
    def __init__(self, tokens: _Optional[float] = ..., least: _Optional[float] = ..., most: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "context_tokens", "accelerators", "workers", "simulated")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    name: str
    context_tokens: int
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    workers: int
    simulated: bool
    def __init__(self, name: _Optional[str] = ..., context_tokens: _Optional[int] = ..., accelerators: _Optional[_Iterable[str]] = ..., workers: _Optional[int] = ..., simulated: bool = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("open", "cancel", "fund")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FUND_FIELD_NUMBER: _ClassVar[int]
    open: OpenStream
    cancel: CancelStream
    fund: FundStream
    def __init__(self, open: _Optional[_Union[OpenStream, _Mapping]] = ..., cancel: _Optional[_Union[CancelStream, _Mapping]] = ..., fund: _Optional[_Union[FundStream, _Mapping]] = ...) -> None: ...

class OpenStream(_message.Message):
    __slots__ = ("stream", "request", "tenant", "traceparent", "plan", "ttft_promise_s", "tpot_promise_s", "priority", "resumed_token_ids", "resumed_text", "resumed_tokenizer", "funds", "deadline_ms")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TTFT_PROMISE_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_PROMISE_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TEXT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    FUNDS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    request: GenerateRequest
    tenant: str
    traceparent: str
    plan: str
    ttft_promise_s: float
    tpot_promise_s: float
    priority: int
    resumed_token_ids: TokenIds
    resumed_text: str
    resumed_tokenizer: str
    funds: Funds
    deadline_ms: int
    def __init__(self, stream: _Optional[int] = ..., request: _Optional[_Union[GenerateRequest, _Mapping]] = ..., tenant: _Optional[str] = ..., traceparent: _Optional[str] = ..., plan: _Optional[str] = ..., ttft_promise_s: _Optional[float] = ..., tpot_promise_s: _Optional[float] = ..., priority: _Optional[int] = ..., resumed_token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., resumed_text: _Optional[str] = ..., resumed_tokenizer: _Optional[str] = ..., funds: _Optional[_Union[Funds, _Mapping]] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class Funds(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "funding")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    funding: _containers.RepeatedCompositeFieldContainer[_events_pb2.Funding]
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., funding: _Optional[_Iterable[_Union[_events_pb2.Funding, _Mapping]]] = ...) -> None: ...

class FundStream(_message.Message):
    __slots__ = ("stream", "funds", "final")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FUNDS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    stream: int
    funds: Funds
    final: bool
    def __init__(self, stream: _Optional[int] = ..., funds: _Optional[_Union[Funds, _Mapping]] = ..., final: bool = ...) -> None: ...

class FundsAsked(_message.Message):
    __slots__ = ("stream", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    def __init__(self, stream: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class CancelStream(_message.Message):
    __slots__ = ("stream", "reason")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: str
    def __init__(self, stream: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class StepFrame(_message.Message):
    __slots__ = ("chunks", "asks")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[StreamChunk]
    asks: _containers.RepeatedCompositeFieldContainer[FundsAsked]
    def __init__(self, chunks: _Optional[_Iterable[_Union[StreamChunk, _Mapping]]] = ..., asks: _Optional[_Iterable[_Union[FundsAsked, _Mapping]]] = ...) -> None: ...

class StreamChunk(_message.Message):
    __slots__ = ("stream", "response", "first_index", "token_count", "last", "error")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    stream: int
    response: bytes
    first_index: int
    token_count: int
    last: bool
    error: StreamError
    def __init__(self, stream: _Optional[int] = ..., response: _Optional[bytes] = ..., first_index: _Optional[int] = ..., token_count: _Optional[int] = ..., last: bool = ..., error: _Optional[_Union[StreamError, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("reason", "message", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retry_after_ms: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerDescription(_message.Message):
    __slots__ = ("worker", "pool", "accelerator", "vendor", "engine", "simulated", "models", "context_tokens", "max_batch", "kv_capacity_tokens", "rate_nusd_per_hour", "epoch", "note", "detected_by", "telemetry", "features", "failed_because", "restarts", "tokenizer", "state")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RATE_NUSD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    DETECTED_BY_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FAILED_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pool: str
    accelerator: str
    vendor: str
    engine: str
    simulated: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    context_tokens: int
    max_batch: int
    kv_capacity_tokens: int
    rate_nusd_per_hour: int
    epoch: str
    note: str
    detected_by: str
    telemetry: str
    features: _containers.RepeatedScalarFieldContainer[str]
    failed_because: str
    restarts: int
    tokenizer: str
    state: str
    def __init__(self, worker: _Optional[str] = ..., pool: _Optional[str] = ..., accelerator: _Optional[str] = ..., vendor: _Optional[str] = ..., engine: _Optional[str] = ..., simulated: bool = ..., models: _Optional[_Iterable[str]] = ..., context_tokens: _Optional[int] = ..., max_batch: _Optional[int] = ..., kv_capacity_tokens: _Optional[int] = ..., rate_nusd_per_hour: _Optional[int] = ..., epoch: _Optional[str] = ..., note: _Optional[str] = ..., detected_by: _Optional[str] = ..., telemetry: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., failed_because: _Optional[str] = ..., restarts: _Optional[int] = ..., tokenizer: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class InjectFaultRequest(_message.Message):
    __slots__ = ("kind", "factor")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[InjectFaultRequest.Kind]
        KIND_NONE: _ClassVar[InjectFaultRequest.Kind]
        KIND_SLOW: _ClassVar[InjectFaultRequest.Kind]
        KIND_HANG: _ClassVar[InjectFaultRequest.Kind]
        KIND_CRASH: _ClassVar[InjectFaultRequest.Kind]
        KIND_ENGINE_DIES: _ClassVar[InjectFaultRequest.Kind]
    KIND_UNSPECIFIED: InjectFaultRequest.Kind
    KIND_NONE: InjectFaultRequest.Kind
    KIND_SLOW: InjectFaultRequest.Kind
    KIND_HANG: InjectFaultRequest.Kind
    KIND_CRASH: InjectFaultRequest.Kind
    KIND_ENGINE_DIES: InjectFaultRequest.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    kind: InjectFaultRequest.Kind
    factor: float
    def __init__(self, kind: _Optional[_Union[InjectFaultRequest.Kind, str]] = ..., factor: _Optional[float] = ...) -> None: ...

class InjectFaultResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...
