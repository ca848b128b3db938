"""`tokenworks export`: charges as FOCUS 1.3, usage, and bookings, from the running meter into CSV or Parquet files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import CommandFailed, Output, command

if TYPE_CHECKING:
    from services.cli.peers import Peers
    from services.cli.table_files import Column, Value
    from tokenworks.v1 import exports_pb2 as exports

    Rows = list[list[Value]]

app = typer.Typer(help="Write FOCUS 1.3, usage and bookings to CSV or Parquet files.", no_args_is_help=True)

_AMOUNTS: Final = (
    "requests",
    "finished_requests",
    "slo_met_requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "generated_tokens",
    "delivered_tokens",
    "price_nusd",
    "use_cost_nusd",
    "energy_cost_nusd",
    "device_ns",
    "energy_uj",
    "measured_energy_uj",
)
_LABELS: Final = ("tenant", "workload", "model", "accelerator", "worker", "pool", "slo_class")
_TOLD: Final = 10  # findings of a check, in words

_Since = Annotated[str, typer.Option("--from", help="From when: a time like 2026-11-01, or an age like 30d.")]
_Until = Annotated[str, typer.Option("--to", help="Until when, likewise; default: now.")]
_Into = Annotated[Path, typer.Option("--out", help="The file to write: .csv, or .parquet (needs the extra `reports`).")]
_Tenants = Annotated[list[str] | None, typer.Option("--tenant", help="Only of this tenant; may be repeated.")]


@app.command()
def focus(
    *,
    into: _Into,
    since: _Since = "",
    until: _Until = "",
    tenants: _Tenants = None,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Write what tenants are charged with as a FOCUS 1.3 Cost and Usage dataset, and check it by the rules."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.cli.peers import Peers
        from services.cli.table_files import check_path
        from tokenworks.v1 import exports_pb2 as exports

        check_path(into)
        from_ms, to_ms = _times(since, until, utc=True)
        request = exports.StreamChargesRequest(from_unix_ms=from_ms, to_unix_ms=to_ms, tenants=tenants or ())

        async def write() -> int:
            async with Peers(read_access(meter=meter)) as peers:
                return await _write_focus(peers, request, into)

        written = asyncio.run(write())
        _tell_checked(output, into, written)


@app.command()
def usage(
    *,
    into: _Into,
    since: _Since = "",
    until: _Until = "",
    tenants: _Tenants = None,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Write usage by minute, tenant, workload, model, accelerator, worker, pool and SLO class."""
    with command(as_json) as output:
        request = _records_asked(into, since, until, tenants)

        async def rows(peers: "Peers") -> "AsyncIterator[Rows]":
            async for batch in peers.usage_records(request):
                yield [_record_values(record) for record in batch.records]

        _tell(output, into, asyncio.run(_write_records(meter, into, _record_columns(), rows)))


