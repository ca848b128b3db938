"""The credit of one request: which budgets bound it, what is held for it, how much of an answer that pays for. Pure.

In: bounds, rates, the tokens to be paid for. Out: holds to be made, and the `Funding` that is told of them. What is
told of a request by one funder only grows, also when its client comes back for the rest of an answer: the meter takes
the greatest of what it hears. So the totals of requests that have ended are remembered for a while.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from services.mesh.credit import Account, affordable_tokens, amount_of, window_at
from services.mesh.events import Funding, Hold
from services.mesh.pricing import Rates

Key = tuple[str, str]  # request id, tenant
_REMEMBERED: Final = 10_000


class Bound(NamedTuple):
    """One budget that a request falls under; `hard` ones must pay for every token."""

    budget: int
    subject: str
    unit: str
    period: str
    hard: bool


class RequestCredit:
    """What is held for one request that runs.

    Args:
        told: totals that were told of it before, by funder.
        others: what others hold for it, which counts as held and is passed on.

    Attributes:
        prompt_tokens, completion_tokens: what is paid for.
        ended: its end was told: nothing is held for it any more, since nobody would be told of that.
    """

    def __init__(
        self,
        bounds: Sequence[Bound],
        rates: Rates,
        *,
        told: Mapping[str, Mapping[Account, int]],
        others: Sequence[Funding] = (),
    ) -> None:
        self.bounds = bounds
        self.rates = rates
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ended = False
        self._others = tuple(others)
        self._totals = {funder: dict(amounts) for funder, amounts in told.items()}
        self._held: dict[tuple[int, str], int] = {}
        self._funding: tuple[Funding, ...] | None = None  # as told, until more is held
        for each in others:
            self._cover(each.holds)

    def lacking(self, prompt_tokens: int, completion_tokens: int, unix_s: int) -> list[Hold]:
        """The holds to be made so that so much is paid for; none of them where it is already."""
        holds = []
        costs: dict[str, int] = {}  # by unit: several budgets count the same
        for budget, subject, unit, period, hard in self.bounds:
            amount = 0
            if hard:
                cost = costs.get(unit)
                if cost is None:
                    cost = costs[unit] = amount_of(unit, self.rates, prompt_tokens, completion_tokens)
                amount = cost
            held = self._held.get((budget, subject))
            left = amount if held is None else max(0, amount - held)
            if left or held is None:
                window = window_at(period, unix_s)
                holds.append(Hold(budget=budget, subject=subject, window=window, amount=left))
        return holds

    def affordable(self, prompt_tokens: int, most_tokens: int, unix_s: int, idle: Callable[[Account], int]) -> int:
        """The most completion tokens that what is held and what is idle pay for; -1: not even the prompt."""
        tokens = most_tokens
        for bound in self.bounds:
            if not bound.hard or tokens < 0:
                continue
            account = Account(bound.budget, bound.subject, window_at(bound.period, unix_s))
            amount = self._held.get((bound.budget, bound.subject), 0) + idle(account)
            tokens = affordable_tokens(bound.unit, self.rates, prompt_tokens, most_tokens=tokens, amount=amount)
        return tokens

    def add(self, funder: str, holds: Iterable[Hold], prompt_tokens: int, completion_tokens: int) -> None:
        """The holds were made: so much is paid for."""
        totals = self._totals.setdefault(funder, {})
        self._funding = None
        for hold in holds:
            account = Account(hold.budget, hold.subject, hold.window)
            totals[account] = totals.get(account, 0) + hold.amount
        self._cover(holds)
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens)
        self.completion_tokens = max(self.completion_tokens, completion_tokens)

    def funding(self) -> tuple[Funding, ...]:
        """What is told of it."""
        if self._funding is None:
            self._funding = self._as_told()
        return self._funding

    def _as_told(self) -> tuple[Funding, ...]:
        own = [
            Funding(
                funder=funder,
                holds=tuple(
                    [Hold(budget=a.budget, subject=a.subject, window=a.window, amount=n) for a, n in some.items()]
                ),
            )
            for funder, some in self._totals.items()
        ]
        return (*self._others, *own)

    def held(self, account: Account) -> int:
        """What is held of an account, whoever holds it."""
        return sum(
            hold.amount
            for each in self.funding()
            for hold in each.holds
            if (hold.budget, hold.subject, hold.window) == account
        )

    @property
    def totals(self) -> Mapping[str, Mapping[Account, int]]:
        return self._totals

    def _cover(self, holds: Iterable[Hold]) -> None:
        for hold in holds:
            key = (hold.budget, hold.subject)
            self._held[key] = self._held.get(key, 0) + hold.amount


class RequestCredits:
    """The credit of all requests of one holder, by request."""

    def __init__(self) -> None:
        self._running: dict[Key, RequestCredit] = {}
        self._told: OrderedDict[Key, Mapping[str, Mapping[Account, int]]] = OrderedDict()

    def begin(self, key: Key, bounds: Sequence[Bound], rates: Rates, others: Sequence[Funding] = ()) -> RequestCredit:
        """The credit of a request, to be added to; that of one that runs already where it goes on another way."""
        credit = self._running.get(key)
        if credit is None:
            credit = RequestCredit(bounds, rates, told=self._told.pop(key, {}), others=others)
            self._running[key] = credit
        return credit

    def end(self, key: Key) -> None:
        """Its end was told, or will be by somebody else."""
        credit = self._running.pop(key, None)
        if credit is None:
            return
        credit.ended = True
        if not any(credit.totals.values()):
            return
        self._told[key] = credit.totals
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
