"""Books batches of events: drops what was booked before, lets the ledger settle, and stores all of it at once.

In: messages as the bus delivered them; of a batch, reports are folded and the rest taken in the order in which a
request lives: admitted, made, finished. Out: `Booked`, once the transaction is committed. What is in memory (marks,
requests under way) is what the database has; when a transaction fails, or another meter has written meanwhile, it is
dropped and read again. All methods are called from one thread, the one that writes.

Of one shard of the books each has, from its messages, what concerns the shard's tenants; its marks say that the rest of
a message is done with, too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from services.mesh.bus import Delivered
from services.mesh.clock import Clock, SystemClock
from services.mesh.errors import InvalidRequest, SettingInvalid
from services.mesh.events import Event, RequestAdmitted, RequestFinished, TokensGenerated
from services.mesh.partitions import partition_of
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import OpenedBook, PriceCalendar, Rerating
from services.mesh.subjects import STREAMS
from services.meter.booked import Booked, Noted, Remade, Rerated, settled
from services.meter.core.conservation import Audited
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Entry, Ledger, keys_of
from services.meter.core.marks import MOST_AT_HAND, Marks, Source
from services.meter.core.requests import Key, Request
from services.meter.core.runs import Runs
from services.meter.core.usage import roll_up, spent_by_tenant
from services.meter.kept_shard import KeptShard
from services.meter.store.books import Books, Role, Transaction
from services.meter.store.database import Database
from services.meter.store.dropped import Dropped
from services.meter.store.shards import FIRST

T = TypeVar("T")
_MARKS_KEPT_MS: Final = 2 * 1000 * max(stream.max_age_s for stream in STREAMS)


class Bookkeeper(KeptShard):
    """Keeps a shard of the books in `database`, and what is nobody's partition, under the name `writer`.

    Args:
        shard, role: see `Books`; only who leads, or is alone, may change what is nobody's partition.
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
        shard: int = FIRST,
        role: Role = Role.SOLE,
    ) -> None:
        books = Books(database, writer, shard, role)
        leads = role in (Role.SOLE, Role.LEADER)
        read_prices = partial(books.house, tell=True) if leads else books.reading
        with read_prices() as transaction:
            prices = PriceCalendar(price_book, transaction.price_books(), transaction.reratings())
            for rerating in transaction.reratings(unfinished=True):
                prices.begin(rerating)
            known = next((each.book for each in prices.opened if each.book.label == price_book.label), None)
            if not leads:
                pass  # who leads sees to it
            elif known is None:
                # The first book is in force from the beginning, so that a later one can correct it from any date on.
                effective_unix_ms = now_unix_ms if prices.opened else 0
                opened = OpenedBook(price_book, effective_unix_ms, now_unix_ms)
                transaction.add_price_book(opened)
                prices.open(opened)
            elif known != price_book:
                raise SettingInvalid(
                    f"prices.version = {price_book.version}: {price_book.label} is in the books with other prices, and"
                    " what was billed by them stays; raise prices.version with every change of prices"
                )
        super().__init__(books, prices, Ledger(prices, rate_card), clock or SystemClock(), lease_ttl_s)
        if leads:
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
        with self._books.house(tell=True) as transaction:
            transaction.add_price_book(opened)
        self.prices.open(opened)

    def begin_rerating(self, rerating: Rerating) -> None:
        """Stores that requests are priced again; `rerate` then does it, some at a time."""
        with self._books.house(tell=True) as transaction:
            transaction.put_rerating(rerating, finished=False)
        self.prices.begin(rerating)

    def end_rerating(self, rerating: Rerating) -> None:
        with self._books.house(tell=True) as transaction:
            transaction.put_rerating(rerating, finished=True)
        self.prices.end(rerating)

    def unfinished_reratings(self) -> list[Rerating]:
        """Those that a crash cut short."""
        with self._books.reading() as transaction:
            return transaction.reratings(unfinished=True)

    def rerate(self, keys: Sequence[Key], now_unix_ms: int) -> Rerated:
        """Settles requests again, by new lines where their price has changed."""
        with self._transaction() as transaction:
            for _, tenant in keys:
                self._check(transaction, tenant)
            ledger = self._ledger
            ledger.adopt(transaction.requests(ledger.absent(keys)))
            ledger.reprice(keys)
            entries, touched = ledger.settle()
            usage = roll_up(entries)
            transaction.write(entries, usage, touched, (), now_unix_ms)
            self._count_again(transaction, keys, touched, entries)
        ledger.release(touched, self.detail_from_unix_ms)
        return Rerated(entries, spent_by_tenant(usage))

    def within(self, write: Callable[[Transaction], T], *, alone: bool = False) -> T:
        """Writes what stands beside the ledger, in one transaction; what `write` returns.

        Args:
            alone: nobody books meanwhile.

        Raises:
            InvariantBroken: another meter leads now.
        """
        with self._books.house(alone=alone) as transaction:
            return write(transaction)

    def keep_detail_from(self, hour: int) -> None:
        """Says that of the hours below, since 1970, only sums are kept from now on; `drop_detail` then drops it."""
        with self._books.house(tell=True) as transaction:
            transaction.keep_detail_from(hour)
        self._books.detail_from = hour

    def drop_detail(self, drop: Callable[[Transaction], Collection[Key]]) -> int:
        """Drops some requests that are long over, in a transaction; how many. Who books shards has none of them in
        memory: it was told to forget by `keep_detail_from`, and keeps nothing that old from then on."""
        with self._books.house(alone=True) as transaction:
            gone = drop(transaction)
        for key in gone:
            self._ledger.drop(key)
        return len(gone)

    def dropped(self) -> Dropped:
        """What was dropped in all."""
        with self._books.reading() as transaction:
            return transaction.dropped()

    def roll_up(self, before_hour: int) -> bool:
        """Adds the next hour of usage up that ended before `before_hour`, since 1970; whether there was one."""
        with self._books.house(tell=True) as transaction:
            hour = transaction.roll_up(before_hour)
        if hour is None:
            return False
        self._books.rolled_before = hour + 1
        return True

    def under_way(self) -> list[tuple[str, int]]:
        """SLO class and price so far, nano-dollars, of each request that runs as far as is known."""
        return [(each.slo_class, each.booked.price_nusd) for each in self._ledger.under_way()]

    def forget_long_gone(self, now_unix_ms: int) -> None:
        """Drops what is stored, and at hand, of publishers and holders of which the streams hold nothing any more."""
        with self._books.house(tell=True) as transaction:
            transaction.forget_marks(now_unix_ms - _MARKS_KEPT_MS)
        self._forget()

    def noted(self, sources: Collection[Source] = ()) -> Noted:
        """What the marks say now of publishers that told something lately, and of these."""
        with self._transaction() as transaction:
            return _noted(self._known_marks(transaction, sources))

    def noted_aside(self, sources: Collection[Source] = ()) -> Noted:
        """As `noted`, by what is stored alone: it leaves whoever books the shard in peace."""
        with self._books.reading() as transaction:
            marks = Marks(transaction.latest_marks(MOST_AT_HAND))
            marks.adopt(transaction.marks(marks.absent(sources)))
            return _noted(marks)

    def remake(self, key: Key, messages: Sequence[Delivered], before: Audited, now_unix_ms: int) -> Remade:
        """Makes a request again from its events; the ledger gets what is lacking as new lines, none is changed.

        Args:
            messages: every event that the streams hold of it.
            before: what the books said of it before these were read.
        """
        with self._transaction() as transaction:
            self._check(transaction, key[1])
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
        self._ledger.drop(key)
        return Remade(entries, spent_nusd)

    def add_up_again(self, tenant: str) -> int:
        """Makes a tenant's usage and spending what the ledger's lines come to; nano-dollars it has spent."""
        with self._transaction() as transaction:
            self._check(transaction, tenant)
            return transaction.add_up_again(tenant)

    def give(self, given: frozenset[int], writer: str, positions: Mapping[str, int]) -> int:
        """Has another meter book some of the partitions from now on, or all; the number of their shard.

        Args:
            positions: by durable, in its stream: all before is booked, and a reader of a new shard begins there.
        """
        with self._transaction() as transaction:
            number = transaction.give(given, writer, positions)
        self._partitions -= given
        self._forget()
        return number

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
        return self._book(messages, now_unix_ms, traced=traced, durable=durable)

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
        with self._transaction() as transaction:
            partitions = transaction.partitions
            marks, ledger, vault = self._known_marks(transaction, _sources_of(messages)), self._ledger, self._vault
            vault.load(transaction.credit)
            admitted: list[RequestAdmitted] = []
            finished: list[RequestFinished] = []
            runs = Runs(funded=vault.keeps, partitions=partitions)
            ends: list[Delivered] = []
            fresh = 0
            for message in messages:
                if not marks.admit(message.id):
                    continue
                fresh += 1
                event = message.event
                if isinstance(event, TokensGenerated):
                    marks.count(message.id, runs.fold(event))
                elif partition_of(getattr(event, "tenant", "")) not in partitions:
                    continue
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
        ledger.release(touched, self.detail_from_unix_ms)
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


def _noted(marks: Marks) -> Noted:
    gaps, tokens = marks.gaps(), marks.tokens()
    return Noted(gaps, tokens, {source: marks.high_water(source) for source in gaps.keys() | tokens.keys()})


def _sources_of(messages: Iterable[Delivered]) -> Iterator[Source]:
    return ((message.id.publisher, message.id.epoch) for message in messages)
