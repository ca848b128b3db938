"""What is held for requests, until their bill is final: then the bill is spent and the rest of the hold is free. Pure.

In: what events say is held (`Funding`), ends, and what the ledger has booked for a request. Out: accounts spent and
holds closed, in `leases.py`; rows to store.

While a request runs, its hold stands for all that it may cost, and nothing of it counts as spent. Its bill is final
when its deliverer has reported and every worker has told its last: only then are the hold closed and the bill counted,
together. Later corrections count as they come. A request whose end never comes, since its deliverer or its worker
died, is closed when nothing was heard of it for `STALE_S`, or, once its funder is dead, when its workers have told
their last.

What a request of several windows is billed falls into the earliest first, as far as was held there.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from services.mesh.credit import EVERY, Account, Scope, Unit, account_of, window_at
from services.mesh.events import Funding, RequestAdmitted, RequestFinished, Unused
from services.meter.core.amounts import MS_PER_MINUTE, Amounts
from services.meter.core.leases import Leases
from services.meter.core.ledger import Entry
from services.meter.core.ranges import Ranges
from services.meter.core.requests import ENDED_BY_ITSELF, Key, Request
from services.meter.core.runs import Run

STALE_S: Final = 30.0
_KEPT: Final = 10_000


@dataclass(slots=True)
class Held:
    """One request's credit.

    Attributes:
        held: by funder and account; closed: as much of it as is closed.
        spent: by account, as counted.
        ended: its deliverer has reported; final: its bill was counted once.
        funders_ended: those whose deliverer has reported; workers_ended: those that have told their last of it.
        heard_s: when something was heard of it last.
    """

    held: dict[str, dict[Account, int]] = field(default_factory=dict)
    closed: dict[str, dict[Account, int]] = field(default_factory=dict)
    spent: dict[Account, int] = field(default_factory=dict)
    ended: bool = False
    final: bool = False
    funders_ended: set[str] = field(default_factory=set)
    workers_ended: set[str] = field(default_factory=set)
    heard_s: float = 0.0

    @property
    def open(self) -> bool:
        """Something is held for it that is not closed."""
        return any(self.closed.get(funder) != held for funder, held in self.held.items())

    def hold(self, funding: Iterable[Funding]) -> None:
        """Totals: the greatest counts."""
        for each in funding:
            held = self.held.setdefault(each.funder, {})
            for hold in each.holds:
                account = account_of(hold)
                held[account] = max(held.get(account, 0), hold.amount)


def billed(unit: str, amounts: Amounts) -> int:
    """What is booked, as a budget of that unit counts."""
    return amounts.prompt_tokens + amounts.delivered_tokens if unit == Unit.TOKENS else amounts.price_nusd


def _quiet(request: Request, held: Held) -> bool:
    """All workers that took part have told their last."""
    return bool(request.segments) and all(place.worker in held.workers_ended for place in request.segments)


def _complete(request: Request, held: Held) -> bool:
    """Its deliverer has reported, and all that it was made of is booked."""
    if request.finish is None:
        return False
    if not request.billable.count and request.finish.outcome not in ENDED_BY_ITSELF:
        return True  # nothing is billed, whatever comes
    made = Ranges().union(*(each.generated for each in request.segments.values()))
    return _quiet(request, held) and made.covers(request.delivered)


class FundedRequests:
    """The requests of tenants with budgets."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._open: dict[Key, Held] = {}
        self._past: OrderedDict[Key, Held | None] = OrderedDict()  # closed; None: nothing is held for it
        self._changed: dict[Key, None] = {}

    def absent(self, keys: Iterable[Key]) -> list[Key]:
        """Those that are not at hand: load them, and `adopt` what is stored."""
        return [key for key in keys if key not in self._open and key not in self._past]

    def adopt(self, keys: Iterable[Key], found: Mapping[Key, Held], now_s: float) -> None:
        """Takes over what is stored of `keys`."""
        for key in keys:
            held = found.get(key)
            if held is not None and held.open:
                held.heard_s = now_s
                self._open[key] = held
            else:
                self._keep(key, held)

    def note(self, event: RequestAdmitted | RequestFinished, now_s: float) -> None:
        """Takes in what an event says is held, and that a deliverer has reported."""
        key = (event.request_id, event.tenant)
        held = self._of(key, event.funding)
        if held is None:
            return
        held.heard_s = now_s
        if isinstance(event, RequestFinished):
            held.ended = True
            held.funders_ended.update(funding.funder for funding in event.funding)
            self._changed[key] = None

    def note_run(self, run: Run, now_s: float) -> None:
        """Takes in what a worker's entries say is held, and that it has told its last."""
        held = self._of(run.key, chain.from_iterable(run.funding or ()))
        if held is None:
            return
        held.heard_s = now_s
        if run.last:
            held.workers_ended.add(run.place.worker)
            self._changed[run.key] = None

    def unbacked(self, key: Key, funding: Iterable[Funding]) -> bool:
        """Whether more is said to be held for a request than was heard of when its funder was closed out: that credit
        is others' meanwhile. The request is not billed."""
        known = self._open.get(key) or self._past.get(key)
        for each in funding:
            if self._leases.backs(each.funder):
                continue
            held = {} if known is None else known.held.get(each.funder, {})
            if any(hold.amount > held.get(account_of(hold), 0) for hold in each.holds):
                return True
        return False

    def unused(self, funder: str, unused: Unused) -> None:
        """A hold that was told to others, of a request that nobody has made anything of."""
        key = (unused.request_id, unused.tenant)
        if key in self._open:
            return  # somebody has taken it, and will tell its end
        held = self._of(key, (Funding(funder=funder, holds=unused.holds),))
        if held is not None:
            self._close(key, held, [funder])

    def settle(self, requests: Iterable[Request]) -> None:
        """Closes what has its last word, and counts what final requests are billed."""
        for request in requests:
            key = request.key
            held = self._open.get(key) or self._past.get(key)
            if held is None:
                continue
            if held.ended and _complete(request, held):
                self._close(key, held, list(held.funders_ended))
            if held.final:
                self._count(key, held, request.booked)

    def count_unfunded(self, entries: Iterable[Entry]) -> None:
        """What is billed for requests that hold nothing: from before a budget was set, say."""
        for entry in entries:
            key = (entry.request_id, entry.tenant)
            if key in self._open or self._past.get(key) is not None:
                continue
            unix_s = entry.minute * MS_PER_MINUTE // 1000
            for terms in self._leases.of_tenant(entry.tenant):
                if terms.scope == Scope.TENANT:
                    subject = ""
                elif terms.scope == Scope.WORKLOAD and terms.subject in (EVERY, entry.workload):
                    subject = entry.workload
                else:
                    continue
                self._leases.spend(
                    Account(terms.budget, subject, window_at(terms.period, unix_s)), billed(terms.unit, entry.amounts)
                )

    # Ends that never come

    def overdue(self, dead: Collection[str], now_s: float) -> list[Key]:
        """Open requests to look at: their funder is dead, or they have been silent for too long after their end."""
        return [
            key
            for key, held in self._open.items()
            if (held.ended and held.heard_s + STALE_S <= now_s) or not held.held.keys().isdisjoint(dead)
        ]

    def close_overdue(self, requests: Iterable[Request], dead: Collection[str], now_s: float) -> None:
        """Closes those of them of which nothing more is to come."""
        for request in requests:
            held = self._open.get(request.key)
            if held is None:
                continue
            stale = held.heard_s + STALE_S <= now_s
            if held.ended and stale:
                self._close(request.key, held, list(held.held))
            elif stale or _quiet(request, held):
                self._close(request.key, held, [each for each in held.held if each in dead])
            if held.final:
                self._count(request.key, held, request.booked)

    def held_by(self, funder: str) -> dict[Account, int]:
        """What a funder holds for requests that are open."""
        total: dict[Account, int] = {}
        for held in self._open.values():
            closed = held.closed.get(funder, {})
            for account, amount in held.held.get(funder, {}).items():
                if left := amount - closed.get(account, 0):
                    total[account] = total.get(account, 0) + left
        return total

    def take_changed(self) -> list[tuple[Key, Held]]:
        """What is to be stored."""
        changed = [(key, held) for key in self._changed if (held := self._open.get(key) or self._past.get(key))]
        self._changed = {}
        return changed

    def _of(self, key: Key, funding: Iterable[Funding]) -> Held | None:
        """The request's credit, with what is told of it; None where nothing is held for it."""
        held = self._open.get(key) or self._past.get(key)
        funding = tuple(each for each in funding if self._leases.backs(each.funder))  # see `unbacked`
        if not funding:
            return held
        if held is None:
            held = Held()
        held.hold(funding)
        self._changed[key] = None
        if held.open:
            self._past.pop(key, None)
            self._open[key] = held
        else:
            self._keep(key, held)
        return held

    def _close(self, key: Key, held: Held, funders: Iterable[str]) -> None:
        for funder in funders:
            closed = held.closed.setdefault(funder, {})
            for account, amount in held.held.get(funder, {}).items():
                self._leases.close(account, funder, amount - closed.get(account, 0))
                closed[account] = amount
        held.final = True
        self._changed[key] = None
        if not held.open:
            self._open.pop(key, None)
            self._keep(key, held)

    def _count(self, key: Key, held: Held, amounts: Amounts) -> None:
        by_subject: dict[tuple[int, str], dict[Account, int]] = {}
        for some in held.held.values():
            for account, amount in some.items():
                accounts = by_subject.setdefault(account[:2], {})
                accounts[account] = accounts.get(account, 0) + amount
        for (budget, _), accounts in by_subject.items():
            found = self._leases.budgets.get(budget)
            if found is None:
                continue
            for account, amount in _shared(billed(found[1].unit, amounts), accounts).items():
                if delta := amount - held.spent.get(account, 0):
                    self._leases.spend(account, delta)
                    held.spent[account] = amount
                    self._changed[key] = None

    def _keep(self, key: Key, held: Held | None) -> None:
        self._past[key] = held
        self._past.move_to_end(key)
        if len(self._past) > _KEPT:
            for old in list(self._past)[: _KEPT // 10]:
                if old not in self._changed:
                    del self._past[old]


def _shared(total: int, accounts: Mapping[Account, int]) -> dict[Account, int]:
    """A bill by window: what was held in each, the earliest first; the rest is the last one's."""
    shares, left = {}, total
    ordered = sorted(accounts)
    for account in ordered[:-1]:
        shares[account] = min(left, accounts[account])
        left -= shares[account]
    shares[ordered[-1]] = left
    return shares
