"""Books of every version that was are carried over to this one's tables, in either database."""

from collections.abc import Iterator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text

from services.mesh.errors import SettingInvalid
from services.meter.store.database import Database
from services.meter.store.migrations import __file__ as folder
from services.meter.store.tables import metadata
from services.meter.store.upgrades import BY_ALEMBIC, HEAD
from tests.contract.conftest import NewUrl

SCRIPTS = folder.rpartition("/")[0]


@pytest.fixture
def url(new_url: NewUrl) -> str:
    return new_url()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url)
    yield made
    made.dispose()


def _upgrade(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", SCRIPTS)
        command.upgrade(config, revision)


def _differences(engine: Engine) -> list[object]:
    def included(name: str | None, kind: str, _: object) -> bool:
        return kind != "table" or name in metadata.tables  # partitions are tables of the database alone

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": included})
        return list(compare_metadata(context, metadata))


def test_revisions_are_one_line_that_ends_at_the_head() -> None:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    assert [each.revision for each in script.walk_revisions()] == [f"{n:04}" for n in range(int(HEAD), 0, -1)]


def test_revisions_make_the_tables_that_new_books_get(engine: Engine) -> None:
    _upgrade(engine, "head")
    assert _differences(engine) == []


def test_new_books_are_at_the_head(url: str, engine: Engine) -> None:
    Database(url).close()
    assert _differences(engine) == []
    _upgrade(engine, "head")  # nothing is left to do
    Database(url).close()


@pytest.mark.parametrize("version", range(1, BY_ALEMBIC))
def test_books_from_before_alembic_are_carried_over(url: str, engine: Engine, version: int) -> None:
    _upgrade(engine, f"{version:04}")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text(f"UPDATE state SET schema_version = {version}"))
        connection.execute(text("INSERT INTO tenants VALUES ('acme', 5, NULL, 0)"))
    for _ in range(2):
        Database(url).close()
    assert _differences(engine) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT spent_nusd FROM tenants")).scalar_one() == 5
        # What went by numbers of its own refuses this one.
        assert connection.execute(text("SELECT schema_version FROM state")).scalar_one() == BY_ALEMBIC


def test_books_of_the_fifth_version_that_have_holders_keep_them(url: str, engine: Engine) -> None:
    _upgrade(engine, "0005")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE credit_holders (funder VARCHAR PRIMARY KEY, linger_ms BIGINT NOT NULL)"))
        connection.execute(text("INSERT INTO credit_holders VALUES ('router-0/1', 7)"))
    Database(url).close()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT linger_ms FROM credit_holders")).scalar_one() == 7


def test_an_upgrade_that_fails_leaves_the_books_as_they_were(url: str, engine: Engine) -> None:
    _upgrade(engine, "0003")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bill_hours (in_the_way INTEGER)"))
    with pytest.raises(SettingInvalid, match="cannot be opened"):
        Database(url)
    assert not inspect(engine).has_table("reratings")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0003"


def test_books_of_a_newer_program_are_left_alone(url: str, engine: Engine) -> None:
    Database(url).close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingInvalid, match=f"version 9999, this meter reads version {HEAD}"):
        Database(url)
