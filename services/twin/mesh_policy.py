"""The mesh's own policy in virtual time: the router's fleet, scores and prefix index, and the optimizer's planner.

The very code that runs in production, fed with the events that a worker would publish. Nothing is known here that a
router does not know: answers' lengths are estimated from what finished unless their clients say, workers' loads are
heartbeats up to 250 ms old.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from services.mesh.accelerators import Catalogue
from services.mesh.errors import NoWorker, PromptTooLong, QueueFull
from services.mesh.events import LatencyObserved, ReplicaTarget, RequestAdmitted, RequestFinished, WorkerHeartbeat
from services.mesh.prefix_chain import Chain
from services.mesh.settings import RouterSettings
from services.optimizer.core.beliefs import Assumptions, Beliefs, Trigger
from services.optimizer.core.elastic import Elastic
from services.optimizer.core.plan import solve
from services.optimizer.core.planner import Planner
from services.optimizer.core.service_curve import Promise as PlannedPromise
from services.router.core.admittance import Admittance
from services.router.core.estimates import Estimates
from services.router.core.exploration import Exploration
from services.router.core.fairness import Fairness, Standing
from services.router.core.fleet import Fleet
from services.router.core.known_worker import Placed
from services.router.core.lateness import Prospect, as_it_stands, foresee
from services.router.core.policy import Decision, decide
from services.router.core.promises import Promises
from services.router.core.request import Asked, Promise, PromptFacts, PromptKind, SamplingValues
from services.router.core.scores import Ask
from services.twin.policies import Verdict
from services.twin.requests import TwinRequest
from services.twin.scenario import Scenario, by_name
from services.twin.traces import BLOCK_TOKENS
from services.twin.worker import UNIX_MS, TwinWorker

_BYTES_PER_TOKEN: Final = 4  # of a prompt in token ids, see `mesh/prefix_chain`
_ENDS: Final = range(_BYTES_PER_TOKEN * BLOCK_TOKENS, 1 << 24, _BYTES_PER_TOKEN * BLOCK_TOKENS)
_MAX_QUEUE_S: Final = 60.0
_TIMEOUT_S: Final = 2.0
_PLAN_TAKES_S: Final = 0.02  # solving, and the way over the bus


class MeshPolicy:
    """Router and optimizer."""

    name = "tokenworks"

    def __init__(
        self,
        scenario: Scenario,
        catalogue: Catalogue,
        workers: Sequence[TwinWorker] = (),
        *,
        planned: bool = True,
        settings: RouterSettings | None = None,
    ) -> None:
        """
        Args:
            workers: hear the plans.
            planned: with the optimizer's plans in force; without, the router alone decides.
            settings: of the router; the usual ones, with the scenario's weights of tenants, when None.
        """
        promises = by_name(scenario.classes)
        self._scenario = scenario
        self._workers = workers
        self._fleet = Fleet(
            catalogue,
            Promises(promises),
            heartbeat_timeout_s=_TIMEOUT_S,
            tariff_usd_per_kwh=scenario.tariff_usd_per_kwh,
            exploration=Exploration(),
        )
        self._estimates = Estimates()
        self._rng = Random(f"{scenario.seed}/mesh")
        self.settings = settings or RouterSettings(tenant_weights=dict(scenario.tenant_weights))
        self._admittance: Admittance[_Case] = Admittance(
            Fairness(self.settings.tenant_weights),
            most_queue_s=self.settings.worker_queue_s,
            most_wait_s=self.settings.max_wait_s,
            capacity=self.settings.max_waiting,
            tenant_capacity=self.settings.max_waiting_per_tenant,
        )
        self._decisions: dict[int, tuple[Asked, Ask, Decision]] = {}
        self._placed: dict[int, Placed] = {}
        self._planned = planned
        self._planner = Planner()
        self._plan_due_s = scenario.plan_every_s
        self._elastic = Elastic(scenario.headroom)
        self.targets: Sequence[ReplicaTarget] = ()
        self._beliefs = Beliefs(
            catalogue,
            Assumptions(
                promises={
                    name: PlannedPromise(each.ttft_s, each.ttft_s_per_prompt_token, each.tpot_s, each.miss_usd)
                    for name, each in promises.items()
                },
                target_utilisation=0.85,
                tariff_usd_per_kwh=scenario.tariff_usd_per_kwh,
                forgetting=0.995,
                window_s=60.0,
                marked_change=0.25,
                heartbeat_timeout_s=_TIMEOUT_S,
                elastic=scenario.elastic,
            ),
            0.0,
        )

    def heard(self, event: WorkerHeartbeat | LatencyObserved, now_s: float) -> None:
        if isinstance(event, WorkerHeartbeat):
            self._fleet.heartbeat(event, now_s, UNIX_MS + int(now_s * 1000))
            known = self._fleet.worker(event.worker)
            if known is not None and not known.linked:
                self._fleet.linked(event.worker, True, now_s)
        else:
            self._fleet.latency(event, now_s)
        if self._planned:
            self._beliefs.heard(event, "", now_s)

    def tick(self, now_s: float) -> None:
        if not self._planned:
            return
        basis = self._planner.basis
        news = Trigger.START if basis is None else self._beliefs.changed(basis, now_s)
        if news is None and now_s < self._plan_due_s:
            return
        self._plan_due_s = now_s + self._scenario.plan_every_s
        snapshot = self._beliefs.snapshot(now_s)
        solution = solve(snapshot.problem, self._planner.shares)
        trigger = news or Trigger.INTERVAL
        unix_ms = UNIX_MS + int(now_s * 1000)
        for plan in self._planner.settle(
            snapshot, solution, trigger, now_s=now_s, unix_ms=unix_ms, solve_s=_PLAN_TAKES_S
        ):
            self._fleet.plan(plan, "", now_s)
            for worker in self._workers:
                worker.tune(plan)
        ready = {pool.name: pool.workers for pool in snapshot.problem.pools}
        self.targets = self._elastic.targets(snapshot.problem, snapshot.elastic, ready, unix_ms / 1000)

    @property
    def waiting(self) -> int:
        return len(self._admittance)

    def admit(self, request: TwinRequest, now_s: float) -> str | Verdict | None:
        case = _Case(self, request, now_s, _asked(request, self._scenario.model))
        try:
            waits = self._admittance.arrives(case, now_s)
        except (NoWorker, PromptTooLong):
            return None
        except QueueFull:
            return Verdict.REFUSED
        return Verdict.WAITS if waits else case.worker

    def settle(self, now_s: float) -> Iterable[tuple[TwinRequest, str | Verdict]]:
        for case, error in self._admittance.pass_time(now_s):
            yield case.request, Verdict.REFUSED if error else case.worker

    def pick(self, request: TwinRequest, avoid: Sequence[str], now_s: float) -> str | None:
        asked = _asked(request, self._scenario.model)
        try:
            decision = self.decide(asked, self.ask(request, asked, request.promise, avoid), _MAX_QUEUE_S, now_s)
        except (NoWorker, QueueFull, PromptTooLong):
            return None
        self.decided(request, asked, decision)
        return decision.worker.name

    def ask(self, request: TwinRequest, asked: Asked, promise: Promise, avoid: Sequence[str] = ()) -> Ask:
        """What is to be placed of a request."""
        made = request.delivered
        prompt_tokens = request.prompt_tokens + made
        return Ask(
            prompt_tokens=prompt_tokens,
            fewest_prompt_tokens=prompt_tokens,
            completion_tokens=self._estimates.completion_tokens(asked, made),
            mean_completion_tokens=self._estimates.mean_completion_tokens(asked.model),
            promise=promise,
            cached=self._fleet.prefixes.expected(asked.model, asked.prompt.chain, request.prompt_tokens),
            excluded=frozenset(avoid),
        )

    def decide(self, asked: Asked, ask: Ask, max_queue_s: float, now_s: float, least_spare: float = 0.0) -> Decision:
        return decide(
            self._fleet,
            asked.model,
            ask,
            max_queue_s=max_queue_s,
            now_s=now_s,
            rng=self._rng,
            least_spare=least_spare,
        )

    def urgency(self, promise: Promise, left_s: float) -> int:
        return self._fleet.promises.urgency(promise, left_s)

    def decided(self, request: TwinRequest, asked: Asked, decision: Decision) -> None:
        """`placed` is to follow."""
        self._decisions[request.index] = asked, decision.shortlist.ask, decision

    def placed(self, request: TwinRequest, worker: str, now_s: float) -> None:
        asked, ask, decision = self._decisions[request.index]
        plan = decision.plan
        if plan is not None and decision.workload_class is not None:
            plan.placed(decision.workload_class, decision.worker.pool)
        self._fleet.prefixes.placed(asked.prompt.chain, decision.worker.slot, now_s)
        self._placed[request.index] = self._fleet.place(
            decision.worker,
            model=asked.model,
            slo_class=asked.slo_class,
            priority=ask.promise.priority,
            prompt_tokens=ask.prompt_tokens,
            cached_tokens=decision.cached_tokens,
            completion_tokens=ask.completion_tokens,
            explored=decision.explored,
            now_s=now_s,
        )
        if self._planned and request.tries == 0:
            self._beliefs.heard(_admitted(request, asked, worker, decision.worker.pool, now_s), "", now_s)

    def first_token(self, request: TwinRequest, worker: str, now_s: float) -> None:
        if (placed := self._placed.get(request.index)) is not None:
            self._fleet.prefilled(placed, now_s)

    def left(self, request: TwinRequest, worker: str, now_s: float) -> None:
        if (placed := self._placed.pop(request.index, None)) is not None:
            self._fleet.finished(placed, now_s)

    def finished(self, request: TwinRequest, now_s: float) -> None:
        found = self._decisions.pop(request.index, None)
        if found is None:
            return
        asked, _, decision = found
        if request.outcome == "length" and len(request.legs) == 1:
            self._estimates.learn(asked, request.prompt_tokens, request.delivered)
            self._fleet.prefixes.learn(asked.model, decision.cached_tokens, request.cached_tokens)
        if self._planned:
            self._beliefs.heard(_finished(request, asked, decision.worker.pool, now_s), "", now_s)


@dataclass(slots=True, eq=False)
class _Case:
    """A request on its way through the router."""

    policy: MeshPolicy
    request: TwinRequest
    arrived_s: float
    asked: Asked
    decision: Decision | None = None
    gone: bool = False
    time_left_s: float | None = None

    @property
    def model(self) -> str:
        return self.asked.model

    @property
    def tenant(self) -> str:
        return self.asked.tenant

    @property
    def promise(self) -> Promise:
        return self.request.promise

    @property
    def prompt_tokens(self) -> int:
        return self.request.prompt_tokens

    @property
    def worker(self) -> str:
        assert self.decision is not None, "it went"
        return self.decision.worker.name

    def look(self, waited_s: float, standing: Standing) -> Prospect:
        now_s = self.arrived_s + waited_s
        urgency = self.policy.urgency(self.promise, self.promise.ttft_promise_s(self.prompt_tokens) - waited_s)
        ask = self.policy.ask(self.request, self.asked, as_it_stands(self.promise, waited_s, standing, urgency))
        self.decision, foreseen = foresee(
            lambda max_queue_s, least_spare: self.policy.decide(self.asked, ask, max_queue_s, now_s, least_spare),
            waited_s,
            most_queue_s=self.policy.settings.worker_queue_s,
            max_queue_s=_MAX_QUEUE_S,
            now_s=now_s,
            standing=standing,
        )
        return foreseen

    def go(self, waited_s: float) -> None:
        assert self.decision is not None, "it was looked at"
        request = self.request
        request.priority = self.decision.shortlist.ask.promise.priority
        self.policy.decided(request, self.asked, self.decision)
        self.policy.placed(request, self.worker, self.arrived_s + waited_s)


def _asked(request: TwinRequest, model: str) -> Asked:
    return Asked(
        request_id=str(request.index),
        tenant=request.tenant,
        model=model,
        slo_class=request.promise.name,
        workload=request.workload,
        session_id=request.session_id,
        prompt=PromptFacts(
            kind=PromptKind.TOKEN_IDS,
            size=request.prompt_tokens,
            chain=Chain(
                tuple(request.prefix),
                request.prompt_tokens,
                range(BLOCK_TOKENS, (len(request.prefix) + 1) * BLOCK_TOKENS, BLOCK_TOKENS),
            ),
        ),
        sampling=SamplingValues(max_tokens=request.max_tokens or None, ignore_eos=request.exact),
    )


def _admitted(request: TwinRequest, asked: Asked, worker: str, pool: str, now_s: float) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=asked.request_id,
        router="twin",
        tenant=asked.tenant,
        workload=asked.workload,
        model=asked.model,
        slo_class=asked.slo_class,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        worker=worker,
        pool=pool,
        plan="",
        at_unix_ms=UNIX_MS + int(now_s * 1000),
        price_book="",
    )


def _finished(request: TwinRequest, asked: Asked, pool: str, now_s: float) -> RequestFinished:
    return RequestFinished(
        request_id=asked.request_id,
        router="twin",
        tenant=asked.tenant,
        workload=asked.workload,
        model=asked.model,
        slo_class=asked.slo_class,
        worker=request.legs[-1] if request.legs else "",
        pool=pool,
        accelerator=pool,
        delivered_from=0,
        delivered_count=request.delivered,
        prompt_tokens=request.prompt_tokens,
        cached_prompt_tokens=request.cached_tokens,
        outcome=request.outcome,
        ttft_s=max(0.0, request.ttft_s),
        tpot_s=request.tpot_s,
        e2e_s=max(0.0, now_s - request.arrival_s),
        slo_met=request.slo_met,
        trace_id="",
        at_unix_ms=UNIX_MS + int(now_s * 1000),
        admitted_unix_ms=UNIX_MS + int(request.arrival_s * 1000),
        price_book="",
        plan="",
    )