@app.command()
def bookings(
    *,
    into: _Into,
    since: _Since = "",
    until: _Until = "",
    tenants: _Tenants = None,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Write the ledger's lines, request by request, as they were booked."""
    with command(as_json) as output:
        from services.cli.table_files import Column, Kind

        request = _records_asked(into, since, until, tenants)
        own = [
            Column("line", Kind.WHOLE, False),
            Column("booked", Kind.TIME, False),
            Column("request_id", Kind.TEXT, False),
        ]

        async def rows(peers: "Peers") -> "AsyncIterator[Rows]":
            async for batch in peers.bookings(request):
                yield [
                    [each.line, _time(each.booked_unix_ms), each.request_id, *_record_values(each.record)]
                    for each in batch.bookings
                ]

        _tell(output, into, asyncio.run(_write_records(meter, into, [*own, *_record_columns()], rows)))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A FOCUS file, .csv or .parquet.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Check a file by the rules of FOCUS 1.3; exit status 1 where it breaks one."""
    with command(as_json) as output:
        _tell_checked(output, file, None)


def _records_asked(into: Path, since: str, until: str, tenants: list[str] | None) -> "exports.StreamRequest":
    from services.cli.table_files import check_path
    from tokenworks.v1 import exports_pb2 as exports

    check_path(into)
    from_ms, to_ms = _times(since, until, utc=False)
    return exports.StreamRequest(from_unix_ms=from_ms, to_unix_ms=to_ms, tenants=tenants or ())


async def _write_records(
    meter: str, into: Path, columns: "Sequence[Column]", rows: "Callable[[Peers], AsyncIterator[Rows]]"
) -> int:
    """Writes the rows as they come from the meter; how many."""
    from services.cli.access import read_access
    from services.cli.peers import Peers
    from services.cli.table_files import table_file

    written = 0
    async with Peers(read_access(meter=meter)) as peers:
        with table_file(into, columns) as file:
            async for some in rows(peers):
                for row in some:
                    file.write(row)
                written += len(some)
    return written


async def _write_focus(peers: "Peers", request: "exports.StreamChargesRequest", into: Path) -> int:
    from services.cli.focus import COLUMNS, VERSION, FocusRows, values_of
    from services.cli.table_files import table_file

    written = 0
    with table_file(into, COLUMNS, {"FocusVersion": VERSION, "Dataset": "Cost and Usage"}) as file:
        rows: FocusRows | None = None
        async for batch in peers.charges(request):
            rows = rows or FocusRows(batch.issuer)
            for charge in batch.charges:
                for row in rows.take(charge):
                    file.write(values_of(row))
                    written += 1
        if rows is not None:
            ending = list(rows.end())
            async for invoice in _ended(peers, rows.invoices, request):
                ending += rows.invoice_rounding(invoice)
            for row in ending:
                file.write(values_of(row))
            written += len(ending)
    return written


async def _ended(
    peers: "Peers", invoices: set[tuple[str, str]], request: "exports.StreamChargesRequest"
) -> "AsyncIterator[exports.Invoice]":
    """Those of the invoices whose month ends in the time of the export."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    for tenant, month in sorted(invoices):
        invoice = await peers.invoice(tenant, month)
        if request.from_unix_ms < invoice.to_unix_ms <= (request.to_unix_ms or now_ms):
            yield invoice


def _tell(output: Output, into: Path, written: int) -> None:
    output.result({"file": str(into), "rows": written}, f"{written:,} rows are in [bold]{into}[/]")


def _tell_checked(output: Output, file: Path, written: int | None) -> None:
    """Says what a file has and whether it keeps the rules; raises CommandFailed where it does not."""
    from services.cli.focus import VERSION
    from services.cli.focus_rules import RULES, broken_rules
    from services.cli.table_files import read_texts

    findings = list(broken_rules(read_texts(file)))
    if findings:
        words = [
            f"row {each.row or 'all'}: {each.rule.column} {each.rule.says} ({each.rule.page})"
            for each in findings[:_TOLD]
        ]
        more = f"; and {len(findings) - _TOLD} more" if len(findings) > _TOLD else ""
        raise CommandFailed(f"{file} breaks rules of FOCUS {VERSION}: {'; '.join(words)}{more}", reason="FocusInvalid")
    document = {"file": str(file), "rows": written, "focus": VERSION, "rules": len(RULES), "broken": 0}
    rows = "" if written is None else f"{written:,} rows are in "
    output.result(document, f"{rows}[bold]{file}[/]; it keeps the {len(RULES)} rules of FOCUS {VERSION} that we check")


def _times(since: str, until: str, *, utc: bool) -> tuple[int, int]:
    from services.cli.usage import parse_time

    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    if utc:  # a bare date is the day of UTC that charges are told by
        since, until = (f"{text}T00:00+00:00" if len(text) == len("2026-11-01") else text for text in (since, until))
    return parse_time(since, now_ms, "--from"), parse_time(until, now_ms, "--to")


def _time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def _record_columns() -> "list[Column]":
    from services.cli.table_files import Column, Kind

    return [
        Column("minute", Kind.TIME, False),
        *(Column(name, Kind.TEXT, False) for name in _LABELS),
        *(Column(name, Kind.WHOLE, False) for name in _AMOUNTS),
    ]


def _record_values(record: "exports.UsageRecord") -> "list[Value]":
    amounts = record.amounts
    return [
        _time(record.minute_unix_ms),
        *(getattr(record, name) for name in _LABELS),
        *(getattr(amounts, name) for name in _AMOUNTS),
    ]
