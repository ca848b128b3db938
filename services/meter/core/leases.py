"""Credit as the meter gives it out: what of each account is spent, what is out with holders, what is free. Pure.

In: budgets, holders' words, what requests held and were billed (`funded.py`); time is an argument. Out: answers, and
the rows that changed, to be stored in the transaction that they belong to, before anybody hears of them.

What is out with a holder is what it was granted, less what it gave back, less what it held for requests that have
ended. The invariant, for each hard account: spent + out never grows beyond the limit. A request's bill is at most what
was held for it, and it is counted as spent in the step that frees its holds; so whatever is lost, late or killed, what
is billed stays within the limit. A limit that is lowered below what is spent and out takes back nothing: it stops new
credit.

A holder that is silent for `ttl_s` (and a margin) or has started anew is *dying*: its idle credit comes back once what
it funded can no longer come to light (`close_out`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.mesh.conventions import LONGEST_NAME
from services.mesh.credit import Account, window_at, window_end
from services.mesh.events import BudgetReached, BudgetTerms, LeaseAsked, LeaseGrant, LeaseGranted, LeaseLine

RECALL_FOR_S: Final = 1.0  # who lacked credit so lately is waited for
_BULK_PART: Final = 4  # beyond what requests wait for, at most this part of what is free
_MARGIN: Final = 1.1  # clocks may run unlike by so much
_UNKNOWN_LINGER_S: Final = 15.0  # of a holder whose word is lost with its database
_WINDOWS_KEPT: Final = 2
_MOST_HOLDERS: Final = 16_384  # that live or have died lately; whoever died may be remembered for weeks


@dataclass(slots=True)
class Lease:
    """One holder's totals of one account: granted, given back, and held for requests that have ended; and what it said
    last is `stuck` (see `LeaseLine`), which is not stored."""

    granted: int = 0
    returned: int = 0
    closed: int = 0
    stuck: int = 0

    @property
    def out(self) -> int:
        return self.granted - self.returned - self.closed


@dataclass(slots=True)
class AccountState:
    """`reached`: the highest percentage of the limit that was told of."""

    spent: int = 0
    reached: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)
    short_until_s: float = float("-inf")
    short_funder: str = ""

    @property
    def out(self) -> int:
        return sum(lease.out for lease in self.leases.values())


@dataclass(slots=True)
class _Holder:
    epoch: str
    seen_s: float
    linger_s: float


@dataclass(frozen=True, slots=True)
class Changed:
    """What is to be stored; a lease of None is to be forgotten; `over`, `lingers_ms`: see `Leases.adopt`."""

    accounts: Sequence[tuple[Account, int, int]]
    leases: Sequence[tuple[Account, str, Lease | None]]
    over: Sequence[str]
    lingers_ms: Sequence[tuple[str, int]]


def _linger_s(lingers_ms: Mapping[str, int], funder: str) -> float:
    return lingers_ms[funder] / 1000 if funder in lingers_ms else _UNKNOWN_LINGER_S


def _says_anything(lease: Lease) -> bool:
    return bool(lease.granted or lease.returned or lease.closed)


def _split(funder: str) -> tuple[str, str]:
    holder, _, epoch = funder.rpartition("/")
    return holder, epoch


class Leases:
    """All budgets and what is out of them.

    Args:
        ttl_s: how long a holder may give out credit without an answer.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self.budgets: dict[int, tuple[str, BudgetTerms]] = {}
        self._accounts: dict[Account, AccountState] = {}
        self._holders: dict[str, _Holder] = {}
        self._dying: dict[str, float] = {}  # funder -> when nothing of it can come to light any more
        self._changed_accounts: dict[Account, None] = {}
        self._changed_leases: dict[tuple[Account, str], None] = {}
        self._recalled: dict[Account, None] = {}
        self._spent_on: dict[Account, None] = {}
        self._over: set[str] = set()  # funders that were closed out
        self._over_lately: list[str] = []
        self._lingers: dict[str, int] = {}  # to be stored

    # Budgets

    def adopt(
        self,
        budgets: Iterable[tuple[str, BudgetTerms]],
        accounts: Iterable[tuple[Account, int, int]],
        leases: Iterable[tuple[Account, str, Lease]],
        *,
        over: Iterable[str],
        lingers_ms: Mapping[str, int],
        now_s: float,
    ) -> None:
        """Takes over what is stored; `over` are funders that were closed out, `lingers_ms` how long what others funded
        may take to come to light. Of a holder's starts the latest lives."""
        self._over.update(over)
        self.budgets = {terms.budget: (tenant, terms) for tenant, terms in budgets}
        for account, spent, reached in accounts:
            self._accounts[account] = AccountState(spent, reached)
            self._spent_on[account] = None
        for account, funder, lease in leases:
            self._accounts.setdefault(account, AccountState()).leases[funder] = lease
            holder, epoch = _split(funder)
            if funder in self._over:
                self._dying[funder] = now_s
                continue
            known = self._holders.get(holder)
            if known is None or known.epoch < epoch:
                self._holders[holder] = _Holder(epoch, now_s, _linger_s(lingers_ms, funder))
        for state in self._accounts.values():
            for funder in state.leases:
                holder, epoch = _split(funder)
                if funder not in self._over and self._holders[holder].epoch != epoch:
                    self._dying.setdefault(funder, now_s + _linger_s(lingers_ms, funder))

    def put(self, tenant: str, terms: BudgetTerms, *, spent: int = 0) -> None:
        """Sets a budget, or changes one of the same number; `spent` counts for a new one that never refills."""
        if terms.budget not in self.budgets and spent:
            account = Account(terms.budget, terms.subject, 0)
            self._state(account).spent = spent
            self._changed_accounts[account] = self._spent_on[account] = None
        elif terms.budget in self.budgets:
            for account, state in self._accounts.items():
                if account.budget == terms.budget:  # what was told of the old limit says nothing of the new one
                    state.reached = 0
                    self._changed_accounts[account] = self._spent_on[account] = None
        self.budgets[terms.budget] = (tenant, terms)

    def lift(self, budget: int) -> None:
        """It bounds nothing any more."""
        self.budgets.pop(budget, None)
        for account in [each for each in self._accounts if each.budget == budget]:
            self._drop(account)

    def of_tenant(self, tenant: str) -> list[BudgetTerms]:
        """Its budgets, in the order of their numbers."""
        return [terms for _, (owner, terms) in sorted(self.budgets.items()) if owner == tenant]

    def accounts_of(self, budget: int) -> list[tuple[Account, AccountState]]:
        return sorted(((account, state) for account, state in self._accounts.items() if account.budget == budget))

    def free(self, account: Account) -> int:
        """What of a hard account may still be granted."""
        found = self.budgets.get(account.budget)
        if found is None or not found[1].hard:
            return 0
        state = self._accounts.get(account)
        return max(0, found[1].limit - (state.spent + state.out if state else 0))

    # Holders

    def answer(self, asked: LeaseAsked, now_s: float, unix_s: int) -> LeaseGranted:
        """What a holder gets. Whoever has been replaced, or was silent for too long, has no say."""
        funder = f"{asked.holder}/{asked.epoch}"
        known = self._holders.get(asked.holder)
        refused = ""
        if len(funder) > LONGEST_NAME:
            refused = f"a holder's name of {len(funder)} characters is too long; it may have {LONGEST_NAME}"
        elif known is None and len(self._holders) + len(self._dying) >= _MOST_HOLDERS:
            refused = f"{_MOST_HOLDERS} holders of credit are known, and no more may be: {funder} is not let in"
        if refused:
            return LeaseGranted(refused=refused, ttl_ms=0, grants=())
        replaced = known is not None and known.epoch > asked.epoch
        if replaced or funder in self._dying or funder in self._over:
            return LeaseGranted(
                refused=f"{funder} was silent for too long, or has been replaced; start anew", ttl_ms=0, grants=()
            )
        if known is not None and known.epoch < asked.epoch:
            self._die(asked.holder, now_s)
        if known is None or (known.epoch, known.linger_s) != (asked.epoch, asked.linger_ms / 1000):
            self._lingers[funder] = asked.linger_ms
        self._holders[asked.holder] = _Holder(asked.epoch, now_s, asked.linger_ms / 1000)
        grants = tuple(self._grant(funder, line, now_s, unix_s) for line in asked.lines)
        if asked.ended:
            self._die(asked.holder, now_s)
        return LeaseGranted(refused="", ttl_ms=round(self._ttl_s * 1000), grants=grants)

    def _grant(self, funder: str, line: LeaseLine, now_s: float, unix_s: int) -> LeaseGrant:
        account = Account(line.budget, line.subject, line.window)
        found = self.budgets.get(line.budget)
        if found is None or not found[1].hard or not _open(found[1], account.window, unix_s):
            return LeaseGrant(
                budget=line.budget, subject=line.subject, window=line.window, granted=line.granted, limit=0, spent=0,
                short=True, coming=False, recalled=False,
            )  # fmt: skip
        state = self._state(account)
        lease = state.leases.setdefault(funder, Lease())
        before = (lease.granted, lease.returned)
        # A database that was put back from a backup may know less than the holder.
        on_its_way = max(0, lease.granted - line.granted)
        lease.granted, lease.returned = max(lease.granted, line.granted), max(lease.returned, line.returned)
        idle = line.idle + on_its_way
        free = self.free(account)
        given = min(free, max(0, line.least - idle, min(line.want - idle, free // _BULK_PART)))
        lease.granted += given
        if (lease.granted, lease.returned) != before:
            self._changed_leases[account, funder] = None
        short = idle + given < line.least
        lease.stuck = line.stuck
        stuck = sum(each.stuck for each in state.leases.values())
        others = state.out - lease.out
        if short:
            state.short_until_s, state.short_funder = now_s + RECALL_FOR_S, funder
            if others:
                self._recalled[account] = None
        elif state.short_funder == funder:
            state.short_until_s = float("-inf")
        return LeaseGrant(
            budget=line.budget,
            subject=line.subject,
            window=line.window,
            granted=lease.granted,
            limit=found[1].limit,
            spent=state.spent,
            short=short,
            # Also what its own requests hold: most of it comes back when they end, but not while they wait.
            coming=short and state.out - stuck > idle + given,
            recalled=now_s < state.short_until_s and state.short_funder != funder,
        )

    def take_recalled(self) -> list[Account]:
        """Accounts that somebody lacks credit of while others have some, since the last call."""
        recalled, self._recalled = list(self._recalled), {}
        return recalled

    def dead(self, now_s: float) -> list[str]:
        """Funders of which nothing new can come to light: their credit may come back, see `close_out`."""
        for holder, known in list(self._holders.items()):
            if now_s > known.seen_s + _MARGIN * self._ttl_s + 1.0:
                self._die(holder, now_s)
        return [funder for funder, over_s in self._dying.items() if over_s <= now_s]

    def _die(self, holder: str, now_s: float) -> None:
        known = self._holders.pop(holder)
        self._dying.setdefault(f"{holder}/{known.epoch}", now_s + known.linger_s)

    # What requests held, and were billed

    def backs(self, funder: str) -> bool:
        """Whether what that funder held is, or may be, its own: false once it was closed out."""
        return funder not in self._over

    def close(self, account: Account, funder: str, amount: int) -> None:
        """So much was held for requests that have ended."""
        state = self._accounts.get(account)
        lease = state.leases.get(funder) if state else None
        if lease is not None and amount:
            lease.closed += amount
            self._changed_leases[account, funder] = None

    def spend(self, account: Account, amount: int) -> None:
        """So much is billed; negative when a correction gives some back."""
        if account.budget in self.budgets and amount:
            self._state(account).spent += amount
            self._changed_accounts[account] = self._spent_on[account] = None

    def close_out(self, funder: str, held: dict[Account, int]) -> None:
        """A dead funder's idle credit is free again; `held` stays out, for its requests that may still be billed."""
        for account, state in self._accounts.items():
            lease = state.leases.get(funder)
            if lease is None:
                continue
            if left := held.get(account, 0):
                lease.granted = lease.closed + lease.returned + left
            else:
                del state.leases[funder]
            self._changed_leases[account, funder] = None
        if funder not in self._over:
            self._over.add(funder)
            self._over_lately.append(funder)
        if not held:
            self._dying.pop(funder, None)

    # What follows

    def reached(self, now_unix_ms: int) -> list[BudgetReached]:
        """Percentages that spending has come to since the last call; they are stored with what changes next, so that
        a crash repeats one rather than lose it."""
        due = []
        spent_on, self._spent_on = self._spent_on, {}
        for account in spent_on:
            state, found = self._accounts.get(account), self.budgets.get(account.budget)
            if state is None or found is None:
                continue
            tenant, terms = found
            passed = [each for each in terms.notify_percents if state.spent * 100 >= each * terms.limit]
            if passed and max(passed) > state.reached:
                state.reached = max(passed)
                self._changed_accounts[account] = None
                due.append(
                    BudgetReached(
                        tenant=tenant,
                        budget=account.budget,
                        scope=terms.scope,
                        subject=account.subject,
                        unit=terms.unit,
                        period=terms.period,
                        window=account.window,
                        limit=terms.limit,
                        spent=state.spent,
                        percent=state.reached,
                        hard=terms.hard,
                        at_unix_ms=now_unix_ms,
                    )
                )
        return due

    def take_changed(self) -> Changed:
        """What changed since the last call."""
        accounts = [
            (account, state.spent, state.reached)
            for account in self._changed_accounts
            if (state := self._accounts.get(account)) is not None
        ]
        leases = [
            (account, funder, state.leases.get(funder) if (state := self._accounts.get(account)) else None)
            for account, funder in self._changed_leases
        ]
        over, self._over_lately = self._over_lately, []
        lingers, self._lingers = list(self._lingers.items()), {}
        self._changed_accounts, self._changed_leases = {}, {}
        return Changed(accounts, leases, over, lingers)

    def forget(self, unix_s: int) -> None:
        """Drops windows that ended long ago, what was spent in them stays stored; and accounts that nobody has any
        credit of nor has spent from: asking makes one for each name."""
        for account, state in list(self._accounts.items()):
            found = self.budgets.get(account.budget)
            if found is None or not (state.spent or any(map(_says_anything, state.leases.values()))):
                self._drop(account)
                continue
            window = account.window
            for _ in range(_WINDOWS_KEPT):
                end = window_end(found[1].period, window)
                if end is None or end > unix_s:
                    break
                window = end
            else:
                self._drop(account)

    def _drop(self, account: Account) -> None:
        for funder in self._accounts.pop(account, AccountState()).leases:
            self._changed_leases[account, funder] = None

    def _state(self, account: Account) -> AccountState:
        return self._accounts.setdefault(account, AccountState())


def _open(terms: BudgetTerms, window: int, unix_s: int) -> bool:
    """Whether `window` is the present one; clocks may differ, so those beside it pass, too."""
    present = window_at(terms.period, unix_s)
    if window == present:
        return True
    return window_end(terms.period, window) == present or window == window_end(terms.period, present)
