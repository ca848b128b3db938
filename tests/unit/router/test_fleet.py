"""The fleet folded from events: load, slowness, stalls, and placements that correct old heartbeats."""

from collections import Counter
from dataclasses import replace

import pytest

from services.mesh.events import WorkerState
from services.mesh.priorities import YIELDING
from services.router.core import known_worker
from services.router.core.request import Promise
from tests.unit.router.worlds import H100, L4, MI300X, MODEL, PROMISES, World, ask


def share(world: World, worker: str, picks: int = 50) -> float:
    return sum(world.decide().worker.name == worker for _ in range(picks)) / picks


def test_a_slowed_worker_loses_traffic_within_a_few_samples_and_regains_it_when_it_recovers() -> None:
    world = World()
    for worker in ("a", "b"):
        world.beat(worker)
    for _ in range(5):
        world.observe("a", slow=10.0)
    assert share(world, "a") == 0
    for _ in range(20):
        world.now_s += 0.05
        world.observe("a", slow=1.0)
    world.beat("a")
    world.beat("b")
    assert 0.2 < share(world, "a") < 0.8


def test_a_worker_slowed_tenfold_gets_less_than_a_fifth_of_new_requests_half_a_second_later() -> None:
    world = World()
    workers = ("a", "b", "c", "d")
    for worker in workers:
        world.beat(worker)
        world.fleet.linked(worker, True, world.now_s)
    usual_s = world.decide().picked.tpot_s
    until_s = world.now_s + 0.5
    while world.now_s + 10 * usual_s <= until_s:  # what is known by then: the steps that have ended
        world.now_s += 10 * usual_s
        world.observe("a", slow=10.0)
    assert share(world, "a", picks=200) < 0.2
    assert [each.worker for each in world.fleet.slow(world.now_s)] == ["a"]
    assert world.fleet.slow(world.now_s)[0].tpot_s[MODEL] > PROMISES.classes["interactive"].tpot_s


def test_a_worker_that_was_slow_is_not_slow_for_ever() -> None:
    world = World()
    world.beat("a")
    world.fleet.linked("a", True, world.now_s)
    world.observe("a", slow=10.0, samples=10)
    assert world.fleet.slow(world.now_s)
    world.now_s += 10.0
    assert not world.fleet.slow(world.now_s)


def test_a_slowed_worker_that_nothing_is_observed_of_is_tried_again() -> None:
    world = World()
    for worker in ("a", "b"):
        world.beat(worker)
    world.observe("a", slow=10.0, samples=10)
    assert share(world, "a") == 0
    for _ in range(120):
        world.now_s += 0.25
        for worker in ("a", "b"):
            world.beat(worker)
    assert share(world, "a") > 0.2


def test_one_odd_sample_does_not_make_a_worker_ten_times_slower() -> None:
    world = World()
    world.beat("a")
    world.observe("a", slow=10.0)
    assert world.fleet.models[MODEL].serving[0].slow < 3


def test_a_refitted_timing_does_not_count_slowness_twice() -> None:
    world = World()
    world.beat("a")
    before_s = world.decide().picked.tpot_s
    world.observe("a", slow=4.0, samples=20)
    slowed_s = world.decide().picked.tpot_s
    world.plan(shares={H100: 1.0}, scale=4.0)
    assert slowed_s == pytest.approx(4 * before_s, rel=0.05)
    assert world.decide().picked.tpot_s == pytest.approx(slowed_s, rel=0.05)


def test_an_older_plan_does_not_replace_a_newer_one() -> None:
    world = World()
    world.now_s = 1.0
    world.plan(version=2)
    world.now_s = 2.0
    world.plan(version=1)
    assert world.fleet.plans[MODEL].name == f"{MODEL}:2"


def test_a_plan_counts_by_its_version_whatever_the_clock_of_its_optimizer_says() -> None:
    world = World()
    world.now_s = 600.0
    world.plan(version=2)
    world.now_s = 0.0  # the next optimizer's host is ten minutes behind
    world.plan(version=3)
    assert world.fleet.plans[MODEL].name == f"{MODEL}:3"
    world.plan(version=1 << 63)  # nobody can have made it, and nothing could come after it
    assert world.fleet.plans[MODEL].name == f"{MODEL}:3"


