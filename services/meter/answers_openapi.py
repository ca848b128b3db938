"""What `/openapi.json` says of the meter's HTTP API: an OpenAPI 3.1 document, its schemas from the wire's messages."""

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.meter.core.usage import CALLERS, DIMENSIONS, MINUTES_BY_UNIT
from tokenworks import __version__
from tokenworks.v1 import insight_pb2, metering_pb2

_Schema = dict[str, Any]
_TYPES: Final = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}
_WHOLE: Final = {"type": "integer", "format": "int64"}
_TIME: Final = "A time like 2026-11-24T09:00Z, or milliseconds since 1970."


def _parameter(name: str, description: str, kind: str = "string") -> _Schema:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind}}


_FILTERS: Final = [
    _parameter(name, f"Only where the {name} is one of these, separated by commas.") for name in (*DIMENSIONS, *CALLERS)
]
_TENANT: Final = _parameter("tenant", "Of this tenant; a tenant's key is answered about its own in any case.")


def _schemas(of: Any, into: dict[str, _Schema]) -> _Schema:
    """A reference to a message's schema, which is added with all it needs."""
    if of.name not in into:
        into[of.name] = {}
        into[of.name] = {"type": "object", "properties": {each.name: _field(each, into) for each in of.fields}}
    return {"$ref": f"#/components/schemas/{of.name}"}


def _field(field: Any, into: dict[str, _Schema]) -> _Schema:
    one: _Schema = (
        _schemas(field.message_type, into) if field.message_type else dict(_TYPES.get(field.cpp_type, _WHOLE))
    )
    if field.is_repeated:
        return {"type": "array", "items": one}
    if field.has_presence and "type" in one:
        one["type"] = [one["type"], "null"]
    return one


def _path(summary: str, answer: type[Message], parameters: list[_Schema], into: dict[str, _Schema]) -> _Schema:
    said = {"application/json": {"schema": _schemas(answer.DESCRIPTOR, into)}}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "get": {
            "summary": summary,
            "parameters": parameters,
            "responses": {
                "200": {"description": "The answer", "content": said},
                "400": {"description": "A parameter that cannot be; says which", "content": refused},
                "401": {"description": "No key, nobody's, or another tenant's", "content": refused},
            },
        }
    }


def _paths(into: dict[str, _Schema]) -> dict[str, _Schema]:
    by = ", ".join((*DIMENSIONS, *CALLERS, *MINUTES_BY_UNIT))
    usage = [
        _parameter("from", f"Inclusive. {_TIME}"),
        _parameter("to", f"Exclusive; now, where it is left out. {_TIME}"),
        _parameter("by", f"Group by any of these, separated by commas: {by}."),
        *_FILTERS,
    ]
    return {
        "/v1/usage": _path(
            "Tokens, price, cost, energy, utilisation and kept promises; a tenant's key gets no costs and no margin.",
            metering_pb2.GetUsageResponse,
            usage,
            into,
        ),
        "/v1/forecast": _path(
            "What is going to be billed, with an interval, and when the tenant's budgets run out.",
            insight_pb2.Forecast,
            [
                _parameter("days", "Ahead, 1 to 92; 0: to the end of the month, and at least a week.", "integer"),
                _parameter("level", "Of the interval, 0.5 to 0.99; 0: 0.9.", "number"),
                *_FILTERS,
            ],
            into,
        ),
        "/v1/anomalies": _path(
            "Hours in which a tenant or workload was billed far more than is usual for it.",
            insight_pb2.ListAnomaliesResponse,
            [_TENANT, _parameter("from", f"Default: the last seven days. {_TIME}")],
            into,
        ),
        "/v1/promises": _path(
            "Kept promises of the running month by SLO class, and the credits of those that are not kept.",
            insight_pb2.Promises,
            [_TENANT],
            into,
        ),
    }


def _description(paths: dict[str, _Schema], schemas: dict[str, _Schema]) -> _Schema:
    error = {
        "type": "object",
        "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "code")},
    }
    schemas = {**schemas, "Error": {"type": "object", "properties": {"error": error}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokenworks: usage and what comes",
            "version": __version__,
            "description": "Amounts are integers of nano-dollars (nusd), times milliseconds since 1970, in UTC.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    }


_SCHEMAS: Final[dict[str, _Schema]] = {}
PATHS: Final = _paths(_SCHEMAS)
DESCRIPTION: Final = _description(PATHS, _SCHEMAS)
