"""On PostgreSQL, requests, their places and their lines are parted by the month that begins their id."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_KEYS = {
    "requests": "request_id, tenant",
    "segments": "request_id, tenant, worker, pool, accelerator",
    "entries": "id, request_id",
}
_AHEAD = 3
_ABOVE = "04"  # ids of the year 2109
_MOST = 120


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("SET LOCAL statement_timeout = 0")  # the detail is copied once
    op.execute("DROP INDEX entries_by_request")
    op.execute("DROP INDEX postings_by_request")
    # Ids are compared byte by byte, so that they sort by their time, and alike wherever they are joined.
    op.execute('ALTER TABLE postings ALTER COLUMN request_id TYPE VARCHAR COLLATE "C"')
    op.execute("CREATE INDEX postings_by_request ON postings (request_id)")
    for table in _KEYS:
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
        op.execute(f'ALTER TABLE {table} ALTER COLUMN request_id TYPE VARCHAR COLLATE "C"')
    months = _months()
    for table, keys in _KEYS.items():
        op.execute(f"ALTER TABLE {table} RENAME TO {table}_whole")
        op.execute(f"CREATE TABLE {table} (LIKE {table}_whole INCLUDING DEFAULTS) PARTITION BY RANGE (request_id)")
        first = _bound(months[0])
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
        op.execute(f"CREATE TABLE {table}_below PARTITION OF {table} FOR VALUES FROM (MINVALUE) TO ('{first}')")
        op.execute(f"CREATE TABLE {table}_above PARTITION OF {table} FOR VALUES FROM ('{_ABOVE}') TO (MAXVALUE)")
        for month in months:
            year, number = divmod(month, 12)
            op.execute(
                f"CREATE TABLE {table}_y{year:04}m{number + 1:02} PARTITION OF {table}"
                f" FOR VALUES FROM ('{_bound(month)}') TO ('{_bound(month + 1)}')"
            )
        op.execute(f"INSERT INTO {table} SELECT * FROM {table}_whole")
        op.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({keys})")
        if table == "entries":
            op.execute("CREATE INDEX entries_by_request ON entries (request_id)")
            op.execute("ALTER SEQUENCE entries_id_seq OWNED BY entries.id")
        op.execute(f"DROP TABLE {table}_whole")


def _months() -> list[int]:
    """Those from the oldest id that has a time, ten years back at most, to three after the present one."""
    now_unix_ms = op.get_bind().scalar(sa.text("SELECT CAST(extract(epoch FROM now()) * 1000 AS BIGINT)"))
    assert isinstance(now_unix_ms, int), now_unix_ms
    now = _month_of(now_unix_ms)
    query = sa.text("SELECT min(request_id) FROM requests WHERE request_id >= :low AND request_id < :high")
    oldest = op.get_bind().scalar(query.bindparams(low=_bound(now - _MOST), high=_bound(now + 1)))
    known = range(now - _MOST, now + 1)
    first = now if oldest is None else next(month for month in known if oldest < _bound(month + 1))
    return list(range(first, now + _AHEAD + 1))


def _month_of(unix_ms: int) -> int:
    """Months since the year 0."""
    day = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return day.year * 12 + day.month - 1


def _bound(month: int) -> str:
    """What the ids of a month are not below."""
    year, number = divmod(month, 12)
    digits = f"{int(datetime(year, number + 1, 1, tzinfo=UTC).timestamp()) * 1000:012x}"
    return f"{digits[:8]}-{digits[8:]}"
