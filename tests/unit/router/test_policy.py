"""The pick: what it prefers, what it refuses, and that its dollars add up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import NoWorker, PromptTooLong, QueueFull
from services.router.core.exploration import Exploration
from services.router.core.prefixes import Cached
from services.router.core.shortlist import Candidate
from tests.unit.router.worlds import H100, L4, MI300X, MODEL, PROMISES, World, ask


def candidates(world: World, **changes: object) -> dict[str, Candidate]:
    shortlist = world.decide(ask(**changes)).shortlist
    return {each.worker: each for each in map(shortlist.candidate, range(len(shortlist)))}


def test_the_cheaper_of_two_feasible_workers_wins() -> None:
    world = World()
    world.beat("h100-0", H100)
    world.beat("mi300x-0", MI300X)
    assert world.decide().worker.name == "mi300x-0"


def test_a_dearer_worker_wins_when_the_cheap_one_would_miss_the_promise() -> None:
    world = World()
    world.beat("h100-0", H100)
    world.beat("l4-0", L4)  # a decode step of 77 ms: never 30 ms per token
    found = candidates(world, slo_class="interactive")
    assert world.decide(ask(slo_class="interactive")).worker.name == "h100-0"
    assert found["l4-0"].miss_probability > 0.95
    assert found["h100-0"].miss_probability < 0.01


def test_a_batch_request_takes_the_worker_that_interactive_ones_shun() -> None:
    world = World()
    world.beat("h100-0", H100, rate_nusd_per_hour=26_900_000_000)
    world.beat("l4-0", L4)
    assert world.decide(ask(slo_class="interactive")).worker.name == "h100-0"
    assert world.decide(ask(slo_class="batch")).worker.name == "l4-0"


def test_among_workers_that_all_miss_the_least_late_wins() -> None:
    world = World()
    for worker, waiting in (("a", 200_000), ("b", 100_000)):
        world.beat(worker, H100, running=50, waiting=100, waiting_prefill_tokens=waiting)
    found = candidates(world, slo_class="interactive")
    assert min(each.miss_probability for each in found.values()) > 0.99
    assert world.decide(ask(slo_class="interactive")).worker.name == "b"


@given(
    prompt=st.integers(1, 8000),
    answer=st.integers(1, 2000),
    running=st.integers(0, 300),
    waiting=st.integers(0, 50),
    kv=st.floats(0, 1),
    slow=st.floats(0.5, 20),
    cached=st.integers(0, 9000),
    slo_class=st.sampled_from(["interactive", "standard", "batch"]),
)
def test_the_terms_add_up_to_the_score_and_every_figure_is_sane(
    *, prompt: int, answer: int, running: int, waiting: int, kv: float, slow: float, cached: int, slo_class: str
) -> None:
    world = World()
    for accelerator in (H100, MI300X, L4):
        world.beat(
            accelerator,
            accelerator,
            running=running,
            waiting=waiting,
            waiting_prefill_tokens=waiting * 100,
            kv_cache_usage=kv,
        )
    world.plan(shares={H100: 0.5, MI300X: 0.5, L4: 0.0}, shadow=0.0001)
    world.observe(H100, slow)
    world.place()
    asked = ask(
        prompt_tokens=prompt,
        completion_tokens=answer,
        slo_class=slo_class,
        cached=Cached.of({0: cached, 2: cached // 2}),
    )
    try:
        decision = world.decide(asked)
    except QueueFull:
        return
    found = [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
    assert decision.picked in found
    outlook, picked = decision.outlook, decision.picked
    assert (outlook.queue_s, outlook.ttft_s, outlook.tpot_s) == pytest.approx(
        (picked.queue_s, picked.ttft_s, picked.tpot_s), rel=1e-4
    )
    assert (outlook.score_usd, outlook.risk_usd, outlook.harm_usd, outlook.miss) == pytest.approx(
        (picked.score_usd, picked.slo_risk_usd, picked.harm_usd, picked.miss_probability), rel=1e-3, abs=1e-6
    )
    for each in found:
        terms = each.use_usd + each.energy_usd + each.shadow_usd + each.slo_risk_usd - each.prefix_saving_usd
        assert each.score_usd == pytest.approx(terms)
        assert 0 <= each.miss_probability <= 1
        assert 0 <= each.cached_tokens < prompt
        assert each.use_usd > 0
        assert each.energy_usd > 0
        assert 0 <= each.prefix_saving_usd <= each.use_usd + each.energy_usd + each.shadow_usd
        assert 0 < each.queue_s < each.ttft_s
        assert each.tpot_s > 0
    ranked = [each.score_usd for each in found if not each.rejected_because]
    assert ranked == sorted(ranked)


def test_use_is_the_prefill_alone_and_a_share_of_each_step_times_the_rate() -> None:
    world = World()
    world.beat("h100-0", H100, max_batch=10)
    timing = world.fleet.models[MODEL].serving[0].timing
    first = world.decide(ask(prompt_tokens=1000, completion_tokens=1)).picked
    assert first.use_usd == pytest.approx(timing.prefill_s(1000) * 2.69 / 3600, rel=1e-3)
    assert first.energy_usd == pytest.approx(timing.prefill_s(1000) * 700 * 0.08 / 3.6e6, rel=1e-3)
    longer = world.decide(ask(prompt_tokens=1000, completion_tokens=101)).picked
    share_s = (longer.use_usd - first.use_usd) / 100 * 3600 / 2.69
    assert share_s == pytest.approx(timing.decode_s(10, 10 * 1050) / 10, rel=1e-3)


def test_an_idle_worker_is_no_dearer_than_a_busy_one_like_it() -> None:
    world = World()
    world.beat("busy", running=15, kv_cache_usage=0.02)
    world.beat("idle")
    found = candidates(world)
    assert found["busy"].use_usd == pytest.approx(found["idle"].use_usd)
    assert world.decide().worker.name == "idle"


def test_a_promise_that_allows_only_small_batches_is_dearer() -> None:
    world = World()
    world.beat("l4-0", L4)
    assert candidates(world, slo_class="interactive")["l4-0"].use_usd > 3 * candidates(world)["l4-0"].use_usd


def test_a_cached_prefix_saves_its_device_seconds_and_draws_the_request() -> None:
    world = World()
    for worker in ("a", "b", "c"):
        world.beat(worker)
    holder = world.fleet.worker("b")
    assert holder is not None
    picked = world.decide(ask(prompt_tokens=4000, cached=Cached.of({holder.slot: 3500}))).picked
    assert (picked.worker, picked.cached_tokens) == ("b", 3500)
    assert picked.prefix_saving_usd > 0
    found = candidates(world, prompt_tokens=4000, cached=Cached.of({holder.slot: 3500}))
    assert found["b"].ttft_s < found["a"].ttft_s
    assert found["a"].prefix_saving_usd == 0


def test_the_shadow_price_of_a_pool_sends_requests_elsewhere() -> None:
    world = World()
    world.beat("h100-0", H100)
    world.beat("mi300x-0", MI300X)
    assert world.decide().worker.name == "mi300x-0"
    world.plan(shares={MI300X: 1.0}, shadow=0.01)
    assert world.decide().worker.name == "h100-0"


def test_equal_workers_follow_the_plans_shares() -> None:
    world = World()
    for pool in ("a", "b"):
        world.beat(pool, H100, pool=pool)
    world.plan(shares={H100: 0.0})
    plan = world.fleet.plans[MODEL]
    plan._shares[0] = {"a": 0.8, "b": 0.2}
    went: Counter[str] = Counter()
    for _ in range(100):
        decision = world.decide()
        assert decision.workload_class == 0
        plan.placed(0, decision.worker.pool)
        went[decision.worker.pool] += 1
    assert 70 <= went["a"] <= 90


def test_equal_workers_without_a_plan_are_picked_by_chance_and_the_same_seed_picks_the_same() -> None:
    def picks(seed: int) -> list[str]:
        world = World()
        world.rng.seed(seed)
        for worker in ("a", "b", "c"):
            world.beat(worker)
        return [world.decide().worker.name for _ in range(60)]

    assert picks(1) == picks(1)
    assert min(Counter(picks(1)).values()) > 10


def test_a_worker_is_not_picked_twice_for_a_request_that_it_failed() -> None:
    world = World()
    world.beat("a")
    world.beat("b")
    assert world.decide(ask(excluded={"a"})).worker.name == "b"
    assert candidates(world, excluded={"a"})["a"].rejected_because == "failed this request already"
    with pytest.raises(NoWorker, match="a failed this request already"):
        world.decide(ask(excluded={"a", "b"}))


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_a_worker_that_is_not_ready_gets_nothing(state: str) -> None:
    world = World()
    world.beat("a", state=state, failed_because="no memory" if state == "failed" else "")
    world.beat("b")
    assert {world.decide().worker.name for _ in range(10)} == {"b"}
    assert candidates(world)["a"].rejected_because.startswith(state)


def test_a_silent_worker_is_lost_after_the_timeout() -> None:
    world = World()
    world.beat("a")
    world.beat("b")
    world.now_s = 2.5
    world.beat("b")
    assert {world.decide().worker.name for _ in range(10)} == {"b"}
    assert candidates(world)["a"].rejected_because == "lost: no heartbeat for 2.5 s"


def test_when_the_whole_bus_is_silent_workers_with_a_session_stay() -> None:
    world = World()
    world.beat("a")
    world.beat("b")
    world.fleet.linked("a", True, world.now_s)
    world.now_s = 30.0
    assert world.decide().worker.name == "a"
    world.fleet.linked("a", False, world.now_s)
    with pytest.raises(NoWorker, match="lost: no heartbeat"):
        world.decide()


def test_a_worker_that_cannot_be_reached_gets_nothing_until_its_session_stands() -> None:
    world = World()
    world.beat("a")
    world.fleet.linked("a", False, world.now_s)
    with pytest.raises(NoWorker, match="no connection to a:7610"):
        world.decide()
    world.fleet.linked("a", True, world.now_s)
    assert world.decide().worker.name == "a"


def test_a_prompt_that_is_too_long_for_all_says_what_would_fit() -> None:
    world = World()
    world.beat("a", context_tokens=1024)
    with pytest.raises(PromptTooLong, match=r"at least 2000 tokens, and model .* takes 1024"):
        world.decide(ask(prompt_tokens=2000, fewest_prompt_tokens=2000))
    # An estimate alone refuses nobody.
    assert world.decide(ask(prompt_tokens=2000, fewest_prompt_tokens=100)).worker.name == "a"


def test_a_long_prompt_goes_where_the_context_is_long_enough() -> None:
    world = World()
    world.beat("short", context_tokens=1024, rate_nusd_per_hour=1)
    world.beat("long", context_tokens=8192)
    assert world.decide(ask(prompt_tokens=2000)).worker.name == "long"
    assert "1024" in candidates(world, prompt_tokens=2000)["short"].rejected_because


def test_full_queues_refuse_with_a_time_to_come_back() -> None:
    world = World()
    world.beat("a", running=256, waiting=1024, max_waiting=1024)
    with pytest.raises(QueueFull) as caught:
        world.decide()
    assert caught.value.retry_after_s
    world.beat("a", running=10, waiting=10, waiting_prefill_tokens=50_000_000)
    with pytest.raises(QueueFull, match="shortest predicted queue"):
        world.decide()


def test_no_worker_of_the_model_is_a_capacity_error() -> None:
    with pytest.raises(NoWorker):
        World().decide()


def test_a_full_batch_and_a_full_cache_lengthen_the_queue() -> None:
    world = World()
    world.beat("free", H100, running=8, kv_cache_usage=0.1)
    world.beat("slots", H100, running=8, max_batch=8, kv_cache_usage=0.1)
    world.beat("cache", H100, running=8, kv_cache_usage=1.0)
    found = candidates(world)
    assert found["slots"].queue_s > 10 * found["free"].queue_s
    assert found["cache"].queue_s > 10 * found["free"].queue_s


def test_a_long_prefill_avoids_the_interactive_requests_that_it_would_make_late() -> None:
    world = World()
    world.beat("quiet")
    world.beat("chatty")
    # Ten interactive requests run on one of two equal workers.
    other = world.fleet.worker("quiet")
    assert other is not None
    for _ in range(10):
        world.place(ask(slo_class="interactive", excluded={"quiet"}, prompt_tokens=50))
    world.now_s = 0.3
    for worker, running in (("quiet", 10), ("chatty", 10)):
        world.beat(worker, running=running, kv_cache_usage=0.01)
    found = candidates(world, slo_class="batch", prompt_tokens=8000, mean_completion_tokens=20.0)
    assert found["chatty"].slo_risk_usd > found["quiet"].slo_risk_usd


def test_every_kind_of_worker_is_tried_once_and_then_the_best_is_picked() -> None:
    world = World(Exploration(share=0.02, burst=8.0))
    for accelerator in (H100, MI300X, L4):
        world.beat(accelerator, accelerator)
    went = [world.place().worker.name for _ in range(20)]
    assert went[0] == MI300X
    assert set(went[:3]) == {H100, MI300X, L4}
    assert set(went[3:]) == {MI300X}


def test_no_more_than_its_share_of_requests_explores() -> None:
    world = World(Exploration(share=0.02, burst=1.0))
    devices = {"cheap": MI300X} | {f"dear{index}": H100 for index in range(60)}
    went: Counter[str] = Counter()
    for request in range(400):
        if request % 10 == 0:
            world.now_s += 1.0
            for worker, device in devices.items():
                world.beat(worker, device)
        placed = world.place()
        went[placed.worker.name] += 1
        world.fleet.finished(placed, world.now_s)
    assert 5 <= went.total() - went["cheap"] <= 1 + 400 * 0.02


def test_nobody_is_tried_who_would_likely_break_the_promise() -> None:
    world = World(Exploration())
    world.beat("h100-0", H100)
    world.beat("l4-0", L4)
    went = {world.place(ask(slo_class="interactive")).worker.name for _ in range(5)}
    assert went == {"h100-0"}


def test_work_that_is_less_urgent_does_not_hold_up_what_is_more_so() -> None:
    world = World()
    world.beat(
        "a",
        running=10,
        waiting=400,
        waiting_prefill_tokens=400_000,
        waiting_by_priority=(0, 0, 400, 0),
        prefill_tokens_by_priority=(0, 0, 400_000, 0),
    )
    urgent, patient = (world.decide(ask(slo_class=name)).picked for name in ("interactive", "batch"))
    assert urgent.queue_s < 0.1
    assert patient.queue_s > 5.0


def test_what_an_engine_does_not_tell_apart_holds_up_all() -> None:
    world = World()
    world.beat("a", running=10, waiting=40, waiting_prefill_tokens=40_000)
    queues_s = {world.decide(ask(slo_class=name)).picked.queue_s for name in ("interactive", "batch")}
    assert len(queues_s) == 1
    assert min(queues_s) > 0.5


def test_an_engine_that_bounds_its_steps_is_not_feared_to_break_the_promises_of_those_who_decode_there() -> None:
    harms_usd = []
    for bounds in ({}, {"step_s": 0.85 * PROMISES.classes["interactive"].tpot_s}):
        world = World()
        world.beat("a", running=60, kv_cache_usage=0.1, **bounds)
        for _ in range(60):
            world.place(ask(prompt_tokens=2000, slo_class="interactive"))
        world.beat("a", running=60, kv_cache_usage=0.1, **bounds)
        harms_usd.append(world.decide(ask(prompt_tokens=2000, slo_class="interactive")).outlook.harm_usd)
    free_usd, bounded_usd = harms_usd
    assert bounded_usd < 0.1 * free_usd
