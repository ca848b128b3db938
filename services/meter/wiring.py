"""Starts the meter's parts, top to bottom, and says how each is stopped: what was started last, first.

Where other meters are on the same books and one has them, all but the HTTP server waits until they are free.
"""

import asyncio
import logging
import secrets
from dataclasses import dataclass
from functools import partial

from services.mesh.bus import Bus
from services.mesh.clock import Clock
from services.mesh.errors import SettingInvalid
from services.mesh.events import RunawayGrade
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.footing import Footing, find_footing
from services.mesh.httpd import HttpServer
from services.mesh.keys import KeyStore
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.settings import Settings
from services.mesh.telemetry import Telemetry
from services.meter.announcer import Announcer
from services.meter.answers_http import AnswersHttp
from services.meter.archive import Archive
from services.meter.audit import Audit
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import booked_up_to, catch_up, find_behind, restore_budgets, restore_price_books
from services.meter.charging import Charging
from services.meter.core.budgets import Accounts
from services.meter.core.fleet_bill import IdleRule, Rule
from services.meter.export_service import SERVICE_NAME as EXPORTS_NAME
from services.meter.export_service import ExportService
from services.meter.feed import Feed
from services.meter.inquiry import Inquiry
from services.meter.insight import Insight
from services.meter.insight_service import SERVICE_NAME as INSIGHT_NAME
from services.meter.insight_service import InsightService
from services.meter.lessor import Lessor
from services.meter.outlooks import Outlooks
from services.meter.pricing_service import SERVICE_NAME as PRICING_NAME
from services.meter.pricing_service import PricingService
from services.meter.rates import credit_terms, fleet_rates, rate_card
from services.meter.receivers import receiver_of
from services.meter.reconciler import Reconciler
from services.meter.reratings import Reratings
from services.meter.retainer import Retainer
from services.meter.roller import Roller
from services.meter.runaways import Runaways
from services.meter.service import SERVICE_NAME, MeterService
from services.meter.settler import Settler, Terms
from services.meter.standby import Standby
from services.meter.store.audit import Audits
from services.meter.store.bill import BillReader, BillWriter
from services.meter.store.callers import CallerReader
from services.meter.store.charges import ChargeReader
from services.meter.store.database import Database
from services.meter.store.exports import ExportReader
from services.meter.store.holding import FileLock, Holding, is_shared
from services.meter.store.invoices import InvoiceReader
from services.meter.store.questions import Questions
from services.meter.store.raw_events import RawEvents
from services.meter.store.rolling import HourRoller
from services.meter.telling import Telling
from services.meter.thread import WorkThreads
from services.meter.watchers import Watchers
from tokenworks.v1 import exports_pb2_grpc, insight_pb2_grpc, metering_pb2_grpc, pricing_pb2_grpc

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
    standby: Standby | None = None
    if is_shared(database):
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
    running = Running(http_port, http, url)
    serve = partial(
        _serve,
        life,
        settings,
        footing,
        database,
        answers_http=answers_http,
        writer=writer,
        writing=writing,
        reading=reading,
        exporting=exporting,
    )
    holder = await standby.take() if standby is not None else ""
    if standby is None or not holder:
        running.grpc_port = await serve()
        return running

    async def stand_by(standby: Standby) -> None:
        await standby.wait()
        running.grpc_port = await serve()
        await life.release()

    log.info("%s has the books; this meter stands by", holder)
    await life.hold(f"stands by: {holder} has the books")
    waiting = life.spawn(stand_by(standby), "standing by")
    life.on_stop("standing by", partial(cancel_all, [waiting]))
    return running


