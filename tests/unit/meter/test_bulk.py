from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable

from services.meter.store import schema
from services.meter.store.bulk import upsert


def test_an_upsert_adds_keeps_or_replaces_in_every_dialect() -> None:
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        text = upsert(dialect, schema.tenants, added=("spent_nusd",), kept=("limit_nusd",)).text
        assert "spent_nusd = (tenants.spent_nusd + excluded.spent_nusd)" in text
        assert "budgeted_unix_ms = excluded.budgeted_unix_ms" in text
        assert "limit_nusd = " not in text


def test_the_tables_can_be_made_in_every_dialect() -> None:
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        for table in schema.metadata.sorted_tables:
            assert "BIGINT" in str(CreateTable(table).compile(dialect=dialect))
