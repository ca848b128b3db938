"""`tokenworks generate PROMPT`: streams text, then tells what it cost and where it was made."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from services.cli.options import DirectOption, JsonFlag, KeyOption, MeterOption, RouterOption, TenantOption
from services.cli.output import CommandFailed, Output, command

if TYPE_CHECKING:
    from services.cli.access import Access
    from tokenworks import Result
    from tokenworks.v1 import metering_pb2 as metering

DEFAULT_PROMPT: Final = "Why is the sky blue? Answer in one sentence."
_BILL_DEADLINE_S: Final = 10.0
_POLL_S: Final = 0.05


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say; - reads standard input.")] = DEFAULT_PROMPT,
    *,
    model: Annotated[
        str, typer.Option(help="Which model; `tokenworks top` shows what is served.")
    ] = "smollm2-135m-instruct",
    max_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 100,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="For the same text again.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    system: Annotated[str, typer.Option(help="A system message before the prompt.")] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the prompt as plain text, without a chat template.")
    ] = False,
    slo_class: Annotated[str, typer.Option(help="interactive, standard or batch.")] = "interactive",
    workload: Annotated[str, typer.Option(help="A label for who wants what.")] = "cli/generate",
    session: Annotated[str, typer.Option(help="Turns that share a prefix.")] = "",
    deadline_s: Annotated[float, typer.Option(min=0.1, help="Seconds that the stream may take.")] = 120.0,
    direct: DirectOption = True,
    router: RouterOption = "",
    key: KeyOption = "",
    tenant: TenantOption = "local",
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Stream text from the mesh, then show the bill and the trace."""
    words = sys.stdin.read() if prompt == "-" else prompt
    turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": words}]
    wanted = {
        "text": words if raw else None,
        "chat": None if raw else turns,
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop or (),
        "slo_class": slo_class,
        "workload": workload,
        "session_id": session,
        "deadline_s": deadline_s,
    }
    with command(as_json) as output:
        from services.cli.access import read_access

        access = read_access(router=router, meter=meter)
        told = asyncio.run(_generate(output, access, access.key(key, tenant), wanted, direct=direct))
        output.result(told.document(), "", *told.lines())


@dataclass(frozen=True, slots=True)
class Told:
    """A finished stream and its bill; the bill is None where the meter did not book it in time."""

    text: str
    ttft_s: float
    e2e_s: float
    result: "Result"
    bill: "metering.RequestBill | None"

    def document(self) -> dict[str, Any]:
        from dataclasses import asdict

        from services.mesh.wire_document import document_of

        return {
            "text": self.text,
            "ttft_s": self.ttft_s,
            "e2e_s": self.e2e_s,
            **asdict(self.result),
            "bill": document_of(self.bill) if self.bill else None,
        }

    def lines(self) -> Sequence[str]:
        from services.cli.report_view import accelerator_name, seconds
        from services.mesh.money import format_usd

        result = self.result
        made = ", ".join(f"{accelerator_name(each.accelerator)} ({each.worker})" for each in result.segments)
        rate = result.completion_tokens / (self.e2e_s - self.ttft_s) if result.completion_tokens > 1 else 0.0
        head = (
            f"[dim]{result.completion_tokens} tokens from {result.prompt_tokens} prompt tokens"
            f" ({result.cached_prompt_tokens} cached) · {result.reason} · first token after {seconds(self.ttft_s)},"
            f" {rate:.0f} tokens/s · on {made}[/]"
        )
        lines = [head]
        if self.bill:
            bill = self.bill
            lines.append(
                f"[dim]price {format_usd(bill.price_nusd, 9)} · use {format_usd(bill.use_cost_nusd, 9)} · energy"
                f" {format_usd(bill.energy_cost_nusd, 9)} · margin {format_usd(bill.margin_nusd, 9)}"
                f" · price book {bill.price_book}[/]"
            )
        else:
            lines.append(
                f"[yellow]The meter has not booked it within {_BILL_DEADLINE_S:.0f} s[/]; price as the stream told it:"
                f" {format_usd(result.price_nusd, 9)}"
            )
        lines.append(f"[dim]trace {result.trace_id} · tokenworks explain {result.request_id}[/]")
        return lines


async def _generate(output: Output, access: "Access", key: str, wanted: dict[str, Any], *, direct: bool) -> Told:
    from services.cli.tracing import client_tracer
    from tokenworks import Client

    pieces: list[str] = []
    with client_tracer(access.traces) as tracer:
        client = Client(access.router, key, direct=direct, tracer=tracer)
        async with client, client.generate(**wanted) as stream:
            started_s = time.perf_counter()
            ttft_s = 0.0
            async for piece in stream:
                ttft_s = ttft_s or time.perf_counter() - started_s
                pieces.append(piece.text)
                if not output.as_json:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
            e2e_s = time.perf_counter() - started_s
    if not output.as_json:
        sys.stdout.write("\n")
    if stream.result is None:
        raise CommandFailed("the stream was closed before its end", reason="Cancelled")
    bill = await _bill(access, stream.result)
    return Told("".join(pieces), ttft_s, e2e_s, stream.result, bill)


async def _bill(access: "Access", result: "Result") -> "metering.RequestBill | None":
    """The bill once it is whole; booking follows delivery by a moment."""
    from services.cli.peers import Peers
    from tokenworks.errors import CallError

    ends_s = time.monotonic() + _BILL_DEADLINE_S
    async with Peers(access) as peers:
        while time.monotonic() < ends_s:
            try:
                bill = await peers.bill(result.request_id)
            except CallError as error:
                if error.reason != "UnknownRequest":
                    return None
            else:
                whole = bill.delivered_tokens == result.completion_tokens == sum(each.count for each in bill.segments)
                if whole and bill.outcome not in ("", "running"):
                    return bill
            await asyncio.sleep(_POLL_S)
    return None
