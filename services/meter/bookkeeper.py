"""Books batches of events: drops what was booked before, lets the ledger settle, and stores all of it at once.

In: messages as the bus delivered them; of a batch, reports are folded and the rest taken in the order in which a
request lives: admitted, made, finished. Out: `Booked`, once the transaction is committed. What is in memory (marks,
requests under way) is what the database has; when a transaction fails, it is dropped and read again. All methods are
called from one thread, the one that writes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from services.mesh.bus import Delivered
from services.mesh.clock import Clock, SystemClock
from services.mesh.errors import InvalidRequest, SettingInvalid
from services.mesh.events import BudgetTerms, Event, RequestAdmitted, RequestFinished, TokensGenerated
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook, PriceCalendar, Rerating
from services.mesh.subjects import STREAMS
from services.meter.booked import Booked, Noted, Overdue, Remade, Rerated, settled
from services.meter.core.amounts import MS_PER_MINUTE
from services.meter.core.budgets import Credit
from services.meter.core.conservation import Audited
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Entry, Ledger, keys_of
from services.meter.core.marks import MOST_AT_HAND, Marks, Source
from services.meter.core.requests import Key, Request
from services.meter.core.runs import Runs
from services.meter.core.usage import roll_up, spent_by_tenant
from services.meter.store.books import Books, Transaction
from services.meter.store.database import Database
from services.meter.store.dropped import Dropped
from services.meter.vault import Vault

T = TypeVar("T")
_MARKS_KEPT_MS: Final = 2 * 1000 * max(stream.max_age_s for stream in STREAMS)


class Bookkeeper:
    """Keeps the books in `database` under the name `writer`.

    Args:
        lease_ttl_s: how long holders of credit may give it out without another answer.

    Raises:
        SettingInvalid: the price book has other prices than when its version was first used.
    """

    def __init__(
        self,
        database: Database,
        writer: str,
        price_book: PriceBook,
        rate_card: RateCard,
        now_unix_ms: int,
        *,
        clock: Clock | None = None,
        lease_ttl_s: float = 30.0,
    ) -> None:
        self._books = Books(database, writer)
        self._vault = Vault(clock or SystemClock(), lease_ttl_s)
        with self._books.transaction() as transaction:
            self.prices = PriceCalendar(price_book, transaction.price_books(), transaction.reratings())
            for rerating in transaction.reratings(unfinished=True):
                self.prices.begin(rerating)
            known = next((each.book for each in self.prices.opened if each.book.label == price_book.label), None)
            if known is None:
                # The first book is in force from the beginning, so that a later one can correct it from any date on.
                effective_unix_ms = now_unix_ms if self.prices.opened else 0
                opened = OpenedBook(price_book, effective_unix_ms, now_unix_ms)
                transaction.add_price_book(opened)
                self.prices.open(opened)
            elif known != price_book:
                raise SettingInvalid(
                    f"prices.version = {price_book.version}: {price_book.label} is in the books with other prices, and"
                    " what was billed by them stays; raise prices.version with every change of prices"
                )
        self._ledger = Ledger(self.prices, rate_card)
        self._marks: Marks | None = None
        self._lost_before = 0
        self.forget_long_gone(now_unix_ms)

    def open_prices(self, opened: OpenedBook) -> None:
        """Stores a price book, and prices by it from when it is in force.

        Raises:
            InvalidRequest: its label has other prices, or is in force from another time.
        """
        known = next((each for each in self.prices.opened if each.book.label == opened.book.label), None)
        if known is not None:
            if known.book != opened.book or known.effective_unix_ms != opened.effective_unix_ms:
                raise InvalidRequest(
                    f"{opened.book.label} is in the books with other prices or from another time, and what was billed"
                    " by it stays; give the book a higher version"
                )
            return
        with self._books.transaction() as transaction:
            transaction.add_price_book(opened)
        self.prices.open(opened)

    def begin_rerating(self, rerating: Rerating) -> None:
        """Stores that requests are priced again; `rerate` then does it, some at a time."""
        with self._books.transaction() as transaction:
            transaction.put_rerating(rerating, finished=False)
        self.prices.begin(rerating)

    def end_rerating(self, rerating: Rerating) -> None:
        with self._books.transaction() as transaction:
            transaction.put_rerating(rerating, finished=True)
        self.prices.end(rerating)

    def unfinished_reratings(self) -> list[Rerating]:
        """Those that a crash cut short."""
        with self._books.transaction() as transaction:
            return transaction.reratings(unfinished=True)

    def rerate(self, keys: Sequence[Key], now_unix_ms: int) -> Rerated:
        """Settles requests again, by new lines where their price has changed."""
        try:
            with self._books.transaction() as transaction:
                ledger = self._ledger
                ledger.adopt(transaction.requests(ledger.absent(keys)))
                ledger.reprice(keys)
                entries, touched = ledger.settle()
                usage = roll_up(entries)
                transaction.write(entries, usage, touched, (), now_unix_ms)
                self._count_again(transaction, keys, touched, entries)
        except BaseException:
            self._ledger.forget()
            self._vault.forget()
            raise
        ledger.release(touched)
        return Rerated(entries, spent_by_tenant(usage))

    def within(self, write: Callable[[Transaction], None]) -> None:
        """Writes what stands beside the ledger, in one transaction of these books.

        Raises:
            InvariantBroken: another meter has taken over these books.
        """
        with self._books.transaction() as transaction:
            write(transaction)

    @property
    def detail_from_unix_ms(self) -> int:
        """What is dated earlier is there in sums alone; 0: all is there."""
        return self._books.detail_from * 60 * MS_PER_MINUTE

    def keep_detail_from(self, hour: int) -> None:
        """Says that of the hours below, since 1970, only sums are kept from now on; `drop_detail` then drops it."""
        with self._books.transaction() as transaction:
            transaction.keep_detail_from(hour)
        self._books.detail_from = hour

    def drop_detail(self, drop: Callable[[Transaction], Collection[Key]]) -> int:
        """Drops some requests that are long over, in a transaction; how many."""
        with self._books.transaction() as transaction:
            gone = drop(transaction)
        for key in gone:
            self._ledger.drop(key)
        return len(gone)

    def dropped(self) -> Dropped:
        """What was dropped in all."""
        with self._books.transaction() as transaction:
            return transaction.dropped()

    def roll_up(self, before_hour: int) -> bool:
        """Adds the next hour of usage up that ended before `before_hour`, since 1970; whether there was one."""
        with self._books.transaction() as transaction:
            hour = transaction.roll_up(before_hour)
        if hour is None:
            return False
        self._books.rolled_before = hour + 1
        return True

    def under_way(self) -> list[tuple[str, int]]:
        """SLO class and price so far, nano-dollars, of each request that runs as far as is known."""
        return [(each.slo_class, each.booked.price_nusd) for each in self._ledger.under_way()]

    def credits(self) -> list[tuple[Credit, bool]]:
        """Every tenant's credit, and whether its budget was ever set."""
        with self._books.transaction() as transaction:
            return transaction.credits()

    def set_limit(self, tenant: str, limit_nusd: int | None, now_unix_ms: int) -> int:
        """Stores the budget of dollars that a tenant has as a whole; None lifts it. Nano-dollars it has spent."""

        def store(vault: Vault, transaction: Transaction) -> int:
            spent_nusd = transaction.spent_nusd(tenant)
            vault.set_limit(transaction.credit, tenant, limit_nusd, spent_nusd)
            transaction.set_limit(tenant, limit_nusd, now_unix_ms)
            return spent_nusd

        return self.with_vault(store)

    def adopt_limits(self) -> None:
        """Makes budgets of the tenants' limits that were set before there were others."""

        def adopt(vault: Vault, transaction: Transaction) -> None:
            for credit, budgeted in transaction.credits():
                if budgeted and credit.limit_nusd is not None and not vault.has_limit(credit.tenant):
                    vault.set_limit(transaction.credit, credit.tenant, credit.limit_nusd, credit.spent_nusd)

        self.with_vault(adopt)

    def restore_budgets(self, tenant: str, budgets: Sequence[BudgetTerms]) -> int:
        """Takes over a tenant's budgets as they were announced, where they are lacking; how many were."""

        def restore(vault: Vault, transaction: Transaction) -> int:
            return vault.restore(transaction.credit, tenant, budgets)

        return self.with_vault(restore)

    def with_vault(self, work: Callable[[Vault, Transaction], T]) -> T:
        """Does something with the tenants' credit in a transaction of its own; what it raises, it has undone."""
        try:
            with self._books.transaction() as transaction:
                self._vault.load(transaction.credit)
                result = work(self._vault, transaction)
                self._vault.store(transaction.credit)
        except BaseException:
            self._vault.forget()
            raise
        return result

    def overdue(self) -> Overdue:
        """What is to be closed once all that is in the streams is booked; drops windows that are long over."""

        def look(vault: Vault, _: Transaction) -> Overdue:
            vault.tidy()
            dead = vault.dead()
            return Overdue(dead, bool(vault.overdue(dead)))

        return self.with_vault(look)

    def close_overdue(self, dead: Sequence[str]) -> None:
        """Gives back the credit of dead holders; all that was in the streams when they were dead has to be booked."""

        def close(vault: Vault, transaction: Transaction) -> None:
            if keys := vault.overdue(dead):
                self._ledger.adopt(transaction.requests(self._ledger.absent(keys)))
            if dead or keys:
                vault.close_overdue(dead, self._ledger.at_hand(keys))

        self.with_vault(close)

    def forget_long_gone(self, now_unix_ms: int) -> None:
        """Drops what is stored, and at hand, of publishers and holders of which the streams hold nothing any more."""
        with self._books.transaction() as transaction:
            transaction.forget_marks(now_unix_ms - _MARKS_KEPT_MS)
        self._lost_before += self._marks.lost if self._marks is not None else 0
        self._marks = None
        self._vault.forget()

    def noted(self, sources: Collection[Source] = ()) -> Noted:
        """What the marks say now of publishers that told something lately, and of these."""
        with self._books.transaction() as transaction:
            marks = self._known_marks(transaction, sources)
        gaps, tokens = marks.gaps(), marks.tokens()
        high_water = {source: marks.high_water(source) for source in gaps.keys() | tokens.keys()}
        return Noted(gaps, tokens, high_water)

    def remake(self, key: Key, messages: Sequence[Delivered], before: Audited, now_unix_ms: int) -> Remade:
        """Makes a request again from its events; the ledger gets what is lacking as new lines, none is changed.

        Args:
            messages: every event that the streams hold of it.
            before: what the books said of it before these were read.
        """
        try:
            with self._books.transaction() as transaction:
                marks = self._known_marks(transaction, _sources_of(messages))
                if not all(marks.noted(message.id) for message in messages):
                    return Remade(postponed="some of its events are still to be booked", again=True)
                if transaction.audited([key])[key] != before:
                    return Remade(postponed="it was booked meanwhile", again=True)
                events: list[Event] = [message.event for message in {each.id: each for each in messages}.values()]
                request, entries = self._ledger.remake(key, events, before.request, before.entered)
                if request is None:
                    return Remade(postponed="the streams hold nothing of it")
                transaction.correct(request, entries, now_unix_ms)
                self._count_again(transaction, [key], [request], entries)
                spent_nusd = transaction.add_up_again(key[1])
        except BaseException:
            self._vault.forget()
            raise
        self._ledger.drop(key)
        return Remade(entries, spent_nusd)

    def add_up_again(self, tenant: str) -> int:
        """Makes a tenant's usage and spending what the ledger's lines come to; nano-dollars it has spent."""
        with self._books.transaction() as transaction:
            return transaction.add_up_again(tenant)

    def book(
        self, messages: Sequence[Delivered], now_unix_ms: int, *, traced: bool = False, durable: str = ""
    ) -> Booked:
        """Books the messages in one transaction; what it raises, it has undone.

        Args:
            traced: collect `Booked.settled`.
            durable: the reader whose position in its stream goes on with them.

        Raises:
            InvariantBroken: another meter has taken over these books.
        """
        try:
            booked = self._book(messages, now_unix_ms, traced=traced, durable=durable)
        except BaseException:
            # The truth is in the database now: neither marks nor requests may be ahead of it.
            if self._marks is not None:
                self._lost_before += self._marks.lost
            self._marks = None
            self._ledger.forget()
            self._vault.forget()
            raise
        return booked

    def _count_again(
        self, transaction: Transaction, keys: Sequence[Key], requests: Sequence[Request], entries: Sequence[Entry]
    ) -> None:
        """Budgets follow what was booked otherwise."""
        self._vault.load(transaction.credit)
        self._vault.adopt(transaction.credit, keys)
        self._vault.settle(requests, entries)
        self._vault.store(transaction.credit)

    def _known_marks(self, transaction: Transaction, sources: Iterable[Source]) -> Marks:
        """With those of `sources` at hand."""
        if self._marks is None:
            self._marks = Marks(transaction.latest_marks(MOST_AT_HAND))
        if absent := self._marks.absent(sources):
            self._marks.adopt(transaction.marks(absent))
        return self._marks

    def _book(self, messages: Sequence[Delivered], now_unix_ms: int, *, traced: bool, durable: str) -> Booked:
        with self._books.transaction() as transaction:
            marks, ledger, vault = self._known_marks(transaction, _sources_of(messages)), self._ledger, self._vault
            vault.load(transaction.credit)
            admitted: list[RequestAdmitted] = []
            finished: list[RequestFinished] = []
            runs = Runs(funded=vault.keeps)
            ends: list[Delivered] = []
            fresh = 0
            for message in messages:
                if not marks.admit(message.id):
                    continue
                fresh += 1
                event = message.event
                if isinstance(event, TokensGenerated):
                    marks.count(message.id, runs.fold(event))
                elif isinstance(event, RequestAdmitted):
                    admitted.append(event)
                elif isinstance(event, RequestFinished):
                    finished.append(event)
                    ends.append(message)
            keys = {*runs.keys(), *keys_of(admitted), *keys_of(finished)}
            ledger.adopt(transaction.requests(ledger.absent(keys)))
            vault.adopt(transaction.credit, keys)
            for admission in admitted:
                ledger.note(admission)
            ledger.note_runs(runs)
            for finish in finished:
                ledger.note(finish)
            written_off = vault.note(admitted, runs.runs, finished)
            entries, touched = ledger.settle()
            vault.settle(touched, entries)
            usage = roll_up(entries)
            through = max((message.stream_sequence for message in messages), default=0)
            positions = {durable: through} if durable and through else {}
            transaction.write(entries, usage, touched, marks.take_changed(), now_unix_ms, positions=positions)
            vault.store(transaction.credit)
        ledger.release(touched)
        marks.release()
        return Booked(
            entries=entries,
            usage=usage,
            spent=spent_by_tenant(usage),
            fresh=fresh,
            duplicates=len(messages) - fresh,
            settled=list(settled(ends, runs.ends, {each.key: each for each in touched})) if traced else (),
            missing=marks.missing(),
            lost=self._lost_before + marks.lost,
            refused=ledger.take_refused(),
            findings=ledger.take_findings(),
            reached=vault.reached(),
            written_off=written_off,
        )


def _sources_of(messages: Iterable[Delivered]) -> Iterator[Source]:
    return ((message.id.publisher, message.id.epoch) for message in messages)
