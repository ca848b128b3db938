"""The ledger: events in, entries out, for all requests that are under way. Pure.

`note` takes the facts of one event, `note_runs` those of many reports, each event once (`marks.py` sees to that);
`settle` books every request that was touched since the last time and returns the entries, in the order of the requests'
first touch. The caller stores the entries and the touched requests in one transaction, and hands back from its store
(`adopt`) the requests that `absent` says are needed. Whatever the order of events, the sum of a request's entries ends
up the same.

An entry is append-only and balanced by construction: each of its amounts of money is one transfer between two
accounts, the price from the tenant's receivable to revenue, use and energy cost from cost of service to the fleet.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from services.mesh.entries import facts
from services.mesh.events import Event, RequestAdmitted, RequestFinished, TokensGenerated
from services.mesh.price_calendar import PriceCalendar
from services.mesh.pricing import Rates
from services.meter.core.amounts import MS_PER_MINUTE, Amounts, Place
from services.meter.core.costs import Rate, RateCard
from services.meter.core.requests import Increment, Key, Request, Segment
from services.meter.core.runs import Refusal, Run, Runs

MAX_KEPT: Final = 50_000
_MAX_FINDINGS: Final = 1000  # events name what they like
_MAX_RATES: Final = 1000  # likewise


class Entry(NamedTuple):
    """One line of the ledger: increments of one request's amounts at one place, dated at a minute since 1970."""

    request_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    place: Place
    minute: int
    amounts: Amounts


def keys_of(events: Iterable[Event]) -> set[Key]:
    """The requests that the events tell of."""
    keys: set[Key] = set()
    for event in events:
        if isinstance(event, TokensGenerated):
            keys.update(fact[:2] for fact in facts(event.entries))
        elif isinstance(event, RequestAdmitted | RequestFinished):
            keys.add((event.request_id, event.tenant))
    return keys


def _entry(request: Request, increment: Increment) -> Entry:
    request_id, tenant = request.key
    return Entry(request_id, tenant, request.workload, request.model, request.slo_class, *increment)


def _only(key: Key, event: Event) -> Event:
    """The event, of a batch what is of this request."""
    if not isinstance(event, TokensGenerated):
        return event
    return replace(event, entries=tuple(each for each in event.entries if (each.request_id, each.tenant) == key))