async def _serve(
    life: Lifecycle,
    settings: Settings,
    footing: Footing,
    database: Database,
    *,
    answers_http: AnswersHttp,
    writer: str,
    writing: WorkThreads,
    reading: WorkThreads,
    exporting: WorkThreads,
) -> int:
    """Starts all that needs the books; the port of gRPC."""
    meter_id = settings.meter.id
    bus, telemetry, clock = footing.bus, footing.telemetry, footing.clock
    behind = await find_behind(bus, await writing.run(partial(booked_up_to, database)))
    standing = await restore_price_books(bus, database, writer) if behind else None
    bookkeeper = await writing.run(
        partial(
            Bookkeeper,
            database,
            writer,
            settings.prices,
            rate_card(settings),
            now_unix_ms=clock.unix_ms(),
            clock=clock,
            lease_ttl_s=settings.meter.lease_ttl_s,
        )
    )
    audit = Audit(meter_id, bus, clock, telemetry)
    if standing is not None:
        await writing.run(partial(restore_budgets, bookkeeper, standing))
    for each in behind:
        found = await catch_up(bus, bookkeeper, each, writing, clock)
        audit.repaired_now(found, "read from the streams again")
    await writing.run(bookkeeper.adopt_limits)
    accounts = Accounts()
    for credit, budgeted in await writing.run(bookkeeper.credits):
        if budgeted:
            accounts.restore(credit)

    prices = bookkeeper.prices
    for opened in prices.opened:
        bus.publish(opened.event)
    for rerating in prices.reratings:
        bus.publish(rerating.event)

    announcer = Announcer(accounts, bus, clock)
    watchers = Watchers()
    runaways = Runaways(meter_id, settings.runaway, bus, clock, telemetry)
    lessor = Lessor(
        meter_id,
        bookkeeper=bookkeeper,
        writing=writing,
        bus=bus,
        clock=clock,
        telemetry=telemetry,
        missing=lambda: feed.lately_missing,
    )
    feed = Feed(
        bus=bus,
        bookkeeper=bookkeeper,
        writing=writing,
        announcer=announcer,
        watchers=watchers,
        runaways=runaways,
        lessor=lessor,
        telemetry=telemetry,
        clock=clock,
        on_lost_books=life.end,
    )
    reconciler = Reconciler(
        settings=settings.meter,
        audit=audit,
        audits=Audits(database),
        bookkeeper=bookkeeper,
        prices=prices,
        reading=reading,
        writing=writing,
        feed=feed,
        announcer=announcer,
        bus=bus,
        clock=clock,
    )
    await lessor.announce()
    bills = BillReader(database)
    settler = Settler(
        terms=Terms(
            rates=fleet_rates(settings),
            rule=Rule(IdleRule(settings.cost.idle_rule), settings.cost.replay_output_weight),
            credits=credit_terms(settings),
            settle_after_s=settings.cost.settle_after_s,
        ),
        every_s=settings.meter.audit_every_s,
        reader=bills,
        writer=BillWriter(database),
        bookkeeper=bookkeeper,
        prices=prices,
        reading=reading,
        writing=writing,
        audit=audit,
        bus=bus,
        clock=clock,
    )
    roller = Roller(hours=HourRoller(database), bookkeeper=bookkeeper, reading=reading, writing=writing, clock=clock)
    inquiry = Inquiry(
        questions=Questions(database),
        callers=CallerReader(database),
        bills=bills,
        settler=settler,
        feed=feed,
        reading=reading,
        clock=clock,
    )
    insight = Insight(
        settings.meter,
        questions=Questions(database),
        callers=CallerReader(database),
        outlooks=Outlooks(
            questions=Questions(database),
            callers=CallerReader(database),
            bookkeeper=bookkeeper,
            reading=exporting,
            writing=writing,
            clock=clock,
        ),
        terms=credit_terms(settings),
        reading=exporting,
        bus=bus,
        clock=clock,
    )
    reratings = Reratings(
        bookkeeper=bookkeeper,
        audits=Audits(database),
        announcer=announcer,
        reading=reading,
        writing=writing,
        bus=bus,
        clock=clock,
    )
    tasks = [
        life.spawn(announcer.run(), "announcer"),
        life.spawn(feed.run(), "feed"),
        life.spawn(reconciler.run(), "reconciler"),
        life.spawn(settler.run(), "settler"),
        life.spawn(roller.run(), "hours by caller"),
        life.spawn(insight.run(), "anomalies"),
        life.spawn(reratings.resume(), "unfinished re-ratings"),
        life.spawn(lessor.serve(), "leases"),
        life.spawn(lessor.look_after(), "look after leases"),
    ]
    if settings.meter.raw_events_dir is not None:
        archive = Archive(RawEvents(settings.meter.raw_events_dir), bus, clock)
        tasks.append(life.spawn(archive.run(), "raw events"))
    if settings.runaway.most is not RunawayGrade.NONE:
        tasks.append(life.spawn(runaways.run(), "runaways"))

    if settings.meter.keep_detail_days:
        retainer = Retainer(settings, database, bookkeeper, reading=reading, writing=writing, clock=clock)
        tasks.append(life.spawn(retainer.run(), "retention"))

    exports = ExportReader(database)
    if settings.cloudevents.url:
        telling = Telling(
            settings=settings.cloudevents,
            receiver=receiver_of(settings.cloudevents),
            reader=exports,
            bookkeeper=bookkeeper,
            exporting=exporting,
            writing=writing,
            telemetry=telemetry,
        )
        tasks.append(life.spawn(telling.run(), "cloud events"))

    async def stop_feed() -> None:
        await cancel_all(tasks)
        await bus.flush(2.0)

    life.on_stop("feed", stop_feed)
    grpc_server = FastGrpcServer(telemetry, life, max_message_bytes=settings.mesh.max_message_bytes)
    service = MeterService(
        bookkeeper=bookkeeper,
        questions=Questions(database),
        writing=writing,
        reading=reading,
        feed=feed,
        announcer=announcer,
        watchers=watchers,
        audit=audit,
        runaways=runaways,
        lessor=lessor,
        settler=settler,
        bills=bills,
        inquiry=inquiry,
        clock=clock,
        secrets=settings.secrets,
    )
    grpc_server.add(metering_pb2_grpc.add_MeterServicer_to_server, service, SERVICE_NAME)
    pricing_service = PricingService(
        bookkeeper=bookkeeper,
        reratings=reratings,
        settler=settler,
        bills=bills,
        reading=reading,
        writing=writing,
        bus=bus,
        clock=clock,
        secrets=settings.secrets,
    )
    grpc_server.add(pricing_pb2_grpc.add_PricingServicer_to_server, pricing_service, PRICING_NAME)
    invoices, charges = InvoiceReader(database), ChargeReader(database)
    export_service = ExportService(
        charging=Charging(
            reader=charges,
            invoices=invoices,
            prices=prices,
            terms=settings.invoice,
            settle_after_s=settings.cost.settle_after_s,
            clock=clock,
        ),
        charges=charges,
        reader=exports,
        invoices=invoices,
        terms=settings.invoice,
        bookkeeper=bookkeeper,
        exporting=exporting,
        writing=writing,
        clock=clock,
        secrets=settings.secrets,
    )
    grpc_server.add(exports_pb2_grpc.add_ExportsServicer_to_server, export_service, EXPORTS_NAME)
    add_insight = insight_pb2_grpc.add_InsightServicer_to_server
    grpc_server.add(add_insight, InsightService(insight, settings.secrets), INSIGHT_NAME)
    answers_http.open(inquiry, insight)
    grace_s = settings.mesh.drain_grace_s
    life.on_stop("grpc", partial(grpc_server.drain, grace_s), deadline_s=grace_s + 5.0)
    life.on_stop("watchers", watchers.stop)
    return await grpc_server.start(settings.mesh.host, settings.meter.port)