def test_a_worker_restarted_on_a_host_whose_clock_is_behind_is_heard() -> None:
    world = World()
    world.now_s = 600.0
    world.beat("a")
    world.now_s = 0.1  # its clock, and ours with it: what was said before came from a host minutes ahead
    world.beat("a", epoch="e2", sequence=1)
    found = world.fleet.worker("a")
    assert found is not None
    assert found.beat.epoch == "e2"


def test_a_worker_whose_name_another_took_is_believed_again_once_that_one_is_silent() -> None:
    world = World()
    world.beat("a")
    world.beat("a", epoch="not it", sequence=1)
    world.now_s = 10.0
    world.beat("a", sequence=2)
    found = world.fleet.worker("a")
    assert found is not None
    assert found.beat.epoch == "e1"


def test_a_plan_that_is_only_advice_is_not_followed() -> None:
    world = World()
    world.plan(version=1)
    world.now_s = 1.0
    world.plan(version=2, advisory=True)
    assert world.fleet.plans[MODEL].name == f"{MODEL}:1"


def test_a_burst_between_two_heartbeats_spreads_over_equal_workers() -> None:
    world = World()
    workers = [f"w{index}" for index in range(4)]
    for worker in workers:
        world.beat(worker)
    went = Counter(world.place(ask(prompt_tokens=2000)).worker.name for _ in range(40))
    assert all(5 <= went[worker] <= 15 for worker in workers), went


def test_a_heartbeat_made_after_a_placement_takes_its_place() -> None:
    world = World()
    world.beat("a")
    idle_s = world.decide().picked.queue_s
    world.place(ask(prompt_tokens=4000))
    queued_s = world.decide().picked.queue_s
    assert queued_s > idle_s
    world.now_s = 0.25
    world.beat("a", running=1)  # it shows the request, whose prompt is computed
    assert world.decide().picked.queue_s < queued_s
    assert world.fleet.worker("a").requests == 0  # type: ignore[union-attr]


def test_a_heartbeat_that_was_on_its_way_when_a_request_was_placed_does_not_hide_it() -> None:
    world = World()
    world.beat("a")
    made_unix_ms = world.unix_ms
    world.now_s = 0.2
    world.place(ask(prompt_tokens=4000))
    world.now_s = 0.21
    world.beat("a", at_unix_ms=made_unix_ms + 100)  # 110 ms late: made before the placement
    assert world.fleet.worker("a").requests == 1  # type: ignore[union-attr]


def test_clocks_that_differ_do_not_matter() -> None:
    world = World()
    world.beat("a", at_unix_ms=5)
    world.place()
    world.now_s = 0.25
    world.beat("a", at_unix_ms=255)
    assert world.fleet.worker("a").requests == 0  # type: ignore[union-attr]


def test_a_request_that_ends_before_or_after_it_was_shown_leaves_nothing_behind() -> None:
    world = World()
    world.beat("a")
    quick, long = world.place(), world.place()
    world.fleet.prefilled(quick, world.now_s)
    world.fleet.finished(quick, world.now_s)
    world.fleet.finished(quick, world.now_s)
    worker = world.fleet.worker("a")
    assert worker is not None
    assert (worker.requests, sum(worker.prefill_tokens), worker.kv_tokens) == (1, 500, 500)
    world.now_s = 0.25
    world.beat("a", running=1)
    world.fleet.finished(long, world.now_s)
    assert worker.requests == -1  # the heartbeat still shows it
    world.now_s = 0.5
    world.beat("a")
    assert (worker.requests, sum(worker.prefill_tokens), worker.kv_tokens, worker.growth_tokens) == (0, 0, 0, 0)
    assert world.stakes("a") == [0, 0, 0]


def test_corrections_stay_bounded_while_no_heartbeat_comes() -> None:
    world = World()
    world.beat("a")
    standing = world.place()
    for _ in range(5000):
        world.fleet.finished(world.place(), world.now_s)
    worker = world.fleet.worker("a")
    assert worker is not None
    assert len(worker._corrections) < 600
    assert worker.requests == 1
    world.fleet.finished(standing, world.now_s)
    assert worker.requests == 0


