"""What runs away is held back at the door: slowed, capped or stopped, as the mesh was told. Pure.

In: `RunawayFound` events, requests, the time. Out: nothing, a cap for the answer, or the error that the caller gets.
Each router lets a slowed scope keep its usual pace, so several routers together let it keep as many times that.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from services.mesh.errors import QueueFull, RunawayStopped
from services.mesh.events import RunawayFound, RunawayGrade
from services.router.core.request import Asked

_MOST: Final = 10_000
_HELD: Final = frozenset({RunawayGrade.SLOW, RunawayGrade.CAP, RunawayGrade.STOP})
_Name = tuple[str, str, str]  # tenant, scope, name


@dataclass(slots=True)
class _Restraint:
    found: RunawayFound
    until_s: float
    tokens: float = 1.0  # of the bucket that a slowed scope's requests take from
    filled_s: float = 0.0


class Restraints:
    """What is held back now. False where nothing is, which is to be asked first."""

    def __init__(self) -> None:
        self._restraints: OrderedDict[_Name, _Restraint] = OrderedDict()

    def __len__(self) -> int:
        return len(self._restraints)

    def fold(self, found: RunawayFound, now_s: float) -> None:
        """Takes an event; the one that comes last counts, in the order of the stream, and how long it holds counts from
        now, so that no clock of another host matters."""
        name = (found.tenant, found.scope, found.name)
        before = self._restraints.get(name)
        if found.dry_run or found.grade not in _HELD:
            self._restraints.pop(name, None)
            return
        until_s = now_s + max(0, found.until_unix_ms - found.at_unix_ms) / 1000
        if before is not None:
            before.found, before.until_s = found, until_s
            return
        self._restraints[name] = _Restraint(found, until_s, filled_s=now_s)
        while len(self._restraints) > _MOST:
            self._restraints.popitem(last=False)

    def cap_tokens(self, asked: Asked, now_s: float) -> int:
        """The most that an answer may have; 0 where nothing caps it."""
        caps = [
            each.found.cap_tokens
            for each in self._of(asked, now_s)
            if each.found.grade == RunawayGrade.CAP and each.found.cap_tokens
        ]
        return min(caps, default=0)

    def check(self, asked: Asked, now_s: float) -> None:
        """Lets the request in, and counts it; or raises why not.

        Raises:
            RunawayStopped: nothing more of its scope is let in for now.
            QueueFull: its scope is slowed, and this one is too soon.
        """
        held = self._of(asked, now_s)
        for each in held:
            if each.found.grade == RunawayGrade.STOP:
                raise RunawayStopped(
                    f"stopped as a runaway ({each.found.kind}): {each.found.evidence}; its operator can lift that"
                    " (tokenworks runaway --lift), or it ends by itself",
                    retry_after_s=each.until_s - now_s,
                )
            each.tokens = min(1.0, each.tokens + (now_s - each.filled_s) * each.found.allowed_rps)
            each.filled_s = now_s
            if each.tokens < 1.0:
                raise QueueFull(
                    f"slowed as a runaway ({each.found.kind}) to {each.found.allowed_rps:.3g} requests/s:"
                    f" {each.found.evidence}",
                    retry_after_s=(1.0 - each.tokens) / max(each.found.allowed_rps, 1e-3),
                )
        for each in held:
            each.tokens -= 1.0

    def _of(self, asked: Asked, now_s: float) -> list[_Restraint]:
        """Those that the request falls under; what is over is dropped."""
        held = []
        scopes = [("tenant", ""), ("workload", asked.workload), ("session", asked.session_id or asked.conversation)]
        if not asked.session_id:
            scopes.append(("caller", f"{asked.workload}/{asked.key}"))
        for scope, its_name in scopes:
            name = (asked.tenant, scope, its_name)
            found = self._restraints.get(name)
            if found is None:
                continue
            if found.until_s <= now_s:
                del self._restraints[name]
            else:
                held.append(found)
        return held
