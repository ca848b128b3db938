"""Caps over the whole plan: carbon by the hour and by the million tokens, and what may depend on spot capacity.

In: `Caps` from the settings; for each pair of a class and a pool what a request emits there. Out: for the program, how
much each pair takes of each cap, and what passing it costs; for plans, `PlanLimit`s.

A cap gives way before a request is left unserved: a fleet that cannot keep it serves all the same, as sparingly as it
can, and the plan says that the cap is passed and by how much. So passing it costs twice what the dearest way to spare a
unit would, and leaving a request unserved more than that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_DEARER: Final = 2.0
_MARKED: Final = 0.05  # of what the most costly way takes: pairs that differ by less spare nothing to speak of
_LEAST_USD: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Caps:
    """0 caps nothing; `spot_share` of 1 neither."""

    carbon_g_per_hour: float = 0.0
    carbon_g_per_mtoken: float = 0.0
    spot_share: float = 1.0


NO_CAPS: Final = Caps()


class Way(NamedTuple):
    """One class on one pool, per request."""

    usd: float
    device_s: float
    carbon_g: float
    spot: float
    tokens: float


class CapRow(NamedTuple):
    """One cap in the program; amounts are per second.

    Attributes:
        name, unit, per_unit: what it is called, and how many of the program's units make one that is shown.
        amounts: by class and pool, of one request.
    """

    name: str
    unit: str
    per_unit: float
    most: float
    excess_usd: float
    amounts: Sequence[Mapping[str, float]]


def cap_rows(caps: Caps, ways: Sequence[Mapping[str, Way]], rates_rps: Sequence[float]) -> list[CapRow]:
    """The caps that there are.

    Args:
        ways: of each class by pool, those that are feasible.
        rates_rps: of each class.
    """
    wanted: list[tuple[str, str, float, float, Sequence[Mapping[str, float]]]] = []
    if caps.carbon_g_per_hour > 0:
        amounts = [{pool: way.carbon_g for pool, way in each.items()} for each in ways]
        wanted.append(("carbon", "g/h", 1 / 3600, caps.carbon_g_per_hour / 3600, amounts))
    if caps.carbon_g_per_mtoken > 0:
        per_token_g = caps.carbon_g_per_mtoken / 1e6
        amounts = [{pool: way.carbon_g - per_token_g * way.tokens for pool, way in each.items()} for each in ways]
        wanted.append(("carbon per token", "g/h beyond the cap", 1 / 3600, 0.0, amounts))
    if caps.spot_share < 1:
        amounts = [{pool: way.spot for pool, way in each.items()} for each in ways]
        wanted.append(("spot", "requests/s", 1.0, caps.spot_share * sum(rates_rps), amounts))
    return [
        CapRow(name, unit, per_unit, most, _excess_usd(ways, amounts), amounts)
        for name, unit, per_unit, most, amounts in wanted
    ]


def _excess_usd(ways: Sequence[Mapping[str, Way]], amounts: Sequence[Mapping[str, float]]) -> float:
    """More than sparing a unit costs, whichever class is moved from whichever pool to which."""
    dearest = _LEAST_USD
    for of_class, taken in zip(ways, amounts, strict=True):
        marked = _MARKED * max(map(abs, taken.values()), default=0.0)
        for one, way in of_class.items():
            for other, instead in of_class.items():
                spared = taken[one] - taken[other]
                if spared > marked and instead.usd > way.usd:
                    dearest = max(dearest, (instead.usd - way.usd) / spared)
    return dearest * _DEARER
