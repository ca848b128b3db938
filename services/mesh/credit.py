"""Credit as all services mean it: what a budget counts, over which time, and what an answer of some length takes of it.

In: a budget's unit and period, a request's rates and tokens. Out: accounts, windows, amounts. Pure integers; money in
nano-dollars.

A budget belongs to a tenant and counts one of its scopes: the tenant itself, a team, a key, a workload or a session.
`subject` names the one meant; `*` gives every team, key, workload or session an account of its own. An *account* is one
budget, one subject and one window of time; credit is held, leased and spent by account. Windows begin with the minute,
hour, day or month of UTC; the only window of a budget that never refills is 0.
"""

from calendar import timegm
from enum import StrEnum
from functools import lru_cache
from time import gmtime
from typing import Final, NamedTuple

from services.mesh.events import Hold
from services.mesh.pricing import Rates

EVERY: Final = "*"


class Scope(StrEnum):
    """Whom a budget counts, from the widest to the narrowest."""

    TENANT = "tenant"
    TEAM = "team"
    KEY = "key"
    WORKLOAD = "workload"
    SESSION = "session"


class Unit(StrEnum):
    """What a budget counts: nano-dollars billed, or prompt and completion tokens billed."""

    NUSD = "nusd"
    TOKENS = "tokens"


class Period(StrEnum):
    """How often a budget refills."""

    ONCE = "once"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


_SECONDS: Final = {Period.MINUTE: 60, Period.HOUR: 3600, Period.DAY: 86_400}


class Account(NamedTuple):
    """Where credit is: `window` is the first second of its time, since 1970; 0 for a budget that never refills."""

    budget: int
    subject: str
    window: int


def account_of(hold: Hold) -> Account:
    return Account(hold.budget, hold.subject, hold.window)


def window_at(period: str, unix_s: int) -> int:
    """The window that `unix_s` is in."""
    if period == Period.ONCE:
        return 0
    if period == Period.MONTH:
        return month_of(unix_s)[0]
    return unix_s - unix_s % _SECONDS[Period(period)]


def window_end(period: str, window: int) -> int | None:
    """The first second after a window; None where it has no end."""
    if period == Period.ONCE:
        return None
    if period == Period.MONTH:
        return month_of(window)[1]
    return window + _SECONDS[Period(period)]


def month_of(unix_s: int) -> tuple[int, int]:
    """The month of UTC around a second since 1970: its first second, and the next month's."""
    return _month_of_day(unix_s // _SECONDS[Period.DAY])


@lru_cache(maxsize=64)  # each hold of a budget per month asks for it
def _month_of_day(day: int) -> tuple[int, int]:
    at = gmtime(day * _SECONDS[Period.DAY])
    first = timegm((at.tm_year, at.tm_mon, 1, 0, 0, 0))
    return first, timegm((at.tm_year + at.tm_mon // 12, at.tm_mon % 12 + 1, 1, 0, 0, 0))


def amount_of(unit: str, rates: Rates, prompt_tokens: int, completion_tokens: int) -> int:
    """The most that an answer takes of a budget; monotone in both. Nothing of its prompt is taken to be cached: another
    worker may have to go on with it."""
    if unit == Unit.TOKENS:
        return prompt_tokens + completion_tokens
    return rates.price_nusd(prompt_tokens, 0, completion_tokens)


def affordable_tokens(unit: str, rates: Rates, prompt_tokens: int, *, most_tokens: int, amount: int) -> int:
    """The most completion tokens, up to `most_tokens`, that `amount` pays for; -1 where it pays not even the prompt."""
    if amount_of(unit, rates, prompt_tokens, most_tokens) <= amount:
        return most_tokens
    low, high = -1, most_tokens  # low is affordable, high is not
    while high - low > 1:
        middle = (low + high) // 2
        if amount_of(unit, rates, prompt_tokens, middle) <= amount:
            low = middle
        else:
            high = middle
    return low
