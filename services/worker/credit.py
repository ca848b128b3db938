"""Credit for direct streams beyond their first slice, which their placement holds: out of this worker's own
purse, which the meter fills, so that they go on whatever becomes of their router.

In: what streams ask for. Out: the next slice, or word that there is no more.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from services.mesh.clock import Clock
from services.mesh.holds import RequestCredits
from services.mesh.lessee import Lessees
from services.mesh.paying import Payer, Slice
from services.mesh.placement import PlacementClaims, PlacementFunds
from services.worker.funding import Funded
from services.worker.stream import Stream
from services.worker.streams import Streams

_WAIT_S: Final = 5.0  # for credit that others hold
_SHORTEST_SLICE: Final = 32


class DirectCredit:
    """Of one worker.

    Args:
        spawn: runs something in the background under a name.
    """

    def __init__(
        self,
        streams: Streams,
        lessees: Lessees,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._streams = streams
        self._lessees = lessees
        self._clock = clock
        self._spawn = spawn
        self._credits = RequestCredits()

    def asking(self, claims: PlacementClaims) -> Callable[[Stream, int, int], None]:
        """What a stream of that placement calls for more."""

        def ask(stream: Stream, prompt_tokens: int, made_tokens: int) -> None:
            if claims.funds is not None:
                more = self._more(claims, claims.funds, stream, prompt_tokens, made_tokens)
                self._spawn(more, f"credit for {claims.request_id}")

        return ask

    def ended(self, claims: PlacementClaims) -> None:
        """The stream's end is told, with what was held for it."""
        self._credits.end((claims.request_id, claims.tenant))

    async def _more(
        self, claims: PlacementClaims, funds: PlacementFunds, stream: Stream, prompt_tokens: int, made_tokens: int
    ) -> None:
        held = self._streams.funded(stream)
        if held is None:
            return
        key = (claims.request_id, claims.tenant)
        credit = self._credits.begin(key, funds.bounds, claims.rates, funds.funding)
        prompt_tokens = max(prompt_tokens, held.prompt_tokens)
        paid_tokens = max(held.completion_tokens, made_tokens)
        slice_tokens = max(_SHORTEST_SLICE, funds.completion_tokens - claims.resume_from)
        longer = prompt_tokens > held.prompt_tokens
        least_tokens = claims.resume_from + 1 if longer else held.completion_tokens + 1
        wanted = Slice(prompt_tokens, prompt_tokens, paid_tokens + slice_tokens, least_tokens)
        payer = Payer(self._lessees.of(claims.tenant), self._clock)
        if not await payer.pay_on(credit, wanted, _WAIT_S):
            self._streams.fund(stream, held, final=True)
            return
        funded = Funded(
            max(held.prompt_tokens, credit.prompt_tokens),
            max(held.completion_tokens, credit.completion_tokens),
            credit.funding(),
        )
        self._streams.fund(stream, funded, final=False)
