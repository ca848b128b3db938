import dataclasses
import itertools
from collections.abc import Callable

import pytest

from services.mesh.errors import InvalidRequest
from services.mesh.events import RoutingPlan
from services.mesh.timing import StepLoad
from services.optimizer.core import planner as core
from services.optimizer.core.beliefs import Beliefs, Snapshot, Trigger
from services.optimizer.core.capacity import typical_request_s
from services.optimizer.core.plan import solve
from services.optimizer.core.planner import Planner
from services.optimizer.core.what_if import PoolChange, changed
from tests.unit.optimizer.facts import (
    ASSUMPTIONS,
    CATALOGUE,
    H100,
    L4,
    MI300X,
    MODEL,
    SMALL_MODEL,
    admitted,
    finished,
    generated,
    heartbeat,
    latency,
    sample,
    steps,
    timing,
)

UNIX_MS = 1_700_000_000_000


class Brain:
    """Beliefs and a planner on one clock that moves by hand."""

    def __init__(self, *accelerators: str) -> None:
        self.beliefs = Beliefs(CATALOGUE, ASSUMPTIONS, 0.0)
        self.planner = Planner()
        self.accelerators = accelerators
        self.now_s = 0.0
        self.beats = 0
        self.beat()

    def beat(self) -> None:
        self.beats += 1
        for accelerator in self.accelerators:
            self.beliefs.heard(heartbeat(f"{accelerator}-0", accelerator, sequence=self.beats), "", self.now_s)

    def work(self, seconds: float, rps: float, slo_class: str = "standard", answer: int = 100) -> None:
        """Steady arrivals, with heartbeats four times a second."""
        ends_s = self.now_s + seconds
        due_s = self.now_s
        while self.now_s < ends_s:
            self.now_s += 1 / rps
            while due_s <= self.now_s:
                self.beat()
                due_s += 0.25
            self.beliefs.heard(admitted(slo_class), "", self.now_s)
            self.beliefs.heard(finished(answer, slo_class), "", self.now_s)

    def snapshot(self) -> Snapshot:
        return self.beliefs.snapshot(self.now_s)

    def plans(self, trigger: Trigger = Trigger.INTERVAL, unix_ms: int = UNIX_MS) -> dict[str, RoutingPlan]:
        snapshot = self.snapshot()
        solution = solve(snapshot.problem, self.planner.shares)
        settled = self.planner.settle(snapshot, solution, trigger, now_s=self.now_s, unix_ms=unix_ms, solve_s=0.001)
        return {plan.model: plan for plan in settled}

    def news(self) -> Trigger | None:
        assert self.planner.basis is not None
        return self.beliefs.changed(self.planner.basis, self.now_s)


def shares_of(plan: RoutingPlan) -> dict[str, float]:
    """Share of the whole demand by pool."""
    total = sum(each.demand_rps for each in plan.classes)
    shares: dict[str, float] = {}
    for share in plan.shares:
        part = share.share * plan.classes[share.workload_class].demand_rps / total
        shares[share.pool] = shares.get(share.pool, 0.0) + part
    return shares


def test_plan_of_an_idle_mesh_names_its_pools_and_asks_for_nothing() -> None:
    plan = Brain(H100, L4).plans()[MODEL]
    assert (plan.status, plan.classes, plan.shares) == ("idle", (), ())
    assert [pool.pool for pool in plan.pools] == [H100, L4]
    assert plan.pools[0].timing.decode_base_s == timing(H100).decode_base_s
    assert plan.pools[0].rate_usd_per_hour == pytest.approx(2.69)
    assert plan.prediction.cost_usd_per_hour == 0.0


def test_nothing_heard_plans_nothing() -> None:
    assert Brain().plans() == {}


def test_plan_carries_demand_shares_prediction_and_evidence() -> None:
    brain = Brain(H100, MI300X, L4)
    brain.work(70.0, 10.0)
    brain.beliefs.heard(latency(f"{H100}-0", steps(timing(H100), 5)), "00-a-b-01", brain.now_s)
    brain.beliefs.heard(generated(f"{H100}-0", 10**9, 10**8), "", brain.now_s)
    plan = brain.plans(Trigger.DEMAND)[MODEL]
    assert plan.status == "optimal"
    assert sum(each.demand_rps for each in plan.classes) == pytest.approx(10.0, rel=0.1)
    assert shares_of(plan) == {H100: 0.0, L4: 0.0, MI300X: pytest.approx(1.0)}
    assert 0 < plan.prediction.cost_usd_per_hour < plan.prediction.baseline_cost_usd_per_hour
    assert plan.prediction.unserved_rps == pytest.approx(0.0, abs=1e-6)
    assert plan.evidence.trigger == "demand"
    assert plan.evidence.traceparents == ("00-a-b-01",)
    assert (plan.evidence.latency_events, plan.evidence.token_events) == (1, 1)
    assert plan.evidence.request_events > 1000
    by_pool = {pool.pool: pool for pool in plan.pools}
    assert by_pool[H100].observations == 5
    assert 0 < by_pool[MI300X].utilisation < 0.85
    assert {share.pool for share in plan.shares if not share.feasible} <= {L4}


