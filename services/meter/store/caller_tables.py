"""The tables of usage and postings by who called, added up by the hour.

caller_hours     the ledger's lines of an hour, by team and key and all that usage is kept by
session_hours    the same by session as well: as many rows as there are sessions
caller_postings, session_postings  what is booked beside the ledger, the same way
rolled_hours     which hours are added up, and what they are added up from; hour -1: all postings up to `last_posting`
                 were looked at

A whole hour is written at once, in place of what was there. Questions read the ledger itself for hours that are not
added up as they stand.
"""

from sqlalchemy import Boolean, Column, Table

from services.meter.core.amounts import Amounts
from services.meter.core.usage import DIMENSIONS
from services.meter.store.schema import integer, metadata, text


def _callers(*, sessions: bool) -> list[Column[str]]:
    names = ("caller_team", "caller_key", *(("session_id",) if sessions else ()))
    return [text(name, key=True) for name in names]


def _hours(name: str, *, sessions: bool) -> Table:
    return Table(
        name,
        metadata,
        integer("hour", key=True),
        *_callers(sessions=sessions),
        *(text(each, key=True) for each in DIMENSIONS),
        *(integer(each) for each in Amounts._fields),
        sqlite_with_rowid=False,
    )


def _postings(name: str, *, sessions: bool) -> Table:
    return Table(
        name,
        metadata,
        integer("hour", key=True),
        text("account", key=True),
        *_callers(sessions=sessions),
        *(text(each, key=True) for each in DIMENSIONS),
        integer("amount_nusd"),
        integer("carbon_ug"),
        sqlite_with_rowid=False,
    )


caller_hours = _hours("caller_hours", sessions=False)
session_hours = _hours("session_hours", sessions=True)
caller_postings = _postings("caller_postings", sessions=False)
session_postings = _postings("session_postings", sessions=True)

rolled_hours = Table(
    "rolled_hours",
    metadata,
    integer("hour", key=True),
    integer("last_line"),  # of the ledger that it is added up to
    integer("last_posting"),
    Column("stale", Boolean, nullable=False),  # something was booked in it since
    Column("unknown", Boolean, nullable=False),  # some of its requests' callers were not known yet
    integer("rolled_unix_ms"),
)
