"""The thirteen quantities that the meter adds up: one row of usage, one entry of the ledger, one segment of a bill.

Names and units are those of `UsageRow` in metering.proto; minutes are counted since 1970. Pure.
"""

from operator import add, sub
from typing import Final, NamedTuple

MS_PER_MINUTE: Final = 60_000


class Amounts(NamedTuple):
    """Quantities of one request at one place, or of many. In an increment each may be negative.

    Attributes:
        measured_energy_uj: the part of `energy_uj` that a meter measured; the rest is the catalogue's model.
    """

    requests: int = 0
    finished_requests: int = 0
    slo_met_requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    delivered_tokens: int = 0
    price_nusd: int = 0
    use_cost_nusd: int = 0
    energy_cost_nusd: int = 0
    device_ns: int = 0
    energy_uj: int = 0
    measured_energy_uj: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        return _made(Amounts, map(add, self, other))

    def minus(self, other: "Amounts") -> "Amounts":
        return _made(Amounts, map(sub, self, other))


_made: Final = tuple.__new__  # past the arguments of `Amounts`: this runs for each line of the ledger
NOTHING: Final = Amounts()


class Place(NamedTuple):
    """Where tokens were made; with pool and accelerator, because a worker's name may move to another device."""

    worker: str
    pool: str
    accelerator: str


NOWHERE: Final = Place("", "", "")
