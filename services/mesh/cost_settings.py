"""What accelerators and energy cost a site, from when on: the settings `[cost]` and `[energy]`.

Patterns match a worker's name or its pool, with `*` and `?`. Hours and dates are UTC. Of several entries that match,
the one with the latest `since` counts, of as late ones the first in the file.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from services.mesh.section import Section, Usd

_MS_PER_HOUR: Final = 3_600_000
_Hour = Annotated[int, Field(ge=0, le=24)]


def _unix_ms(at: datetime | None) -> int:
    if at is None:
        return 0
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


class DeviceRate(Section):
    """What an hour of one device costs, used or not: a price, or what it was bought for and what it takes to run.

    Attributes:
        accelerator: the catalogue's key of one device.
        workers: pattern of those that it counts for.
        market: for whoever reads the bill.
        life_years: over which what it was bought for is spread, in years of 8,760 hours.
    """

    accelerator: str
    workers: str = "*"
    since: datetime | None = None
    market: Literal["on-demand", "spot", "owned"] = "on-demand"
    usd_per_hour: Usd | None = None
    capex_usd: Usd | None = None
    life_years: Annotated[Decimal, Field(gt=0, le=50)] = Decimal(4)
    opex_usd_per_hour: Usd = Decimal(0)

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if (self.usd_per_hour is None) == (self.capex_usd is None):
            raise ValueError(f"the rate of {self.accelerator!r} needs either usd_per_hour, or capex_usd")
        return self

    @property
    def since_unix_ms(self) -> int:
        return _unix_ms(self.since)

    @property
    def nusd_per_hour(self) -> int:
        if self.usd_per_hour is not None:
            return int(self.usd_per_hour * 10**9)
        assert self.capex_usd is not None
        return int(self.capex_usd * 10**9 / (self.life_years * 8760)) + int(self.opex_usd_per_hour * 10**9)


class Reservation(Section):
    """Devices that are paid for from `since` until `until`, whether a worker has them or not.

    They cover the workers with this accelerator, in each hour up to so many device-hours; the rest costs its rate.
    """

    accelerator: str
    devices: Annotated[int, Field(ge=1, le=1_000_000)]
    usd_per_hour: Usd
    since: datetime
    until: datetime | None = None

    @property
    def nusd_per_hour(self) -> int:
        """Of one device."""
        return int(self.usd_per_hour * 10**9)

    @property
    def since_unix_ms(self) -> int:
        return _unix_ms(self.since)

    @property
    def until_unix_ms(self) -> int:
        """0: no end."""
        return _unix_ms(self.until)


class Tariff(Section):
    """What a kilowatt-hour costs and emits between two hours of the day (`to_hour` may be past midnight)."""

    workers: str = "*"
    since: datetime | None = None
    from_hour: _Hour = 0
    to_hour: _Hour = 24
    usd_per_kwh: Usd
    grid_g_per_kwh: Annotated[int, Field(ge=0, le=100_000)] | None = None

    @property
    def since_unix_ms(self) -> int:
        return _unix_ms(self.since)

    def covers(self, hour_of_day: int) -> bool:
        if self.from_hour <= self.to_hour:
            return self.from_hour <= hour_of_day < self.to_hour
        return hour_of_day >= self.from_hour or hour_of_day < self.to_hour


def tariff_of(tariffs: Sequence[Tariff], worker: str, pool: str, unix_ms: int) -> Tariff | None:
    """The one that counts for a worker at a time; None where none does."""
    hour_of_day = unix_ms // _MS_PER_HOUR % 24
    matching = [
        each
        for each in tariffs
        if each.since_unix_ms <= unix_ms
        and each.covers(hour_of_day)
        and (fnmatchcase(worker, each.workers) or fnmatchcase(pool, each.workers))
    ]
    return max(matching, key=lambda each: each.since_unix_ms, default=None)


class EnergySettings(Section):
    tariff_usd_per_kwh: Usd = Decimal("0.08")  # where no entry of `tariffs` matches
    # World average of electricity in 2024 (IEA, Electricity 2025): put your own grid's here.
    grid_g_per_kwh: Annotated[int, Field(ge=0, le=100_000)] = 445
    tariffs: tuple[Tariff, ...] = ()


class CostSettings(Section):
    idle_rule: Literal["none", "by_use", "by_tokens"] = "by_use"
    settle_after_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0  # after its end, an hour's bill is booked
    replay_output_weight: Annotated[int, Field(ge=1, le=1000)] = 4  # work of a token made, in tokens of prompt
    rates: tuple[DeviceRate, ...] = ()
    reservations: tuple[Reservation, ...] = ()

    @field_validator("reservations")
    @classmethod
    def _ends_after_it_begins(cls, reservations: tuple[Reservation, ...]) -> tuple[Reservation, ...]:
        for each in reservations:
            if each.until is not None and each.until_unix_ms <= each.since_unix_ms:
                raise ValueError(f"the reservation of {each.accelerator!r} ends at {each.until}, before it begins")
        return reservations
