"""Partitions of tenants: what several meters share out among themselves.

In: a tenant. Out: its partition, the same at every process and in every version: books and leases go by it.
"""

import zlib
from functools import lru_cache
from typing import Final

PARTITIONS: Final = 16
ALL: Final = frozenset(range(PARTITIONS))
_NUMBERS: Final = frozenset(map(str, range(PARTITIONS)))


@lru_cache(maxsize=65_536)
def partition_of(tenant: str) -> int:
    """0 to `PARTITIONS` - 1."""
    return zlib.crc32(tenant.encode(errors="surrogatepass")) % PARTITIONS


def holder_in(partition: int, name: str) -> str:
    """The name by which a router or worker holds credit of a partition's tenants."""
    return f"{name}@{partition}"


def partition_of_funder(funder: str) -> int | None:
    """The partition in a funder's name, `<holder>/<start>`; None where it names none."""
    partition = funder.rpartition("/")[0].rpartition("@")[2]
    return int(partition) if partition in _NUMBERS else None
