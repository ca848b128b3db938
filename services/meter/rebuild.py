"""`python -m services.meter.rebuild INTO [--check] [--raw DIR]`: makes the books again, from the streams alone.

In: the streams of tokens, requests, budgets and price books, from their first message on. Out: a new database, and with
`--check` what differs between it and the live one. The live books are only read; to use the new ones, stop the meter
and name them in `meter.database_url`.

The streams are read while the mesh runs, so a request under way may be further in one database than in the other: for a
comparison that means something, let the mesh be quiet, or compare again.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock, SystemClock
from services.mesh.errors import SettingInvalid, TokenworksError
from services.mesh.nats.bus import NatsBus
from services.mesh.price_book import PriceBook
from services.mesh.settings import Settings, load_settings
from services.mesh.subjects import STREAMS
from services.mesh.telemetry import start_telemetry
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS, restore_budgets, restore_price_books
from services.meter.core.costs import RateCard
from services.meter.rates import rate_card
from services.meter.store.compare import differences
from services.meter.store.database import Database
from services.meter.store.raw_events import RawEvents

_WRITER: Final = "rebuild"
_KEPT_MS: Final = 1000 * min(each.max_age_s for each in STREAMS if each.name in ("TW_TOKENS", "TW_REQUESTS"))


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was read into the new books. `refused`: reports that cannot be booked; `lost`: events that never came."""

    events: int
    booked: int
    budgets: int
    price_books: int
    refused: int
    lost: int


async def rebuild(
    bus: Bus, database: Database, prices: PriceBook, rates: RateCard, clock: Clock, *, raw: RawEvents | None = None
) -> Rebuilt:
    """Fills an empty database from the streams.

    Args:
        raw: files that hold what the streams have let go of; these are read from where the files end.

    Raises:
        BusUnavailable: the connection was lost; start over with an empty database.
        InvariantBroken: a file between two others is gone.
        SettingInvalid: the streams' price book of the label in force has other prices than `prices`.
    """
    now_unix_ms = clock.unix_ms()
    standing = await restore_price_books(bus, database, _WRITER)
    keeper = Bookkeeper(database, _WRITER, prices, rates, now_unix_ms)
    budgets = restore_budgets(keeper, standing)
    booked = refused = lost = 0

    async def book(messages: Sequence[Delivered]) -> None:
        nonlocal booked, refused, lost
        done = await asyncio.to_thread(partial(keeper.book, messages, now_unix_ms))
        booked, refused, lost = booked + done.fresh, refused + len(done.refused), done.lost

    events = 0
    for _, channels in READS:
        last = 0
        if raw is not None:
            assert channels[0].stream is not None
            for messages in raw.read(channels[0].stream):
                await book(messages)
                events, last = events + len(messages), messages[-1].stream_sequence
        events += await bus.replay(channels, book, batch=2048, after_sequence=last)
    for rerating in standing.reratings:  # every request was booked under it
        await asyncio.to_thread(partial(keeper.end_rerating, rerating))
    return Rebuilt(events, booked, budgets, len(standing.price_books), refused, lost)


async def _run(settings: Settings, into: Path, *, check: bool, raw: Path | None) -> int:
    clock = SystemClock()
    files = None if raw is None else RawEvents(raw)
    telemetry = start_telemetry("meter", _WRITER)
    bus = NatsBus(settings.nats, "meter", _WRITER, telemetry, clock)
    live = Database(settings.database_url, read_only=True) if check else None
    rebuilt = Database(f"sqlite:///{into}")
    done: Rebuilt | None = None
    try:
        await bus.connect()
        done = await rebuild(bus, rebuilt, settings.prices, rate_card(settings), clock, raw=files)
        findings: list[str] | None = None
        if live is not None:
            findings = differences(live, rebuilt, since_unix_ms=clock.unix_ms() - _KEPT_MS)
    finally:
        if live is not None:
            live.close()
        rebuilt.close()
        if done is None:  # half of the books are none
            await asyncio.to_thread(partial(into.unlink, missing_ok=True))
        await bus.close()
        telemetry.shutdown()
    result = {
        "into": str(into),
        "events": done.events,
        "booked": done.booked,
        "budgets": done.budgets,
        "price_books": done.price_books,
        "refused": done.refused,
        "lost": done.lost,
        "differences": findings,
    }
    print(json.dumps(result))
    return 1 if findings else 0


def main() -> int:
    """Runs with the settings of the mesh; prints one JSON object. Exit status 1: the books differ. 2: it failed."""
    parser = argparse.ArgumentParser(prog="python -m services.meter.rebuild", description=__doc__)
    parser.add_argument("into", type=Path, help="the new SQLite file")
    parser.add_argument("--check", action="store_true", help="hold the new books against the live ones")
    parser.add_argument("--raw", type=Path, help="a folder of meter.raw_events_dir, for what the streams let go of")
    given = parser.parse_args()
    try:
        if given.into.exists():
            raise SettingInvalid(f"{given.into} exists already; name a file that does not: no books are overwritten")
        if given.raw is not None and not given.raw.is_dir():
            raise SettingInvalid(f"--raw {given.raw} is no folder; name the one that meter.raw_events_dir was set to")
        return asyncio.run(_run(load_settings(), given.into, check=given.check, raw=given.raw))
    except TokenworksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
