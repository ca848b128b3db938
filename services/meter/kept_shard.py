"""One shard of the books with what is kept of it in memory: marks, requests under way, credit, prices.

In: transactions of the shard. Out: the same with nothing in memory that is old: what another meter wrote meanwhile, or
what a failed transaction left, is dropped and read again. And the tenants' credit, by such transactions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from services.mesh.clock import Clock
from services.mesh.events import BudgetTerms
from services.mesh.partitions import ALL, partition_of
from services.mesh.price_calendar import PriceCalendar
from services.meter.booked import Overdue
from services.meter.core.budgets import Credit
from services.meter.core.ledger import Ledger
from services.meter.core.marks import Marks
from services.meter.core.presence import MS_PER_HOUR
from services.meter.store.books import Books, Transaction
from services.meter.vault import Vault

T = TypeVar("T")


class ShardMoved(Exception):
    """A tenant's partition was given away while something was done about the tenant."""


class KeptShard:
    """Args:
        lease_ttl_s: how long holders of credit may give it out without another answer.

    Attributes:
        prices: by which the shard is priced.
    """

    def __init__(self, books: Books, prices: PriceCalendar, ledger: Ledger, clock: Clock, lease_ttl_s: float) -> None:
        self.prices = prices
        self._books = books
        self._ledger = ledger
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._vault = Vault(clock, lease_ttl_s)
        self._partitions = ALL
        self._marks: Marks | None = None
        self._lost_before = 0

    @property
    def shard(self) -> int:
        return self._books.shard

    @property
    def partitions(self) -> frozenset[int]:
        """Of the shard, as of the last transaction."""
        return self._partitions

    @property
    def detail_from_unix_ms(self) -> int:
        """What is dated earlier is there in sums alone; 0: all is there."""
        return self._books.detail_from * MS_PER_HOUR

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """Of the shard, with nothing in memory that is old. What it raises, it has undone, in memory as well."""
        try:
            with self._books.transaction() as transaction:
                if transaction.others_wrote:
                    self._forget()
                    self._partitions = transaction.partitions
                    self._read_prices(transaction)
                yield transaction
        except BaseException:
            # The truth is in the database now: neither marks nor requests may be ahead of it.
            self._forget()
            raise

    def _forget(self) -> None:
        self._lost_before += self._marks.lost if self._marks is not None else 0
        self._marks = None
        self._ledger.forget()
        self._vault.forget()

    def _read_prices(self, transaction: Transaction) -> None:
        for opened in transaction.price_books():
            self.prices.open(opened)
        unfinished = set(transaction.reratings(unfinished=True))
        for rerating in transaction.reratings():
            self.prices.begin(rerating)
            if rerating not in unfinished:
                self.prices.end(rerating)

    def credits(self) -> list[tuple[Credit, bool]]:
        """Every tenant's credit, and whether its budget was ever set."""
        with self._books.reading() as transaction:
            return transaction.credits()

    def set_limit(self, tenant: str, limit_nusd: int | None, now_unix_ms: int) -> int:
        """Stores the budget of dollars that a tenant has as a whole; None lifts it. Nano-dollars it has spent."""

        def store(vault: Vault, transaction: Transaction) -> int:
            spent_nusd = transaction.spent_nusd(tenant)
            vault.set_limit(transaction.credit, tenant, limit_nusd, spent_nusd)
            transaction.set_limit(tenant, limit_nusd, now_unix_ms)
            return spent_nusd

        return self.with_vault(store, tenant)

    def adopt_limits(self) -> None:
        """Makes budgets of the tenants' limits that were set before there were others."""

        def adopt(vault: Vault, transaction: Transaction) -> None:
            for credit, budgeted in transaction.credits():
                if partition_of(credit.tenant) not in transaction.partitions:
                    continue
                if budgeted and credit.limit_nusd is not None and not vault.has_limit(credit.tenant):
                    vault.set_limit(transaction.credit, credit.tenant, credit.limit_nusd, credit.spent_nusd)

        self.with_vault(adopt)

    def restore_budgets(self, tenant: str, budgets: Sequence[BudgetTerms]) -> int:
        """Takes over a tenant's budgets as they were announced, where they are lacking; how many were."""

        def restore(vault: Vault, transaction: Transaction) -> int:
            return vault.restore(transaction.credit, tenant, budgets)

        return self.with_vault(restore, tenant)

    def with_vault(self, work: Callable[[Vault, Transaction], T], tenant: str = "") -> T:
        """Does something with the tenants' credit in a transaction of its own; what it raises, it has undone.

        Args:
            tenant: whose it is, where it is one's.
        """
        with self._transaction() as transaction:
            self._check(transaction, tenant)
            self._vault.load(transaction.credit)
            result = work(self._vault, transaction)
            self._vault.store(transaction.credit)
        return result

    def look(self, work: Callable[[Vault, Transaction], T], tenant: str = "") -> list[T]:
        """What `work` finds in the tenants' credit, shard by shard where no tenant is named; it changes nothing."""
        return [self.with_vault(work, tenant)]

    def look_aside(self, work: Callable[[Vault, Transaction], T]) -> T:
        """As `look`, in what is stored alone: it leaves whoever books the shard in peace."""
        with self._books.reading() as transaction:
            vault = Vault(self._clock, self._lease_ttl_s)
            vault.load(transaction.credit)
            return work(vault, transaction)

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
                self._ledger.release(self._ledger.at_hand(keys), self.detail_from_unix_ms)

        self.with_vault(close)

    def _check(self, transaction: Transaction, tenant: str) -> None:
        """Raises ShardMoved: the tenant's partition was given away meanwhile."""
        if tenant and partition_of(tenant) not in transaction.partitions:
            raise ShardMoved(f"tenant {tenant!r} is booked in another shard than {self.shard} now")
