"""What was sent to a worker lately, and what its time costs therefore."""

from dataclasses import replace

import pytest

from services.mesh.priorities import RANKS, YIELDING
from services.router.core.arrivals import Arrivals
from tests.unit.router.worlds import H100, PROMISES, World, ask


def test_nothing_sent_is_nothing_promised() -> None:
    assert Arrivals().figures(5.0) == (0.0,) * (RANKS + 3)


def test_what_is_more_urgent_passes_and_all_of_it_fades() -> None:
    arrivals = Arrivals()
    arrivals.add(0, 1000, 0.5, 10.0)
    arrivals.add(2, 4000, 1.5, 10.0)
    *passing, arriving, promised, yielding = arrivals.figures(10.0)
    assert passing == [0.0, 200.0, 200.0, 1000.0]
    assert (arriving, promised, yielding) == (1000.0, 0.2, 0.0)
    assert arrivals.figures(40.0)[-3] < 3.0
    assert arrivals.figures(40.0)[-2] < promised / 10


def test_a_worker_of_whose_time_much_is_promised_is_dearer_and_another_gets_the_next() -> None:
    world = World()
    for each in ("a", "b"):
        world.beat(each, H100)
    usual_usd = world.decide().picked.shadow_usd
    assert usual_usd == pytest.approx(0.0, abs=1e-9)
    for _ in range(400):
        world.now_s += 0.01
        world.place()
        for each in ("a", "b"):
            world.beat(each, H100)
    assert world.decide().picked.shadow_usd > usual_usd
    counts = [world.fleet.worker(each) for each in ("a", "b")]
    assert all(each is not None and each.growth_tokens > 0 for each in counts)


def test_who_is_passed_by_urgent_requests_is_predicted_to_wait_longer() -> None:
    world = World()
    world.beat("a", H100, running=5, waiting=9, waiting_prefill_tokens=30_000)
    before_s = world.decide(ask(slo_class="standard")).picked.queue_s
    for _ in range(40):
        world.place(ask(slo_class="interactive", prompt_tokens=3000))
    world.now_s += 0.1
    world.beat("a", H100, running=5, waiting=9, waiting_prefill_tokens=30_000)
    assert world.decide(ask(slo_class="standard")).picked.queue_s > before_s * 1.2


def test_what_yields_makes_a_worker_dearer_for_those_alone_who_yield_too() -> None:
    world = World()
    world.beat("a", H100)
    excess = replace(PROMISES.classes["interactive"], priority=YIELDING)
    for _ in range(400):
        world.now_s += 0.01
        world.place(ask(promise=excess))
        world.beat("a", H100)
    usual_usd, excess_usd = world.decide().picked.shadow_usd, world.decide(ask(promise=excess)).picked.shadow_usd
    assert usual_usd < 1e-6 * excess_usd
