"""Starts what one meter does for all: all but the booking of shards. Top to bottom; what was started last stops first.

In: the books' database, and this process's share in them. Out: prices, bills, audits, exports, budgets set, and every
answer by gRPC and HTTP.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from services.mesh.events import RunawayGrade
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.footing import Footing
from services.mesh.lifecycle import Lifecycle, cancel_all
from services.mesh.partitions import partition_of
from services.mesh.settings import Settings
from services.meter.announcer import Announcer
from services.meter.answers_http import AnswersHttp
from services.meter.archive import Archive
from services.meter.audit import Audit
from services.meter.booked import Booked
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import booked_up_to, find_behind, restore_budgets, restore_price_books
from services.meter.charging import Charging
from services.meter.core.amounts import Amounts
from services.meter.core.budgets import Accounts
from services.meter.core.fleet_bill import IdleRule, Rule
from services.meter.core.usage import UsageKey
from services.meter.desk import Desk
from services.meter.ears import Ears
from services.meter.export_service import SERVICE_NAME as EXPORTS_NAME
from services.meter.export_service import ExportService
from services.meter.feed import Feed
from services.meter.follower import Follower
from services.meter.inquiry import Inquiry
from services.meter.insight import Insight
from services.meter.insight_service import SERVICE_NAME as INSIGHT_NAME
from services.meter.insight_service import InsightService
from services.meter.lessor import Lessor
from services.meter.month_maker import MonthMaker
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
from services.meter.store.audit import Audits
from services.meter.store.bill import BillReader, BillWriter
from services.meter.store.books import Role
from services.meter.store.callers import CallerReader
from services.meter.store.charges import ChargeReader
from services.meter.store.database import Database
from services.meter.store.exports import ExportReader
from services.meter.store.following import Following
from services.meter.store.invoices import InvoiceReader
from services.meter.store.questions import Questions
from services.meter.store.raw_events import RawEvents
from services.meter.store.rolling import HourRoller
from services.meter.telling import Telling
from services.meter.thread import WorkThreads
from services.meter.watchers import Watchers
from tokenworks.v1 import exports_pb2_grpc, insight_pb2_grpc, metering_pb2_grpc, pricing_pb2_grpc


async def lead(
    life: Lifecycle,
    settings: Settings,
    footing: Footing,
    database: Database,
    *,
    answers_http: AnswersHttp,
    writer: str,
    role: Role,
    writing: WorkThreads,
    reading: WorkThreads,
    exporting: WorkThreads,
    feed: Feed,
    own: Mapping[int, Bookkeeper],
    ears: Ears,
    begin: Callable[[], Awaitable[None]],
) -> int:
    """Starts all that is nobody's partition; the port of gRPC.

    Args:
        role: SOLE, or LEADER where others may be on the books.
        own: what this process books, by shard.
        begin: begins to book where that is not left to others.
    """
    meter_id = settings.meter.id
    bus, telemetry, clock = footing.bus, footing.telemetry, footing.clock
    following = Following(database)
    positions = await writing.run(partial(booked_up_to, database))
    shards = [each.shard for each in await reading.run(following.shards)]
    behind = await find_behind(bus, positions, shards)
    standing = await restore_price_books(bus, database, writer, role) if behind else None
    bookkeeper = await writing.run(
        partial(
            Desk,
            database,
            writer,
            settings.prices,
            rate_card(settings),
            clock.unix_ms(),
            clock=clock,
            lease_ttl_s=settings.meter.lease_ttl_s,
            role=role,
            own=own,
        )
    )
    audit = Audit(meter_id, bus, clock, telemetry)
    if standing is not None:
        await writing.run(partial(restore_budgets, bookkeeper, standing))
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

    def used(usage: Mapping[UsageKey, Amounts]) -> None:
        watchers.add(usage)
        runaways.booked(usage)

    def booked(done: Booked) -> None:
        announcer.spend(done.spent)
        used(done.usage)

    async def taken(keeper: Bookkeeper) -> None:
        for credit, budgeted in await writing.run(keeper.credits):
            if budgeted and partition_of(credit.tenant) in keeper.partitions:
                announcer.correct(credit.tenant, credit.spent_nusd)

    ears.booked, ears.taken = booked, taken
    ears.repaired = partial(audit.repaired_now, done="read from the streams again")
    follower = Follower(
        following=following, own=own, feed=feed, announcer=announcer, used=used, reading=reading, bus=bus
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
    months = MonthMaker(database, bookkeeper, reading=reading, writing=writing, clock=clock)
    await begin()
    tasks = [
        life.spawn(announcer.run(), "announcer"),
        life.spawn(follower.run(), "what others book"),
        life.spawn(reconciler.run(), "reconciler"),
        life.spawn(settler.run(), "settler"),
        life.spawn(roller.run(), "hours by caller"),
        life.spawn(months.run(), "months of detail"),
        life.spawn(insight.run(), "anomalies"),
        life.spawn(reratings.resume(), "unfinished re-ratings"),
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

    life.on_stop("who leads", partial(cancel_all, tasks))
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
    insight_service = InsightService(insight, settings.secrets)
    grpc_server.add(insight_pb2_grpc.add_InsightServicer_to_server, insight_service, INSIGHT_NAME)
    answers_http.open(inquiry, insight)
    grace_s = settings.mesh.drain_grace_s
    life.on_stop("grpc", partial(grpc_server.drain, grace_s), deadline_s=grace_s + 5.0)
    life.on_stop("watchers", watchers.stop)
    return await grpc_server.start(settings.mesh.host, settings.meter.port)
