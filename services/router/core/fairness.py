"""Whose turn it is when capacity is short: each tenant's share of the device-dollars spent, by its weight. Pure.

In: what each tenant's placements are expected to cost, at this router and, as they tell it, at the others. Out: an
order among tenants, and whether a tenant is within its share.

The order: a virtual token counter per tenant, in dollars over weight (Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024), with the virtual time of start-time fair queueing (Goyal et al., 1996). The tenant with the lowest
counter is next; virtual time is the highest counter that was served; a tenant that comes after a pause begins there, so
that what it left unused it can't claim later. It needs no capacity, no rates and no clock.

Within its share is a tenant that has spent less lately than its part by weight among those that spend. It may pass
requests of those that spend more than theirs: so one tenant's flood waits behind everybody else's usual traffic. Who
spends more is held back only while it wants more than it gets: where there is enough for all, usual tenants are above
and below their parts by chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import exp
from typing import Final

_FADES_S: Final = 10.0
_WITHIN: Final = 0.95  # of its part; those who all take what they get are not told apart by chance
_LOOK_EVERY_S: Final = 0.25
_WANTS_S: Final = 1.0  # so long after one of its requests waited a tenant is taken to want more than it gets
_NEGLIGIBLE: Final = 0.01  # of all spending: a tenant below does not count as one that spends
_MOST_SPENDERS: Final = 65_536
_MOST_AHEAD_S: Final = 2.0  # of everybody's spending: how far others' reports may put a tenant ahead


class Standing(Enum):
    """A tenant's, when one of its requests comes.

    Attributes:
        WITHIN: it has spent less than its share lately, while others spend.
        EVEN: nobody who spends is within their share, or it has spent more and got all that it asked for.
        ABOVE: others are, it is not, and it wants more than it gets.
    """

    WITHIN = 1
    EVEN = 2
    ABOVE = 3


@dataclass(slots=True)
class _Spender:
    weight: float
    counter: float
    at_s: float
    spent_usd: float = 0.0  # fading
    waits: bool = False
    waited_s: float = float("-inf")  # when it was last seen to wait

    def spent(self, now_s: float) -> float:
        return self.spent_usd * exp((self.at_s - now_s) / _FADES_S) if now_s > self.at_s else self.spent_usd


class Fairness:
    """One router's counters.

    Args:
        weights: of tenants, > 0; 1 for those that are not named.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._spenders: dict[str, _Spender] = {}
        self._virtual = 0.0
        self._looked_s = float("-inf")
        self._all_usd = 0.0  # spent lately, by all, at the last look
        self._all_weight = 0.0  # of those that spend
        self._uneven = False
        self._untold: dict[str, float] = {}

    def __len__(self) -> int:
        """Tenants that are remembered: those that spent lately, or are ahead."""
        return len(self._spenders)

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def counter(self, tenant: str) -> float:
        """The lower, the sooner; dollars over weight."""
        spender = self._spenders.get(tenant)
        return self._virtual if spender is None else spender.counter

    def begin(self, tenant: str, now_s: float) -> None:
        """The first of its requests begins to wait: what it left unused so far is gone; what it can't use, from now on,
        is not."""
        spender = self._spender(tenant, now_s)
        spender.waits, spender.waited_s = True, now_s

    def cease(self, tenant: str) -> None:
        """None of its requests waits any more."""
        if (spender := self._spenders.get(tenant)) is not None:
            spender.waits = False

    def place(self, tenant: str, usd: float, now_s: float) -> None:
        """A request of the tenant that is expected to cost `usd` >= 0 was placed here."""
        spender = self._spender(tenant, now_s)
        self._virtual = max(self._virtual, spender.counter)
        self._spend(spender, usd, now_s)
        self._untold[tenant] = self._untold.get(tenant, 0.0) + usd

    def take_untold(self) -> dict[str, float]:
        """Dollars placed here since the last call, by tenant, for the other routers."""
        untold, self._untold = self._untold, {}
        return untold

    def placed_by_others(self, tenant: str, usd: float, now_s: float) -> None:
        """Other routers placed requests of the tenant for `usd` >= 0."""
        spender = self._spender(tenant, now_s)
        self._spend(spender, usd, now_s)
        # Its counter runs ahead of this router's virtual time while it spends elsewhere; not for ever.
        most = self._virtual + _MOST_AHEAD_S * self._all_usd / _FADES_S / spender.weight
        spender.counter = min(spender.counter, max(most, self._virtual + usd / spender.weight))

    def standing(self, tenant: str, now_s: float) -> Standing:
        """How much of its share the tenant takes."""
        self._look(now_s)
        if not self._all_usd:
            return Standing.EVEN
        spender = self._spenders.get(tenant)
        if self._is_within(tenant, spender.spent(now_s) if spender else 0.0):
            return Standing.WITHIN
        wants_more = spender is not None and (spender.waits or now_s - spender.waited_s < _WANTS_S)
        return Standing.ABOVE if self._uneven and wants_more else Standing.EVEN

    def _is_within(self, tenant: str, spent_usd: float) -> bool:
        weight = self.weight(tenant)
        counted = spent_usd > _NEGLIGIBLE * self._all_usd
        part_usd = self._all_usd * weight / (self._all_weight + (0.0 if counted else weight))
        return spent_usd < _WITHIN * part_usd

    def _spender(self, tenant: str, now_s: float) -> _Spender:
        """The tenant's; lifted to virtual time where it is behind though it need not have been."""
        spender = self._spenders.get(tenant)
        if spender is None:
            if len(self._spenders) >= _MOST_SPENDERS:  # others may tell of any number of tenants
                idle = next((each for each, known in self._spenders.items() if not known.waits), tenant)
                self._spenders.pop(idle, None)
            spender = self._spenders[tenant] = _Spender(self.weight(tenant), self._virtual, now_s)
        elif spender.counter < self._virtual and not spender.waits:
            spender.counter = self._virtual
        return spender

    def _spend(self, spender: _Spender, usd: float, now_s: float) -> None:
        spender.spent_usd = spender.spent(now_s) + usd
        spender.at_s = now_s
        spender.counter += usd / spender.weight
        self._look(now_s)

    def _look(self, now_s: float) -> None:
        """Sums up, and forgets whoever neither spent lately nor is ahead."""
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        spent = {tenant: each.spent(now_s) for tenant, each in self._spenders.items()}
        self._all_usd = sum(spent.values())
        least_usd = _NEGLIGIBLE * self._all_usd
        self._all_weight = sum(self._spenders[tenant].weight for tenant, usd in spent.items() if usd > least_usd)
        self._uneven = any(usd > least_usd and self._is_within(tenant, usd) for tenant, usd in spent.items())
        for tenant, usd in spent.items():
            spender = self._spenders[tenant]
            if spender.waits:
                spender.waited_s = now_s
            if usd <= least_usd * _NEGLIGIBLE and spender.counter <= self._virtual and not spender.waits:
                del self._spenders[tenant]
