"""Workloads, sessions and tenants that run away: found against their own history, answered in grades. Pure.

In: what was booked, requests let in, and the time. Out: `Finding`s to publish when a grade changes, each with its
evidence in numbers and words.

What is looked for, every `bucket_s`:
- **velocity**: tokens of a workload, requests of a session, or of a workload's key where there is no session, per
  bucket, against their own usual pace (`paces.py`);
- **spend**: nano-dollars of a workload and of a tenant, the same;
- **endless agent**: one session whose prompts only grow, turn after turn, faster than people type: its answers are
  its next prompts. It needs no history.
(Answers that go round in circles are found where they are made, by the worker.)

Grades go up one at a time: `notify` at once, then `slow`, `cap` and `stop` after `escalate_buckets` each in which it
went on, never past `most`; and fall to nothing after `calm_buckets` without evidence, `stop` after `stop_buckets`.
What each grade does is the router's and the worker's to carry out.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Final

from services.mesh.events import RunawayGrade
from services.meter.core.amounts import Amounts
from services.meter.core.paces import Pace
from services.meter.core.usage import UsageKey

_GRADES: Final = tuple(RunawayGrade)
_MOST_SCOPES: Final = 10_000
_ALLOWED: Final = 2.0  # times its usual pace is what a slowed scope may keep
_LEAST_CAP_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """When to speak, and how far to go; see `settings.RunawaySettings`."""

    most: RunawayGrade
    bucket_s: float
    ratio: float
    least_tokens: float
    least_requests: float
    least_nusd: float
    agent_turns: int
    agent_gap_s: float
    cap_tokens: int
    escalate_buckets: int = 6
    calm_buckets: int = 6
    stop_buckets: int = 30


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """What runs away: a "tenant" (its `name` is empty), a "workload", a "caller" (`workload/key`, of requests without a
    session) or a "session" of one, which may be a conversation that routers recognised."""

    tenant: str
    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of tenant {self.tenant!r}" if self.name else f"tenant {self.tenant!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The state of one scope.

    Attributes:
        kind: "velocity", "spend" or "endless_agent".
        observed, usual: in `unit`, per bucket (turns for an endless agent).
        allowed_rps: requests per second that a slowed scope keeps.
        cap_tokens: what a capped scope's answers may have.
        evidence: in words.
    """

    scope: Scope
    kind: str
    grade: RunawayGrade
    observed: float
    usual: float
    unit: str
    allowed_rps: float
    cap_tokens: int
    evidence: str


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is out of the ordinary in one bucket; `observed` and `usual` in `unit`."""

    kind: str
    observed: float
    usual: float
    unit: str
    words: str


@dataclass(slots=True)
class _Turns:
    """The turns of a session that may be an agent's."""

    count: int = 0
    first_prompt: int = 0
    last_prompt: int = 0
    last_s: float = 0.0
    began_s: float = 0.0


@dataclass(slots=True)
class _State:
    """One scope: this bucket's sums, its usual paces, the grade in force."""

    sums: dict[str, float] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict)
    turns: _Turns | None = None
    finding: Finding | None = None
    went_on: int = 0  # buckets with evidence at this grade
    calm: int = 0  # buckets without, since the last


