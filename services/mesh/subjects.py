"""Every subject of the mesh in one table: template, event, stream, delivery guarantee, who publishes, who reads.

`docs/events.md` is generated from `CHANNELS` (`python -m services.mesh.events_reference`). A subject is the template
filled from the event's own fields; characters that NATS gives a meaning to are escaped as `~xx` (hex).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from services.mesh.events import (
    BudgetReached,
    BudgetsSet,
    CreditChanged,
    CreditRecalled,
    DriftFound,
    Event,
    LatencyObserved,
    PlacementsMade,
    PlacementsUsed,
    PrefixesChanged,
    PriceBookOpened,
    PricesRerated,
    RequestAdmitted,
    RequestFinished,
    RequestsAnswered,
    RoutingPlan,
    RunawayFound,
    SpendAnomalyFound,
    TokensGenerated,
    WorkerHeartbeat,
)


class Delivery(StrEnum):
    EXACTLY_ONCE_EFFECT = "JetStream, file, acked, deduplicated by the reader"
    SHORT = "JetStream, memory, short retention"
    LAST = "JetStream, last per subject"
    BEST_EFFORT = "core NATS, may be lost"


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream; bounds are hard limits, the oldest messages go first."""

    name: str
    subjects: tuple[str, ...]
    file: bool
    max_age_s: int
    max_bytes: int
    last_per_subject: bool = False


@dataclass(frozen=True, slots=True)
class Consumer:
    """How a durable reader is served; who reads what, each reader says itself.

    Attributes:
        ack_wait_s: after this an unsettled message comes again; a live reader keeps what it works on.
        max_ack_pending: messages under way to it and not settled.
        most_attempts: a message that failed alone so often, while others passed, is put aside (`tw.dead.<durable>`).
    """

    durable: str
    ack_wait_s: float = 10.0
    max_ack_pending: int = 1024
    most_attempts: int = 16


@dataclass(frozen=True, slots=True)
class Channel:
    """One kind of event on the bus. `stream` is None for core NATS."""

    name: str
    template: str
    event: type[Event]
    stream: str | None
    delivery: Delivery
    publishers: tuple[str, ...]
    readers: tuple[str, ...]
    says: str

    @property
    def wildcard(self) -> str:
        """The subject that matches every message of the channel."""
        return re.sub(r"\{[a-z_]+\}", "*", self.template)


STREAMS: Final = (
    Stream("TW_TOKENS", ("tw.tokens.*.*",), file=True, max_age_s=7 * 86_400, max_bytes=4 << 30),
    Stream("TW_REQUESTS", ("tw.requests.*.*",), file=True, max_age_s=7 * 86_400, max_bytes=2 << 30),
    Stream("TW_LATENCY", ("tw.latency.*.*",), file=False, max_age_s=300, max_bytes=32 << 20),
    Stream("TW_CREDIT", ("tw.credit.*",), file=True, max_age_s=0, max_bytes=256 << 20, last_per_subject=True),
    Stream("TW_BUDGETS", ("tw.budgets.*",), file=True, max_age_s=0, max_bytes=256 << 20, last_per_subject=True),
    Stream("TW_REACHED", ("tw.reached.*",), file=True, max_age_s=30 * 86_400, max_bytes=64 << 20),
    Stream(
        "TW_PRICES", ("tw.prices.*", "tw.rerated.*"), file=True, max_age_s=0, max_bytes=64 << 20, last_per_subject=True
    ),
    Stream("TW_PLAN", ("tw.plan.*",), file=True, max_age_s=0, max_bytes=64 << 20, last_per_subject=True),
    Stream("TW_AUDIT", ("tw.audit.*",), file=True, max_age_s=30 * 86_400, max_bytes=64 << 20),
    Stream("TW_RUNAWAY", ("tw.runaway.*.*.*",), file=True, max_age_s=86_400, max_bytes=64 << 20, last_per_subject=True),
    Stream("TW_ANOMALY", ("tw.anomaly.*",), file=True, max_age_s=30 * 86_400, max_bytes=64 << 20),
    Stream("TW_DEAD", ("tw.dead.*",), file=True, max_age_s=30 * 86_400, max_bytes=64 << 20),
)

# JetStream drops a second message of the same id within this; an optimisation, never the guarantee.
DUPLICATE_WINDOW_S: Final = 120.0

CONSUMERS: Final = (Consumer("meter-tokens"), Consumer("meter-requests"))

