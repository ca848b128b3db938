"""A holder's side of leased credit: what it was granted, what of it is held for requests, what it gives back. Pure.

In: the meter's answers, holds for requests, recalls; time is an argument, monotonic seconds. Out: whether a hold can be
paid, and the next word to the meter. All figures of a word are totals since the epoch began, so a word or an answer may
be lost, come twice or late, and nothing is counted twice. Credit held for a request leaves the purse for good: what the
request's bill leaves of it is free at the meter, not here; only what was surely not used may be put back.

Bulk: a holder asks for twice what it has lately held between two words, so that a hold seldom waits for the meter.
After `ttl` without an answer it holds nothing more: by then the meter may have given the credit to others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.credit import Account, account_of
from services.mesh.events import Hold, LeaseAsked, LeaseGranted, LeaseLine, Unused

DRY_S: Final = 0.25  # an account that the meter has nothing of is not asked for again so soon
_BULK_HOLDS: Final = 8  # idle credit wanted, in holds of the latest size
_MOST_LINES: Final = 1024
_MOST_UNUSED: Final = 1024


@dataclass(slots=True)
class _Line:
    """`out`: held for requests, in all; `used`: since the last word."""

    granted: int = 0
    out: int = 0
    returned: int = 0
    least: int = 0
    stuck: int = 0
    latest: int = 0
    used: int = 0
    dry_until_s: float = float("-inf")

    @property
    def idle(self) -> int:
        return self.granted - self.out - self.returned

    @property
    def want(self) -> int:
        return max(self.least, _BULK_HOLDS * self.latest, 2 * self.used)


class Purse:
    """The credit of one start of one holder.

    Args:
        epoch: greater, as text, than those of the holder's earlier starts.
        linger_ms: what it has funded may come to light so long after its death.

    Attributes:
        funder: the name that its holds go by.
        linger_ms: as given; it may be raised.
    """

    def __init__(self, holder: str, epoch: str, *, linger_ms: int = 0) -> None:
        self.funder = f"{holder}/{epoch}"
        self.linger_ms = linger_ms
        self._holder = holder
        self._epoch = epoch
        self._lines: dict[Account, _Line] = {}
        self._changed: dict[Account, None] = {}  # to be told of, in order
        self._wanting: dict[Account, None] = {}  # requests wait for credit of them
        self._unused: dict[int, Unused] = {}
        self._unused_total = 0
        self._valid_until_s = float("-inf")

    def idle(self, account: Account, now_s: float) -> int:
        """What can be held of the account."""
        line = self._lines.get(account)
        return 0 if line is None or now_s > self._valid_until_s else line.idle

    def valid(self, now_s: float) -> bool:
        """Whether what it has may be given out."""
        return now_s <= self._valid_until_s

    def dry(self, account: Account, now_s: float) -> bool:
        """Whether the meter has just said that there is no more."""
        line = self._lines.get(account)
        return line is not None and now_s < line.dry_until_s

    def lacking(self, holds: Iterable[Hold], now_s: float) -> list[Account]:
        """The accounts that cannot pay their hold."""
        return [
            account
            for account, amount in ((account_of(each), each.amount) for each in holds)
            if amount > self.idle(account, now_s)
        ]

    def hold(self, holds: Iterable[Hold]) -> None:
        """Sets credit aside; none of it may be `lacking`."""
        for hold in holds:
            if not hold.amount:
                continue
            account = account_of(hold)
            line, amount = self._lines[account], hold.amount
            assert amount <= line.idle, (hold, line)
            line.out += amount
            line.used += amount
            line.latest = amount
            if 2 * line.idle < line.want:
                self._changed[account] = None

    def put_back(self, holds: Iterable[Hold]) -> None:
        """Credit that was set aside and will never be billed: nobody was told of it, or of so much less."""
        for hold in holds:
            if hold.amount:
                self._lines[account_of(hold)].out -= hold.amount

    def never_used(self, unused: Unused) -> None:
        """A hold that others were told of, for a request of which nothing was made: the meter decides."""
        if len(self._unused) < _MOST_UNUSED:  # else it comes back when this start has ended
            self._unused_total += 1
            self._unused[self._unused_total] = unused

    def wait_for(self, account: Account, amount: int, stuck: int) -> None:
        """A request needs so much, and holds `stuck` of the account already; it waits no more with the negatives."""
        line = self._lines.setdefault(account, _Line())
        line.least += amount
        line.stuck += stuck
        if stuck < 0:
            self._changed[account] = None  # what was stuck may come back
        if line.least > 0:
            self._wanting[account] = None
        else:
            self._wanting.pop(account, None)

    def recall(self, account: Account) -> None:
        """Others wait for what is idle here."""
        line = self._lines.get(account)
        if line is not None and (spare := line.idle - line.least) > 0:
            line.returned += spare
            line.used = line.latest = 0
            self._changed[account] = None

    def refilled(self) -> None:
        """Budgets have changed: what was dry may not be."""
        for line in self._lines.values():
            line.dry_until_s = float("-inf")

    def forget(self, over: Iterable[Account]) -> None:
        """Windows that have ended."""
        for account in over:
            if account not in self._wanting:
                self._lines.pop(account, None)
                self._changed.pop(account, None)

    def accounts(self) -> list[Account]:
        return list(self._lines)

    @property
    def news(self) -> bool:
        """Whether there is something to tell the meter."""
        return bool(self._changed or self._unused)

    def word(self, *, ended: bool = False) -> LeaseAsked:
        """The next word to the meter; with `ended` the last one, which gives back all that is idle."""
        if ended:
            for account in self._lines:
                self.recall(account)
        self._changed.update((each, None) for each in self._wanting if self._lines[each].least > self._lines[each].idle)
        told = list(self._changed)[:_MOST_LINES]
        lines = []
        for account in told:
            del self._changed[account]
            line = self._lines[account]
            lines.append(
                LeaseLine(
                    budget=account.budget,
                    subject=account.subject,
                    window=account.window,
                    granted=line.granted,
                    returned=line.returned,
                    idle=line.idle,
                    least=line.least,
                    want=0 if ended else line.want,
                    stuck=line.stuck,
                )
            )
            line.used = 0
        return LeaseAsked(
            holder=self._holder,
            epoch=self._epoch,
            lines=tuple(lines),
            unused=tuple(self._unused.values()),
            linger_ms=self.linger_ms,
            ended=ended,
        )

    def unheard(self, word: LeaseAsked) -> None:
        """No answer came to the word: it is to be said again."""
        for line in word.lines:
            account = Account(line.budget, line.subject, line.window)
            if account in self._lines:
                self._changed[account] = None

    def answered(self, word: LeaseAsked, answer: LeaseGranted, sent_s: float, now_s: float) -> Sequence[Account]:
        """Takes in the answer to a word that was sent at `sent_s`; the accounts that others wait for.

        What is granted counts from then, so that its time is over here before it is over at the meter.
        """
        self._valid_until_s = max(self._valid_until_s, sent_s + answer.ttl_ms / 1000)
        told = set(map(id, word.unused))
        self._unused = {number: each for number, each in self._unused.items() if id(each) not in told}
        recalled = []
        for grant in answer.grants:
            account = Account(grant.budget, grant.subject, grant.window)
            line = self._lines.get(account)
            if line is None:
                continue
            line.granted = max(line.granted, grant.granted)
            if grant.short and not grant.coming and line.idle < line.least:
                line.dry_until_s = now_s + DRY_S
            if grant.recalled:
                recalled.append(account)
        return recalled