class Judge:
    """Watches all scopes, the busiest `_MOST_SCOPES` of them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._states: OrderedDict[Scope, _State] = OrderedDict()
        self._bucket_ends_s: float | None = None
        self._changed: dict[Scope, Finding] = {}

    def booked(self, usage: Mapping[UsageKey, Amounts]) -> None:
        """Takes what a batch booked; corrections that take off are left out."""
        for key, amounts in usage.items():
            tokens, nusd = max(0, amounts.generated_tokens), max(0, amounts.price_nusd)
            workload = self._sums(Scope(key.tenant, "workload", key.workload))
            workload["tokens"] = workload.get("tokens", 0.0) + tokens
            workload["nusd"] = workload.get("nusd", 0.0) + nusd
            workload["answers"] = workload.get("answers", 0.0) + max(0, amounts.finished_requests)
            tenant = self._sums(Scope(key.tenant, "tenant"))
            tenant["nusd"] = tenant.get("nusd", 0.0) + nusd

    def admitted(
        self,
        tenant: str,
        workload: str,
        session: str,
        prompt_tokens: int,
        now_s: float,
        *,
        key: str = "",
        conversation: str = "",
    ) -> None:
        """Takes a request that was let in.

        Args:
            session: as the client says; empty where it says none, which then counts for its workload and `key`.
            conversation: which earlier requests such a one goes on from; empty where it begins.
        """
        sums = self._sums(Scope(tenant, "workload", workload))
        sums["requests"] = sums.get("requests", 0.0) + 1
        if not session:
            sums = self._sums(Scope(tenant, "caller", f"{workload}/{key}"))
            sums["requests"] = sums.get("requests", 0.0) + 1
        if not session and not conversation:
            return
        scope = Scope(tenant, "session", session or conversation)
        sums = self._sums(scope)
        sums["requests"] = sums.get("requests", 0.0) + 1
        state = self._states[scope]
        turns = state.turns
        if turns is None or prompt_tokens < turns.last_prompt or now_s - turns.last_s > self._rules.agent_gap_s:
            state.turns = _Turns(1, prompt_tokens, prompt_tokens, now_s, now_s)
            return
        if not session and prompt_tokens == turns.last_prompt:
            return  # many may ask the same; only one whose prompts grow goes on from its own answers
        turns.count += 1
        turns.last_prompt, turns.last_s = prompt_tokens, now_s

    def due(self, now_s: float) -> list[Finding]:
        """Closes the bucket when it is over; the findings whose grade has changed since the last call."""
        if self._bucket_ends_s is None:
            self._bucket_ends_s = now_s + self._rules.bucket_s
        if now_s >= self._bucket_ends_s:
            self._bucket_ends_s = now_s + self._rules.bucket_s
            for scope, state in list(self._states.items()):
                self._close_bucket(scope, state)
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def standing(self) -> list[Finding]:
        """What is in force, by scope."""
        found = [state.finding for state in self._states.values() if state.finding is not None]
        return sorted(found, key=lambda each: each.scope)

    def lift(self, scope: Scope) -> bool:
        """An operator says that this is as it should be: nothing is in force, and its pace is learned anew."""
        state = self._states.get(scope)
        if state is None or state.finding is None:
            return False
        self._set(scope, state, replace(state.finding, grade=RunawayGrade.NONE, evidence="lifted by an operator"))
        state.paces.clear()
        state.turns = None
        return True

    def _sums(self, scope: Scope) -> dict[str, float]:
        state = self._states.get(scope)
        if state is None:
            state = self._states[scope] = _State()
            if len(self._states) > _MOST_SCOPES:
                self._forget_one()
        else:
            self._states.move_to_end(scope)
        return state.sums

    def _forget_one(self) -> None:
        """Drops the scope that was still longest, of those that nothing is in force for."""
        for scope, state in self._states.items():
            if state.finding is None:
                del self._states[scope]
                return
        self._states.popitem(last=False)

    def _close_bucket(self, scope: Scope, state: _State) -> None:
        found = self._look(scope, state)
        self._learn(state)
        rules, before = self._rules, state.finding
        if found is None:
            if before is not None:
                state.calm += 1
                enough = rules.stop_buckets if before.grade is RunawayGrade.STOP else rules.calm_buckets
                if state.calm >= enough:
                    over = replace(before, grade=RunawayGrade.NONE, evidence=f"{scope}: back to its usual pace")
                    self._set(scope, state, over)
            return
        state.calm = 0
        if before is None:
            self._set(scope, state, self._finding(scope, state, found, RunawayGrade.NOTIFY))
            return
        state.went_on += 1
        above = _GRADES.index(before.grade) + 1
        if state.went_on >= rules.escalate_buckets and above <= _GRADES.index(rules.most):
            self._set(scope, state, self._finding(scope, state, found, _GRADES[above]))

    def _learn(self, state: _State) -> None:
        """Takes the bucket's sums into the usual paces, and empties it."""
        for unit, amount in state.sums.items():
            if amount <= 0:
                continue
            pace = state.paces.setdefault(unit, Pace())
            threshold = pace.threshold(self._rules.ratio, self._floor(unit))
            if pace.known and amount > threshold:
                pace.drift(threshold)
            else:
                pace.learn(amount)
        state.sums.clear()

    def _look(self, scope: Scope, state: _State) -> _Evidence | None:
        """What of the bucket that is over is out of the ordinary."""
        rules, turns = self._rules, state.turns
        runs_on = turns is not None and turns.count >= rules.agent_turns and turns.last_prompt > turns.first_prompt
        if turns is not None and runs_on and state.sums.get("requests"):
            took_s = turns.last_s - turns.began_s
            words = (
                f"{turns.count} turns in {took_s:.0f} s without a pause of {rules.agent_gap_s:g} s, each prompt as long"
                f" as the one before or longer: from {turns.first_prompt} to {turns.last_prompt} tokens"
            )
            return _Evidence("endless_agent", turns.count, rules.agent_turns, "turns", words)
        for unit, kind in _WATCHED[scope.kind].items():
            pace, amount = state.paces.get(unit), state.sums.get(unit, 0.0)
            if pace is None or not pace.known:
                continue
            threshold = pace.threshold(rules.ratio, self._floor(unit))
            if amount > threshold:
                words = (
                    f"{amount:.0f} {unit} in {rules.bucket_s:g} s, usually {pace.mean:.0f} (spread"
                    f" {sqrt(pace.variance):.0f}, from {pace.buckets} such times); {threshold:.0f} would be ordinary"
                )
                return _Evidence(kind, amount, pace.mean, unit, words)
        return None

    def _floor(self, unit: str) -> float:
        rules = self._rules
        return {"tokens": rules.least_tokens, "requests": rules.least_requests, "nusd": rules.least_nusd}.get(unit, 0.0)

    def _finding(self, scope: Scope, state: _State, evidence: _Evidence, grade: RunawayGrade) -> Finding:
        """The evidence at a grade, with what a slowed or capped scope keeps."""
        rules, none = self._rules, Pace()
        requests, tokens, answers = (state.paces.get(unit, none) for unit in ("requests", "tokens", "answers"))
        allowed_rps = max(_ALLOWED * requests.mean, 1.0) / rules.bucket_s
        if evidence.kind == "endless_agent":
            allowed_rps = 1 / rules.agent_gap_s
        cap_tokens = rules.cap_tokens
        if tokens.known and answers.known:
            cap_tokens = max(_LEAST_CAP_TOKENS, int(_ALLOWED * tokens.mean / answers.mean))
        return Finding(
            scope=scope,
            kind=evidence.kind,
            grade=grade,
            observed=evidence.observed,
            usual=evidence.usual,
            unit=evidence.unit,
            allowed_rps=allowed_rps,
            cap_tokens=cap_tokens,
            evidence=f"{scope}: {evidence.words}",
        )

    def _set(self, scope: Scope, state: _State, finding: Finding) -> None:
        state.finding = None if finding.grade is RunawayGrade.NONE else finding
        state.went_on = state.calm = 0
        self._changed[scope] = finding


_WATCHED: Final[Mapping[str, Mapping[str, str]]] = {
    "tenant": {"nusd": "spend"},
    "workload": {"tokens": "velocity", "nusd": "spend"},
    "caller": {"requests": "velocity"},
    "session": {"requests": "velocity"},
}
