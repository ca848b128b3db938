"""Answers over HTTP: `/v1/usage`, `/v1/forecast`, `/v1/anomalies`, `/v1/promises`, described by `/openapi.json`.

In: GET requests. Out: the messages of metering.proto and insight.proto as JSON. Who shows the mesh's secret as `Bearer`
asks in the operator's name, as on gRPC; so does anybody where the mesh has no secret and no key is shown. Who shows a
tenant's key sees that tenant alone, and of money what the tenant is billed and given back: what the house pays, for
what, and what it is left with, is the house's.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from services.mesh.access import bearer_of, caller_of, is_secret
from services.mesh.errors import InvalidRequest, QueueFull, Unauthenticated
from services.mesh.keys import KeyStore
from services.mesh.openai.edge import guarded
from services.mesh.telemetry import Telemetry
from services.mesh.wire_document import document_of
from services.meter.answers_openapi import DESCRIPTION, PATHS
from services.meter.core.usage import CALLERS, DIMENSIONS
from services.meter.inquiry import Inquiry
from services.meter.insight import Insight
from tokenworks.v1 import insight_pb2, metering_pb2

_OF_HOUSE: Final = frozenset(
    {
        "use_cost_nusd",
        "energy_cost_nusd",
        "idle_cost_nusd",
        "house_cost_nusd",
        "margin_nusd",
        "cost_usd_per_mtok",
        "paid_ns",
        "utilisation",
        "at_risk_nusd",
        "expected_credit_nusd",
        "running_requests",
        "idle_rule",
        "lag_events",
    }
)
_FILTERS: Final = (*DIMENSIONS, *CALLERS)
_Document = dict[str, Any]
_Ask = Callable[[web.Request, str], Awaitable[_Document]]


class AnswersHttp:
    """The routes. They answer from `open` on; before it the meter is starting, and they say so."""

    def __init__(self, keys: KeyStore, secrets: Sequence[str], telemetry: Telemetry) -> None:
        self._keys = keys
        self._secrets = secrets
        self._telemetry = telemetry
        self._answering: tuple[Inquiry, Insight] | None = None

    def open(self, inquiry: Inquiry, insight: Insight) -> None:
        self._answering = inquiry, insight

    def routes(self) -> list[web.RouteDef]:
        asked: dict[str, _Ask] = {
            "/v1/usage": self._usage,
            "/v1/forecast": self._forecast,
            "/v1/anomalies": self._anomalies,
            "/v1/promises": self._promises,
        }
        answered = [web.get(path, guarded(self._answer(path, ask), self._telemetry)) for path, ask in asked.items()]
        return [*answered, web.get("/openapi.json", self._described)]

    def _answer(self, path: str, ask: _Ask) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        known = {each["name"] for each in PATHS[path]["get"]["parameters"]}

        async def handle(request: web.Request) -> web.StreamResponse:
            tenant = self._tenant(request.headers.get("Authorization", ""))
            if unknown := sorted(set(request.query) - known):
                raise InvalidRequest(f"{unknown[0]!r} is no parameter of {path}; there are: {', '.join(sorted(known))}")
            if any(len(request.query.getall(name)) > 1 for name in request.query):
                raise InvalidRequest("a parameter is given twice; separate several values by commas")
            asked_tenant = request.query.get("tenant", "")
            if tenant and asked_tenant not in ("", tenant):
                raise Unauthenticated(f"the key is of tenant {tenant!r}, which may not ask about {asked_tenant!r}")
            return web.json_response(await ask(request, tenant))

        return handle

    async def _described(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(DESCRIPTION)

    def _tenant(self, authorization: str) -> str:
        """Whose answers may be given; empty: everybody's.

        Raises:
            Unauthenticated: nobody who may ask.
        """
        shown = bearer_of(authorization)
        if not authorization and not self._secrets:
            return ""
        if not shown:
            raise Unauthenticated("send a tenant's key or this mesh's secret as `authorization: Bearer <key>`")
        if is_secret(shown.encode(errors="surrogateescape"), self._secrets):
            return ""
        return caller_of(authorization, self._keys).tenant

    def _ready(self) -> tuple[Inquiry, Insight]:
        if self._answering is None:
            raise QueueFull("the meter is starting; ask again in a moment", retry_after_s=1.0)
        return self._answering

    async def _usage(self, request: web.Request, tenant: str) -> _Document:
        asked = metering_pb2.GetUsageRequest(
            from_unix_ms=_time(request, "from"),
            to_unix_ms=_time(request, "to"),
            group_by=_several(request.query.get("by", "")),
            filters=_filters(request, tenant),
        )
        document = document_of(await self._ready()[0].usage(asked))
        return _without_house(document) if tenant else document

    async def _forecast(self, request: web.Request, tenant: str) -> _Document:
        whose = tenant or request.query.get("tenant", "")
        asked = insight_pb2.GetForecastRequest(
            tenant=whose,
            filters=[each for each in _filters(request, "") if each.field != "tenant"],
            days=_whole(request, "days"),
            level=_number(request, "level"),
        )
        return document_of(await self._ready()[1].forecast(asked))

    async def _anomalies(self, request: web.Request, tenant: str) -> _Document:
        whose = tenant or request.query.get("tenant", "")
        asked = insight_pb2.ListAnomaliesRequest(tenant=whose, from_unix_ms=_time(request, "from"))
        return document_of(await self._ready()[1].anomalies(asked))

    async def _promises(self, request: web.Request, tenant: str) -> _Document:
        whose = tenant or request.query.get("tenant", "")
        return document_of(await self._ready()[1].promises(insight_pb2.GetPromisesRequest(tenant=whose)))


def _without_house(document: _Document) -> _Document:
    """A tenant's view of its usage."""
    kept = {name: value for name, value in document.items() if name not in _OF_HOUSE}
    kept["rows"] = [{name: value for name, value in row.items() if name not in _OF_HOUSE} for row in document["rows"]]
    kept["total"] = {name: value for name, value in document["total"].items() if name not in _OF_HOUSE}
    return kept


def _several(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _filters(request: web.Request, tenant: str) -> list[metering_pb2.UsageFilter]:
    given = {name: request.query[name].split(",") for name in _FILTERS if name in request.query}
    if tenant:
        given["tenant"] = [tenant]
    return [metering_pb2.UsageFilter(field=name, values=values) for name, values in given.items()]


def _time(request: web.Request, name: str) -> int:
    """Milliseconds since 1970 of a time; 0 where it is not given."""
    text = request.query.get(name, "")
    if not text:
        return 0
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{name} = {text!r} is no time; give one like 2026-11-24T09:00Z, or milliseconds since 1970"
        ) from None
    unix_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if unix_s < 0:
        raise InvalidRequest(f"{name} = {text!r} is before 1970")
    return round(unix_s * 1000)


def _whole(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise InvalidRequest(f"{name} = {text!r} is no whole number of 0 or more")
    return int(text)


def _number(request: web.Request, name: str) -> float:
    text = request.query.get(name, "0")
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{name} = {text!r} is no number") from None
