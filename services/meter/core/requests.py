"""One request in the ledger: the facts known of it, and what is booked for it at each place. Pure.

Facts only ever grow (`note_…`): unions of ranges, sums, and the greatest of comparable reports. From the facts follows
the `target` at each place; `settle` books target minus booked. So the order in which facts come makes no difference to
what is booked in the end, and a correction is a new entry.

Where things are booked:
- Generated tokens, device time, energy and their costs: at the place that generated them.
- Delivered tokens and the price of output: at the place that the delivered token came from (`attribution.py`).
- The request, its prompt and the prompt's price, its end and its SLO: at its *home*, the place of the first billed
  token; without one, the place that the deliverer named. A request counts once a worker or its deliverer has reported;
  admission alone books nothing.

What is billed: while a request runs, what was generated; once its deliverer reported, what was delivered; of one that
the meter wrote off, nothing. The prompt is billed once, when at least one token is, or when the request ended by itself
without one.

When: an increment is dated at the minute of the event that caused it. A decrement (waste turned out not to be billable,
the home moved) goes back to the minutes in which the segment was booked, latest first, so no minute falls below zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.mesh.events import Outcome, RequestAdmitted, RequestFinished
from services.mesh.pricing import Rates
from services.meter.core.amounts import MS_PER_MINUTE, NOTHING, NOWHERE, Amounts, Place
from services.meter.core.attribution import Run, owners, price_by_place, tokens_by_place
from services.meter.core.costs import Rate
from services.meter.core.ranges import Ranges

MOST_TOKENS: Final = (1 << 32) - 1  # of one request: more has no place on the wire

Key = tuple[str, str]  # request id, tenant: a caller chooses its ids, so they are its own only

ENDED_BY_ITSELF: Final = frozenset({Outcome.STOP, Outcome.LENGTH})


class Admission(NamedTuple):
    """What a router said when it placed the request; of several the earliest holds."""

    at_unix_ms: int
    router: str
    price_book: str
    plan: str
    key: str
    team: str
    session_id: str


class Finish(NamedTuple):
    """What a deliverer said when its stream ended; of several the one that got furthest holds, unless the meter wrote
    the request off."""

    delivered_end: int
    at_unix_ms: int
    router: str
    outcome: str
    place: Place
    prompt_tokens: int
    cached_prompt_tokens: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    slo_met: bool
    trace_id: str
    admitted_unix_ms: int
    price_book: str
    plan: str


class Increment(NamedTuple):
    """Amounts to book at a place, dated at a minute since 1970."""

    place: Place
    minute: int
    amounts: Amounts


def _weight(finish: Finish) -> tuple[bool, Finish]:
    return finish.outcome == Outcome.WRITTEN_OFF, finish


def _finite(seconds: float) -> float:
    """Seconds as they can be stored and compared; 0 stands for what is no number."""
    return seconds if math.isfinite(seconds) else 0.0


@dataclass(slots=True)
class Segment:
    """One place's part in a request.

    Attributes:
        prompt_tokens, cached_prompt_tokens: as the worker counted them.
        booked: what the ledger holds, all minutes together.
        minute: the latest minute booked; 0 before the first.
        earlier: what of `booked` is dated at other minutes.
    """

    place: Place
    rate: Rate
    generated: Ranges = field(default_factory=Ranges)
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    device_ns: int = 0
    energy_uj: int = 0
    measured_energy_uj: int = 0
    closed: bool = False
    booked: Amounts = NOTHING
    minute: int = 0
    earlier: dict[int, Amounts] = field(default_factory=dict)

    def adopt(self, entered: Mapping[int, Amounts]) -> None:
        """Takes what the ledger's lines come to, by minute, for what is booked."""
        total = NOTHING
        for amounts in entered.values():
            total = total.plus(amounts)
        if any(min(amounts) < 0 for amounts in entered.values()):
            entered = {
                max(entered): total
            }  # such lines were changed by somebody: all of it counts as the last minute's
        dated = {minute: amounts for minute, amounts in entered.items() if any(amounts)}
        self.booked, self.minute = total, max(dated, default=0)
        dated.pop(self.minute, None)
        self.earlier = dated

    def book(self, target: Amounts, minute: int) -> list[Increment]:
        """Makes `target` the booked state; the increments that do it, dated as the module says."""
        if target == self.booked:
            return []
        delta = target.minus(self.booked)
        if (minute == self.minute or not self.minute) and min(delta) >= 0:
            self.booked, self.minute = target, minute
            return [Increment(self.place, minute, delta)]
        dated = dict(self.earlier)
        if self.minute:
            dated[self.minute] = self.booked
            for each in self.earlier.values():
                dated[self.minute] = dated[self.minute].minus(each)
        parts = _dated(delta, minute, dated)
        for each_minute, part in parts.items():
            dated[each_minute] = dated.get(each_minute, NOTHING).plus(part)
        self.booked, self.minute = target, max(dated)
        del dated[self.minute]
        self.earlier = {each_minute: amounts for each_minute, amounts in dated.items() if any(amounts)}
        return [Increment(self.place, each_minute, part) for each_minute, part in parts.items()]


