"""Credit for this router's requests: held before they are placed, extended slice by slice while they run.

In: requests, what workers ask for running streams. Out: `RequestCredit`s that pay for the next slice, or why not. What
is at hand is held within the call; only where it is lacking the meter is asked, and waited for at most
`router.credit_wait_s`. Near the end of a budget a slice is as short as what is left.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.events import Unused
from services.mesh.holds import Bound, RequestCredit, RequestCredits
from services.mesh.lessee import Lessees
from services.mesh.paying import Paid, Payer, Slice
from services.mesh.placement import LEEWAY_MS
from services.mesh.price_calendar import PriceCalendar
from services.mesh.settings import RouterSettings
from services.router.core.credit import Budgets, prompt_bound
from services.router.core.request import Asked
from tokenworks.v1 import inference_pb2 as wire

MOST_TOKENS: Final = (1 << 31) - 1
LINGER_MS: Final = 2000  # from a router's death until its workers' last reports are at the meter


class Funds:
    """The credit of one router process.

    Args:
        spawn: runs something in the background under a name.

    Attributes:
        budgets: of all tenants; the feed writes them.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        lessees: Lessees,
        prices: PriceCalendar,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self.budgets = Budgets()
        self._slice_tokens = settings.credit_slice_tokens
        self._wait_s = settings.credit_wait_s
        self._placement_linger_ms = round(settings.placement_ttl_s * 1000) + LEEWAY_MS + LINGER_MS
        self._lessees = lessees
        self._prices = prices
        self._clock = clock
        self._spawn = spawn
        self._credits = RequestCredits()

    def refilled(self) -> None:
        """Budgets have changed."""
        self._lessees.refilled()

    async def fund(self, asked: Asked, prompt_tokens: int, at_unix_ms: int) -> tuple[RequestCredit | None, bool]:
        """Holds credit for a request's first slice; None where no budget bounds it. And whether it had to wait.

        Args:
            prompt_tokens: as estimated.
            at_unix_ms: when it was let in: its prices are those of then.

        Raises:
            CreditExhausted, RateLimited: a budget does not pay for it. Nothing is held for it then.
            BusUnavailable: no meter has said whether one does.
        """
        bounds = self.budgets.bounds(asked)
        if not bounds:
            return None, False
        key = (asked.request_id, asked.tenant)
        rates = self._prices.at(at_unix_ms).rates(asked.model, asked.tenant, asked.slo_class)
        credit = self._credits.begin(key, bounds, rates)
        most = asked.sampling.max_tokens or MOST_TOKENS
        payer = self._payer(asked.tenant)
        if not any(bound.hard for bound in bounds):
            payer.take(credit, MOST_TOKENS, MOST_TOKENS)
            return credit, False
        wanted = Slice(
            prompt_bound(asked, prompt_tokens),
            prompt_tokens,
            min(most, asked.resume_from + self._slice_tokens),
            min(most, asked.resume_from + 1),
        )
        if payer.take(credit, wanted.prompt_tokens, wanted.tokens):
            return credit, False
        paid = Paid.NOT
        try:
            paid = await payer.pay(credit, wanted, self._wait_s)
        finally:
            if paid in (Paid.NOT, Paid.UNANSWERED):
                self.unused(asked, credit)
        if paid is Paid.UNANSWERED:
            raise BusUnavailable(
                f"no meter has answered within {self._wait_s:g} s whether {asked.tenant!r} has credit; ask again"
            )
        if paid is Paid.NOT:
            raise self.budgets.refusal(asked, self._short(payer, credit, wanted), self._clock.unix_ms())
        return credit, paid is Paid.AFTER_A_WAIT

    async def fund_placement(
        self, asked: Asked, prompt_tokens: int, at_unix_ms: int
    ) -> tuple[RequestCredit | None, bool]:
        """As `fund`, for a request that is streamed from its worker: it may begin, and be heard of, when this router is
        dead.

        Raises:
            BusUnavailable: the meter could not be told so.
        """
        if self.budgets.bounds(asked):
            await self._lessees.of(asked.tenant).linger(self._placement_linger_ms, self._wait_s)
        return await self.fund(asked, prompt_tokens, at_unix_ms)

    def extend(
        self, credit: RequestCredit, asked: Asked, prompt_tokens: int, made_tokens: int, done: Callable[[bool], None]
    ) -> None:
        """Holds credit for the next slice of a running answer.

        Args:
            prompt_tokens, made_tokens: as its worker counted.
            done: called with whether there is more credit, at once where that is known at once.
        """
        most = asked.sampling.max_tokens or MOST_TOKENS
        longer = prompt_tokens > credit.prompt_tokens
        prompt_tokens = max(prompt_tokens, credit.prompt_tokens)
        paid_tokens = max(credit.completion_tokens, made_tokens)
        wanted = Slice(
            prompt_tokens,
            prompt_tokens,
            min(most, paid_tokens + self._slice_tokens),
            # A prompt that is longer than it seemed is found to be with the first token.
            min(most, asked.resume_from + 1 if longer else credit.completion_tokens + 1),
        )
        payer = self._payer(asked.tenant)
        if payer.take(credit, wanted.prompt_tokens, wanted.tokens):
            done(True)
        else:
            self._spawn(self._extend_later(payer, credit, wanted, done), f"credit for {asked.request_id}")

    def ended(self, asked: Asked) -> None:
        """Its end is told, with what was held for it: the meter gives back what the bill leaves."""
        self._credits.end((asked.request_id, asked.tenant))

    def unused(self, asked: Asked, credit: RequestCredit) -> None:
        """Nothing was made of the request, as far as is known."""
        key, lessee = (asked.request_id, asked.tenant), self._lessees.of(asked.tenant)
        for each in credit.funding():
            if each.funder == lessee.purse.funder and any(hold.amount for hold in each.holds):
                lessee.purse.never_used(Unused(request_id=asked.request_id, tenant=asked.tenant, holds=each.holds))
        self._credits.end(key)
        lessee.tell()

    def _payer(self, tenant: str) -> Payer:
        return Payer(self._lessees.of(tenant), self._clock)

    async def _extend_later(
        self, payer: Payer, credit: RequestCredit, wanted: Slice, done: Callable[[bool], None]
    ) -> None:
        done(await payer.pay_on(credit, wanted, self._wait_s))

    def _short(self, payer: Payer, credit: RequestCredit, wanted: Slice) -> Bound:
        """The budget that is to be named in a refusal."""
        short, hard = payer.short(credit, wanted), [bound for bound in credit.bounds if bound.hard]
        return next((bound for bound in hard if bound.budget in short), hard[0])


def funds_of(credit: RequestCredit) -> wire.Funds:
    """What a worker is told of it."""
    funds = wire.Funds(prompt_tokens=credit.prompt_tokens, completion_tokens=credit.completion_tokens)
    for each in credit.funding():
        add = funds.funding.add(funder=each.funder).holds.add  # made apart, each message would be copied
        for hold in each.holds:
            add(budget=hold.budget, subject=hold.subject, window=hold.window, amount=hold.amount)
    return funds
