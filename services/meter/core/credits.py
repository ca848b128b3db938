"""What a promise that was not kept gives back, and what the requests under way could still cost so. Pure.

In: requests that missed, with their prices, and each SLO class's terms. Out: a balanced state to book (`journal.py`):
the credit is the house's loss, and the tenant owes less by it.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from services.meter.core.journal import Account, Booked, Subject, add

_PERCENT_E4: Final = 1_000_000  # of 100 percent, in ten-thousandths of a percent


class CreditTerms(NamedTuple):
    """A part of the request's price, in ten-thousandths of a percent, and an amount; together at most the price."""

    percent_e4: int = 0
    fixed_nusd: int = 0

    def credit_nusd(self, price_nusd: int) -> int:
        """What a request of this price is given back when it misses."""
        return max(0, min(price_nusd, price_nusd * self.percent_e4 // _PERCENT_E4 + self.fixed_nusd))


class Missed(NamedTuple):
    """A request that ended without its promise kept; `price_nusd` of all of it."""

    subject: Subject
    price_nusd: int


class AtRisk(NamedTuple):
    """Attributes:
    at_risk_nusd: given back if every request under way missed.
    expected_nusd: if each missed as often as its class did lately.
    """

    requests: int
    at_risk_nusd: int
    expected_nusd: float


def credits_of(missed: Iterable[Missed], terms: Mapping[str, CreditTerms]) -> Booked:
    """What is to be booked for requests that missed."""
    booked: Booked = {}
    for each in missed:
        credit_nusd = terms.get(each.subject.slo_class, CreditTerms()).credit_nusd(each.price_nusd)
        add(booked, Account.SLO_CREDIT, each.subject, credit_nusd)
        add(booked, Account.RECEIVABLE, each.subject, -credit_nusd)
    return booked


def at_risk(
    running: Iterable[tuple[str, int]], terms: Mapping[str, CreditTerms], missed: Mapping[str, tuple[int, int]]
) -> AtRisk:
    """What requests under way put at risk.

    Args:
        running: SLO class and price so far of each.
        missed: by class, how many ended lately, and how many of these without their promise kept.
    """
    requests, whole_nusd, expected_nusd = 0, 0, 0.0
    for slo_class, price_nusd in running:
        credit_nusd = terms.get(slo_class, CreditTerms()).credit_nusd(price_nusd)
        ended, without = missed.get(slo_class, (0, 0))
        requests += 1
        whole_nusd += credit_nusd
        expected_nusd += credit_nusd * without / ended if ended else 0.0
    return AtRisk(requests, whole_nusd, expected_nusd)
