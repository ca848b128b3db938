"""The program itself, as a process: what it prints with `--json`, and its exit status."""

import asyncio
import csv
import json
import os
import sys
from dataclasses import dataclass

import pytest

from services.cli.access import Access, write_access
from services.mesh.errors import UnknownModel
from tests.otlp_receiver import OtlpReceiver
from tests.unit.cli.fake_operators import SECRET, FakeMeter, serving
from tests.unit.client.fake_router import KEY, FakeRouter
from tokenworks.v1 import metering_pb2 as metering


@dataclass
class Ended:
    status: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


class Program:
    """Runs `tokenworks …` against fakes, in a data directory of its own."""

    def __init__(self, tmp_path):
        self.data_dir = tmp_path / "data"
        self.meter = FakeMeter()
        self.router = FakeRouter(on_finish=self._book)
        self.traces = ""

    async def run(self, *arguments, stdin=""):
        async with serving(self.router, self.meter) as address:
            access = Access(
                router=address,
                meter=address,
                optimizer=address,
                nats="",
                secret=SECRET,
                traces=self.traces,
                keys={"local": KEY},
            )
            write_access(self.data_dir / "client.toml", access)
            return await self.alone(*arguments, stdin=stdin)

    async def alone(self, *arguments, stdin=""):
        """Without fakes."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENWORKS", "OTEL"))}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.cli.main",
            *map(str, arguments),
            env=environment | {"TOKENWORKS_MESH_DATA_DIR": str(self.data_dir), "NO_COLOR": "1"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode())
        return Ended(process.returncode, out.decode(), err.decode())

    def _book(self, request, finish):
        count = finish.usage.completion_tokens
        self.meter.bills[request.request_id] = metering.RequestBill(
            request_id=request.request_id,
            outcome=finish.reason,
            delivered_tokens=count,
            price_nusd=finish.price_nusd,
            segments=[metering.BillSegment(worker="h100-0", accelerator="nvidia-h100-sxm", count=count)],
        )
        key = metering.UsageKey(tenant="local", workload=request.workload, accelerator="nvidia-h100-sxm")
        self.meter.rows.append(
            metering.UsageRow(
                key=key,
                requests=1,
                finished_requests=1,
                slo_met_requests=1,
                delivered_tokens=count,
                generated_tokens=count,
                price_nusd=finish.price_nusd,
                use_cost_nusd=400,
            )
        )


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


async def test_generate_streams_text_then_tells_bill_and_trace(program):
    ended = await program.run("generate", "hello", "--max-tokens", 3)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("w0 w1 w2 \n")
    assert "price $0.000001234" in ended.out
    assert "NVIDIA H100 SXM (h100-0)" in ended.out
    assert f"trace {program.router.traceparents[0].split('-')[1]}" in ended.out


async def test_the_printed_trace_is_one_that_the_meshs_explorer_has(program):
    explorer = OtlpReceiver()
    explorer.start()
    try:
        program.traces = f"http://127.0.0.1:{explorer.port}"
        ended = await program.run("generate", "hello", "--max-tokens", 1, "--json")
    finally:
        explorer.stop()
    assert [(each.service, each.trace) for each in explorer.spans] == [("client", ended.document["trace_id"])]
    assert int(program.router.traceparents[0][-2:], 16) & 1, "not sampled: the services would record nothing under it"


async def test_generate_json_is_one_document_with_the_bill(program):
    ended = await program.run("generate", "-", "--max-tokens", 2, "--raw", "--json", stdin="from standard input")
    assert program.router.requests[0].text == "from standard input"
    assert ended.document["text"] == "w0 w1 "
    assert (ended.document["price_nusd"], ended.document["bill"]["price_nusd"]) == (1234, 1234)
    assert ended.document["segments"][0]["accelerator"] == "nvidia-h100-sxm"
    assert ended.status == 0


async def test_generate_asks_for_a_place_at_a_worker_unless_it_is_to_relay(program):
    await program.run("generate", "hello", "--max-tokens", 1)
    assert (program.router.place_calls, len(program.router.requests)) == (1, 1)
    await program.run("generate", "hello", "--max-tokens", 1, "--relay")
    assert (program.router.place_calls, len(program.router.requests)) == (1, 2)


async def test_failure_is_named_and_the_status_is_1(program):
    program.router.refusals.append(UnknownModel("model 'x' is not served; use one of: y"))
    ended = await program.run("generate", "hello", "--model", "x", "--json")
    assert ended.status == 1
    assert ended.document == {
        "error": {
            "reason": "UnknownModel",
            "message": "model 'x' is not served; use one of: y",
            "retry_after_s": None,
        }
    }


async def test_absent_mesh_is_told_with_what_would_do(program):
    write_access(program.data_dir / "client.toml", Access(router="", meter="127.0.0.1:1", optimizer="", nats=""))
    ended = await program.alone("usage")
    assert ended.status == 1
    assert "no meter answers at 127.0.0.1:1; start the mesh with `tokenworks up`" in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", "--max-tokens", "0"), "--max-tokens"),
        (("usage", "--by", "colour"), "'colour' is none of tenant, team"),
        (("usage", "--from", "yesterday"), "neither a time like"),
        (("usage", "--where", "tenant"), "write it like tenant=acme"),
        (("budget", "--limit", "1", "--unlimited"), "exclude each other"),
        (("up", "--engine", "steam"), "'steam' is none of"),
        (("replay", "missing.csv"), "does not exist"),
        (("nonsense",), "No such command"),
    ],
)
async def test_wrong_command_line_has_status_2(program, arguments, says):
    ended = await program.alone(*arguments)
    assert ended.status == 2
    assert says in " ".join(ended.err.replace("│", " ").split())


async def test_usage_json_is_what_the_meter_said(program):
    program.meter.rows.append(
        metering.UsageRow(key=metering.UsageKey(tenant="acme", accelerator="nvidia-l4"), requests=2, price_nusd=5)
    )
    ended = await program.run("usage", "--by", "tenant", "--where", "tenant=acme,globex", "--from", "1h", "--json")
    assert ended.status == 0
    assert ended.document["rows"][0]["key"]["tenant"] == "acme"
    assert (ended.document["total"]["price_nusd"], ended.document["lag_events"]) == (5, 0)
    asked = program.meter.asked[0]
    assert (list(asked.group_by), list(asked.filters[0].values)) == (["tenant"], ["acme", "globex"])
    assert asked.from_unix_ms > 0


async def test_usage_is_a_table_with_a_total(program):
    program.meter.rows.append(
        metering.UsageRow(key=metering.UsageKey(accelerator="nvidia-l4"), delivered_tokens=12_345)
    )
    ended = await program.run("usage", "--by", "accelerator")
    assert "NVIDIA L4" in ended.out
    assert ended.out.count("12,345") == 2


async def test_usage_csv_has_a_line_for_each_row_and_absent_figures_are_empty(program):
    program.meter.rows.append(
        metering.UsageRow(key=metering.UsageKey(tenant="a,b"), requests=2, price_nusd=5, utilisation=0.5)
    )
    ended = await program.run("usage", "--by", "tenant", "--csv")
    head, row = csv.reader(ended.out.splitlines())
    found = dict(zip(head, row, strict=True))
    assert (found["tenant"], found["requests"], found["price_nusd"], found["utilisation"]) == ("a,b", "2", "5", "0.5")


async def test_what_comes_is_told_with_its_method_and_when_budgets_run_out(program):
    shown = (await program.run("forecast", "--tenant", "acme", "--level", "0.8")).out
    assert "$12.00" in shown
    assert "average of that time" in shown
    assert "pip install it" in shown
    assert "Intervals hold 80%" in shown
    assert "3.5 days" in shown
    only = (await program.run("forecast", "--tenant", "acme", "--budget")).out
    assert "3.5 days" in only
    assert "Intervals" not in only
    assert (await program.run("forecast", "--json")).document["budgets"][0]["soonest_days"] is None


async def test_anomalies_and_promises_are_told(program):
    assert "Nothing out of the ordinary" in (await program.run("anomalies")).out
    found = (await program.run("anomalies", "acme")).out
    assert "9.0x" in found
    assert "much more than usual" in found
    assert "50.0%" in (await program.run("promises")).out


async def test_plan_and_explain_are_shown(program):
    plan = await program.run("plan", "--json")
    assert (plan.document["version"], plan.document["shares"][0]["pool"]) == (4, "nvidia-l4")
    assert "llama-3.1-8b:4" in (await program.run("plan")).out
    explained = await program.run("explain", "known", "--json")
    assert explained.document["candidates"][1]["rejected_because"] == "too slow"
    assert "h100-0" in (await program.run("explain", "known")).out
    unknown = await program.run("explain", "gone")
    assert (unknown.status, "UnknownRequest" in unknown.err) == (1, True)


async def test_budget_is_set_and_shown_to_the_nano_dollar(program):
    ended = await program.run("budget", "acme", "--limit", "0.25", "--json")
    assert (ended.document["limit_nusd"], ended.document["unlimited"]) == (250_000_000, False)
    assert "acme has spent $0.000000 of $0.250000" in (await program.run("budget", "acme")).out
    assert "unlimited" in (await program.run("budget", "acme", "--unlimited")).out
    wrong = await program.run("budget", "acme", "--limit", "much")
    assert (wrong.status, "is not an amount in dollars" in wrong.err) == (1, True)


async def test_keys_are_made_once_in_clear_and_listed_without_it(program):
    made = await program.run("keys", "create", "acme", "--name", "ci", "--keep", "--json")
    key = made.document["key"]
    assert key.startswith("tw-")
    assert key in (program.data_dir / "client.toml").read_text()
    listed = await program.alone("keys", "list", "--json")
    assert [(each["tenant"], each["name"]) for each in listed.document["keys"]] == [("acme", "ci")]
    assert key not in listed.out


async def test_doctor_names_what_is_wrong(program):
    healthy = await program.alone("doctor", "--json")
    assert {each["check"] for each in healthy.document["checks"]} >= {"python", "nats-server", "data directory", "keys"}
    program.data_dir.mkdir(exist_ok=True)
    (program.data_dir / "keys.json").write_text("not json")
    ended = await program.alone("doctor", "--json")
    wrong = [each for each in ended.document["checks"] if each["severity"] == "wrong"]
    assert ended.status == 1
    assert any(each["check"] == "keys" and each["would_do"] for each in wrong)


async def test_replay_reports_and_agrees_with_the_meter(program, tmp_path):
    trace = tmp_path / "t.csv"
    rows = [f"2023-11-16 18:15:46.{index:03d},{20 + index},{5 + index}" for index in range(8)]
    trace.write_text("\n".join(("TIMESTAMP,ContextTokens,GeneratedTokens", *rows)))
    ended = await program.run("replay", trace, "--speed", 10, "--limit", 6, "--seed", 3, "--json")
    document = ended.document
    assert (ended.status, document["requests"]["finished"], document["requests"]["failed"]) == (0, 6, 0)
    assert document["meter"]["equal"] is True
    assert document["tokens"]["completion"] == document["meter"]["meter_tokens"] == sum(range(5, 11))
    assert document["by_accelerator"][0]["accelerator"] == "nvidia-h100-sxm"
    assert set(document["synthesised"]) == {"tenants", "SLO classes", "workloads", "prompts' words"}
    assert set(document["latency"]["ttft_s"]) == {"p50", "p90", "p99"}
    shown = await program.run("replay", trace, "--speed", 10, "--slo-mix", "batch")
    assert "0 failed requests" in shown.out
    assert "Meter: equal" in shown.out


async def test_replay_fails_where_the_meter_differs(program, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,completion_tokens\n0,5,3\n")
    program.router.on_finish = lambda request, finish: None
    ended = await program.run("replay", trace, "--settle", 0, "--json")
    assert (ended.status, ended.document["meter"]["equal"]) == (1, False)


async def test_replay_of_a_bad_trace_sends_nothing(program, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,5,1\n2023-11-16 18:15:47,5,x\n")
    ended = await program.run("replay", trace)
    assert ended.status == 1
    assert "t.csv line 3: GeneratedTokens 'x'" in ended.err
    assert program.router.requests == []


async def test_replay_of_a_tenant_without_a_key_says_how_to_make_one(program, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,completion_tokens,tenant\n0,5,3,acme\n")
    ended = await program.run("replay", trace)
    assert (ended.status, "tokenworks keys create acme --keep" in ended.err) == (1, True)
