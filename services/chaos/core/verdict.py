"""Whether the promises were kept: streams, books, budgets, and what was left behind. Pure.

In: what clients saw, what the meter booked, what is still there when everything has ended. Out: `Check`s, each with
what was compared and its violations in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.chaos.core.streams import Outcome

_FDS: Final = 48  # more than at the start: connections that are kept warm, and those that are just closing
_THREADS: Final = 24
_TOLD: Final = 20  # violations of one check that are told one by one


@dataclass(frozen=True, slots=True)
class Check:
    """One promise.

    Attributes:
        compared: what was looked at, in words.
        violations: in words; empty when the promise was kept.
    """

    name: str
    compared: str
    violations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """What the meter booked of one request."""

    delivered_tokens: int
    generated_tokens: int
    price_nusd: int
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What the meter's reconciler found in its last pass.

    Attributes:
        rounds: passes since it started.
        repaired: how many things it put right.
        standing: what does not agree and was not repaired, in words.
    """

    rounds: int
    lag_events: int
    missing_events: int
    generated_tokens: int
    delivered_tokens: int
    repaired: int
    standing: tuple[str, ...] = ()

    @property
    def level(self) -> bool:
        """Whether everything is booked and agrees."""
        waiting = self.lag_events or self.missing_events or self.standing
        return self.rounds > 0 and not waiting and self.generated_tokens >= self.delivered_tokens


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process holds: open files and sockets, threads, resident bytes."""

    fds: int
    threads: int
    resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is there when no request runs.

    Attributes:
        running: (service, figure) -> count that should be 0.
        before, after: service -> footprint, at rest before the first fault and after the last.
        consumers_before, consumers: readers of the bus's streams; -1 where the bus did not say.
        waited_s: until it was so, or until waiting ended.
    """

    running: Mapping[tuple[str, str], float] = field(default_factory=dict)
    before: Mapping[str, Footprint] = field(default_factory=dict)
    after: Mapping[str, Footprint] = field(default_factory=dict)
    consumers_before: int = 0
    consumers: int = 0
    waited_s: float = 0.0


def check_streams(outcomes: Sequence[Outcome], tolerated: Sequence[str] = ()) -> Check:
    """Each stream whole and as if undisturbed; `tolerated`: tenants whose requests may be refused."""
    served = [each for each in outcomes if not each.refused_because]
    bad = [f"stream {each.request_id} ({_way(each)}): {each.wrong}" for each in served if each.wrong]
    bad += [
        f"stream {each.request_id} ({_way(each)}) was refused: {each.refused_because}"
        for each in outcomes
        if each.refused_because and each.tenant not in tolerated
    ]
    direct = sum(each.direct for each in served)
    broke = sum(each.calls > 1 for each in served)
    return Check(
        "streams",
        f"{len(served)} streams ({direct} direct, {len(served) - direct} relayed; {broke} went on elsewhere) against"
        " the undisturbed texts",
        _told(bad),
    )


def was_sent_more(outcome: Outcome, bill: Bill) -> bool:
    """Whether more is booked than its client has because that left more behind."""
    return outcome.left_more_behind and bill.delivered_tokens > outcome.tokens


def check_conservation(outcomes: Sequence[Outcome], bills: Mapping[str, Bill]) -> Check:
    """Delivered = billed and generated = delivered + waste, for each request."""
    bad = []
    for each in outcomes:
        bill = bills.get(each.request_id)
        if bill is None:
            if each.tokens:
                bad.append(f"request {each.request_id}: {each.tokens} tokens reached the client, nothing is booked")
            continue
        if bill.outcome == "running" and (each.tokens or bill.delivered_tokens):
            bad.append(f"request {each.request_id}: its deliverer never reported its end")
        sent_more = was_sent_more(each, bill)
        if bill.delivered_tokens != each.tokens and not each.wrong and not sent_more:
            bad.append(
                f"request {each.request_id}: the client has {each.tokens} tokens, {bill.delivered_tokens} are booked"
                f" as delivered (outcome {bill.outcome})"
            )
        if bill.generated_tokens < bill.delivered_tokens:
            bad.append(
                f"request {each.request_id}: {bill.delivered_tokens} tokens delivered, of which"
                f" {bill.delivered_tokens - bill.generated_tokens} are booked as made by nobody"
            )
        if each.price_nusd and bill.price_nusd != each.price_nusd and not sent_more:
            bad.append(
                f"request {each.request_id}: billed {bill.price_nusd} nUSD, the client was told {each.price_nusd}"
            )
    delivered = sum(bill.delivered_tokens for bill in bills.values())
    waste = sum(bill.generated_tokens - bill.delivered_tokens for bill in bills.values())
    return Check(
        "conservation",
        f"{delivered:,} tokens billed of {len(bills)} requests, {waste:,} more generated and booked as waste; against"
        f" {sum(each.tokens for each in outcomes):,} that clients have",
        _told(bad),
    )