def test_an_engine_that_stands_still_with_requests_running_is_stalled() -> None:
    world = World()
    world.beat("a", running=3, steps=7)
    world.beat("b")
    for _ in range(6):
        world.now_s += 0.25
        world.beat("a", running=3, steps=7)
        world.beat("b")
    assert world.decide().worker.name == "b"
    assert "stalled" in world.fleet.worker("a").closed_because  # type: ignore[union-attr]
    assert not world.fleet.troubled(world.now_s)  # not linked: nothing of ours runs there
    world.fleet.linked("a", True, world.now_s)
    for _ in range(10):
        world.now_s += 0.25
        world.beat("a", running=3, steps=7)
    assert [each.worker for each in world.fleet.troubled(world.now_s)] == ["a"]
    world.now_s += 0.25
    world.beat("a", running=3, steps=8)
    assert not world.fleet.troubled(world.now_s)


def test_a_real_engine_is_given_longer_for_a_step_and_is_stalled_in_the_end() -> None:
    world = World()

    def still_for(seconds: float) -> str:
        for _ in range(round(seconds / 0.25)):
            world.now_s += 0.25
            world.beat("a", running=3, steps=7, simulated=False)
        return world.fleet.worker("a").closed_because  # type: ignore[union-attr]

    world.beat("a", running=3, steps=7, simulated=False)
    assert still_for(4.0) == ""
    assert "stalled" in still_for(2.0)


def test_an_idle_engine_is_not_stalled() -> None:
    world = World()
    for _ in range(8):
        world.beat("a", steps=7)
        world.now_s += 0.25
    assert world.decide().worker.name == "a"


def test_heartbeats_out_of_order_are_ignored() -> None:
    world = World()
    world.beat("a", sequence=5, running=9)
    world.beat("a", sequence=4, running=1)
    assert world.fleet.worker("a").beat.running == 9  # type: ignore[union-attr]


def test_a_restarted_worker_starts_afresh_and_its_old_requests_are_forgotten() -> None:
    world = World()
    world.beat("a")
    placed = world.place()
    before = world.fleet.worker("a")
    world.now_s = 1.0
    world.beat("a", epoch="e2", sequence=1)
    after = world.fleet.worker("a")
    assert before is not None
    assert after is not None
    assert after.incarnation != before.incarnation
    assert after.requests == 0
    world.fleet.finished(placed, world.now_s)
    assert after.requests == 0
    world.now_s = 0.9
    world.beat("a", epoch="e1", sequence=99)  # late: the old epoch's last words
    assert world.fleet.worker("a") is after


def test_a_worker_silent_for_a_minute_is_forgotten_and_the_rows_of_others_stay_right() -> None:
    world = World()
    for worker, accelerator in (("a", H100), ("b", MI300X), ("c", L4)):
        world.beat(worker, accelerator)
    world.now_s = 61.0
    for worker, accelerator in (("b", MI300X), ("c", L4)):
        world.beat(worker, accelerator)
    assert world.fleet.forget(world.now_s) == ["a"]
    table = world.fleet.models[MODEL]
    assert sorted(each.worker.name for each in table.serving) == ["b", "c"]
    assert all(table.serving[each.row] is each for each in table.serving)
    assert world.decide().worker.name == "b"
    world.now_s = 200.0
    assert world.fleet.forget(world.now_s) == []  # the bus is silent


def test_a_worker_may_change_what_it_serves() -> None:
    world = World()
    world.beat("a", state=WorkerState.STARTING, models=())
    assert MODEL not in world.fleet.models
    world.beat("a", models=(MODEL, "other"))
    assert set(world.fleet.models) == {MODEL, "other"}
    world.beat("a", models=("other",))
    assert len(world.fleet.models[MODEL]) == 0
    assert len(world.fleet.models["other"]) == 1


def test_unknown_hardware_starts_as_the_slowest_known_and_is_learnt() -> None:
    world = World()
    world.beat("new", H100, accelerator="wafer-9000", pool="wafer-9000")
    world.beat("h100-0", H100)
    assert world.decide(ask(slo_class="interactive")).worker.name == "h100-0"


def test_many_workers_keep_their_own_figures() -> None:
    world = World()
    for index in range(40):
        world.beat(f"w{index}", H100 if index % 2 else MI300X, rate_nusd_per_hour=(index + 1) * 10**9)
    assert world.decide().worker.name == "w0"
    assert len(world.decide().shortlist) == 16


