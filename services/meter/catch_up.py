"""Books that are older than what the meter has acked: a database put back from a backup, or lost. What it lacks is
read from the streams again, before anything new is booked.

A durable reader begins behind its last ack, so it never brings again what such a database lacks; the database itself
says how far each stream is booked in it (`positions`), the server how far it was acked. Marks drop what both have.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

from sqlalchemy import select

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.subjects import ADMITTED, FINISHED, TOKENS, Channel
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import Finding, Kind
from services.meter.standing import Standing, read_standing
from services.meter.store import schema
from services.meter.store.books import Books, Role
from services.meter.store.database import Database
from services.meter.store.shards import FIRST, durable_of
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

TOKENS_DURABLE: Final = "meter-tokens"
REQUESTS_DURABLE: Final = "meter-requests"
READS: Final[tuple[tuple[str, tuple[Channel, ...]], ...]] = (
    # Requests first: their price book is then known when their tokens are priced, which saves corrections.
    (REQUESTS_DURABLE, (ADMITTED, FINISHED)),
    (TOKENS_DURABLE, (TOKENS,)),
)
_BATCH: Final = 1024
_MARGIN: Final = 4096  # messages before the position that may have been under way when it was stored


@dataclass(frozen=True, slots=True)
class Behind:
    """A reader whose stream was acked up to `acked`, while the database has it up to `booked`."""

    durable: str
    channels: Sequence[Channel]
    booked: int
    acked: int


def booked_up_to(database: Database) -> dict[str, int]:
    """How far the stream of each durable reader is booked in a database that nobody writes yet."""
    with database.reader.connect() as connection:
        return {row.durable: row.stream_sequence for row in connection.execute(select(schema.positions))}


async def find_behind(bus: Bus, positions: dict[str, int], shards: Iterable[int] = (FIRST,)) -> list[Behind]:
    """The readers of these shards whose messages were acked beyond what the database has.

    Args:
        positions: of the database, by durable.

    Raises:
        BusUnavailable: the server does not say.
    """
    found = []
    for shard, (name, channels) in product(shards, READS):
        durable = durable_of(name, shard)
        acked, booked = (await bus.progress(channels, durable)).acked, positions.get(durable, 0)
        if acked > booked:
            found.append(Behind(durable, channels, booked, acked))
    return found


async def restore_price_books(bus: Bus, database: Database, writer: str, role: Role = Role.SOLE) -> Standing:
    """Puts the streams' price books that the database lacks into it; what stands in the streams.

    Raises:
        BusUnavailable, SettingInvalid: see `read_standing`.
    """
    standing = await read_standing(bus)

    def store() -> None:
        with Books(database, writer, role=role).house() as transaction:
            known = {each.book.label for each in transaction.price_books()}
            for opened in standing.price_books:
                if opened.book.label not in known:
                    transaction.add_price_book(opened)
            told = {each.rerating for each in transaction.reratings()}
            for rerating in standing.reratings:
                if rerating.rerating not in told:
                    # What was booked before it is priced again, see `Reratings.resume`.
                    transaction.put_rerating(rerating, finished=False)

    await asyncio.to_thread(store)
    return standing


def restore_budgets(bookkeeper: Bookkeeper, standing: Standing) -> int:
    """Sets the budgets that the streams have otherwise, as each was announced when it was set; how many."""
    stored = {credit.tenant: credit.limit_nusd for credit, budgeted in bookkeeper.credits() if budgeted}
    # First those with numbers: what was held for requests names them.
    changed = sum(bookkeeper.restore_budgets(each.tenant, each.budgets) for each in standing.budgets_set)
    for each in standing.budgets:
        limit_nusd = None if each.unlimited else each.limit_nusd
        if each.tenant not in stored or stored[each.tenant] != limit_nusd:
            bookkeeper.set_limit(each.tenant, limit_nusd, each.at_unix_ms)
            changed += 1
    return changed


async def catch_up(bus: Bus, bookkeeper: Bookkeeper, behind: Behind, writing: WorkThreads, clock: Clock) -> Finding:
    """Books what the database lacks of one stream; what that was.

    Raises:
        BusUnavailable: the connection was lost; what was booked is booked, start over.
    """
    fresh = 0

    async def book(messages: Sequence[Delivered]) -> None:
        nonlocal fresh
        booked = await writing.run(partial(bookkeeper.book, messages, clock.unix_ms(), durable=behind.durable))
        fresh += booked.fresh

    await bus.replay(behind.channels, book, batch=_BATCH, after_sequence=max(0, behind.booked - _MARGIN))
    what = (
        f"the database has the stream of {behind.durable} up to {behind.booked}, it was acked up to {behind.acked}:"
        f" {fresh} events were booked again"
    )
    log.warning("%s", what)
    return Finding(Kind.BEHIND, behind.durable, "", behind.acked, behind.booked, what)
