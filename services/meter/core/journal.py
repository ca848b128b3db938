"""What is booked beside the ledger, in double entry: accounts, postings, and how a state is corrected. Pure.

A transaction is a set of postings whose amounts sum to zero; a debit is positive. Nothing that is booked is ever
changed: what is to be booked is worked out anew (*target*), and the difference to what is booked becomes the next
transaction. The difference of two balanced states is balanced.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from services.mesh.errors import InvariantBroken


class Account(StrEnum):
    FLEET = "fleet"  # owed for accelerators
    FLEET_ENERGY = "fleet.energy"  # owed for energy
    ACCRUED = "accrued"  # what the ledger's lines have booked as cost before the bill came
    USE = "use"  # of a request, beyond what the ledger's lines have
    ENERGY = "energy"  # likewise
    IDLE = "idle"  # of a request: its part of the time that nobody used
    POOL_IDLE = "pool.idle"  # of a worker, on its way to the requests of its pool; comes to nothing in every pool
    HOUSE_IDLE = "house.idle"
    HOUSE_WARM_UP = "house.warm_up"
    HOUSE_WASTE = "house.waste"  # tokens made and not delivered
    HOUSE_REPLAY = "house.replay"  # work done again where a stream went on elsewhere
    HOUSE_RESERVED = "house.reserved"  # reserved, and no worker had it
    RECEIVABLE = "receivable"  # from a tenant, beyond the price in the ledger's lines
    SLO_CREDIT = "slo_credit"  # given back for promises that were not kept
    REVENUE = "revenue"  # tiers and commitments


HOUSE: Final = tuple(each for each in Account if each.startswith("house."))

OF_REQUESTS: Final = frozenset({"tenant", "workload", "slo_class"})  # what a cost that the house bears is not told by


class Subject(NamedTuple):
    """What a posting is about; empty where it is about none."""

    request_id: str = ""
    tenant: str = ""
    workload: str = ""
    model: str = ""
    accelerator: str = ""
    worker: str = ""
    pool: str = ""
    slo_class: str = ""


class Value(NamedTuple):
    """Nano-dollars, a debit positive; and the micrograms of CO2 equivalent that go with it."""

    amount_nusd: int = 0
    carbon_ug: int = 0


Booked = dict[tuple[Account, Subject], Value]


class Posting(NamedTuple):
    account: Account
    subject: Subject
    value: Value


def add(booked: Booked, account: Account, subject: Subject, amount_nusd: int, carbon_ug: int = 0) -> None:
    """Adds to a state; what comes to nothing leaves no trace."""
    if amount_nusd or carbon_ug:
        before = booked.get((account, subject), Value())
        booked[account, subject] = Value(before.amount_nusd + amount_nusd, before.carbon_ug + carbon_ug)


def difference(target: Booked, booked: Booked) -> list[Posting]:
    """The transaction that makes `target` of what is booked; empty where they agree.

    Raises:
        InvariantBroken: it would not balance.
    """
    postings = []
    for key in sorted(target.keys() | booked.keys()):
        wanted, there = target.get(key, Value()), booked.get(key, Value())
        if wanted != there:
            value = Value(wanted.amount_nusd - there.amount_nusd, wanted.carbon_ug - there.carbon_ug)
            postings.append(Posting(*key, value))
    if rest_nusd := balance(postings):
        raise InvariantBroken(f"a transaction of {len(postings)} postings comes to {rest_nusd} nano-dollars, not to 0")
    return postings


def balance(postings: Iterable[Posting]) -> int:
    """What postings come to, nano-dollars; 0 where they balance."""
    return sum(each.value.amount_nusd for each in postings)
