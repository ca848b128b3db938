"""What an hour of a worker, and its energy, costs and emits, by the settings in force at that hour. Pure.

In: the sections `[cost]` and `[energy]`, the catalogue's rates. Out: rates by worker and hour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from services.mesh.accelerators import split_devices
from services.mesh.cost_settings import DeviceRate, Reservation, Tariff, tariff_of
from services.meter.core.presence import MS_PER_HOUR


class Paid(NamedTuple):
    """Who is paid for."""

    worker: str
    pool: str
    accelerator: str


class EnergyRate(NamedTuple):
    tariff_nusd_per_kwh: int
    grid_g_per_kwh: int


@dataclass(frozen=True, slots=True)
class FleetRates:
    """Attributes:
    catalogue: nano-dollars per hour of one device, where no entry of `rates` matches.
    tariff_nusd_per_kwh, grid_g_per_kwh: where no entry of `tariffs` does.
    """

    catalogue: Mapping[str, int]
    rates: Sequence[DeviceRate]
    reservations: Sequence[Reservation]
    tariff_nusd_per_kwh: int
    grid_g_per_kwh: int
    tariffs: Sequence[Tariff]

    def nusd_per_hour(self, paid: Paid, hour: int) -> int:
        """Of all devices that the worker uses together; 0 for an accelerator that nobody gives a rate of."""
        key, devices = split_devices(paid.accelerator)
        matching = [each for each in self.rates if each.accelerator == key and _matches(each.workers, paid)]
        found = _latest(matching, hour)
        return devices * (found.nusd_per_hour if found else self.catalogue.get(key, 0))

    def energy(self, paid: Paid, hour: int) -> EnergyRate:
        found = tariff_of(self.tariffs, paid.worker, paid.pool, hour * MS_PER_HOUR)
        if found is None:
            return EnergyRate(self.tariff_nusd_per_kwh, self.grid_g_per_kwh)
        grid = self.grid_g_per_kwh if found.grid_g_per_kwh is None else found.grid_g_per_kwh
        return EnergyRate(int(found.usd_per_kwh * 10**9), grid)

    def reserved(self, hour: int) -> list[Reservation]:
        """Reservations in force at the beginning of an hour."""
        at_ms = hour * MS_PER_HOUR
        return [
            each
            for each in self.reservations
            if each.since_unix_ms <= at_ms and (not each.until_unix_ms or at_ms < each.until_unix_ms)
        ]


def _matches(pattern: str, paid: Paid) -> bool:
    return fnmatchcase(paid.worker, pattern) or fnmatchcase(paid.pool, pattern)


def _latest(entries: Sequence[DeviceRate], hour: int) -> DeviceRate | None:
    """The one that came into force last; of those of one time, the first."""
    known = [each for each in entries if each.since_unix_ms <= hour * MS_PER_HOUR]
    return max(known, key=lambda each: each.since_unix_ms, default=None)
