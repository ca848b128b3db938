"""What the promises of an SLO class cost in a month: so far, and as it goes. Pure."""

from dataclasses import dataclass

from services.meter.core.amounts import Amounts
from services.meter.core.credits import CreditTerms


@dataclass(frozen=True, slots=True)
class Outcome:
    """The month of one class, amounts in nano-dollars.

    Attributes:
        attainment: 0 to 1, of the recent past.
        expected_nusd: of credits, of the whole month at that attainment; `most_nusd` if all were missed from now on.
        expected_price_nusd: billed in the whole month.
    """

    attainment: float
    credited_nusd: int
    expected_nusd: float
    most_nusd: float
    expected_price_nusd: float


def outcome(
    month: Amounts, day: Amounts, week: Amounts, credited_nusd: int, terms: CreditTerms, *, week_h: float, left_h: float
) -> Outcome:
    """What comes of a class by the end of the month, if it goes on as in the last week.

    Args:
        month, day, week: since the month's first hour, and of the last day and week.
        week_h: hours of the last week in which anything was known, > 0.
        left_h: hours of the month to come, >= 0.
    """
    recent = next((each for each in (day, month, week) if each.finished_requests > 0), None)
    attainment = 1.0 if recent is None else recent.slo_met_requests / recent.finished_requests
    coming = week.finished_requests / week_h * left_h
    priced = week if week.finished_requests > 0 else month
    price_nusd = priced.price_nusd / priced.finished_requests if priced.finished_requests > 0 else 0.0
    credit_nusd = terms.credit_nusd(round(price_nusd))
    return Outcome(
        attainment,
        credited_nusd,
        credited_nusd + coming * (1 - attainment) * credit_nusd,
        credited_nusd + coming * credit_nusd,
        month.price_nusd + coming * price_nusd,
    )