def test_versions_grow_through_clocks_set_back_and_restarts() -> None:
    brain = Brain(H100)
    versions = [
        brain.plans(unix_ms=unix_ms)[MODEL].version for unix_ms in (UNIX_MS, UNIX_MS, UNIX_MS - 9999, UNIX_MS + 5)
    ]
    assert versions == [UNIX_MS, UNIX_MS + 1, UNIX_MS + 2, UNIX_MS + 5]
    restarted = Brain(H100)
    standing = dataclasses.replace(brain.plans()[MODEL], version=UNIX_MS + 10**6)
    assert restarted.planner.adopt(standing)
    assert restarted.plans()[MODEL].version == UNIX_MS + 10**6 + 1
    assert not restarted.planner.adopt(standing)


def test_restarted_optimizer_goes_on_from_the_standing_plan() -> None:
    brain = Brain(H100, MI300X)
    brain.beliefs.heard(latency(f"{H100}-0", steps(timing(H100), 200, factor=3.0)), "", 0.0)
    brain.work(30.0, 5.0)
    standing = brain.plans()[MODEL]
    restarted = Brain(H100, MI300X)
    restarted.planner.adopt(standing)
    restarted.beliefs.adopt(standing)
    pace = restarted.snapshot().paces[H100, MODEL]
    assert typical_request_s(pace.timing) == pytest.approx(3 * typical_request_s(timing(H100)), rel=0.1)
    key = next(iter(brain.planner.shares))
    assert restarted.planner.shares[key] == pytest.approx(brain.planner.shares[key])


def test_plan_that_makes_no_sense_is_not_adopted() -> None:
    brain = Brain(H100)
    brain.beliefs.heard(latency(f"{H100}-0", steps(timing(H100), 5)), "", 0.0)
    brain.work(5.0, 5.0)
    plan = brain.plans()[MODEL]
    learnt = dataclasses.asdict(plan.pools[0].timing)
    nothing = dataclasses.replace(plan.pools[0].timing, **dict.fromkeys(learnt, 0.0))
    odd = dataclasses.replace(
        plan,
        pools=(dataclasses.replace(plan.pools[0], timing=nothing),),
        classes=(dataclasses.replace(plan.classes[0], prompt_tokens_from=17),),
        shares=(*plan.shares, dataclasses.replace(plan.shares[0], workload_class=99)),
    )
    restarted = Brain(H100)
    assert not restarted.planner.adopt(dataclasses.replace(plan, version=(1 << 64) - 1))  # nothing comes after it
    restarted.planner.adopt(odd)
    restarted.beliefs.adopt(odd)
    assert restarted.snapshot().paces[H100, MODEL].timing == timing(H100)
    assert restarted.planner.shares == {}


def test_slowdown_is_news_and_takes_the_pools_share() -> None:
    brain = Brain(H100, MI300X)
    brain.beliefs.heard(latency(f"{MI300X}-0", steps(timing(MI300X), 100), MI300X), "", 0.0)
    brain.work(70.0, 20.0)
    before = shares_of(brain.plans()[MODEL])
    assert brain.news() is None
    brain.beliefs.heard(latency(f"{MI300X}-0", steps(timing(MI300X), 8, factor=10.0), MI300X), "", brain.now_s)
    assert brain.news() is Trigger.CAPACITY
    after = shares_of(brain.plans(Trigger.CAPACITY)[MODEL])
    assert before[MI300X] == pytest.approx(1.0)
    assert after[MI300X] < 0.2
    assert brain.news() is None


def test_worker_that_leaves_or_joins_is_news() -> None:
    brain = Brain(H100, MI300X)
    brain.work(10.0, 5.0)
    brain.plans()
    assert brain.news() is None
    brain.beliefs.heard(heartbeat(f"{MI300X}-0", MI300X, sequence=10_000, state="draining"), "", brain.now_s)
    assert brain.news() is Trigger.FLEET
    plan = brain.plans(Trigger.FLEET)[MODEL]
    assert [pool.pool for pool in plan.pools] == [H100]
    assert shares_of(plan) == {H100: pytest.approx(1.0)}


def test_demand_that_doubles_is_news_and_steady_demand_is_not() -> None:
    brain = Brain(H100, MI300X)
    brain.work(60.0, 30.0)
    brain.plans()
    brain.work(5.0, 30.0)
    assert brain.news() is None
    brain.work(4.0, 60.0)
    assert brain.news() is Trigger.DEMAND


def test_shadow_price_rises_when_capacity_binds_and_ends_when_it_does_not() -> None:
    brain = Brain(L4)
    brain.work(70.0, 60.0, "batch")
    busy = brain.plans(Trigger.DEMAND)[MODEL]
    assert busy.status == "overloaded"
    assert busy.prediction.unserved_rps > 0
    assert busy.pools[0].shadow_usd_per_device_s > 0
    brain.now_s += 120.0
    brain.beat()
    calm = brain.plans(Trigger.DEMAND)[MODEL]
    assert calm.pools[0].shadow_usd_per_device_s == 0.0


