"""Conservation: whether what was generated, delivered and billed agrees, and which of it does not. Pure.

Two witnesses tell of each request: its workers what they made, its deliverers what reached the client. A third, the
workers' heartbeats, tells how many tokens a worker has made in all. What must hold once a request has ended and all
that is told of it is booked:

    billed = delivered            per request: the booked state is the one that follows from the facts
    generated = delivered + waste per request: every delivered token is one that a worker reports to have made
    lines = booked                per request and place: the ledger's lines come to what is booked
    usage = lines                 per tenant; and the tenant's spending is the lines' price
    bill = use + energy + idle + what the house bears, with what the ledger's lines have of it: per hour
    reported = counted            per worker and start of it: its events have as many tokens as its heartbeats say

In: what the books say of a request (`Audited`), sums, heartbeats. Out: `Finding`s. Those of `AT_ONCE` hold in every
snapshot of the books; the others may only mean that something is still on its way, so they count when they have stood
for a while.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from services.mesh.pricing import Rates
from services.meter.core.amounts import NOTHING, Amounts, Place
from services.meter.core.attribution import Run, owners
from services.meter.core.marks import UNKNOWN, Source
from services.meter.core.ranges import Ranges
from services.meter.core.requests import Key, Request

_WORKERS_KEPT: Final = 1024
# A mark that nothing was added to for two weeks is forgotten; heartbeats are four a second.
_FORGOTTEN_AFTER_BEATS: Final = 4 * 86_400 * 13


class Kind(StrEnum):
    LINES = "lines"  # the ledger's lines do not come to what is booked
    BILLED = "billed"  # what is booked does not follow from the facts
    USAGE = "usage"  # usage is not what the lines come to
    SPENT = "spent"  # a tenant's spending is not what the lines come to
    UNREPORTED = "unreported"  # delivered, and no worker reports to have made it
    UNFINISHED = "unfinished"  # made, and no deliverer reports an end
    WORKER = "worker"  # a worker's events have not the tokens that its heartbeats counted
    LOST = "lost"  # events that cannot be had any more
    BEHIND = "behind"  # the database is older than what was acked
    BILL = "bill"  # an hour's bill is not what its parts and the ledger's lines come to


AT_ONCE: Final = frozenset({Kind.LINES, Kind.BILLED, Kind.USAGE, Kind.SPENT, Kind.BILL})


class Finding(NamedTuple):
    """What does not agree.

    Attributes:
        subject: the request, tenant, publisher or worker that it is about; `tenant`: where it is about one.
        what: in words.
    """

    kind: Kind
    subject: str
    tenant: str
    expected: int
    found: int
    what: str


@dataclass(frozen=True, slots=True)
class Audited:
    """One request in one snapshot of the books; `entered`: what the ledger's lines come to, by place and minute."""

    request: Request | None
    entered: Mapping[Place, Mapping[int, Amounts]]


def check(key: Key, audited: Audited, rates: Rates | None) -> list[Finding]:
    """What does not agree about one request.

    Args:
        rates: by which its price book prices it; None where no router has said which that is.
    """
    request = audited.request
    if request is None:
        lines = _total(audited.entered)
        if not any(lines):
            return []
        return [_finding(Kind.LINES, key, "the ledger has lines of a request that is not in the books", NOTHING, lines)]
    findings: list[Finding] = []
    for place in request.segments.keys() | audited.entered.keys():
        booked = request.segments[place].booked if place in request.segments else NOTHING
        lines = _sum(audited.entered.get(place, {}))
        if lines != booked:
            what = f"the ledger's lines at {place.worker} do not come to what is booked there"
            findings.append(_finding(Kind.LINES, key, what, booked, lines))
    if rates is not None:
        targets = request.targets(rates)
        for place in request.segments.keys() | targets.keys():
            booked = request.segments[place].booked if place in request.segments else NOTHING
            target = targets.get(place, NOTHING)
            if booked != target:
                what = f"what is booked at {place.worker} does not follow from what was reported"
                findings.append(_finding(Kind.BILLED, key, what, target, booked))
    if orphans := sum(run.end - run.start for run in unreported(request)):
        delivered = request.delivered.count
        what = f"{orphans} delivered tokens that no worker reports to have made"
        findings.append(Finding(Kind.UNREPORTED, *key, delivered, delivered - orphans, what))
    if request.finish is None and request.segments:
        made = Ranges().union(*(each.generated for each in request.segments.values())).count
        if made:  # else nobody is owed anything: whoever was to deliver it died before its first token
            what = f"{made} tokens were made, and no deliverer reports an end"
            findings.append(Finding(Kind.UNFINISHED, *key, 1, 0, what))
    return findings


def unreported(request: Request) -> list[Run]:
    """The delivered indexes that no worker reports to have made, each with the place that the deliverer named."""
    if request.finish is None or not request.delivered.count:
        return []
    made = Ranges().union(*(each.generated for each in request.segments.values()))
    if made.covers(request.delivered):
        return []
    nobody = Place("", "", "\0")
    runs = owners(request.delivered, {place: each.generated for place, each in request.segments.items()}, nobody)
    return [Run(start, end, request.finish.place) for start, end, place in runs if place == nobody]


