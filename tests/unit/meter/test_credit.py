"""Credit as a machine that anything may happen to: routers that hold, extend and end requests; words and answers lost,
repeated and reordered; routers and the meter killed at every step; reports late or never. Whatever happens, no more is
ever billed than the budget; and once everything has come to rest, all of the rest can be had.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from services.mesh.bus import Delivered, EventId
from services.mesh.clock import FakeClock
from services.mesh.credit import Account, Period, Scope, Unit
from services.mesh.events import (
    BudgetTerms,
    Event,
    Funding,
    LeaseAsked,
    LeaseGranted,
    RequestFinished,
    Unused,
)
from services.mesh.holds import Bound, RequestCredit, RequestCredits
from services.mesh.price_book import PriceBook
from services.mesh.pricing import Rates
from services.mesh.purse import Purse
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.core.funded import STALE_S
from services.meter.store import schema
from services.meter.store.books import Transaction
from services.meter.store.database import Database
from tests.unit.meter.facts import entry, finished, tokens

TTL_S = 30.0
LINGER_MS = 2000
LIMIT = 1000
EACH_LIMIT = 600  # of every workload
RATES = Rates(0, 0, 0)  # tokens are counted, not dollars
BOUNDS = (
    Bound(1, "", Unit.TOKENS, Period.ONCE, hard=True),
    Bound(2, "chat", Unit.TOKENS, Period.ONCE, hard=True),
)
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000}, 80_000_000)


def terms(scope: Scope, subject: str, limit: int) -> BudgetTerms:
    return BudgetTerms(
        budget=0,
        scope=scope,
        subject=subject,
        unit=Unit.TOKENS,
        period=Period.ONCE,
        limit=limit,
        hard=True,
        notify_percents=(),
        set_unix_ms=0,
    )


@dataclass(eq=False)
class Running:
    """One request at a worker; `made` tokens exist, `told` of them are reported."""

    request_id: str
    router: "Router"
    credit: RequestCredit
    prompt_tokens: int
    made: int = 0
    told: int = 0


@dataclass(eq=False)
class Router:
    """One process; `outbox` holds what it has not got rid of, and dies with it."""

    name: str
    starts: int = 0
    credits: RequestCredits = field(default_factory=RequestCredits)
    outbox: list[Event] = field(default_factory=list)
    purse: Purse = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.purse = Purse(self.name, f"{self.starts:04d}", linger_ms=LINGER_MS)
        self.credits = RequestCredits()
        self.outbox.clear()


class Credit(RuleBasedStateMachine):
    """Two routers, one worker, one meter."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.database: Database | None = None
        self.starts = self.published = self.opened = 0
        self.routers = [Router("router-0"), Router("router-1")]
        self.running: list[Running] = []
        self.words: list[tuple[Purse, LeaseAsked, float]] = []
        self.answers: list[tuple[Purse, LeaseAsked, LeaseGranted, float]] = []
        self.reports: list[Event] = []  # the worker's, in order
        self._restart()
        for scope, subject, limit in ((Scope.TENANT, "", LIMIT), (Scope.WORKLOAD, "*", EACH_LIMIT)):
            budget = terms(scope, subject, limit)
            self._with(lambda vault, at, budget=budget: vault.set(at.credit, "acme", budget))

    def _restart(self) -> None:
        if self.database is not None:
            self.database.close()
        self.starts += 1
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'meter.db'}")
        self.keeper = Bookkeeper(
            self.database, f"meter-0:{self.starts}", PriceBook(), CARD, 0, clock=self.clock, lease_ttl_s=TTL_S
        )

    def _with(self, work):
        return self.keeper.with_vault(work)

    def _book(self, events: Sequence[Event]) -> None:
        batch = []
        for event in events:
            self.published += 1
            event_id = EventId(f"all.{channel_of(event).name}", "e", self.published)
            batch.append(Delivered(event_id, event, subject_of(event), stream_sequence=self.published))
        booked = self.keeper.book(batch, self.clock.unix_ms())
        if booked.written_off:
            self._book(booked.written_off)

    # Routers

    @rule(router=st.integers(0, 1), prompt=st.integers(1, 40), tokens=st.integers(1, 120), longest=st.integers(1, 400))
    def ask(self, router: int, prompt: int, tokens: int, longest: int) -> None:
        """A request comes: it runs if its first slice can be held, or else says what it needs."""
        here = self.routers[router]
        request_id = f"r{self.opened}"
        credit = here.credits.begin((request_id, "acme"), BOUNDS, RATES)
        if self._hold(here, credit, prompt, min(tokens, longest)):
            self.opened += 1
            self.running.append(Running(request_id, here, credit, prompt))
            return
        here.credits.end((request_id, "acme"))
        for hold in credit.lacking(prompt, tokens, 0):
            here.purse.wait_for(Account(hold.budget, hold.subject, hold.window), hold.amount, 0)
        self._say(here)
        for hold in credit.lacking(prompt, tokens, 0):
            here.purse.wait_for(Account(hold.budget, hold.subject, hold.window), -hold.amount, 0)

    def _hold(self, here: Router, credit: RequestCredit, prompt: int, most: int) -> bool:
        now_s = self.clock.monotonic_s()
        some = credit.affordable(prompt, most, 0, lambda account: here.purse.idle(account, now_s))
        if some <= credit.completion_tokens:
            return False
        holds = credit.lacking(prompt, some, 0)
        here.purse.hold(holds)
        credit.add(here.purse.funder, holds, prompt, some)
        return True

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(1, 100))
    def extend(self, data: st.DataObject, more: int) -> None:
        each = data.draw(st.sampled_from(self.running))
        if each.credit in each.router.credits._running.values():  # its router has not died since
            self._hold(each.router, each.credit, each.prompt_tokens, each.credit.completion_tokens + more)

    @rule(router=st.integers(0, 1))
    def speak(self, router: int) -> None:
        self._say(self.routers[router])

    def _say(self, here: Router) -> None:
        self.words.append((here.purse, here.purse.word(), self.clock.monotonic_s()))

    @rule(router=st.integers(0, 1))
    def recall(self, router: int) -> None:
        purse = self.routers[router].purse
        for account in purse.accounts():
            purse.recall(account)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A request of which nothing was made, nor ever will be."""
        each = data.draw(st.sampled_from(self.running))
        if each.made or each.credit not in each.router.credits._running.values():
            return
        self.running.remove(each)
        for funding in each.credit.funding():
            if funding.funder == each.router.purse.funder:
                each.router.purse.never_used(Unused(request_id=each.request_id, tenant="acme", holds=funding.holds))
        each.router.credits.end((each.request_id, "acme"))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), delivered=st.integers(0, 400))
    def end(self, data: st.DataObject, delivered: int) -> None:
        """Its client has what it got of it; its worker and its router say so, each when it comes to it."""
        each = data.draw(st.sampled_from(self.running))
        if each.credit not in each.router.credits._running.values():
            return
        self.running.remove(each)
        self._report(each, last=True)
        each.router.outbox.append(self._finished(each, min(delivered, each.made)))
        each.router.credits.end((each.request_id, "acme"))

    def _finished(self, each: Running, delivered: int) -> RequestFinished:
        event = finished(each.request_id, delivered, prompt_tokens=each.prompt_tokens, outcome="cancelled")
        return _with_funding(event, each.credit.funding())

    @rule(router=st.integers(0, 1), starts=st.booleans())
    def kill(self, router: int, starts: bool) -> None:
        """SIGKILL: what it had not sent is lost, its worker gives its requests up; it is started again, or not yet."""
        here = self.routers[router]
        for each in [each for each in self.running if each.router is here]:
            self.running.remove(each)
            self._report(each, last=True)
        here.start()
        if starts:
            self._say(here)

    # The worker

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 150), tell=st.booleans())
    def make(self, data: st.DataObject, count: int, tell: bool) -> None:
        """Its worker goes as far as it is funded."""
        each = data.draw(st.sampled_from(self.running))
        each.made = min(each.made + count, each.credit.completion_tokens)
        if tell:
            self._report(each)

    def _report(self, each: Running, *, last: bool = False) -> None:
        made = entry(each.request_id, each.told, each.made - each.told, prompt_tokens=each.prompt_tokens, last=last)
        self.reports.append(tokens(_with_funding(made, each.credit.funding())))
        each.told = each.made

    # The wire and the meter

    @precondition(lambda self: self.words)
    @rule(data=st.data(), fate=st.sampled_from(["arrives", "twice", "lost"]))
    def word(self, data: st.DataObject, fate: str) -> None:
        number = data.draw(st.integers(0, len(self.words) - 1))
        purse, word, sent_s = self.words[number]
        if fate != "lost":
            answer = self._with(lambda vault, _: vault.answer(word))
            self.answers.append((purse, word, answer, sent_s))
        else:
            purse.unheard(word)
        if fate != "twice":
            del self.words[number]

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:
        number = data.draw(st.integers(0, len(self.answers) - 1))
        purse, word, answer, sent_s = self.answers[number]
        self._hear(purse, word, answer, sent_s)
        if not again:
            del self.answers[number]

    def _hear(self, purse: Purse, word: LeaseAsked, answer: LeaseGranted, sent_s: float) -> None:
        if answer.refused:
            for here in self.routers:
                if here.purse is purse:
                    here.starts += 1
                    here.purse = Purse(here.name, f"{here.starts:04d}", linger_ms=LINGER_MS)
            return
        for account in purse.answered(word, answer, sent_s, self.clock.monotonic_s()):
            purse.recall(account)

    @rule(count=st.integers(1, 5), router=st.integers(0, 1), worker_first=st.booleans())
    def deliver(self, count: int, router: int, worker_first: bool) -> None:
        """Some of what waits to be booked."""
        outbox = self.routers[router].outbox
        for source in (self.reports, outbox) if worker_first else (outbox, self.reports):
            if source:
                some, source[:] = list(source[:count]), source[count:]
                self._book(some)

    @rule()
    def restart_meter(self) -> None:
        self._restart()

    @rule(seconds=st.sampled_from([0.1, 1.0, LINGER_MS / 1000 + 0.1, TTL_S / 2, TTL_S * 1.2 + 2]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: not self.reports and not any(each.outbox for each in self.routers))
    @rule()
    def look_after(self) -> None:
        """As the lessor does, while nothing waits to be booked."""
        self.keeper.close_overdue(self.keeper.overdue().dead)

    # What always holds

    def _billed(self) -> int:
        with self.keeper._books.transaction() as transaction:
            return _billed_tokens(transaction)

    @invariant()
    def nothing_is_billed_past_the_budget(self) -> None:
        if hasattr(self, "keeper"):
            assert self._billed() <= EACH_LIMIT

    @invariant()
    def nothing_is_out_past_the_budget(self) -> None:
        if hasattr(self, "keeper"):
            for budget, limit in ((1, LIMIT), (2, EACH_LIMIT)):
                for _, state in self._with(lambda vault, _, b=budget: vault.accounts_of(b)):
                    assert 0 <= state.spent + state.out <= limit
                    assert all(lease.out >= 0 for lease in state.leases.values())

    def teardown(self) -> None:
        if not hasattr(self, "keeper"):
            return
        for each in list(self.running):
            self._report(each, last=True)
            if each.credit in each.router.credits._running.values():
                each.router.outbox.append(self._finished(each, each.made))
        self._book(self.reports)
        for here in self.routers:
            self._book(here.outbox)
            here.outbox.clear()
        self.reports.clear()
        for _ in range(4):  # all holders are silent from here on
            self.clock.advance(TTL_S * 1.2 + LINGER_MS / 1000 + STALE_S)
            self.keeper.close_overdue(self.keeper.overdue().dead)
        self.nothing_is_billed_past_the_budget()
        self.nothing_is_out_past_the_budget()
        billed = self._billed()
        for budget, limit in ((1, LIMIT), (2, EACH_LIMIT)):
            for account, state in self._with(lambda vault, _, b=budget: vault.accounts_of(b)):
                assert (account.window, state.spent, state.out) == (0, billed, 0)
            fresh = Purse("router-9", "1")
            account = Account(budget, "" if budget == 1 else "chat", 0)
            fresh.wait_for(account, limit - billed, 0)
            word = fresh.word()
            answer = self._with(lambda vault, _, w=word: vault.answer(w))
            fresh.answered(word, answer, self.clock.monotonic_s(), self.clock.monotonic_s())
            assert fresh.idle(account, self.clock.monotonic_s()) == limit - billed
        assert self.database is not None
        self.database.close()
        self.folder.cleanup()


def _with_funding(event, funding: tuple[Funding, ...]):
    return replace(event, funding=funding)


def _billed_tokens(transaction: Transaction) -> int:
    lines = schema.entries.c
    found = transaction._connection.execute(select(func.sum(lines.prompt_tokens), func.sum(lines.delivered_tokens)))
    return sum(int(each or 0) for each in found.one())


TestCredit = Credit.TestCase
TestCredit.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
