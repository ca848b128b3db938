"""Who leads the meters on one set of books: one at a time, for a time that it keeps renewing; others stand by.

In: the database's URL, and who wants the books. Out: whether they are its own. PostgreSQL: a row with an end, by the
server's clock alone; renewing does not wait for what is being booked, for it locks another row than that does. The end
only says when others may try. What makes it safe is the fence: whoever takes the books puts its name into `state`,
which every transaction of `Books.house` reads and locks, so one that was only slow finds that it leads no more.
SQLite is for one meter: it locks a file beside the database, which the kernel frees however the process ends.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, ColumnElement, cast, create_engine, func, make_url, or_, update

from services.mesh.errors import SettingInvalid
from services.meter.store import schema
from services.meter.store.database import Database, parse_url

BOOKS: Final = "books"
CONNECT_S: Final = 5
STATEMENT_MS: Final = 5_000
_table: Final = schema.holdings


class Holding:
    """One meter's hold on the books of a PostgreSQL server. Called from one thread at a time.

    Args:
        writer: `<meter id>:<start>`; an earlier start of the same meter is succeeded at once.
        ttl_s: how long it holds without renewing.
    """

    def __init__(self, url: str, writer: str, ttl_s: float) -> None:
        settings = f"-c statement_timeout={STATEMENT_MS}"
        self._engine = create_engine(
            parse_url(url),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_S, "options": settings},
        )
        self._writer = writer
        self._earlier = f"{writer.rpartition(':')[0]}:"
        self._ttl_ms = round(ttl_s * 1000)

    def take(self) -> str:
        """Takes the books if nobody has them; who has them, empty when it is this meter."""
        free = or_(_table.c.until_unix_ms < now_ms(), _table.c.writer.startswith(self._earlier, autoescape=True))
        values = {"writer": self._writer, "until_unix_ms": now_ms() + self._ttl_ms}
        with self._engine.begin() as connection:
            mine = _table.c.what == BOOKS
            if connection.execute(update(_table).where(mine, free).values(values)).rowcount:
                # The fence: waits for the last transaction of whoever had them.
                connection.execute(update(schema.state).values(writer=self._writer))
                return ""
            holder: str = connection.execute(_table.select().where(mine)).one().writer
            return holder

    def renew(self) -> bool:
        """Whether the books are still this meter's; then for another while."""
        mine = (_table.c.what == BOOKS) & (_table.c.writer == self._writer)
        with self._engine.begin() as connection:
            renewed = update(_table).where(mine).values(until_unix_ms=now_ms() + self._ttl_ms)
            return connection.execute(renewed).rowcount == 1

    def release(self) -> None:
        """Others may take them now."""
        mine = (_table.c.what == BOOKS) & (_table.c.writer == self._writer)
        with self._engine.begin() as connection:
            connection.execute(update(_table).where(mine).values(until_unix_ms=0))

    def close(self) -> None:
        self._engine.dispose()


class FileLock:
    """The hold on a SQLite file.

    Raises:
        SettingInvalid: another meter has it.
    """

    def __init__(self, url: str) -> None:
        database = make_url(url).database
        assert database
        path = Path(f"{database}.lock")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise SettingInvalid(
                f"meter.database_url = sqlite:///{database}: another meter writes these books (process {holder}), and a"
                " SQLite file has one. Stop that one, or keep the books in PostgreSQL, where meters share"
                " them"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        with suppress(OSError):
            os.close(self._file)


def is_shared(database: Database) -> bool:
    """Whether more than one meter may be on it."""
    return database.writer.dialect.name == "postgresql"


def now_ms() -> ColumnElement[int]:
    """By the server's clock, whichever meter asks."""
    return cast(func.extract("epoch", func.clock_timestamp()) * 1000, BigInteger)