def check_sums(tenant: str, lines: Amounts, usage: Amounts, spent_nusd: int) -> list[Finding]:
    """What does not agree about all of a tenant's requests together, in one snapshot of the books."""
    findings: list[Finding] = []
    if usage != lines:
        what = f"the usage of {tenant!r} is not what the ledger's lines come to"
        findings.append(_finding(Kind.USAGE, (tenant, tenant), what, lines, usage))
    if spent_nusd != lines.price_nusd:
        what = f"what {tenant!r} has spent is not the price of the ledger's lines"
        findings.append(Finding(Kind.SPENT, tenant, tenant, lines.price_nusd, spent_nusd, what))
    return findings


def check_bill(hour: int, accrued_nusd: int, posted_nusd: int, unbalanced: Sequence[tuple[str, int]]) -> list[Finding]:
    """What does not agree about an hour's bill that is booked.

    Args:
        accrued_nusd: use and energy by the ledger's lines that are dated in it.
        posted_nusd: of them, what its bill took into account.
        unbalanced: transactions that do not come to 0, with what they come to.
    """
    subject = datetime.fromtimestamp(hour * 3600, UTC).isoformat(timespec="minutes")
    findings: list[Finding] = []
    if accrued_nusd != posted_nusd:
        what = f"the bill of {subject} rests on {posted_nusd} nano-dollars of work, the ledger has {accrued_nusd}"
        findings.append(Finding(Kind.BILL, subject, "", accrued_nusd, posted_nusd, what))
    for transaction_id, amount_nusd in unbalanced:
        what = f"transaction {transaction_id} comes to {amount_nusd} nano-dollars, not to 0"
        findings.append(Finding(Kind.BILL, transaction_id, "", 0, amount_nusd, what))
    return findings


@dataclass(slots=True)
class _Counted:
    """What one start of a worker has said of itself: first as it was sampled, then latest."""

    worker: str
    sampled: int
    sampled_s: float
    latest: int
    latest_s: float
    booked: int | None = None  # when it was sampled


class Counts:
    """The third witness: tokens made by each start of a worker, as its heartbeats count them.

    A heartbeat may be ahead of what is booked and what is booked ahead of the last heartbeat, so each is held against
    the other as it stands a while later.
    """

    def __init__(self) -> None:
        self._counted: OrderedDict[Source, _Counted] = OrderedDict()

    @property
    def sources(self) -> Collection[Source]:
        """Of the workers that were heard."""
        return self._counted.keys()

    def beat(self, source: Source, worker: str, sequence: int, generated_tokens: int, now_s: float) -> None:
        """Takes a heartbeat in.

        Args:
            source: as of the worker's tokens.
            sequence: the heartbeat's.
        """
        if sequence > _FORGOTTEN_AFTER_BEATS:
            return
        counted = self._counted.get(source)
        if counted is None:
            counted = self._counted[source] = _Counted(worker, generated_tokens, now_s, generated_tokens, now_s)
            while len(self._counted) > _WORKERS_KEPT:
                self._counted.popitem(last=False)
        counted.latest, counted.latest_s = generated_tokens, now_s

    def check(self, booked: Mapping[Source, int], now_s: float, patience_s: float) -> dict[Source, Finding | None]:
        """What does not agree, of each worker that was looked at; None where it does.

        Args:
            booked: tokens in the booked events of each publisher.
            patience_s: how long what a heartbeat says may take to be booked, and the other way.
        """
        looked_at: dict[Source, Finding | None] = {}
        for source, counted in self._counted.items():
            if now_s - counted.sampled_s < patience_s:
                continue
            known = booked.get(source, 0)
            if known == UNKNOWN:
                continue
            finding = None
            if known < counted.sampled:
                what = f"{counted.sampled - known} tokens that {counted.worker} made and reported in no event"
                finding = Finding(Kind.WORKER, counted.worker, "", counted.sampled, known, what)
            elif (
                counted.booked is not None
                and counted.booked > counted.latest
                # Who died told of more than its last heartbeat counted.
                and counted.latest_s > counted.sampled_s
            ):
                what = f"{counted.booked - counted.latest} tokens more in events of {counted.worker} than it made"
                finding = Finding(Kind.WORKER, counted.worker, "", counted.latest, counted.booked, what)
            looked_at[source] = finding
            counted.sampled, counted.sampled_s, counted.booked = counted.latest, now_s, known
        return looked_at


def _total(entered: Mapping[Place, Mapping[int, Amounts]]) -> Amounts:
    total = NOTHING
    for dated in entered.values():
        total = total.plus(_sum(dated))
    return total


def _sum(dated: Mapping[int, Amounts]) -> Amounts:
    total = NOTHING
    for amounts in dated.values():
        total = total.plus(amounts)
    return total


def _finding(kind: Kind, key: Key, what: str, expected: Amounts, found: Amounts) -> Finding:
    """With the first quantity that differs."""
    name, should, does = next(each for each in zip(Amounts._fields, expected, found, strict=True) if each[1] != each[2])
    return Finding(kind, *key, should, does, f"{what}: {name} is {does}, it should be {should}")
