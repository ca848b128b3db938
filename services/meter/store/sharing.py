"""Which meters are on one PostgreSQL, and which shards of the books each is to book.

In: one meter's wish to take part. Out: who is there, by rows in `holdings` that each keeps renewing by the server's
clock; and shards of meters that are not there any more, which are free. What makes it safe is the fence of each shard,
see `books.py`: the rows here only say when others may try.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import create_engine, exists, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from services.meter.store import schema
from services.meter.store.database import parse_url
from services.meter.store.holding import BOOKS, CONNECT_S, STATEMENT_MS, now_ms
from services.meter.store.shards import Shard, all_shards, shards

_OPEN: Final = "open"
_METER: Final = "meter:"
_table: Final = schema.holdings


class View(NamedTuple):
    """Who books what.

    Attributes:
        held: partitions of each meter that is there, by its writer's name.
        open: whoever leads has seen to what is nobody's partition: shards may be taken.
    """

    shards: tuple[Shard, ...]
    held: Mapping[str, int]
    open: bool

    def free(self) -> list[Shard]:
        """Shards whose meter is not there."""
        return [each for each in self.shards if each.writer not in self.held]


class Membership:
    """One meter among those on the books. Called from one thread at a time.

    Args:
        writer: `<meter id>:<start>`; it replaces an earlier start of the same meter.
        ttl_s: how long it counts as there without renewing.
    """

    def __init__(self, url: str, writer: str, ttl_s: float) -> None:
        self._engine = create_engine(
            parse_url(url),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_S, "options": f"-c statement_timeout={STATEMENT_MS}"},
        )
        self.writer = writer
        self._what = f"{_METER}{writer.rpartition(':')[0]}"
        self._ttl_ms = round(ttl_s * 1000)

    def renew(self) -> None:
        """It is there, for another while."""
        row = {"what": self._what, "writer": self.writer, "until_unix_ms": now_ms() + self._ttl_ms}
        changed = {"writer": self.writer, "until_unix_ms": row["until_unix_ms"]}
        with self._engine.begin() as connection:
            connection.execute(insert(_table).values(row).on_conflict_do_update(index_elements=["what"], set_=changed))

    def look(self) -> View:
        with self._engine.begin() as connection:
            rows = connection.execute(select(_table.c.what, _table.c.writer, _table.c.until_unix_ms >= now_ms())).all()
            found = tuple(all_shards(connection))
        held = {writer: 0 for what, writer, there in rows if what.startswith(_METER) and there}
        for each in found:
            if each.writer in held:
                held[each.writer] += len(each.partitions)
        names = {what: writer for what, writer, _ in rows}
        return View(found, held, bool(names.get(BOOKS)) and names.get(_OPEN) == names[BOOKS])

    def open(self) -> None:
        """This meter leads, and shards may be taken."""
        row = {"what": _OPEN, "writer": self.writer, "until_unix_ms": 0}
        with self._engine.begin() as connection:
            connection.execute(
                insert(_table).values(row).on_conflict_do_update(index_elements=["what"], set_={"writer": self.writer})
            )

    def take(self, shard: Shard) -> bool:
        """Takes a shard whose meter is not there; false where it is after all, or another was quicker."""
        there = exists().where(_table.c.what.startswith(_METER), _table.c.until_unix_ms >= now_ms())
        mine = (shards.c.shard == shard.shard) & (shards.c.writer == shard.writer)
        with self._engine.begin() as connection:
            # Waits for the last transaction of whoever had it.
            free = update(shards).where(mine, ~there.where(_table.c.writer == shard.writer))
            return connection.execute(free.values(writer=self.writer, author="")).rowcount == 1

    def leave(self) -> None:
        """Others may take what it has."""
        with self._engine.begin() as connection:
            gone = or_(_table.c.what == self._what, _table.c.what == _OPEN) & (_table.c.writer == self.writer)
            connection.execute(update(_table).where(gone).values(until_unix_ms=0))

    def close(self) -> None:
        self._engine.dispose()
