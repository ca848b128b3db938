"""Policies side by side: the same trace, fleet and seeds under each, with confidence intervals over the seeds.

In: reports of runs that differ in nothing but policy and seed. Out: for each policy the mean of each figure and the
half-width of its 95 % interval (Student's t over the seeds); and the difference to the first policy, paired by seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

from services.twin.report import Report

FIGURES: Final = ("slo_attainment", "worst_attainment", "usd_per_mtok", "fleet_usd", "energy_j", "span_s")
# Two-sided 95 % quantiles of Student's t by degrees of freedom (Abramowitz & Stegun, table 26.10).
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL: Final = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """`mean` plus or minus `half`; `half` is 0 where one seed was run."""

    mean: float
    half: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One policy's figures, and each one's difference to the first policy's."""

    policy: str
    seeds: int
    figures: Mapping[str, Interval]
    to_first: Mapping[str, Interval]


def interval(values: Sequence[float]) -> Interval:
    """The mean of the values (n >= 1) and the half-width of its 95 % interval."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, 0.0)
    spread = sqrt(sum((each - mean) ** 2 for each in values) / (len(values) - 1))
    degrees = len(values) - 1
    quantile = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    return Interval(mean, quantile * spread / sqrt(len(values)))


def compare(reports: Mapping[str, Sequence[Report]]) -> list[Compared]:
    """Sums up runs by policy.

    Args:
        reports: by policy, each with one report per seed, in the same order of seeds.
    """
    first = next(iter(reports.values()))
    compared = []
    for policy, runs in reports.items():
        figures = {name: interval([getattr(each, name) for each in runs]) for name in FIGURES}
        to_first = {
            name: interval([getattr(mine, name) - getattr(its, name) for mine, its in zip(runs, first, strict=True)])
            for name in FIGURES
        }
        compared.append(Compared(policy, len(runs), figures, to_first))
    return compared