TOKENS: Final = Channel(
    name="tokens",
    template="tw.tokens.{pool}.{worker}",
    event=TokensGenerated,
    stream="TW_TOKENS",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("worker",),
    readers=("meter", "optimizer"),
    says="Tokens made, in runs per request, with the device time and energy they took; every 50 ms or 256 entries.",
)
LATENCY: Final = Channel(
    name="latency",
    template="tw.latency.{pool}.{worker}",
    event=LatencyObserved,
    stream="TW_LATENCY",
    delivery=Delivery.SHORT,
    publishers=("worker",),
    readers=("optimizer", "router"),
    says="Queue, TTFT, TPOT and worst gap of finished requests, and samples of engine steps.",
)
ADMITTED: Final = Channel(
    name="admitted",
    template="tw.requests.{router}.admitted",
    event=RequestAdmitted,
    stream="TW_REQUESTS",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("router", "worker"),  # whoever hands the tokens to the client
    readers=("meter", "optimizer"),
    says="A request was authenticated and placed, and its worker took it.",
)
FINISHED: Final = Channel(
    name="finished",
    template="tw.requests.{router}.finished",
    event=RequestFinished,
    stream="TW_REQUESTS",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("router", "worker", "meter"),  # whoever hands the tokens to the client, or writes them off
    readers=("meter", "optimizer"),
    says="A request ended: the range delivered, the outcome, and whether its promises were kept.",
)
FLEET: Final = Channel(
    name="fleet",
    template="tw.fleet.{worker}",
    event=WorkerHeartbeat,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("worker",),
    readers=("router", "optimizer"),
    says="A worker's state, four times a second.",
)
PREFIXES: Final = Channel(
    name="prefixes",
    template="tw.prefixes.{worker}",
    event=PrefixesChanged,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("worker",),
    readers=("router",),
    says="What a worker's prefix cache holds and no longer holds, from the engine's own KV events.",
)
PLACEMENTS: Final = Channel(
    name="placements",
    template="tw.placements.{router}",
    event=PlacementsUsed,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("worker",),
    readers=("router",),
    says="Which direct streams of a router's placements began and ended; at most four times a second from each worker.",
)
ROUTERS: Final = Channel(
    name="routers",
    template="tw.routers.{router}",
    event=PlacementsMade,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("router",),
    readers=("router",),
    says="What a router has just sent to workers, and that it is there; at most twenty times a second.",
)
ANSWERED: Final = Channel(
    name="answered",
    template="tw.answered.{router}",
    event=RequestsAnswered,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("router",),
    readers=("router",),
    says="Requests that a router has answered, so that no other answers them anew; at most twenty times a second.",
)
CREDIT: Final = Channel(
    name="credit",
    template="tw.credit.{tenant}",
    event=CreditChanged,
    stream="TW_CREDIT",
    delivery=Delivery.LAST,
    publishers=("meter",),
    readers=("router",),
    says="What a tenant with a budget has left.",
)
BUDGETS: Final = Channel(
    name="budgets",
    template="tw.budgets.{tenant}",
    event=BudgetsSet,
    stream="TW_BUDGETS",
    delivery=Delivery.LAST,
    publishers=("meter",),
    readers=("router", "meter"),
    says="All budgets of a tenant, whenever one of them is set or lifted.",
)
REACHED: Final = Channel(
    name="reached",
    template="tw.reached.{tenant}",
    event=BudgetReached,
    stream="TW_REACHED",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("meter",),
    readers=("operators",),
    says="A budget's spending has come to a percentage that is told of.",
)
RECALLS: Final = Channel(
    name="recalls",
    template="tw.recalls.{meter}",
    event=CreditRecalled,
    stream=None,
    delivery=Delivery.BEST_EFFORT,
    publishers=("meter",),
    readers=("router", "worker"),
    says="Some holder of leases lacks credit that others may have idle.",
)
PRICES: Final = Channel(
    name="prices",
    template="tw.prices.{label}",
    event=PriceBookOpened,
    stream="TW_PRICES",
    delivery=Delivery.LAST,
    publishers=("meter",),
    readers=("router", "meter"),
    says="A price book and from when it is in force: routers price by it, and the books can be made again from it.",
)
RERATED: Final = Channel(
    name="rerated",
    template="tw.rerated.{rerating}",
    event=PricesRerated,
    stream="TW_PRICES",
    delivery=Delivery.LAST,
    publishers=("meter",),
    readers=("meter",),
    says="Requests of some time are priced by the books as they are known now, also those that were billed otherwise.",
)
PLAN: Final = Channel(
    name="plan",
    template="tw.plan.{model}",
    event=RoutingPlan,
    stream="TW_PLAN",
    delivery=Delivery.LAST,
    publishers=("optimizer",),
    readers=("router", "optimizer"),
    says="Where the optimizer wants each workload class, the shadow prices, and the timing it believes in.",
)