def check_books(audited: Audited) -> Check:
    """What the meter's own reconciler says once it has looked through everything."""
    bad = [f"it does not agree and was not repaired: {words}" for words in audited.standing]
    if audited.lag_events or audited.missing_events:
        bad.append(f"{audited.lag_events} events are not booked, {audited.missing_events} are missing")
    if audited.generated_tokens < audited.delivered_tokens:
        bad.append(f"{audited.delivered_tokens:,} tokens delivered, only {audited.generated_tokens:,} generated")
    waste = audited.generated_tokens - audited.delivered_tokens
    return Check(
        "books",
        f"all books: {audited.generated_tokens:,} tokens generated = {audited.delivered_tokens:,} delivered +"
        f" {waste:,} waste; {audited.repaired} repaired by the meter",
        _told(bad),
    )


def check_rebuild(differences: Sequence[str] | None, events: int) -> Check:
    """The books made again from the streams equal the live ones; None: there was nothing to compare."""
    if differences is None:
        return Check("rebuild", "not compared: the meter's database cannot be read from here")
    return Check("rebuild", f"the books rebuilt from {events:,} events against the live ones", _told(differences))


def check_budget(tenant: str, limit_nusd: int, spent_nusd: int, billed_nusd: int, refused: bool | None) -> Check:
    """A budget is counted exactly and, once it is spent, holds.

    Args:
        billed_nusd: the sum of the tenant's bills.
        refused: whether a request was refused afterwards; None: the budget was not spent.
    """
    bad = []
    if spent_nusd > limit_nusd:
        bad.append(f"tenant {tenant} has spent {spent_nusd} nUSD of a budget of {limit_nusd}")
    if spent_nusd != billed_nusd:
        bad.append(f"tenant {tenant} has spent {spent_nusd} nUSD by its budget and {billed_nusd} by its bills")
    if refused is False:
        bad.append(f"tenant {tenant} has spent {spent_nusd} of {limit_nusd} nUSD and is still served")
    state = "not used up" if refused is None else "used up, and refused since" if refused else "used up"
    return Check("budget", f"tenant {tenant}: {spent_nusd:,} of {limit_nusd:,} nUSD, {state}", _told(bad))


def check_left(left: Left) -> Check:
    """Nothing runs and nothing has piled up."""
    bad = [
        f"{service}: {figure} is {count:g}, and nothing runs"
        for (service, figure), count in left.running.items()
        if count
    ]
    for service, after in left.after.items():
        before = left.before.get(service)
        if before is None:
            continue
        if after.fds > before.fds + _FDS:
            bad.append(f"{service} has {after.fds} open files; it had {before.fds} before the first fault")
        if after.threads > before.threads + _THREADS:
            bad.append(f"{service} has {after.threads} threads; it had {before.threads} before the first fault")
    if left.consumers < 0:
        bad.append("the bus does not say how many readers its streams have")
    if left.consumers > left.consumers_before >= 0:
        bad.append(f"the bus has {left.consumers} readers of its streams; it had {left.consumers_before}")
    return Check(
        "nothing left",
        f"{len(left.running)} counts of what runs, files and threads of {len(left.after)} processes,"
        f" {left.consumers} readers of streams; at rest after {left.waited_s:.1f} s",
        _told(bad),
    )


def _way(outcome: Outcome) -> str:
    return "direct" if outcome.direct else "relayed"


def _told(found: Sequence[str]) -> tuple[str, ...]:
    more = len(found) - _TOLD
    return (*found[:_TOLD], f"and {more} more") if more > 0 else tuple(found)
