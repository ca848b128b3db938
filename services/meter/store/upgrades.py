"""The revision of the books' tables: makes new ones, and brings older ones to `HEAD` by Alembic's revisions.

In: the writer's connection, in its transaction. Out: tables as this program reads them, or `SettingInvalid`. New books
are made at once from the tables' descriptions; a test holds what the revisions make against them. Books from before
Alembic say their version, 1 to 5, in `state`, and begin at the revision of that number.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from services.mesh.errors import SettingInvalid
from services.meter.store import schema
from services.meter.store.months import create_tables
from services.meter.store.shards import make_first
from services.meter.store.tables import metadata

HEAD: Final = "0013"  # the newest of migrations/versions
BY_ALEMBIC: Final = 6  # what `state.schema_version` says since its revisions count
_FOLDER: Final = Path(__file__).parent / "migrations"
_ONE_AT_A_TIME: Final = 0x746B776B  # the advisory lock under which PostgreSQL's tables are made

# As Alembic makes it.
_version: Final = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def bring_up_to_date(connection: Connection, name: str) -> None:
    """Makes the tables, or changes them.

    Args:
        name: the database's, for the error.

    Raises:
        SettingInvalid: the tables are of a newer program.
    """
    if connection.dialect.name == "postgresql":  # SQLite's transaction has its lock as it begins
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ONE_AT_A_TIME})")
    there = inspect(connection)
    if not there.has_table(schema.state.name):
        create_tables(connection, metadata)
        _version.create(connection)
        connection.execute(_version.insert().values(version_num=HEAD))
        connection.execute(schema.state.insert().values(id=1, schema_version=BY_ALEMBIC, writer=""))
        connection.execute(schema.holdings.insert().values(what="books", writer="", until_unix_ms=0))
        make_first(connection)
        return
    if not there.has_table(_version.name):
        version = connection.execute(select(schema.state.c.schema_version)).scalar_one()
        if not 1 <= version < BY_ALEMBIC:
            raise _newer(name, str(version))
        _version.create(connection)
        connection.execute(_version.insert().values(version_num=f"{version:04}"))
    revision = connection.execute(select(_version.c.version_num)).scalar_one()
    if revision != HEAD:
        _upgrade(connection, name, revision)


def check_up_to_date(connection: Connection, name: str) -> None:
    """For who only reads.

    Raises:
        SettingInvalid: there are no tables, or others than this program reads.
    """
    there = inspect(connection)
    if not there.has_table(schema.state.name):
        raise SettingInvalid(f"meter.database_url = {name} holds no books; name the database of a meter")
    version = "before Alembic"
    if there.has_table(_version.name):
        version = connection.execute(select(_version.c.version_num)).scalar_one()
    if version != HEAD:
        raise SettingInvalid(
            f"meter.database_url = {name} has tables of version {version}, and this program reads version {HEAD}; let"
            " the meter of this program open it first, or run the tokenworks that wrote it"
        )


def _upgrade(connection: Connection, name: str, revision: str) -> None:
    # Only an upgrade needs it: it takes as long to import as all else of the meter's start.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER))
    if revision not in {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}:
        raise _newer(name, revision)
    command.upgrade(config, "head")


def _newer(name: str, version: str) -> SettingInvalid:
    return SettingInvalid(
        f"meter.database_url = {name} has tables of version {version}, this meter reads version {HEAD}; run the"
        " tokenworks that wrote it, or name another database"
    )
