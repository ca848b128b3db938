"""Good messages to begin from: what a well-meaning peer sends, made for any message type from its descriptor alone.

In: a message class and a source of randomness. Out: a filled message. Fields of a known name get a value that means
something in the mesh under test; any other field one of its type, so that a new message is fuzzed without a word here.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MODEL: Final = "llama-3.1-8b"
WORKER: Final = "h100-0"
POOL: Final = "nvidia-h100-sxm"
ROUTER: Final = "router-0"
TENANT: Final = "acme"
UNIX_MS: Final = 1_764_000_000_000
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

_FEW: Final = 3  # of a repeated field
_DEPTH: Final = 4

# By field name: what a peer would send. Several, so that messages meet each other and miss each other.
_WORDS: Final[dict[str, tuple[Any, ...]]] = {
    "model": (MODEL, MODEL, MODEL, "", "smollm2-135m-instruct", "nobody-serves-this"),
    "models": (MODEL, "smollm2-135m-instruct"),
    "worker": (WORKER, WORKER, "gone-0", "other-1"),
    "avoid_workers": (WORKER, "gone-0"),
    "pool": (POOL, "amd-mi300x", "no-such-pool"),
    "accelerator": (POOL, "amd-mi300x", "no-such-accelerator"),
    "router": (ROUTER, "router-1", "gone-router"),
    "tenant": (TENANT, "umbra", "nobody"),
    "slo_class": ("standard", "interactive", "batch", ""),
    "workload": ("support/summaries", ""),
    "request_id": ("", "r-1", "r-2", "r-3"),
    "request_ids": ("r-1", "r-2"),
    "taken": ("r-1", "r-2"),
    "text": ("river", "the quick brown fox"),
    "content": ("hello", ""),
    "role": ("user", "system", "assistant", "tool"),
    "state": ("ready", "draining", "starting", "failed"),
    "outcome": ("stop", "length", "cancelled", "error", "budget", "runaway"),
    "reason": ("cancelled", "budget", "runaway"),
    "address": ("127.0.0.1:1", "no address", ""),
    "http_url": ("", "http://127.0.0.1:1"),
    "epoch": ("e1", "e2"),
    "engine": ("simulated", "vllm"),
    "publisher": ("worker.h100-0.tokens", "router.router-0.admitted"),
    "group_by": ("tenant", "model", "worker", "hour", "minute", "day", "no-such-field"),
    "field": ("tenant", "model", "accelerator"),
    "values": (TENANT, MODEL),
    "label": ("list@1", "list@2"),
    "body_json": ('{"name":"list","version":1}', "{}", "[]"),
    "response_format_json": ("", "", '{"type":"json_object"}', "{"),
    "tools_json": ("", "", '[{"type":"function","function":{"name":"f"}}]', "[1]"),
    "tool_choice_json": ("", '"auto"', "nope"),
    "tool_calls_json": ("", '[{"index":0}]', "["),
    "traceparent": ("", TRACEPARENT, "00-zz"),
    "traceparents": (TRACEPARENT, "nonsense"),
    "service": ("", "tokenworks.v1.Router", "tokenworks.v1.Worker", "tokenworks.v1.Meter", "tokenworks.v1.Optimizer"),
    "file_containing_symbol": ("tokenworks.v1.Router", "tokenworks.v1.GenerateRequest", "no.such.Thing"),
    "file_by_filename": ("tokenworks/v1/inference.proto", "no_such.proto"),
    "all_extension_numbers_of_type": ("tokenworks.v1.GenerateRequest", "no.such.Thing"),
    "status": ("optimal", "overloaded", "idle"),
    "trigger": ("interval", "start"),
    "features": ("logprobs", "tools"),
}
_WHOLE: Final[dict[str, Callable[[Random], int]]] = {
    "at_unix_ms": lambda rng: UNIX_MS + rng.randrange(-120_000, 120_000),
    "max_tokens": lambda rng: rng.randint(1, 6),
    "n": lambda _: 0,
    "resume_from": lambda rng: rng.choice((0, 0, 0, 0, 2)),
    "logprobs": lambda rng: rng.randint(0, 3),
    "every_ms": lambda rng: rng.choice((0, 100, 200)),
    "stream": lambda rng: rng.randint(1, 4),
    "grace_ms": lambda rng: rng.choice((0, 10)),
    "context_tokens": lambda _: 8192,
    "kv_capacity_tokens": lambda _: 400_000,
    "max_batch": lambda _: 256,
    "max_waiting": lambda _: 1024,
    "rate_nusd_per_hour": lambda _: 2_690_000_000,
    "from_unix_ms": lambda rng: rng.choice((0, UNIX_MS)),
    "to_unix_ms": lambda rng: rng.choice((0, UNIX_MS + 3_600_000)),
    "delivered_from": lambda _: 0,
    "from_index": lambda rng: rng.choice((0, 0, 4)),
    "kind": lambda rng: rng.randint(0, 5),
}
_INTEGERS: Final = frozenset({
    FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64,
})  # fmt: skip


def sample(kind: type[Message], rng: Random) -> Message:
    """A message of this class as a well-meaning peer would send it."""
    message = kind()
    fill(message, rng)
    return message


def fill(message: Message, rng: Random, depth: int = 0) -> None:
    """Fills a message that is empty; of a oneof one field."""
    chosen = {id(each.fields[place]) for each, place in _choices(message, rng)}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1 and id(field) not in chosen:
            continue
        if field.has_presence and field.containing_oneof is None and depth > _DEPTH:
            continue
        if field.is_repeated:
            _fill_repeated(message, field, rng, depth)
        elif field.message_type is not None:
            if depth <= _DEPTH and (field.name not in {"resumed_token_ids", "error"} or rng.random() < 0.1):
                nested = getattr(message, field.name)
                nested.SetInParent()
                fill(nested, rng, depth + 1)
        elif not field.name.startswith("resumed_") and (not _optional(field) or rng.random() < 0.3):
            setattr(message, field.name, plain(field, rng))


def plain(field: FieldDescriptor, rng: Random) -> Any:
    """A usual value of a field that is no message."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.randrange(8))
        return rng.choice(_WORDS.get(field.name, ("", "x", f"{field.name}-1")))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice((0.0, 0.5, 1.0))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.2
    if field.cpp_type in _INTEGERS or field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        named = _WHOLE.get(field.name)
        if named is None and field.name.endswith("_unix_ms"):
            named = _WHOLE["at_unix_ms"]
        return named(rng) if named else rng.randint(0, 2 if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM else 64)
    raise AssertionError(f"no sample for {field.full_name}")


def _choices(message: Message, rng: Random) -> list[tuple[Any, int]]:
    return [(each, rng.randrange(len(each.fields))) for each in message.DESCRIPTOR.oneofs]


def _optional(field: FieldDescriptor) -> bool:
    return field.has_presence


def _fill_repeated(message: Message, field: FieldDescriptor, rng: Random, depth: int) -> None:
    values = getattr(message, field.name)
    for _ in range(rng.randrange(_FEW) if depth else rng.randint(1, _FEW)):
        if field.message_type is None:
            values.append(plain(field, rng))
        elif depth <= _DEPTH:
            fill(values.add(), rng, depth + 1)