def test_models_and_plans_that_come_and_go_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.core.fleet._MOST_MODELS", 8)
    world = World()
    world.beat("a")
    world.plan()
    for number in range(40):
        world.beat("b", epoch=f"e{number}", models=(f"model-{number}",), sequence=1)
        world.plan(model=f"model-{number}")
    assert len(world.fleet.models) <= 10
    assert len(world.fleet.plans) <= 8
    assert MODEL in world.fleet.models
    assert MODEL in world.fleet.plans
    assert world.decide().worker.name == "a"


def test_no_more_workers_are_known_than_may_be_and_a_new_one_is_taken_in_when_others_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.router.core.fleet._MOST_WORKERS", 3)
    world = World()
    for worker in ("a", "b", "c", "d"):
        world.beat(worker)
    assert sorted(each.name for each in world.fleet.workers()) == ["a", "b", "c"]
    world.now_s += 61.0
    world.beat("a")
    assert sorted(world.fleet.forget(world.now_s)) == ["b", "c"]
    world.beat("d")
    assert sorted(each.name for each in world.fleet.workers()) == ["a", "d"]


def test_names_of_pools_that_are_gone_are_forgotten_and_every_row_keeps_its_pool() -> None:
    world = World()
    for number in range(500):
        world.beat("a", pool=f"pool-{number}")
        world.beat("b", pool="steady")
    table = world.fleet.models[MODEL]
    assert len(table.pool_names) < 100
    shown = {each.worker.name: table.pool_names[table.pools[each.row]] for each in table.serving}
    assert shown == {"a": "pool-499", "b": "steady"}


def test_what_yields_makes_a_worker_no_fuller_for_those_who_share_it() -> None:
    interactive = PROMISES.classes["interactive"]
    excess = replace(interactive, priority=YIELDING)

    def harm_usd(flooding: int, promise: Promise) -> float:
        world = World()
        world.beat("h100-0", running=40 + flooding, kv_cache_usage=0.001 * (40 + flooding))
        for _ in range(40):
            world.place(ask(slo_class="interactive"))
        for _ in range(flooding):
            world.place(ask(promise=excess))
        world.now_s = 1.0  # what was placed shows in the heartbeat
        world.beat("h100-0", running=40 + flooding, kv_cache_usage=0.001 * (40 + flooding))
        return world.decide(ask(promise=promise)).picked.harm_usd

    alone_usd = harm_usd(0, interactive)
    assert 0 < harm_usd(60, interactive) <= alone_usd * 1.05
    assert harm_usd(60, excess) > 2 * alone_usd


def test_what_yields_stands_last_at_its_worker_and_nobody_else_spares_its_promise() -> None:
    world = World()
    world.beat("a", H100, running=50, kv_cache_usage=0.3)
    interactive = PROMISES.classes["interactive"]
    excess = replace(interactive, priority=YIELDING)
    placed = [world.place(ask(promise=excess, prompt_tokens=2000)) for _ in range(40)]
    mine, theirs = world.decide(ask(promise=interactive)).picked, world.decide(ask(promise=excess)).picked
    assert mine.queue_s < 0.2 < theirs.queue_s
    assert mine.harm_usd == 0.0 < theirs.harm_usd
    for each in placed:
        world.fleet.finished(each, world.now_s)
    world.place(ask(promise=interactive))
    assert world.decide(ask(promise=interactive)).picked.harm_usd > 0.0


def test_what_others_tell_of_one_worker_is_bounded_and_what_it_adds_up_to_stays_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_worker, "MOST_CORRECTIONS", 8)
    world = World()
    world.beat("a")
    worker = world.fleet.worker("a")
    assert worker is not None
    ours = world.fleet.place(
        worker, model=MODEL, slo_class="standard", priority=1, prompt_tokens=10, cached_tokens=0,
        completion_tokens=10, explored=False, now_s=world.now_s,
    )  # fmt: skip
    for _ in range(100):
        world.fleet.placed_by_others(
            "a", worker.beat.epoch, requests=1, prefill_tokens=5, prompt_tokens=5, now_s=world.now_s
        )
    assert len(worker._corrections) == worker.requests == 8
    world.fleet.finished(ours, world.now_s)
    assert worker.requests == 8
    world.now_s += 1.0
    world.beat("a")
    assert (worker.requests, len(worker._corrections)) == (0, 0)
