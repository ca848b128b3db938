"""What `deploy/compose-test` asks of a mesh in containers, from outside, as any client would.

    compose_check.py use BOOKS       generates, finds the whole trace in Jaeger, holds the meter against the clients
    compose_check.py compare BOOKS   after a restart: the key works, the books are as BOOKS says, and go on

In, by environment: ROUTER_PORT, METER_PORT, JAEGER_PORT, OTLP_PORT on 127.0.0.1; KEY, a tenant's key; SECRET, the
mesh's. Exits 1 and says what did not hold.
"""

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

from services.mesh.telemetry import start_telemetry
from tokenworks import Client, Result
from tokenworks.v1 import metering_pb2, metering_pb2_grpc

WITHIN_S = 30.0
MODELS = ("llama-3.1-8b", "smollm2-135m-instruct")
# The hours of the fleet are paid whether or not anybody asks. Until an hour is over, what its requests came to by its
# bill moves too, by a rounding here and there; their device time and energy do not.
MOVING = (
    "use_cost_nusd",
    "energy_cost_nusd",
    "idle_cost_nusd",
    "house_cost_nusd",
    "margin_nusd",
    "carbon_ug",
    "paid_ns",
    "cost_usd_per_mtok",
    "utilisation",
)
# What a request's trace must hold, in this order, as (service, start of the span's name).
HOPS = (
    ("client", "generate "),
    ("router", "tokenworks.v1.Router/Generate"),
    ("router", "route "),
    ("worker", "chat "),
    ("worker", "create tw.tokens."),
    ("router", "publish tw.requests."),
    ("meter", "settle tw.tokens."),
    ("meter", "settle tw.requests."),
)


@dataclass(frozen=True, slots=True)
class Spanned:
    service: str
    name: str
    span: str
    parent: str


def address(name: str) -> str:
    return f"127.0.0.1:{os.environ[f'{name}_PORT']}"


def wait_until_nothing_lacks(lacking: Callable[[], str]) -> None:
    """Asks until the answer is empty; exits with the last answer when it does not become so in time."""
    deadline = time.monotonic() + WITHIN_S
    while answer := lacking():
        if time.monotonic() > deadline:
            sys.exit(f"compose_check: after {WITHIN_S:g} s still: {answer}")
        time.sleep(0.2)


def wait_for_total(name: str, expected: int) -> None:
    """Waits until the meter's total of `name` is `expected`."""

    def lacking() -> str:
        found = total(name)
        return "" if found == expected else f"the meter has {found} {name}, not {expected}"

    wait_until_nothing_lacks(lacking)


def usage() -> dict[str, Any]:
    """The meter's books: one row per model, and the total."""
    with grpc.insecure_channel(address("METER")) as channel:
        stub = metering_pb2_grpc.MeterStub(channel)
        answer = stub.GetUsage(
            metering_pb2.GetUsageRequest(group_by=["model"]),
            timeout=10,
            metadata=(("x-tokenworks-mesh", os.environ["SECRET"]),),
        )
    return MessageToDict(answer, preserving_proto_field_name=True)


def books() -> dict[str, Any]:
    """`usage` of what was asked for, without what moves by itself."""
    found = usage()
    rows = sorted((row for row in found.get("rows", ()) if "requests" in row), key=lambda row: row["key"]["model"])
    return {"rows": [standing(row) for row in rows], "total": standing(found.get("total", {}))}


def standing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MOVING}


def total(name: str) -> int:
    return int(usage().get("total", {}).get(name, 0))


def spans_of(trace: str) -> list[Spanned]:
    """The spans of one trace, from Jaeger's query API; its flat span form is read too."""
    with urllib.request.urlopen(f"http://{address('JAEGER')}/api/traces?service=client&limit=100", timeout=10) as page:
        answer = json.load(page)
    spans = []
    for found in answer.get("data") or ():
        if found["traceID"].zfill(32) != trace:
            continue
        processes = found.get("processes", {})
        for span in found["spans"]:
            parents = [each["spanID"] for each in span.get("references", ()) if each["refType"] == "CHILD_OF"]
            spans.append(
                Spanned(
                    service=span.get("service") or processes[span["processID"]]["serviceName"],
                    name=span["operationName"],
                    span=span["spanID"],
                    parent=span.get("parentSpanID") or (parents[0] if parents else ""),
                )
            )
    return spans


def missing_hops(trace: str) -> str:
    """Hops of `HOPS` that the trace lacks, and spans whose parent is not in it."""
    spans = spans_of(trace)
    here = {each.span for each in spans}
    lacking = [
        f"{service} {name}"
        for service, name in HOPS
        if not any(each.service == service and each.name.startswith(name) for each in spans)
    ]
    orphans = [f"the parent of {each.service} {each.name}" for each in spans if each.parent and each.parent not in here]
    return ", ".join(lacking + orphans)


async def generate(count_per_model: int) -> list[Result]:
    """Streams from both models at once, traced; every stream's result."""
    telemetry = start_telemetry(
        "client", "compose-check", exporter=OTLPSpanExporter(endpoint=f"http://{address('OTLP')}", insecure=True)
    )
    async with Client(address("ROUTER"), os.environ["KEY"], tracer=telemetry.tracer, deadline_s=60) as client:
        await client.connected()

        async def one(model: str) -> Result:
            async with client.generate(text="Tell me about rivers.", model=model, max_tokens=24) as stream:
                tokens = sum([piece.token_count async for piece in stream])
            assert stream.result is not None
            assert tokens == stream.result.completion_tokens, (tokens, stream.result)
            return stream.result

        results = await asyncio.gather(*[one(model) for model in MODELS for _ in range(count_per_model)])
    telemetry.shutdown()
    return results


def use(file: Path) -> None:
    results = asyncio.run(generate(8))
    tokens = sum(each.completion_tokens for each in results)
    makers = sorted({segment.accelerator for each in results for segment in each.segments})
    print(f"generated {tokens} tokens in {len(results)} streams on {', '.join(makers)}")
    price = sum(each.price_nusd for each in results)
    wait_for_total("finished_requests", len(results))
    wait_for_total("delivered_tokens", tokens)
    wait_for_total("price_nusd", price)
    print(f"the meter agrees: {tokens} tokens, {price} nano-dollars")
    traces = [each.trace_id for each in results]
    wait_until_nothing_lacks(
        lambda: next((f"trace {each} lacks {lacking}" for each in traces if (lacking := missing_hops(each))), "")
    )
    services = " -> ".join(dict.fromkeys(service for service, _ in HOPS))
    print(f"Jaeger has {len(traces)} whole traces, {services}; one of them is {traces[0]}")
    file.write_text(json.dumps(books()))


def compare(file: Path) -> None:
    before = json.loads(file.read_text())
    now = books()
    if now != before:
        sys.exit(f"compose_check: the books changed over the restart:\nbefore {before}\nafter  {now}")
    print(f"after the restart the books are as they were: {before['total']}")
    tokens = total("delivered_tokens")
    made = sum(each.completion_tokens for each in asyncio.run(generate(1)))
    wait_for_total("delivered_tokens", tokens + made)
    print(f"and they go on: {made} tokens more")


if __name__ == "__main__":
    {"use": use, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