def test_noise_in_demand_and_steps_does_not_swing_the_plan() -> None:
    brain = Brain(H100, MI300X, "intel-gaudi3")
    brain.work(60.0, 40.0)
    brain.plans(Trigger.START)
    seen: list[dict[str, float]] = []
    for second in range(30):
        brain.work(1.0, 40.0 + (second % 3 - 1) * 6.0)
        for accelerator in brain.accelerators:
            sampled = steps(timing(accelerator), 10, seed=second)
            brain.beliefs.heard(latency(f"{accelerator}-0", sampled, accelerator), "", brain.now_s)
        seen.append(shares_of(brain.plans()[MODEL]))
    moves = [max(abs(b.get(pool, 0.0) - a.get(pool, 0.0)) for pool in b) for a, b in itertools.pairwise(seen)]
    assert max(moves[5:]) < 0.1


def test_events_of_no_use_change_nothing() -> None:
    brain = Brain(H100)
    before = brain.plans()[MODEL]
    for odd in (
        latency(f"{H100}-0", []),
        latency(f"{H100}-0", [sample(StepLoad(), 1.0), sample(StepLoad(decode_sequences=1), -1.0)]),
        admitted("platinum"),
        finished(5, outcome="error"),
        before,
    ):
        brain.beliefs.heard(odd, "", brain.now_s)
    assert brain.news() is None
    after = brain.plans()[MODEL]
    assert (after.pools, after.shares) == (before.pools, before.shares)


def test_models_are_planned_together_and_told_apart() -> None:
    brain = Brain(H100)
    brain.beliefs.heard(heartbeat("cpu-0", "cpu-epyc-turin", models=(SMALL_MODEL,)), "", 0.0)
    brain.work(1.0, 20.0)
    brain.beliefs.heard(heartbeat("cpu-0", "cpu-epyc-turin", models=(SMALL_MODEL,), sequence=9), "", brain.now_s)
    plans = brain.plans()
    assert set(plans) == {MODEL, SMALL_MODEL}
    assert [pool.pool for pool in plans[SMALL_MODEL].pools] == ["cpu-epyc-turin"]
    assert plans[SMALL_MODEL].status == "idle"
    assert plans[MODEL].status == "optimal"
    assert plans[SMALL_MODEL].prediction.cost_usd_per_hour == 0.0


def test_what_is_long_gone_is_forgotten() -> None:
    brain = Brain(H100)
    brain.work(5.0, 10.0)
    brain.now_s += 10_000.0
    brain.beliefs.heard(heartbeat("new", L4, models=(SMALL_MODEL,)), "", brain.now_s)
    assert brain.snapshot().models == (SMALL_MODEL,)


def test_what_if_scales_demand_and_pools_and_leaves_beliefs_alone() -> None:
    brain = Brain(H100, MI300X)
    brain.work(60.0, 10.0)
    now = brain.snapshot()
    then = changed(now, MODEL, 3.0, [PoolChange(MI300X, -1), PoolChange(H100, 2, 0.5)])
    assert sum(each.rps for each in then.problem.classes) == pytest.approx(
        3 * sum(each.rps for each in now.problem.classes)
    )
    pools = {pool.name: pool for pool in then.problem.pools}
    assert (pools[H100].workers, pools[H100].devices) == (3, 3.0)
    assert pools[H100].rate_usd_per_hour == pytest.approx(2.69 / 2)
    assert pools[MI300X].devices == 0.0
    solution = solve(then.problem, {})
    assert all(set(parts) == {H100} for parts in solution.shares.values())
    assert brain.snapshot().problem == now.problem


@pytest.mark.parametrize(
    "ask",
    [
        lambda now: changed(now, MODEL, -1.0, []),
        lambda now: changed(now, MODEL, float("nan"), []),
        lambda now: changed(now, MODEL, 1e9, []),
        lambda now: changed(now, MODEL, 1.0, [PoolChange("nowhere")]),
        lambda now: changed(now, MODEL, 1.0, [PoolChange(H100, -2)]),
        lambda now: changed(now, MODEL, 1.0, [PoolChange(H100, 10**6)]),
        lambda now: changed(now, MODEL, 1.0, [PoolChange(H100, 0, -0.5)]),
        lambda now: changed(now, MODEL, 1.0, [PoolChange(H100), PoolChange(H100)]),
    ],
)
def test_what_if_refuses_what_makes_no_sense(ask: Callable[[Snapshot], Snapshot]) -> None:
    with pytest.raises(InvalidRequest):
        ask(Brain(H100).snapshot())


def test_versions_are_remembered_of_the_models_met_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_MODELS", 2)
    planner = Planner()
    for number in range(10):
        assert planner.adopt(RoutingPlan(model=f"m{number}", version=7, made_unix_ms=0))
    assert not planner.adopt(RoutingPlan(model="m9", version=8, made_unix_ms=0))
    assert planner.adopt(RoutingPlan(model="m0", version=8, made_unix_ms=0))
