"""`tokenworks prices`: what tokens cost whom, from when: shown, checked, loaded into the running meter, imported."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import JsonFlag, MeterOption
from services.cli.output import CommandFailed, command

if TYPE_CHECKING:
    from rich.table import Table

    from services.cli.access import Access
    from services.mesh.price_book import PriceBook
    from tokenworks.v1 import pricing_pb2 as pricing

app = typer.Typer(help="Price books: show, check, load, import.", no_args_is_help=True)

_FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A price book, TOML or CSV.")]
_NameOption = Annotated[str, typer.Option("--name", help="The book's name, over what the file says.")]
_VersionOption = Annotated[int, typer.Option("--version", min=0, help="Its version, likewise; raise it each time.")]


@app.command()
def show(
    label: Annotated[str, typer.Argument(help="A book, as name@version; default: all in brief.")] = "",
    *,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the books that the running meter knows, from when each is in force, and past re-ratings."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.price_book import PriceBook
        from services.mesh.wire_document import document_of

        answer = asyncio.run(_ask(read_access(meter=meter)))
        if not label:
            output.result(document_of(answer), _books(answer), *_reratings(answer))
            return
        found = next((each for each in answer.books if each.label == label), None)
        if found is None:
            known = ", ".join(each.label for each in answer.books)
            raise CommandFailed(f"no book is called {label!r}; known are: {known}", reason="UnknownPriceBook")
        output.result(document_of(found), _entries(PriceBook.model_validate_json(found.body_json)))


@app.command()
def check(
    file: _FileArgument, *, name: _NameOption = "", version: _VersionOption = 0, as_json: JsonFlag = False
) -> None:
    """Read a book and say what it would price, without loading it; exit status 1 where it is wrong."""
    with command(as_json) as output:
        from services.mesh.price_files import read_prices

        book, effective_unix_ms = read_prices(file, name=name, version=version)
        document = {
            "label": book.label,
            "effective_unix_ms": effective_unix_ms,
            "entries": len(book.prices),
            "plans": {plan.name: list(plan.tenants) for plan in book.plans},
        }
        since = f"in force from {_time(effective_unix_ms)}" if effective_unix_ms else "in force from when it is loaded"
        output.result(document, f"[bold]{book.label}[/], {len(book.prices)} entries, {since}", _entries(book))


@app.command()
def load(
    file: _FileArgument,
    *,
    since: Annotated[
        str, typer.Option("--from", help="In force from, like 2026-12-01; default: as the file says, or now.")
    ] = "",
    name: _NameOption = "",
    version: _VersionOption = 0,
    meter: MeterOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Load a book into the running meter; routers and meter price by it from its date on."""
    from services.cli.usage import parse_time

    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    given_unix_ms = parse_time(since, now_ms, "--from")
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.mesh.price_files import read_prices
        from services.mesh.wire_document import document_of

        book, effective_unix_ms = read_prices(file, name=name, version=version)
        opened = asyncio.run(_load(read_access(meter=meter), book, given_unix_ms or effective_unix_ms))
        lines = [f"[bold]{opened.label}[/] is in force from {_time(opened.effective_unix_ms)}"]
        if opened.effective_unix_ms < opened.recorded_unix_ms:
            lines.append("what was billed before stays as it is; `tokenworks rerate --from DATE` prices it again")
        output.result(document_of(opened), *lines)


@app.command("import")
def import_(
    into: Annotated[Path, typer.Argument(help="The TOML file to write; must not exist yet.")],
    *,
    provider: Annotated[str, typer.Option(help="Whose public prices, like openai, anthropic, groq.")] = "",
    name: Annotated[str, typer.Option("--name", help="The new book's name.")] = "list",
    version: Annotated[int, typer.Option("--version", min=1, help="Its version.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Write public prices of models as a book to start from (needs the extra `prices`); then check and load it."""
    with command(as_json) as output:
        from services.cli.public_prices import public_prices
        from services.mesh.price_files import write_prices

        if into.exists():
            raise CommandFailed(f"{into} exists already; name a file that does not")
        book, told = public_prices(provider, name, version, datetime.now(UTC))
        into.write_text(write_prices(book, comment=told), encoding="utf-8")
        document = {"file": str(into), "label": book.label, "entries": len(book.prices), "source": told}
        output.result(document, f"{len(book.prices)} entries are in [bold]{into}[/]; {told}")


async def _ask(access: "Access") -> "pricing.ListPricesResponse":
    from services.cli.peers import Peers

    async with Peers(access) as peers:
        return await peers.prices()


async def _load(access: "Access", book: "PriceBook", effective_unix_ms: int) -> "pricing.OpenedPrices":
    from services.cli.peers import Peers
    from tokenworks.v1 import pricing_pb2 as pricing

    async with Peers(access) as peers:
        return await peers.open_prices(
            pricing.OpenPricesRequest(body_json=book.model_dump_json(), effective_unix_ms=effective_unix_ms)
        )


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(" ", "seconds") if unix_ms else "the beginning"


def _books(answer: "pricing.ListPricesResponse") -> "Table":
    from services.cli.report_view import table
    from services.mesh.price_book import PriceBook

    made = table("Price books", "book", "in force from", "recorded", ">entries", ">plans", "currency", "")
    for each in answer.books:
        book = PriceBook.model_validate_json(each.body_json)
        made.add_row(
            each.label,
            _time(each.effective_unix_ms),
            _time(each.recorded_unix_ms),
            str(len(book.prices)),
            str(len(book.plans)),
            book.currency,
            "in force" if each.in_force else "",
            style="bold" if each.in_force else None,
        )
    return made


def _reratings(answer: "pricing.ListPricesResponse") -> list[str]:
    return [
        f"re-rated at {_time(each.recorded_unix_ms)}: what was admitted from {_time(each.from_unix_ms)}"
        + (f" to {_time(each.to_unix_ms)}" if each.to_unix_ms else " on")
        + ("" if each.finished else "; under way")
        for each in answer.reratings
    ]


def _entries(book: "PriceBook") -> "Table":
    from services.cli.report_view import table

    made = table(
        f"{book.label}, dollars per million tokens",
        "model",
        "tenant or plan",
        "SLO class",
        ">input",
        ">cached",
        ">output",
        "by volume",
    )
    for each in book.prices:
        volume = [f"from {tier.from_mtok}M per {each.period}: output {tier.output_usd_per_mtok}" for tier in each.tiers]
        volume += [f"committed per {each.period}"] if each.committed else []
        made.add_row(
            each.model or "any",
            each.tenant or (f"plan {each.plan}" if each.plan else "any"),
            each.slo_class or "any",
            str(each.input_usd_per_mtok),
            str(each.cached_input_usd_per_mtok),
            str(each.output_usd_per_mtok),
            "; ".join(volume),
        )
    return made