class Ledger:
    """Requests under way, and those of the recent past, at most `max_kept`.

    What it had to assume is said once each, see `take_findings`.
    """

    def __init__(self, prices: PriceCalendar, rate_card: RateCard, *, max_kept: int = MAX_KEPT) -> None:
        self._prices = prices
        self._rate_card = rate_card
        self._max_kept = max_kept
        self._requests: OrderedDict[Key, Request] = OrderedDict()
        self._touched: dict[Key, Request] = {}
        self._rate_by_accelerator: dict[str, Rate] = {}
        self._refused: list[Refusal] = []
        self._assumed: set[str] = set()
        self._findings: list[str] = []

    def absent(self, keys: Iterable[Key]) -> list[Key]:
        """Those of the requests that are not at hand: load them, and `adopt` what is stored of them."""
        return [key for key in keys if key not in self._requests]

    def at_hand(self, keys: Iterable[Key]) -> list[Request]:
        """Those of the requests that are at hand, as they are booked."""
        return [request for key in keys if (request := self._requests.get(key)) is not None]

    def adopt(self, requests: Iterable[Request]) -> None:
        """Takes over stored requests."""
        self._requests.update((request.key, request) for request in requests)

    def note(self, event: Event) -> None:
        """Takes in the facts of one event."""
        if isinstance(event, TokensGenerated):
            runs = Runs()
            runs.fold(event)
            self.note_runs(runs)
        elif isinstance(event, RequestAdmitted | RequestFinished) and not event.request_id:
            self._refused.append(Refusal(event.router, "", "no request id"))
        elif isinstance(event, RequestAdmitted | RequestFinished):
            key, minute = (event.request_id, event.tenant), event.at_unix_ms // MS_PER_MINUTE
            request = self._touch(key, minute)
            if request is None:
                request = self._begin(Request(key, event.workload, event.model, event.slo_class), minute)
            if isinstance(event, RequestAdmitted):
                request.note_admitted(event)
            else:
                request.note_finished(event)

    def note_runs(self, runs: Runs) -> None:
        """Takes in the facts of folded reports."""
        self._refused += runs.refused
        for run in runs.runs:
            self._note_run(run)

    def settle(self) -> tuple[list[Entry], Sequence[Request]]:
        """Books all touched requests: the new entries, and the requests to store with them."""
        entries: list[Entry] = []
        touched = list(self._touched.values())
        self._touched.clear()
        for request in touched:
            increments = request.settle(self._rates(request), self._rate_of_finish(request))
            entries += [_entry(request, each) for each in increments]
        return entries, touched

    def reprice(self, keys: Iterable[Key]) -> None:
        """Has requests at hand settled again, dated at their last booked minute: what prices them may have changed."""
        for key in keys:
            request = self._requests.get(key)
            if request is not None and key not in self._touched:
                request.minute = max((each.minute for each in request.segments.values()), default=0) or 1
                self._touched[key] = request

    def rates_of(self, request: Request) -> Rates:
        """What a request is priced at, by all that is known."""
        return self._rates(request)

    def under_way(self) -> list[Request]:
        """Requests at hand that nobody has reported an end of."""
        return [each for each in self._requests.values() if each.finish is None]

    def remake(
        self, key: Key, events: Iterable[Event], before: Request | None, entered: Mapping[Place, Mapping[int, Amounts]]
    ) -> tuple[Request | None, list[Entry]]:
        """One request from its events alone, all of them; and the entries that make the ledger's lines agree with it.

        Args:
            events: of any requests; each counts.
            before: as it is stored: its places keep the rates that they were booked at.
            entered: what the ledger's lines for it come to, by place and minute.
        """
        scratch = Ledger(self._prices, self._rate_card)
        for event in events:
            scratch.note(_only(key, event))
        request = scratch._requests.get(key)
        if request is None:
            return None, []
        for place, segment in request.segments.items():
            if before is not None and place in before.segments:
                segment.rate = before.segments[place].rate
        increments = request.correct(scratch._rates(request), scratch._rate_of_finish(request), entered)
        return request, [_entry(request, each) for each in increments]

    def drop(self, key: Key) -> None:
        """Forgets what is at hand of a request that the store has otherwise now."""
        self._requests.pop(key, None)

    def release(self, stored: Iterable[Request], detail_from_unix_ms: int = 0) -> None:
        """Lets go of those that are stored and complete, or so old that the store may drop them at any time; and of the
        longest untouched beyond `max_kept`.

        A straggler's event makes them `absent`, so they are loaded again.
        """
        assert not self._touched, "settle and store first"
        for request in stored:
            if request.closed or request.latest_unix_ms < detail_from_unix_ms:
                self._requests.pop(request.key, None)
        while len(self._requests) > self._max_kept:
            self._requests.popitem(last=False)

    def forget(self) -> None:
        """Drops everything: what the store has is the truth after a transaction failed."""
        self._requests.clear()
        self._touched.clear()
        self._refused.clear()

    def take_refused(self) -> list[Refusal]:
        """The reports that could not be booked since the last call."""
        refused, self._refused = self._refused, []
        return refused

    def take_findings(self) -> list[str]:
        """What was assumed for the first time since the last call, for a reader."""
        findings, self._findings = self._findings, []
        return findings

    def _assume(self, finding: str) -> None:
        if finding not in self._assumed and len(self._assumed) < _MAX_FINDINGS:
            self._assumed.add(finding)
            self._findings.append(finding)

    def _note_run(self, run: Run) -> None:
        request = self._touch(run.key, run.minute)
        if request is None:
            entry = run.entry
            request = self._begin(Request(run.key, entry.workload, entry.model, entry.slo_class), run.minute)
        segment = request.segments.get(run.place)
        if segment is None:
            segment = request.segments[run.place] = Segment(run.place, self._rate(run.place.accelerator))
        run.add_to(segment)

    def _touch(self, key: Key, minute: int) -> Request | None:
        """The request, to be settled at this minute or a later one; None where it is not known."""
        request = self._touched.get(key)
        if request is None:
            request = self._requests.get(key)
            if request is None:
                return None
            self._requests.move_to_end(key)
            self._touched[key] = request
            request.minute = 1  # minute 0 stands for none
        request.minute = max(request.minute, minute)
        return request

    def _begin(self, request: Request, minute: int) -> Request:
        self._requests[request.key] = self._touched[request.key] = request
        request.minute = max(1, minute)
        return request

    def _rates(self, request: Request) -> Rates:
        label, prices = request.price_book, self._prices
        if prices.reratings:
            label = prices.label_for(label, request.admitted_unix_ms)
        if request.rates is None or request.rates[0] != label:
            pricing = prices.pricing(label)
            if pricing is None:
                pricing = prices.at(request.admitted_unix_ms or request.minute * MS_PER_MINUTE)
                if label:
                    self._assume(f"price book {label!r} is not known here; {pricing.label} prices it")
            request.rates = (label, pricing.rates(request.model, request.key[1], request.slo_class))
        return request.rates[1]

    def _rate(self, accelerator: str) -> Rate:
        if not self._rate_card.knows(accelerator):
            self._assume(f"accelerator {accelerator!r} is not in the catalogue; its device time is booked at no cost")
        return self._rate_of(accelerator)

    def _rate_of_finish(self, request: Request) -> Rate:
        return self._rate_of(request.finish.place.accelerator if request.finish else "")

    def _rate_of(self, accelerator: str) -> Rate:
        rate = self._rate_by_accelerator.get(accelerator)
        if rate is None:
            if len(self._rate_by_accelerator) >= _MAX_RATES:
                self._rate_by_accelerator.clear()
            rate = self._rate_by_accelerator[accelerator] = self._rate_card.rate(accelerator)
        return rate
