"""Waiting at the router: whose turn it is, who is refused early, and what one tenant's excess does to another."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.mesh.errors import DeadlineUnreachable, QueueFull
from services.router.core import fairness as fairness_module
from services.router.core.admittance import Admittance
from services.router.core.fairness import Fairness, Standing
from services.router.core.lateness import Prospect, as_it_stands
from services.router.core.request import Promise
from tests.unit.router.worlds import PROMISES

COST_USD = 0.001


@dataclass(eq=False)
class FakeCase:
    """A request at a fake worker: it has room while `queue_s` is short."""

    world: "Waits"
    tenant: str = "acme"
    slo_class: str = "standard"
    time_left_s: float | None = None
    model: str = "m"
    prompt_tokens: int = 100
    pool: str = "pool"
    queue_s: float | None = None
    gone: bool = False
    went_s: float | None = None

    @property
    def promise(self) -> Promise:
        return PROMISES.classes[self.slo_class]

    def look(self, waited_s: float, standing: Standing) -> Prospect:
        return Prospect(
            queue_s=self.world.queue_s if self.queue_s is None else self.queue_s,
            own_s=0.05,
            kept_usd=self.promise.miss_usd,
            harm_usd=0.0,
            of_no_matter_usd=0.0,
            device_usd=COST_USD,
            score_usd=COST_USD,
            most_queue_s=0.1,
            spare=0.5,
            pool=self.pool,
        )

    def go(self, waited_s: float) -> None:
        self.went_s = self.world.now_s
        self.world.went.append(self.tenant)


@dataclass
class Waits:
    """An admittance in fake time."""

    weights: dict[str, float] = field(default_factory=dict)
    capacity: int = 100
    tenant_capacity: int = 50
    queue_s: float = 0.0
    now_s: float = 0.0
    went: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fairness = Fairness(self.weights)
        self.admittance: Admittance[FakeCase] = Admittance(
            self.fairness,
            most_queue_s=0.1,
            most_wait_s=30.0,
            capacity=self.capacity,
            tenant_capacity=self.tenant_capacity,
        )

    def comes(self, tenant: str = "acme", **changes: Any) -> FakeCase:
        case = FakeCase(self, tenant, **changes)
        self.admittance.arrives(case, self.now_s)
        return case

    def fills(self) -> None:
        """The worker has enough to do: who comes now waits."""
        self.queue_s = 1.0

    def serves(self, most: int) -> list[object]:
        """Room for so many; what became of those that wait no more."""
        settled: list[object] = []
        self.queue_s = 0.0
        for case, error in self.admittance.pass_time(self.now_s):
            settled.append(error or case.tenant)
            if len([each for each in settled if isinstance(each, str)]) >= most:
                self.queue_s = 1.0
        return settled


def test_a_request_that_finds_room_goes_at_once() -> None:
    world = Waits()
    assert world.comes().went_s == 0.0
    assert len(world.admittance) == 0


def test_tenants_that_wait_take_turns_by_their_weights() -> None:
    world = Waits(weights={"big": 3.0})
    world.comes("other")
    world.fills()
    for _ in range(20):
        world.comes("big")
        world.comes("small")
    world.went.clear()
    world.serves(16)
    assert 11 <= world.went.count("big") <= 13
    assert len(world.went) == 16


def test_a_newcomer_neither_claims_what_it_left_unused_nor_waits_for_what_others_got() -> None:
    world = Waits()
    for _ in range(50):
        world.comes("old")
    assert world.fairness.counter("new") <= world.fairness.counter("old")
    assert world.fairness.counter("new") >= world.fairness.counter("old") - 2 * COST_USD


def test_within_a_tenant_the_more_urgent_class_goes_first() -> None:
    world = Waits()
    world.fills()
    first, second = world.comes(slo_class="standard"), world.comes(slo_class="interactive")
    world.now_s = 0.01
    world.serves(1)
    assert first.went_s is None
    assert second.went_s == 0.01


def test_a_tenant_within_its_share_passes_anothers_excess() -> None:
    world = Waits()
    for _ in range(50):
        world.comes("flood")
    world.fills()
    waits = world.comes("flood")
    world.now_s, world.queue_s = 0.3, 0.25  # too long for the flood, not for others
    assert world.comes("quiet").went_s == 0.3
    assert waits.went_s is None


def test_who_would_begin_too_late_is_refused_at_once_and_told_when_to_come_back() -> None:
    world = Waits()
    for _ in range(10):
        world.comes()
    world.fills()
    world.comes()
    world.now_s = 0.6
    for _ in range(5):  # what waits ahead grows
        with suppress(QueueFull):
            world.comes()
    with pytest.raises(QueueFull) as refused:
        world.comes()
    assert refused.value.retry_after_s is not None
    assert 0.25 <= refused.value.retry_after_s <= 30.0
    assert 0 < len(world.admittance) < 40


def test_a_long_prompt_is_not_let_in_where_a_short_one_was_just_refused() -> None:
    world = Waits(capacity=1000, tenant_capacity=1000)
    for _ in range(4):  # two a second go
        world.comes()
        world.now_s += 0.5
    world.fills()
    for _ in range(4):
        world.comes()
    world.now_s += 1.0
    long = 2_000_000
    assert world.comes(prompt_tokens=long).went_s is None, "alone it may wait: it is promised seconds"
    with pytest.raises(QueueFull):
        world.comes()
    with pytest.raises(QueueFull):
        world.comes(prompt_tokens=long)
    assert world.comes("other", prompt_tokens=long).went_s is None, "nobody of its own was refused"
    world.now_s += 2.5
    world.comes(prompt_tokens=long)  # nobody was refused lately
    assert len(world.admittance) == 7


def test_who_waited_so_long_that_its_promise_is_broken_is_given_up() -> None:
    world = Waits()
    world.fills()
    world.comes(slo_class="interactive")
    world.now_s = 0.6
    ((_, error),) = list(world.admittance.pass_time(world.now_s))
    assert isinstance(error, QueueFull)
    assert len(world.admittance) == 0


def test_a_deadline_that_cannot_be_met_refuses_and_one_that_passes_drops() -> None:
    world = Waits()
    with pytest.raises(DeadlineUnreachable):
        world.comes(time_left_s=0.01)
    world.fills()
    world.comes(slo_class="batch", time_left_s=5.0)
    world.now_s = 5.0
    ((_, error),) = list(world.admittance.pass_time(world.now_s))
    assert isinstance(error, DeadlineUnreachable)


def test_a_caller_that_left_is_not_served() -> None:
    world = Waits()
    world.fills()
    gone, stays = world.comes(), world.comes()
    gone.gone = True
    world.now_s = 0.01
    world.serves(5)
    assert gone.went_s is None
    assert stays.went_s == 0.01


def test_rooms_are_bounded_and_whoever_waits_most_makes_place() -> None:
    world = Waits(capacity=4, tenant_capacity=3)
    world.fills()
    for _ in range(3):
        world.comes("flood", slo_class="batch")
    with pytest.raises(QueueFull):
        world.comes("flood", slo_class="batch")
    world.comes("quiet", slo_class="batch")
    world.comes("other", slo_class="batch")
    assert len(world.admittance) == 4
    turned_away = [case for case, error in world.admittance.pass_time(0.0) if error]
    assert [case.tenant for case in turned_away] == ["flood"]


def test_others_routers_spending_counts() -> None:
    world = Waits()
    for _ in range(10):
        world.comes("here")
    world.fairness.placed_by_others("there", 10 * 10 * COST_USD, 0.0)
    world.fairness.begin("there", 0.0)
    world.now_s = 0.3
    assert world.fairness.standing("there", world.now_s) is Standing.ABOVE
    assert world.fairness.standing("here", world.now_s) is Standing.WITHIN


def test_who_spends_most_and_gets_all_it_asks_for_is_not_held_back() -> None:
    fairness = Fairness({})
    fairness.place("little", 1.0, 0.0)
    fairness.place("much", 10.0, 0.0)
    assert fairness.standing("much", 1.0) is Standing.EVEN
    assert fairness.standing("little", 1.0) is Standing.WITHIN
    fairness.begin("much", 1.0)
    assert fairness.standing("much", 1.0) is Standing.ABOVE
    fairness.place("little", 1.0, 1.5)
    assert fairness.standing("much", 2.5) is Standing.ABOVE, "as long as it waits"
    fairness.cease("much")
    assert fairness.standing("much", 2.6) is Standing.ABOVE, "and a while longer"
    assert fairness.standing("much", 4.0) is Standing.EVEN
    assert fairness.standing("little", 4.0) is Standing.WITHIN


def test_what_is_left_of_a_promise_shrinks_and_excess_comes_last_at_workers() -> None:
    promise = PROMISES.classes["interactive"]
    urgency = promise.priority
    assert as_it_stands(promise, 0.0, Standing.EVEN, urgency) is promise
    assert as_it_stands(promise, 0.2, Standing.EVEN, urgency).ttft_s == pytest.approx(0.3)
    assert as_it_stands(promise, 0.0, Standing.EVEN, urgency + 1).priority == urgency + 1
    assert as_it_stands(promise, 0.0, Standing.ABOVE, urgency).priority > max(
        each.priority for each in PROMISES.classes.values()
    )


def test_a_long_prompt_of_an_urgent_class_is_as_urgent_as_the_time_it_has() -> None:
    interactive, standard = PROMISES.classes["interactive"], PROMISES.classes["standard"]
    assert PROMISES.urgency(interactive, interactive.ttft_s) == interactive.priority
    assert PROMISES.urgency(interactive, standard.ttft_s + 0.1) == standard.priority
    assert PROMISES.urgency(standard, standard.ttft_s) == standard.priority


def test_however_many_tenants_others_tell_of_few_are_remembered_and_those_who_wait_here_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fairness_module, "_MOST_SPENDERS", 10)
    fairness = Fairness({})
    fairness.begin("waits", 0.0)
    for number in range(200):
        fairness.placed_by_others(f"stranger-{number}", 1.0, 0.0)
    assert len(fairness) == 10
    fairness.place("waits", 5.0, 0.0)
    assert fairness.counter("waits") == 5.0


def test_who_can_wait_leaves_alone_what_urgent_requests_wait_for_and_nothing_else() -> None:
    world = Waits()
    world.fills()
    urgent = world.comes()
    there = world.comes(slo_class="batch", queue_s=0.0)
    elsewhere = world.comes("other", slo_class="batch", queue_s=0.0, pool="other")
    assert list(world.admittance.pass_time(world.now_s)) == [(elsewhere, None)]
    urgent.queue_s = 0.0
    assert list(world.admittance.pass_time(world.now_s)) == [(urgent, None)]
    assert list(world.admittance.pass_time(world.now_s)) == []  # others of the urgent ones may wait for it
    world.now_s += 1.0
    assert list(world.admittance.pass_time(world.now_s)) == [(there, None)]
