"""Paying for the next slice of an answer out of a purse: what is at hand at once, what is not with some patience.

In: a request's credit, the slice that is wanted and the least that would do. Out: holds made, or that there is no
credit. Near the end of a budget a slice is as short as what is left.
"""

from enum import Enum, auto
from typing import Final, NamedTuple

from services.mesh.clock import Clock
from services.mesh.holds import RequestCredit
from services.mesh.lessee import Lessee

_LEAST_TOKENS: Final = 16  # of a slice that is taken rather than wait for a longer one
_UNANSWERED_S: Final = 30.0  # that a running stream waits for a meter which is away


class Slice(NamedTuple):
    """Prompt tokens and tokens of an answer, in all; and the least of each that would do."""

    prompt_tokens: int
    least_prompt_tokens: int
    tokens: int
    least_tokens: int


class Paid(Enum):
    AT_ONCE = auto()
    AFTER_A_WAIT = auto()
    NOT = auto()  # the meter has no more, or others hold it
    UNANSWERED = auto()  # no meter has said so


class Payer:
    """Pays out of the purse of one holder."""

    def __init__(self, lessee: Lessee, clock: Clock) -> None:
        self._lessee = lessee
        self._clock = clock

    def take(self, credit: RequestCredit, prompt_tokens: int, tokens: int) -> bool:
        """Holds what so much costs beyond what is held, if it is at hand, and the request has not ended meanwhile."""
        if credit.ended:
            return False
        purse = self._lessee.purse
        holds = credit.lacking(prompt_tokens, tokens, self._unix_s())
        if purse.lacking(holds, self._clock.monotonic_s()):
            return False
        purse.hold(holds)
        credit.add(purse.funder, holds, prompt_tokens, tokens)
        self._lessee.tell()
        return True

    async def pay(self, credit: RequestCredit, wanted: Slice, wait_s: float) -> Paid:
        """Holds credit for the slice, or for what can be had of it; waits for at most `wait_s` for the least of it."""
        soon = max(wanted.least_tokens, min(wanted.tokens, credit.completion_tokens + _LEAST_TOKENS))
        if self.take(credit, wanted.prompt_tokens, wanted.tokens) or self._take_some(credit, wanted, soon):
            return Paid.AT_ONCE
        # Once more where the meter had given this holder up meanwhile, or has told that it is another time there.
        heard = True
        for _ in range(2):
            purse, unix_s = self._lessee.purse, self._unix_s()
            least = credit.lacking(wanted.least_prompt_tokens, wanted.least_tokens, unix_s)
            holds = credit.lacking(wanted.prompt_tokens, wanted.tokens, unix_s)
            heard = await self._lessee.obtain(holds, least, credit.held, wait_s)
            shortest = wanted._replace(prompt_tokens=wanted.least_prompt_tokens)
            if (
                self.take(credit, wanted.prompt_tokens, wanted.tokens)
                or self._take_some(credit, wanted, wanted.least_tokens)
                or self._take_some(credit, shortest, wanted.least_tokens)
            ):
                return Paid.AFTER_A_WAIT
            windows = {hold.window for hold in credit.lacking(wanted.prompt_tokens, wanted.tokens, self._unix_s())}
            if purse is self._lessee.purse and windows <= {hold.window for hold in holds}:
                break
        return Paid.NOT if heard else Paid.UNANSWERED

    async def pay_on(self, credit: RequestCredit, wanted: Slice, wait_s: float) -> bool:
        """As `pay`, for a stream that runs: a meter that does not answer is waited for longer than one that has no
        more; whether there is credit."""
        given_up_s = self._clock.monotonic_s() + _UNANSWERED_S
        while (paid := await self.pay(credit, wanted, wait_s)) is Paid.UNANSWERED:
            if credit.ended or self._clock.monotonic_s() >= given_up_s:
                return False
        return paid is not Paid.NOT

    def short(self, credit: RequestCredit, wanted: Slice) -> set[int]:
        """The budgets that do not pay for the least of the slice."""
        least = credit.lacking(wanted.least_prompt_tokens, wanted.least_tokens, self._unix_s())
        return {account.budget for account in self._lessee.purse.lacking(least, self._clock.monotonic_s())}

    def _take_some(self, credit: RequestCredit, wanted: Slice, least_tokens: int) -> bool:
        """Holds what is at hand of the slice, if it is worth `least_tokens`."""
        purse, now_s = self._lessee.purse, self._clock.monotonic_s()
        tokens = credit.affordable(
            wanted.prompt_tokens, wanted.tokens, self._unix_s(), lambda account: purse.idle(account, now_s)
        )
        return tokens >= least_tokens and self.take(credit, wanted.prompt_tokens, tokens)

    def _unix_s(self) -> int:
        return self._lessee.unix_s()
