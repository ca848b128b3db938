"""A holder of credit and the meter: its words, the answers, recalls; and waiting for credit that is not at hand.

In: a purse, what requests need. Out: credit, as soon as the meter has some. One word is on its way at a time; what
happens meanwhile is told in the next. A holder that the meter has given up starts anew, as another funder.

Credit of each partition of tenants comes from the meter that books it, and is good as long as that one answers: so a
router or worker is a holder of its own for each (`Lessees`).
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.credit import Account, account_of
from services.mesh.errors import BusUnavailable
from services.mesh.events import CreditRecalled, Hold
from services.mesh.partitions import PARTITIONS, holder_in, partition_of
from services.mesh.purse import Purse
from services.mesh.subjects import RECALLS

log = logging.getLogger(__name__)

_ANSWER_S: Final = 1.0
_RETRY_S: Final = 0.05  # after no answer
_AGAIN_S: Final = 0.02  # while requests wait for credit that others hold
_ALIKE_MS: Final = 1000
_RENEW_S: Final = 5.0  # at most between two words
_LAST_WORD_S: Final = 1.0


class Lessee:
    """One holder's side.

    Args:
        holder: unique among routers and workers; the partition is added to it.
        linger_ms: what it has funded may come to light so long after its death.
    """

    def __init__(self, holder: str, bus: Bus, clock: Clock, *, partition: int, linger_ms: int = 0) -> None:
        self._holder = holder_in(partition, holder)
        self._partition = partition
        self._bus = bus
        self._clock = clock
        self._linger_ms = linger_ms
        self._news = asyncio.Event()
        self._answers = asyncio.Condition()
        self._renew_s = _RENEW_S
        self._waiting = 0
        self._answered = 0
        self._told_linger_ms = linger_ms  # the first word says so, and nothing is held before it
        self._ahead_ms = 0
        self.purse = self._start()

    def unix_s(self) -> int:
        """The meter's time, seconds since 1970, as far as it has told: windows of budgets are those of its clock."""
        return (self._clock.unix_ms() + self._ahead_ms) // 1000

    def tell(self) -> None:
        """There may be something to tell the meter."""
        if self.purse.news:
            self._news.set()

    async def obtain(
        self, holds: Sequence[Hold], least: Sequence[Hold], stuck: Callable[[Account], int], wait_s: float
    ) -> bool:
        """Waits until the purse can pay the holds; or the meter has no more; or, once it has answered, until the purse
        can pay the least that would do; or the time is over. False where no meter is known to have answered this.

        Args:
            stuck: what is held of an account for the request that waits.
        """
        purse, needed = self.purse, [hold for hold in holds if hold.amount]
        stuck_of = {account_of(hold): stuck(account_of(hold)) for hold in needed}
        answers, dry = self._answered, False
        for hold in needed:
            purse.wait_for(account_of(hold), hold.amount, stuck_of[account_of(hold)])
        self._waiting += 1
        self._news.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s), self._answers:
                    while self.purse is purse and (lacking := self._lacking(needed)):
                        if dry := any(purse.dry(account, self._clock.monotonic_s()) for account in lacking):
                            break
                        if self._answered > answers + 1 and not self._lacking(least):
                            break
                        await self._answers.wait()
        finally:
            self._waiting -= 1
            for hold in needed:
                purse.wait_for(account_of(hold), -hold.amount, -stuck_of[account_of(hold)])
            self.tell()
        return dry or self._answered > answers + 1 or not wait_s  # one answer may be to a word that was said before

    async def linger(self, linger_ms: int, wait_s: float) -> None:
        """Sees to it that the meter knows that what is funded from now on may come to light so long after this
        process's death.

        Raises:
            BusUnavailable: no meter has answered in time.
        """
        if self._told_linger_ms >= linger_ms:
            return
        self._linger_ms = max(self._linger_ms, linger_ms)
        self.purse.linger_ms = self._linger_ms
        self._told_linger_ms = -1
        self._news.set()
        try:
            async with asyncio.timeout(wait_s), self._answers:
                while self._told_linger_ms < linger_ms:
                    await self._answers.wait()
        except TimeoutError:
            raise BusUnavailable(f"no meter has answered within {wait_s:g} s; ask the router to relay") from None

    async def run(self) -> None:
        """Talks to the meter until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._renew_s):
                    await self._news.wait()
            self._news.clear()
            if self.purse.accounts() or self.purse.news or self._told_linger_ms < self._linger_ms:
                await self._say()
            if self._waiting:
                await asyncio.sleep(_AGAIN_S)
                self._news.set()

    async def give_back(self) -> None:
        """The last word: all that is idle is the meter's again."""
        if self.purse.accounts():
            with suppress(BusUnavailable):
                await self._bus.ask_lease(self.purse.word(ended=True), _LAST_WORD_S, partition=self._partition)

    def recall(self, account: Account) -> None:
        """Others wait for what is idle of the account."""
        self.purse.recall(account)
        self.tell()

    async def _say(self) -> None:
        purse, sent_s = self.purse, self._clock.monotonic_s()
        word = purse.word()
        try:
            answer = await self._bus.ask_lease(word, _ANSWER_S, partition=self._partition)
        except BusUnavailable as error:
            log.debug("%s", error)
            purse.unheard(word)
            await asyncio.sleep(_RETRY_S)
            self._news.set()
            return
        if answer.refused:
            log.warning("%s: %s", purse.funder, answer.refused)
            self.purse = self._start()
            self._told_linger_ms = -1
        else:
            self._note_clock(answer.at_unix_ms)
            self._told_linger_ms = word.linger_ms
            self._renew_s = min(_RENEW_S, answer.ttl_ms / 3000)
            for account in purse.answered(word, answer, sent_s, self._clock.monotonic_s()):
                purse.recall(account)
        self.tell()
        self._answered += 1
        async with self._answers:
            self._answers.notify_all()

    def _lacking(self, holds: Sequence[Hold]) -> list[Account]:
        return self.purse.lacking(holds, self._clock.monotonic_s())

    def _note_clock(self, meters_unix_ms: int) -> None:
        ahead_ms = meters_unix_ms - self._clock.unix_ms() if meters_unix_ms else 0
        # Clocks that differ by less than an answer may take are alike: windows begin at one time on all hosts then.
        self._ahead_ms = ahead_ms if abs(ahead_ms) > _ALIKE_MS else 0

    def _start(self) -> Purse:
        epoch = f"{self._clock.unix_ms():013d}-{secrets.token_hex(4)}"
        return Purse(self._holder, epoch, linger_ms=self._linger_ms)


class Lessees:
    """A router's or worker's lessees, one for each partition of tenants. Those without credit say nothing."""

    def __init__(self, holder: str, bus: Bus, clock: Clock, *, linger_ms: int = 0) -> None:
        self._bus = bus
        self._all = [Lessee(holder, bus, clock, partition=each, linger_ms=linger_ms) for each in range(PARTITIONS)]

    def of(self, tenant: str) -> Lessee:
        return self._all[partition_of(tenant)]

    def refilled(self) -> None:
        """Budgets have changed: what was dry may not be."""
        for each in self._all:
            each.purse.refilled()

    async def run(self) -> None:
        """Talks to the meters until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for each in self._all:
                tasks.create_task(each.run())

    async def listen(self) -> None:
        """Takes in recalls until cancelled."""
        await self._bus.watch([RECALLS], self._recalled)

    async def give_back(self) -> None:
        """The last words: all that is idle is the meters' again."""
        await asyncio.gather(*(each.give_back() for each in self._all))

    async def _recalled(self, delivered: Delivered) -> None:
        event = delivered.event
        if isinstance(event, CreditRecalled):
            for each in self._all:  # who has nothing of it has nothing to say
                each.recall(Account(event.budget, event.subject, event.window))