AUDIT: Final = Channel(
    name="audit",
    template="tw.audit.{meter}",
    event=DriftFound,
    stream="TW_AUDIT",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("meter",),
    readers=("operators",),
    says="Books, witnesses or streams that do not agree, and what the meter did to make them agree again.",
)

RUNAWAY: Final = Channel(
    name="runaway",
    template="tw.runaway.{tenant}.{scope}.{name}",
    event=RunawayFound,
    stream="TW_RUNAWAY",
    delivery=Delivery.LAST,
    publishers=("meter", "worker"),
    readers=("router", "worker", "meter"),
    says="A tenant, workload, session or request runs away, with the evidence and what is done about it; or no more.",
)

ANOMALY: Final = Channel(
    name="anomaly",
    template="tw.anomaly.{tenant}",
    event=SpendAnomalyFound,
    stream="TW_ANOMALY",
    delivery=Delivery.EXACTLY_ONCE_EFFECT,
    publishers=("meter",),
    readers=(),
    says="A tenant or workload was billed far more in an hour than is usual for it, with the evidence.",
)

CHANNELS: Final = (
    TOKENS,
    LATENCY,
    ADMITTED,
    FINISHED,
    FLEET,
    PREFIXES,
    PLACEMENTS,
    ROUTERS,
    ANSWERED,
    CREDIT,
    BUDGETS,
    REACHED,
    RECALLS,
    PRICES,
    RERATED,
    PLAN,
    AUDIT,
    RUNAWAY,
    ANOMALY,
)
CONTROL_TEMPLATE: Final = "tw.control.{worker}"  # request/reply: Drain or MoveStreams -> ControlAnswered
GAPS_TEMPLATE: Final = "tw.gaps.{publisher}"  # request/reply: GapRequested -> GapAnswered
# request/reply: LeaseAsked -> LeaseGranted, answered by the meter that books the partition of tenants
LEASES_TEMPLATE: Final = "tw.leases.{partition}"
# What a durable reader could not decode, or failed on again and again, with the reason in a header.
DEAD_TEMPLATE: Final = "tw.dead.{durable}"

_BY_DURABLE: Final = {each.durable: each for each in CONSUMERS}
_BY_EVENT: Final = {channel.event: channel for channel in CHANNELS}
_FIELD: Final = re.compile(r"\{([a-z_]+)\}")
_TEMPLATES: Final = {
    channel.event: (_FIELD.sub("%s", channel.template), tuple(_FIELD.findall(channel.template))) for channel in CHANNELS
}
_LONGEST_REMEMBERED: Final = 128
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_PATTERNS: Final = {
    channel.name: re.compile(re.escape(channel.wildcard).replace(r"\*", r"[^.]+")) for channel in CHANNELS
}


def escape(token: str) -> str:
    """One subject token that stands for `token`, whatever its characters; injective; `~` alone for the empty string."""
    # What is remembered is bounded in number, so it has to be in length.
    return _remembered_escape(token) if len(token) <= _LONGEST_REMEMBERED else _escape(token)


def _escape(token: str) -> str:
    if _PLAIN.fullmatch(token):
        return token
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: "".join(f"~{byte:02x}" for byte in found[0].encode()), token) or "~"


_remembered_escape = lru_cache(maxsize=4096)(_escape)


def consumer_of(durable: str) -> Consumer:
    """How the durable reader of this name is served; as any is, when the table does not name it."""
    return _BY_DURABLE.get(durable) or Consumer(durable)


def channel_of(event: Event) -> Channel:
    return _BY_EVENT[type(event)]


def subject_of(event: Event) -> str:
    """The subject that the event is published on."""
    template, fields = _TEMPLATES[type(event)]
    return template % tuple([escape(getattr(event, field)) for field in fields])


def channel_at(subject: str) -> Channel | None:
    """The channel that a subject belongs to; None when it is none of ours."""
    return next((channel for channel in CHANNELS if _PATTERNS[channel.name].fullmatch(subject)), None)


def dead_subject(durable: str) -> str:
    return DEAD_TEMPLATE.replace("{durable}", escape(durable))


def control_subject(worker: str) -> str:
    return CONTROL_TEMPLATE.replace("{worker}", escape(worker))


def leases_subject(partition: int) -> str:
    return LEASES_TEMPLATE.replace("{partition}", str(partition))


def gaps_subject(publisher: str) -> str:
    """Where `<service>.<instance>` takes requests for events that a reader lacks."""
    return GAPS_TEMPLATE.replace("{publisher}", escape(publisher))
