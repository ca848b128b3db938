"""Shards of the books: the partitions of tenants that are booked together, by one meter at a time.

shards   which partitions each has; `writer`: the meter that books it; `author`: whose transaction was its last

A shard has its own marks of publishers, its own durable readers and its own row here, which each of its transactions
locks first: that is the fence. Who finds another's name as `author` knows that what it has in memory may be old.
New books have one shard with all partitions; a meter that comes in is given one that was split off another.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import Column, Connection, Table, Text, func, insert, literal, select

from services.mesh.errors import SettingInvalid
from services.mesh.partitions import ALL, PARTITIONS
from services.meter.store import schema
from services.meter.store.schema import integer, metadata, text

FIRST: Final = 0

shards = Table(
    "shards",
    metadata,
    integer("shard", key=True),
    Column("partitions", Text, nullable=False),  # ranges: "0-3,8"
    text("writer"),
    text("author"),
)


class Shard(NamedTuple):
    """`writer`: the start of a meter that books it, or booked it last; empty before any did."""

    shard: int
    partitions: frozenset[int]
    writer: str


def make_first(connection: Connection) -> None:
    """New books' one shard."""
    connection.execute(shards.insert().values(shard=FIRST, partitions=written(ALL), writer="", author=""))


def all_shards(connection: Connection, name: str = "") -> list[Shard]:
    """Those that there are, in order.

    Raises:
        SettingInvalid: they were made by a program that counts partitions otherwise.
    """
    found = [
        Shard(row.shard, parsed(row.partitions), row.writer)
        for row in connection.execute(select(shards).order_by(shards.c.shard))
    ]
    if sorted(each for shard in found for each in shard.partitions) != sorted(ALL):
        raise SettingInvalid(
            f"the books{name} are shared out in other partitions of tenants than the {PARTITIONS} of this program:"
            f" {'; '.join(written(each.partitions) for each in found)}; run the tokenworks that wrote them"
        )
    return found


def split_off(connection: Connection, shard: int, given: Collection[int], writer: str) -> int:
    """Makes a shard of some partitions of another, which has booked the same events; its number. The other's row has
    to be locked, and gets the rest."""
    number = int(connection.execute(select(func.max(shards.c.shard))).scalar_one()) + 1
    connection.execute(shards.insert().values(shard=number, partitions=written(given), writer=writer, author=""))
    table = schema.publishers
    names = [column.name for column in table.columns]
    marks = select(literal(number), *(table.c[name] for name in names[1:])).where(table.c.shard == shard)
    connection.execute(insert(table).from_select(names, marks))
    return number


def durable_of(name: str, shard: int) -> str:
    """The durable reader of a shard; the first goes by the name alone."""
    return name if shard == FIRST else f"{name}-{shard}"


def written(partitions: Collection[int]) -> str:
    """As they are stored and shown: "0-3,8"."""
    ranges: list[list[int]] = []
    for each in sorted(partitions):
        if ranges and ranges[-1][1] == each - 1:
            ranges[-1][1] = each
        else:
            ranges.append([each, each])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parsed(text: str) -> frozenset[int]:
    """What `written` wrote."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
