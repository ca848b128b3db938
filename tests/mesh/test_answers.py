"""Answers over gRPC and HTTP from a running meter: who used what, what comes, and who may know."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.mesh.keys import KeyStore
from services.mesh.wire_document import document_of
from tests.mesh.local_mesh import eventually
from tests.mesh.running_meter import DEADLINE_S, Meter, running_meter
from tests.unit.meter.facts import START_MS, admitted, entry, finished, tokens
from tokenworks.v1 import insight_pb2 as insight
from tokenworks.v1 import metering_pb2 as metering

SECRET = "the mesh's own"


async def _get(meter: Meter, path: str, key: str = SECRET) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with session.get(f"http://127.0.0.1:{meter.http_port}{path}", headers=headers) as answer:
            return answer.status, json.loads(await answer.text())


async def _fill(meter: Meter) -> None:
    for name, tenant, team in (("a", "acme", "search"), ("b", "acme", "ads"), ("c", "rival", "")):
        told = replace(admitted(name, tenant=tenant), team=team, key=f"{tenant}-ci", session_id=f"s-{name}")
        made = tokens(entry(name, 0, 10, tenant=tenant, last=True))
        meter.publish(told, made, finished(name, 10, tenant=tenant))
    await meter.total(lambda row: row.finished_requests == 3)


async def test_usage_is_answered_alike_on_grpc_and_http_by_who_called(tmp_path: Path) -> None:
    async with running_meter(tmp_path) as meter:
        await _fill(meter)
        by_grpc = await meter.usage("team", "session", from_unix_ms=START_MS)
        assert [(row.key.team, row.key.session) for row in by_grpc.rows] == [
            ("", "s-c"),
            ("ads", "s-b"),
            ("search", "s-a"),
        ]
        assert by_grpc.total.slo_attainment == 1.0
        status, by_http = await _get(meter, f"/v1/usage?by=team,session&from={START_MS}", "")
        assert status == 200
        assert by_http["rows"] == document_of(by_grpc)["rows"]
        assert (await _get(meter, "/v1/usage?by=team&team=ads", ""))[1]["total"]["requests"] == 1


async def test_a_tenants_key_sees_its_own_and_nothing_of_the_houses(tmp_path: Path) -> None:
    key = KeyStore(tmp_path / "keys.json").create("acme", "ci", START_MS)
    async with running_meter(tmp_path, secret=SECRET) as meter:
        await _fill_with_secret(meter)
        status, mine = await _get(meter, "/v1/usage?by=tenant,team", key)
        assert status == 200
        assert {row["key"]["tenant"] for row in mine["rows"]} == {"acme"}
        assert mine["total"]["requests"] == 2
        shown = {*mine, *mine["total"], *mine["rows"][0]}
        assert not shown & {"margin_nusd", "use_cost_nusd", "idle_cost_nusd", "cost_usd_per_mtok", "utilisation"}
        assert (await _get(meter, "/v1/usage?tenant=rival", key))[0] == 401
        assert (await _get(meter, "/v1/forecast?tenant=rival", key))[0] == 401
        assert (await _get(meter, "/v1/promises", key))[1]["total"]["finished_requests"] == 0  # of this month
        assert (await _get(meter, "/v1/usage", "tw-nobody"))[0] == 401
        assert (await _get(meter, "/v1/usage", ""))[0] == 401
        assert (await _get(meter, "/v1/usage"))[1]["total"]["requests"] == 3


async def _fill_with_secret(meter: Meter) -> None:
    for name, tenant in (("a", "acme"), ("b", "acme"), ("c", "rival")):
        made = tokens(entry(name, 0, 10, tenant=tenant, last=True))
        meter.publish(admitted(name, tenant=tenant), made, finished(name, 10, tenant=tenant))

    async def booked() -> bool:
        return (await _get(meter, "/v1/usage"))[1]["total"]["finished_requests"] == 3

    await eventually(booked, "all is booked", DEADLINE_S)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/usage?by=colour", "colour"),
        ("/v1/usage?colour=red", "no parameter"),
        ("/v1/usage?from=yesterday", "yesterday"),
        ("/v1/usage?from=2026-11-24&to=2026-11-23", "exchange"),
        ("/v1/forecast?days=1000", "days = 1000"),
        ("/v1/forecast?level=2", "level = 2"),
        ("/v1/forecast?level=nan", "level"),
        ("/v1/anomalies?from=1960-01-01", "before 1970"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, path: str, says: str) -> None:
    async with running_meter(tmp_path) as meter:
        status, answer = await _get(meter, path, "")
        assert status == 400
        assert says in answer["error"]["message"]


async def test_every_answer_is_described(tmp_path: Path) -> None:
    async with running_meter(tmp_path) as meter:
        await _fill(meter)
        status, described = await _get(meter, "/openapi.json", "")
        assert status == 200
        schemas = described["components"]["schemas"]
        for path, item in described["paths"].items():
            answered = (await _get(meter, path, ""))[1]
            name = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
            assert set(answered) == set(schemas[name]["properties"]), path


async def test_a_forecast_tells_when_a_budget_runs_out_and_by_which_method(tmp_path: Path) -> None:
    async with running_meter(tmp_path) as meter:
        await _fill(meter)
        await meter.stub.SetBudget(metering.SetBudgetRequest(tenant="acme", limit_nusd=10**9), timeout=DEADLINE_S)
        found = await meter.insight.GetForecast(insight.GetForecastRequest(tenant="acme"), timeout=30.0)
        assert found.method in {"none", "seasonal"}  # its one hour is years ago
        assert found.because
        assert found.month.to_unix_ms > found.now_unix_ms
        (budget,) = found.budgets
        assert (budget.limit, budget.scope, budget.HasField("days")) == (10**9, "tenant", False)
        anomalies = await meter.insight.ListAnomalies(insight.ListAnomaliesRequest(), timeout=30.0)
        assert list(anomalies.found) == []
        promises = await meter.insight.GetPromises(insight.GetPromisesRequest(), timeout=30.0)
        assert {each.slo_class for each in promises.classes} == {"interactive", "standard", "batch"}
