"""What making tokens costs the house: device time and energy, in nano-dollars. Pure.

In: a segment's device nanoseconds and microjoules so far, and the rate of its accelerator. Out: the two costs so far.
Both are cumulative functions (`money.py`), so the increments booked add up to the cost of the whole, to the
nano-dollar, however the work was cut into events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from services.mesh.accelerators import split_devices
from services.mesh.money import energy_cost_nusd, use_cost_nusd


class Rate(NamedTuple):
    """What one accelerator costs; kept with each segment, so a later change of rates leaves its books alone."""

    rate_nusd_per_hour: int
    tariff_nusd_per_kwh: int

    def use_cost_nusd(self, device_ns: int) -> int:
        return use_cost_nusd(device_ns, self.rate_nusd_per_hour)

    def energy_cost_nusd(self, energy_uj: int) -> int:
        return energy_cost_nusd(energy_uj, self.tariff_nusd_per_kwh)


@dataclass(frozen=True, slots=True)
class RateCard:
    """Rates by accelerator key, and the tariff of the site.

    Attributes:
        accelerators: nano-dollars per hour of one device, by the catalogue's key.
    """

    accelerators: Mapping[str, int]
    tariff_nusd_per_kwh: int

    def rate(self, accelerator: str) -> Rate:
        """The rate in force, of several devices where `accelerator` names several; one not on the card costs its energy
        only."""
        key, devices = split_devices(accelerator)
        return Rate(self.accelerators.get(key, 0) * devices, self.tariff_nusd_per_kwh)

    def knows(self, accelerator: str) -> bool:
        return split_devices(accelerator)[0] in self.accelerators
