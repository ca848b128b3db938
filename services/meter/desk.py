"""The books as who leads sees them: all shards, whoever books them.

In: what is asked about tenants, requests, or the whole. Out: the same as of one `Bookkeeper`, done in the shard of each
tenant: by this process's own bookkeeper of it where it books that shard; else as its guest, in a transaction after
which whoever books the shard reads its memory anew. To look leaves it in peace. All methods are called from the thread
that writes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from services.mesh.bus import Delivered
from services.mesh.clock import Clock
from services.mesh.errors import QueueFull
from services.mesh.events import BudgetTerms
from services.mesh.partitions import partition_of
from services.mesh.price_book import PriceBook
from services.mesh.sequences import Ranges, merged
from services.meter.booked import Noted, Remade, Rerated
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import Audited
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Entry
from services.meter.core.marks import UNKNOWN, Source
from services.meter.core.requests import Key
from services.meter.kept_shard import ShardMoved
from services.meter.store.books import Role, Transaction
from services.meter.store.database import Database
from services.meter.store.shards import Shard
from services.meter.vault import Vault

T = TypeVar("T")
_TRIES: Final = 8


class Desk(Bookkeeper):
    """Args: as `Bookkeeper`'s.

    Attributes:
        own: what this process books, by shard; whoever books adds itself.
    """

    def __init__(
        self,
        database: Database,
        writer: str,
        price_book: PriceBook,
        rate_card: RateCard,
        now_unix_ms: int,
        *,
        clock: Clock,
        lease_ttl_s: float,
        role: Role,
        own: Mapping[int, Bookkeeper],
    ) -> None:
        super().__init__(
            database, writer, price_book, rate_card, now_unix_ms, clock=clock, lease_ttl_s=lease_ttl_s, role=role
        )
        self.own = own
        self._guests: dict[int, Bookkeeper] = {}
        self._guest = partial(
            Bookkeeper,
            database,
            writer,
            price_book,
            rate_card,
            now_unix_ms,
            clock=clock,
            lease_ttl_s=lease_ttl_s,
            role=Role.GUEST,
        )

    def rerate(self, keys: Sequence[Key], now_unix_ms: int) -> Rerated:
        entries: list[Entry] = []
        spent: dict[str, int] = {}
        by_tenant: dict[str, list[Key]] = {}
        for key in keys:
            by_tenant.setdefault(key[1], []).append(key)
        for tenant, some in by_tenant.items():
            done = self._with(tenant, partial(Bookkeeper.rerate, keys=some, now_unix_ms=now_unix_ms))
            entries += done.entries
            for who, amount_nusd in done.spent.items():
                spent[who] = spent.get(who, 0) + amount_nusd
        return Rerated(entries, spent)

    def under_way(self) -> list[tuple[str, int]]:
        return [each for keeper in list(self.own.values()) for each in keeper.under_way()]

    def set_limit(self, tenant: str, limit_nusd: int | None, now_unix_ms: int) -> int:
        return self._with(tenant, lambda keeper: keeper.set_limit(tenant, limit_nusd, now_unix_ms))

    def restore_budgets(self, tenant: str, budgets: Sequence[BudgetTerms]) -> int:
        return self._with(tenant, lambda keeper: keeper.restore_budgets(tenant, budgets))

    def with_vault(self, work: Callable[[Vault, Transaction], T], tenant: str = "") -> T:
        assert tenant, "whose credit is it?"
        return self._with(tenant, lambda keeper: keeper.with_vault(work, tenant))

    def look(self, work: Callable[[Vault, Transaction], T], tenant: str = "") -> list[T]:
        if tenant:
            return [self._with(tenant, lambda keeper: self._look(keeper, work))]
        return [self._look(self._keeper(each.shard), work) for each in self.shards()]

    def noted(self, sources: Collection[Source] = ()) -> Noted:
        """What no shard lacks, or has booked less of, than this says."""
        gaps: dict[Source, Ranges] = {}
        tokens: dict[Source, int] = {}
        high_water: dict[Source, int] = {}
        for each in self.shards():
            keeper = self._keeper(each.shard)
            noted = keeper.noted(sources) if each.shard in self.own else keeper.noted_aside(sources)
            for source, numbers in noted.gaps.items():
                gaps[source] = merged([*gaps.get(source, ()), *numbers])
            for source, counted in noted.tokens.items():
                known = tokens.get(source, counted)
                tokens[source] = UNKNOWN if UNKNOWN in (known, counted) else min(known, counted)
            for source, highest in noted.high_water.items():
                high_water[source] = min(highest, high_water.get(source, highest))
        return Noted(gaps, tokens, high_water)

    def remake(self, key: Key, messages: Sequence[Delivered], before: Audited, now_unix_ms: int) -> Remade:
        return self._with(key[1], lambda keeper: keeper.remake(key, messages, before, now_unix_ms))

    def add_up_again(self, tenant: str) -> int:
        return self._with(tenant, lambda keeper: keeper.add_up_again(tenant))

    def shards(self) -> list[Shard]:
        with self._books.reading() as transaction:
            return transaction.shards()

    def elsewhere(self) -> list[Shard]:
        """Shards that other meters book."""
        return [each for each in self.shards() if each.shard not in self.own]

    def _look(self, keeper: Bookkeeper, work: Callable[[Vault, Transaction], T]) -> T:
        return keeper.with_vault(work) if keeper.shard in self.own else keeper.look_aside(work)

    def _with(self, tenant: str, work: Callable[[Bookkeeper], T]) -> T:
        """Does it in the tenant's shard, wherever that goes meanwhile."""
        partition = partition_of(tenant)
        for _ in range(_TRIES):
            shard = next(each.shard for each in self.shards() if partition in each.partitions)
            try:
                return work(self._keeper(shard))
            except ShardMoved:
                continue
        raise QueueFull(f"tenant {tenant!r} goes from meter to meter just now; try again")

    def _keeper(self, shard: int) -> Bookkeeper:
        keeper = self.own.get(shard) or self._guests.get(shard)
        if keeper is None:
            keeper = self._guests[shard] = self._guest(shard=shard)
        return keeper