def _dated(delta: Amounts, minute: int, booked: dict[int, Amounts]) -> dict[int, Amounts]:
    """`delta` by minute: what is added at `minute`, what is taken off from where it was booked, latest minute first."""
    parts = {}
    added = Amounts(*(max(0, each) for each in delta))
    if any(added):
        parts[minute] = added
    owed = Amounts(*(max(0, -each) for each in delta))
    for each_minute in sorted(booked, reverse=True):
        taken = Amounts(*(max(0, min(each, there)) for each, there in zip(owed, booked[each_minute], strict=True)))
        if any(taken):
            owed = owed.minus(taken)
            parts[each_minute] = parts.get(each_minute, NOTHING).minus(taken)
    assert not any(owed), f"more to take off than was booked: {owed}"
    return parts


@dataclass(slots=True)
class Request:
    """The facts of one request.

    Attributes:
        minute: of the latest event noted since the last `settle`.
        reported: whether admission or end changed since the request was last stored.
    """

    key: Key
    workload: str
    model: str
    slo_class: str
    admission: Admission | None = None
    finish: Finish | None = None
    delivered: Ranges = field(default_factory=Ranges)
    segments: dict[Place, Segment] = field(default_factory=dict)
    rates: tuple[str, Rates] | None = None
    minute: int = 0
    reported: bool = True

    @property
    def request_id(self) -> str:
        return self.key[0]

    @property
    def tenant(self) -> str:
        return self.key[1]

    @property
    def billable(self) -> Ranges:
        """What was delivered and is to be paid for, once it has ended."""
        written_off = self.finish is not None and self.finish.outcome == Outcome.WRITTEN_OFF
        return Ranges() if written_off else self.delivered

    @property
    def known_delivered_tokens(self) -> int:
        """What reached its client as far as that is known without its end: whoever went on with it had this much."""
        made = Ranges().union(*(each.generated for each in self.segments.values()))
        begun_at = [each.generated.first for each in self.segments.values()]
        return max((first for first in begun_at if made.covers(Ranges([(0, first)]))), default=0)

    @property
    def price_book(self) -> str:
        """Label of the book in force when it was admitted; empty while no router has said."""
        if self.finish is not None and self.finish.price_book:
            return self.finish.price_book
        return self.admission.price_book if self.admission else ""

    @property
    def admitted_unix_ms(self) -> int:
        """When it was let in; 0 while no router has said."""
        if self.finish is not None and self.finish.admitted_unix_ms:
            return self.finish.admitted_unix_ms
        return self.admission.at_unix_ms if self.admission else 0

    @property
    def latest_unix_ms(self) -> int:
        """When it ended or, where nobody has said, was let in; and the minute of its latest line where that is later.
        The store drops no request before that is long ago."""
        told = self.finish.at_unix_ms if self.finish is not None else self.admitted_unix_ms
        return max(told, *(each.minute * MS_PER_MINUTE for each in self.segments.values()), 0)

    @property
    def booked(self) -> Amounts:
        """All that is booked, at all places."""
        total = NOTHING
        for segment in self.segments.values():
            total = total.plus(segment.booked)
        return total

    @property
    def closed(self) -> bool:
        """Whether everything that is normally reported was: the end, and each worker's last entry."""
        return self.finish is not None and all(each.closed for each in self.segments.values())

    def note_admitted(self, event: RequestAdmitted) -> None:
        who = event.key, event.team, event.session_id
        admission = Admission(event.at_unix_ms, event.router, event.price_book, event.plan, *who)
        self.admission = min(self.admission or admission, admission)
        self.reported = True

    def note_finished(self, event: RequestFinished) -> None:
        # What is said beyond can't be put into the log again as tokens that were made.
        end = min(event.delivered_from + event.delivered_count, MOST_TOKENS)
        # Whoever goes on with an answer was told by its client what that has, and the one who delivered it may be dead.
        self.delivered.add(0, end)
        finish = Finish(
            end,
            event.at_unix_ms,
            event.router,
            event.outcome,
            Place(event.worker, event.pool, event.accelerator),
            event.prompt_tokens,
            event.cached_prompt_tokens,
            _finite(event.ttft_s),
            _finite(event.tpot_s),
            _finite(event.e2e_s),
            event.slo_met,
            event.trace_id,
            event.admitted_unix_ms,
            event.price_book,
            event.plan,
        )
        self.finish = max(self.finish or finish, finish, key=_weight)
        self.reported = True

    def settle(self, rates: Rates, rate_of_home: Rate) -> list[Increment]:
        """Books target minus booked at every place.

        Args:
            rates: the tenant's, by `price_book`.
            rate_of_home: of the accelerator that the deliverer named, should no worker have reported from there.
        """
        sole = self._sole(rates)
        if sole is not None:
            segment, target = sole
            return segment.book(target, self.minute)
        increments: list[Increment] = []
        targets = self.targets(rates)
        for place in targets.keys() - self.segments.keys():
            self.segments[place] = Segment(place, rate_of_home)
        for place, segment in self.segments.items():
            increments += segment.book(targets.get(place, NOTHING), self.minute)
        return increments

    def correct(
        self, rates: Rates, rate_of_home: Rate, entered: Mapping[Place, Mapping[int, Amounts]]
    ) -> list[Increment]:
        """Books target minus what the ledger's lines come to, for a request whose facts were all read again.

        Args:
            entered: the lines' sums by place and minute.
        """
        for place in self.targets(rates).keys() - self.segments.keys():
            self.segments[place] = Segment(place, rate_of_home)
        increments: list[Increment] = []
        for place, dated in entered.items():
            if place in self.segments:
                self.segments[place].adopt(dated)
            else:  # lines of a place that had no part in it
                phantom = Segment(place, rate_of_home)
                phantom.adopt(dated)
                increments += phantom.book(NOTHING, self.minute)
        return self.settle(rates, rate_of_home) + increments

    def targets(self, rates: Rates) -> dict[Place, Amounts]:
        """What is to be booked at each place, by the facts known so far."""
        sole = self._sole(rates)
        if sole is not None:
            segment, target = sole
            return {segment.place: target}
        if self.finish is not None:
            billed, named = self.billable, self.finish.place
        elif self.segments:
            billed, named = Ranges().union(*(each.generated for each in self.segments.values())), NOWHERE
        else:
            return {}
        runs = owners(billed, {place: each.generated for place, each in self.segments.items()}, named)
        home = self._home(runs, named)
        prompt_tokens, cached_prompt_tokens = self._billed_prompt(billed.count, self.segments.get(home))
        prices = price_by_place(rates, prompt_tokens, cached_prompt_tokens, runs, home)
        tokens = tokens_by_place(runs)
        targets = {}
        for place in self.segments.keys() | prices.keys():
            at_home = place == home
            targets[place] = self._amounts(
                self.segments.get(place),
                at_home=at_home,
                prompt_tokens=prompt_tokens if at_home else 0,
                cached_prompt_tokens=cached_prompt_tokens if at_home else 0,
                delivered_tokens=tokens.get(place, 0),
                price_nusd=prices.get(place, 0),
            )
        return targets

    def _sole(self, rates: Rates) -> tuple[Segment, Amounts] | None:
        """The target when one place made all that is billed: nearly always, so it has the short way."""
        if len(self.segments) != 1:
            return None
        (segment,) = self.segments.values()
        if self.finish is None:
            billed_tokens = segment.generated.count
        elif self.billable.count and segment.generated.covers(self.billable):
            billed_tokens = self.billable.count
        else:
            return None
        prompt_tokens, cached_prompt_tokens = self._billed_prompt(billed_tokens, segment)
        target = self._amounts(
            segment,
            at_home=True,
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=cached_prompt_tokens,
            delivered_tokens=billed_tokens,
            price_nusd=rates.price_nusd(prompt_tokens, cached_prompt_tokens, billed_tokens),
        )
        return segment, target

    def _home(self, runs: list[Run], named: Place) -> Place:
        if runs:
            return runs[0].place
        if named.worker or not self.segments:
            return named
        return min(self.segments)

    def _billed_prompt(self, billed_tokens: int, home: Segment | None) -> tuple[int, int]:
        """Prompt tokens billed, and those of them that were cached: the deliverer's word, else the worker's."""
        if not billed_tokens and (self.finish is None or self.finish.outcome not in ENDED_BY_ITSELF):
            return 0, 0
        if self.finish is not None and self.finish.prompt_tokens:
            prompt_tokens, cached_prompt_tokens = self.finish.prompt_tokens, self.finish.cached_prompt_tokens
        elif home is not None:
            prompt_tokens, cached_prompt_tokens = home.prompt_tokens, home.cached_prompt_tokens
        else:
            return 0, 0
        return prompt_tokens, min(cached_prompt_tokens, prompt_tokens)

    def _amounts(
        self,
        segment: Segment | None,
        *,
        at_home: bool,
        prompt_tokens: int,
        cached_prompt_tokens: int,
        delivered_tokens: int,
        price_nusd: int,
    ) -> Amounts:
        finish = self.finish if at_home else None
        return Amounts(
            int(at_home),
            int(finish is not None),
            int(finish is not None and finish.slo_met),
            prompt_tokens,
            cached_prompt_tokens,
            segment.generated.count if segment else 0,
            delivered_tokens,
            price_nusd,
            segment.rate.use_cost_nusd(segment.device_ns) if segment else 0,
            segment.rate.energy_cost_nusd(segment.energy_uj) if segment else 0,
            segment.device_ns if segment else 0,
            segment.energy_uj if segment else 0,
            segment.measured_energy_uj if segment else 0,
        )
