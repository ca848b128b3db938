"""Money is an integer of nano-dollars (nusd): 1 USD = 1,000,000,000 nusd. No float ever holds an amount that is booked.

An amount that grows with a quantity is a *cumulative* function of that quantity, and what is booked for a step is the
difference of its values after and before (`step_nusd`). So however a quantity is cut into batches, the parts add up to
the amount for the whole, to the nano-dollar.
"""

from decimal import Decimal
from typing import Final

NUSD_PER_USD: Final = 1_000_000_000
TOKENS_PER_RATE: Final = 1_000_000  # prices are quoted per million tokens
NS_PER_HOUR: Final = 3_600_000_000_000
UJ_PER_KWH: Final = 3_600_000_000_000


def usd_to_nusd(usd: Decimal | str | int) -> int:
    """Nano-dollars in `usd`; a fraction of a nano-dollar is an error, not a rounding.

    Raises:
        ValueError: `usd` is finer than a nano-dollar or not a number.
    """
    try:
        scaled = Decimal(usd) * NUSD_PER_USD
    except ArithmeticError as error:
        raise ValueError(f'{usd!r} is not an amount in dollars; write it like "0.05"') from error
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{usd} USD is finer than a nano-dollar; use at most nine decimals")
    return int(scaled)


def price_nusd(tokens: int, rate_nusd_per_mtok: int) -> int:
    """Price of `tokens` at a rate per million tokens, rounded half up; monotone in `tokens`."""
    assert tokens >= 0, tokens
    return (tokens * rate_nusd_per_mtok * 2 + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE)


def use_cost_nusd(device_ns: int, rate_nusd_per_hour: int) -> int:
    """Cost of `device_ns` nanoseconds of an accelerator paid by the hour, rounded half up."""
    assert device_ns >= 0, device_ns
    return (device_ns * rate_nusd_per_hour * 2 + NS_PER_HOUR) // (2 * NS_PER_HOUR)


def energy_cost_nusd(energy_uj: int, tariff_nusd_per_kwh: int) -> int:
    """Cost of `energy_uj` microjoules at a tariff per kilowatt-hour, rounded half up."""
    assert energy_uj >= 0, energy_uj
    return (energy_uj * tariff_nusd_per_kwh * 2 + UJ_PER_KWH) // (2 * UJ_PER_KWH)


def format_usd(amount_nusd: int, decimals: int = 6) -> str:
    """`amount_nusd` for a reader: `$0.001235`; never used to compute."""
    sign = "-" if amount_nusd < 0 else ""
    quantum = Decimal(1).scaleb(-decimals)
    return f"{sign}${(Decimal(abs(amount_nusd)) / NUSD_PER_USD).quantize(quantum):f}"
