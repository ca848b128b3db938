"""Starts the meter's parts, top to bottom, and says how each is stopped: what was started last, first.

On PostgreSQL several meters share the partitions of tenants out (`sharing.py`), and one of them leads (`standby.py`):
it does what is nobody's partition (`leading.py`), and alone serves gRPC. On a SQLite file one does all.
"""

import asyncio
import logging
import secrets
from dataclasses import dataclass
from functools import partial

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import SettingInvalid
from services.mesh.footing import find_footing
from services.mesh.httpd import HttpServer
from services.mesh.keys import KeyStore
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.settings import Settings
from services.mesh.telemetry import Telemetry
from services.meter.answers_http import AnswersHttp
from services.meter.booking import Booking
from services.meter.bookkeeper import Bookkeeper
from services.meter.ears import Ears
from services.meter.feed import Feed
from services.meter.leading import lead
from services.meter.rates import rate_card
from services.meter.sharing import Sharing
from services.meter.standby import Standby
from services.meter.store.books import Role
from services.meter.store.database import Database
from services.meter.store.holding import FileLock, Holding, is_shared
from services.meter.store.shards import FIRST
from services.meter.store.sharing import Membership
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """A started meter.

    Attributes:
        grpc_port: 0 while it stands by.
    """

    http_port: int
    http: HttpServer
    database_url: str
    grpc_port: int = 0


async def wire(
    life: Lifecycle,
    settings: Settings,
    *,
    bus: Bus | None = None,
    telemetry: Telemetry | None = None,
    clock: Clock | None = None,
) -> Running:
    """Starts a meter; what is given is used and left open.

    Raises:
        SettingInvalid: the database or the price book, see `Database` and `Bookkeeper`; a SQLite file that another
            meter writes.
        BusUnavailable, OSError: no bus, no port.
    """
    meter_id = settings.meter.id
    footing = await find_footing(life, settings, "meter", meter_id, bus=bus, telemetry=telemetry, clock=clock)
    answers_http = AnswersHttp(KeyStore(settings.keys_file), settings.secrets, footing.telemetry)
    http = HttpServer(footing.telemetry, life, routes=answers_http.routes())
    life.on_stop("http", http.stop)
    http_port = await http.start(settings.mesh.host, settings.meter.http_port)

    writing = WorkThreads("meter-writing", threads=1, max_waiting=64)
    reading = WorkThreads("meter-reading", threads=2, max_waiting=64)
    exporting = WorkThreads("meter-exporting", threads=1, max_waiting=16)
    # Its own name for each start: a process that was replaced notices at its next transaction.
    writer = f"{meter_id}:{secrets.token_hex(4)}"
    url = settings.database_url
    database = await writing.run(partial(Database, url))
    shared = is_shared(database)
    standby: Standby | None = None
    if shared:
        ttl_s = settings.meter.holding_ttl_s
        standby = Standby(Holding(url, writer, ttl_s), ttl_s, life.end)
        life.on_stop("hold on the books", standby.stop, deadline_s=15.0)
    else:
        try:
            lock = await writing.run(partial(FileLock, url))
        except SettingInvalid:
            await writing.run(database.close)
            raise
        life.on_stop("hold on the books", partial(asyncio.to_thread, lock.release))

    async def close_books() -> None:
        await writing.stop()
        await reading.stop()
        await exporting.stop()
        await asyncio.to_thread(database.close)

    life.on_stop("books", close_books, deadline_s=30.0)
    ears, own = Ears(), dict[int, Bookkeeper]()
    bus, telemetry, clock = footing.bus, footing.telemetry, footing.clock
    feed = Feed(bus=bus, writing=writing, telemetry=telemetry, clock=clock, ears=ears, on_lost_books=life.end)

    def booking(shard: int) -> Booking:
        open_books = partial(
            Bookkeeper,
            database,
            writer,
            settings.prices,
            rate_card(settings),
            clock.unix_ms(),
            clock=clock,
            lease_ttl_s=settings.meter.lease_ttl_s,
            shard=shard,
            role=Role.HOLDER,
        )
        return Booking(
            meter_id,
            shard,
            open_books=open_books,
            database=database,
            feed=feed,
            life=life,
            writing=writing,
            bus=bus,
            clock=clock,
            telemetry=telemetry,
            own=own,
            ears=ears,
        )

    async def flush() -> None:
        await bus.flush(2.0)

    life.on_stop("events", flush)
    running = Running(http_port, http, url)
    serve = partial(
        lead,
        life,
        settings,
        footing,
        database,
        answers_http=answers_http,
        writer=writer,
        writing=writing,
        reading=reading,
        exporting=exporting,
        feed=feed,
        own=own,
        ears=ears,
    )
    if standby is None:
        sole = booking(FIRST)
        life.on_stop("booking", sole.stop)
        running.grpc_port = await serve(role=Role.SOLE, begin=sole.start)
        return running

    leader = await standby.take()

    async def tell(books: str) -> None:
        log.info("%s %s", meter_id, books)
        if leader:
            await life.hold(f"stands by: {leader} leads; this one {books}")

    sharing = Sharing(Membership(url, writer, ttl_s), ttl_s, booking, tell)
    life.on_stop("sharing", sharing.stop, deadline_s=15.0)
    await sharing.join()

    async def begin_leading() -> None:
        running.grpc_port = await sharing.lead(partial(serve, role=Role.LEADER, begin=_nothing))

    async def stand_by(standby: Standby) -> None:
        nonlocal leader
        await standby.wait()
        await begin_leading()
        leader = ""
        await life.release()

    if leader:
        await life.hold(f"stands by: {leader} leads")
        waiting = [life.spawn(stand_by(standby), "standing by")]
    else:
        await begin_leading()
        await sharing.look()
        waiting = []
    waiting.append(life.spawn(sharing.run(), "sharing"))
    life.on_stop("looking for more to do", partial(cancel_all, waiting))
    return running


async def _nothing() -> None:
    return
