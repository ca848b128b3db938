"""Opening the database: SQLite with a write-ahead log that is synced at every commit, or PostgreSQL.

`Database` holds two engines on the same data: `writer` with its one connection, whose transactions take the write lock
at once (PostgreSQL: that of the row in `state`), and `reader`, whose connections cannot write and do not wait for the
writer. A connection that its server has dropped is made anew for the next transaction.
"""

from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from services.mesh.errors import SettingInvalid
from services.meter.store.upgrades import bring_up_to_date, check_up_to_date

_READERS: Final = 3  # two that answer, one that exports
_BUSY_TIMEOUT_MS: Final = 5_000
_CACHE_KIB: Final = 16_384
_CONNECT_S: Final = 10
_STATEMENT_MS: Final = 60_000
_IDLE_MS: Final = 10_000


class Database:
    """The books' database, with its tables as this program reads them: made, or brought there from older ones.

    Args:
        read_only: books of somebody else, who may be writing: nothing is made, and no lock is waited for.

    Raises:
        SettingInvalid: `meter.database_url` is no URL of a database that can be opened here, keeps nothing beyond the
            process, or holds the tables of a newer program.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        parsed = parse_url(url)
        self._name = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingInvalid(f"meter.database_url = {self._name}: use sqlite:///<file> or postgresql://…")
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise SettingInvalid(
                    f"meter.database_url = {self._name} forgets the books; name a file: sqlite:///<file>"
                )
            if read_only and not Path(parsed.database).exists():  # to open it would make it
                raise SettingInvalid(f"meter.database_url = {self._name}: there is no such file")
            try:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingInvalid(f"meter.database_url = {self._name}: {error}") from error
        try:
            self.writer = create_engine(parsed, **_options(parsed, connections=1, read_only=False))
            self.reader = create_engine(parsed, **_options(parsed, connections=_READERS, read_only=True))
        except (NoSuchModuleError, ImportError) as error:
            raise SettingInvalid(
                f"meter.database_url = {self._name} needs a driver: {error}; pip install 'tokenworks[postgresql]'"
            ) from error
        if parsed.get_backend_name() == "sqlite":
            _prepare_sqlite(self.writer, read_only=False)
            _prepare_sqlite(self.reader, read_only=True)
        try:
            if read_only:
                self._check()
            else:
                self._create()
        except SQLAlchemyError as error:
            self.close()
            said = getattr(error, "orig", None) or error  # without the statement, and a link to what errors are
            raise SettingInvalid(f"meter.database_url = {self._name} cannot be opened: {said}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()

    def _check(self) -> None:
        with self.reader.connect() as connection:
            check_up_to_date(connection, self._name)

    def _create(self) -> None:
        with self.writer.begin() as connection:
            bring_up_to_date(connection, self._name)


def parse_url(url: str) -> URL:
    """The URL, for PostgreSQL with the driver that is used here where it names none.

    Raises:
        SettingInvalid: it is none.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingInvalid(f"meter.database_url is not a database URL: {error}; e.g. sqlite:///meter.db") from error
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _options(url: URL, *, connections: int, read_only: bool) -> dict[str, Any]:
    """What its engine is made with."""
    options: dict[str, Any] = {"pool_size": connections, "max_overflow": 0}
    if url.get_backend_name() == "postgresql":
        server_settings = f"-c statement_timeout={_STATEMENT_MS}"
        if read_only:
            server_settings += " -c default_transaction_read_only=on"
        else:
            # A process that was stopped within a transaction has locks, which others wait for.
            server_settings += f" -c idle_in_transaction_session_timeout={_IDLE_MS}"
        options["pool_pre_ping"] = True
        options["connect_args"] = {"connect_timeout": _CONNECT_S, "options": server_settings}
    return options


def _prepare_sqlite(engine: Engine, *, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, see `begun`
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            # An event is acked after its commit, so a commit must survive the machine, not only the process.
            connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
