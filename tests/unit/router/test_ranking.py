"""The quick arithmetic of a pick against the readable one: the same scores, and the best worker of all."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import QueueFull
from services.router.core.prefixes import Cached
from services.router.core.ranking import Circumstances, rank
from services.router.core.scores import Ask, Terms, terms_of
from services.router.core.table import ModelTable, figure_names
from tests.unit.router.worlds import H100, L4, MAX_QUEUE_S, MI300X, MODEL, PROMISES, World, ask

ROOM = figure_names(0).index("room_tokens")
AT_STAKE = [name.startswith("at_stake_usd") for name in figure_names(len(PROMISES.band_tpots_s))]
SMALL = 5e-5  # of what is at stake: single precision cannot tell a probability better
DEVICES = (H100, MI300X, L4, "nvidia-a100-80g-sxm", "intel-gaudi3", "nvidia-b200-sxm")


def busy_world(seed: int, workers: int) -> World:
    """Workers of several kinds, each with its own load; ours among it, of all classes."""
    rng, world = Random(seed), World()
    for index in range(workers):
        device = rng.choice(DEVICES)
        full = rng.random() < 0.1
        world.beat(
            f"w{index}",
            device,
            running=256 if full else rng.randrange(0, 60),
            waiting=rng.randrange(0, 50) if full else 0,
            waiting_prefill_tokens=rng.choice([0, 0, rng.randrange(20_000)]),
            kv_cache_usage=1.0 if full else rng.random(),
            prefill_chunk_tokens=rng.choice([2048, 2048, 512]),
            state=rng.choice(["ready"] * 9 + ["draining"]),
        )
        if rng.random() < 0.2:
            world.observe(f"w{index}", rng.uniform(0.5, 4.0), accelerator=device)
    for _ in range(workers * 2):
        world.place(ask(slo_class=rng.choice(list(PROMISES.classes)), prompt_tokens=rng.randrange(1, 4000)))
    return world


def exhaustive(table: ModelTable, asked: Ask) -> list[Terms]:
    """Every row's terms, one by one."""
    cached, most = dict(asked.cached.each()), asked.prompt_tokens - 1
    return [
        terms_of([*row[:-1], min(cached.get(slot, 0.0), most)], asked, PROMISES.band_tpots_s)
        for row, slot in zip(table.figures.T.tolist(), table.slots.tolist(), strict=True)
    ]


WORLDS = [busy_world(seed, workers) for seed, workers in enumerate((1, 2, 7, 40, 250))]
ASKS = st.builds(
    lambda prompt, answer, slo_class, held: ask(
        prompt_tokens=prompt,
        completion_tokens=answer,
        slo_class=slo_class,
        cached=Cached.of({slot: share * prompt for slot, share in held.items()}),
    ),
    st.one_of(st.integers(1, 2048), st.integers(1, 8000)),
    st.integers(1, 2000),
    st.sampled_from(list(PROMISES.classes)),
    st.one_of(
        st.dictionaries(st.integers(0, 249), st.floats(0.01, 1.0), max_size=5),
        st.builds(
            lambda share, deep: dict.fromkeys(range(249), share) | dict.fromkeys(deep, 0.99),
            st.floats(0.01, 0.9),
            st.sets(st.integers(0, 249), max_size=3),
        ),
    ),
)


def small_usd(table: ModelTable, asked: Ask) -> float:
    """By how much scores may differ for lack of digits alone: a request's own promise is at stake, and others' too."""
    others_usd = float(table.figures[AT_STAKE].sum(axis=0).max())
    return SMALL * (asked.promise.miss_usd + others_usd)


def around(asked: Ask) -> Circumstances:
    return Circumstances(asked.prompt_tokens, MAX_QUEUE_S, -1.0)


@given(st.sampled_from(WORLDS), ASKS)
def test_a_ranking_has_the_scores_that_the_terms_add_up_to(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    rank(table, asked, PROMISES, around(asked))
    terms = exhaustive(table, asked)
    room = table.figures[ROOM].tolist()
    feasible = [
        each.queue_s <= MAX_QUEUE_S and not serving.worker.closed_because and room > asked.prompt_tokens
        for each, serving, room in zip(terms, table.serving, room, strict=True)
    ]
    assert table.usd == pytest.approx(
        np.where(feasible, [each.score_usd for each in terms], np.inf), rel=1e-5, abs=small_usd(table, asked)
    )
    assert table.soonest_s == pytest.approx(np.array([each.soonest_s for each in terms]), rel=1e-5)


@given(st.sampled_from(WORLDS), ASKS)
def test_the_picked_worker_is_as_good_as_the_best_of_all(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    try:
        decision = world.decide(asked)
    except QueueFull:
        return
    rank(table, asked, PROMISES, around(asked))
    if not np.isfinite(table.usd).any():
        return  # it went by the fewest tokens that the prompt can have
    best_usd, picked, few_usd = float(table.usd.min()), decision.picked, small_usd(table, asked)
    assert picked.score_usd <= best_usd * 1.0201 + few_usd
    row = next(row for row, each in enumerate(table.serving) if each.worker is decision.worker)
    assert picked.worker == decision.worker.name
    assert picked.score_usd == pytest.approx(table.usd.item(row), rel=1e-5, abs=few_usd)
    shown = [each.score_usd for each in map(decision.shortlist.candidate, range(len(decision.shortlist)))]
    best = np.sort(table.usd)[: len(shown)].tolist()
    if picked.score_usd > best[-1] + few_usd:  # one of many that are about as good, in the last one's place
        best[-1] = picked.score_usd
    assert shown == pytest.approx(best, rel=1e-5, abs=few_usd)


def test_what_was_cached_for_one_request_is_not_for_the_next() -> None:
    world = busy_world(3, 40)
    table = world.fleet.models[MODEL]
    first, few, many = ask(), Cached.of({3: 400.0}), Cached.of(dict.fromkeys(range(30), 400.0))
    rank(table, first, PROMISES, around(first))
    before = table.usd.tolist()
    for cached in (few, many):
        rank(table, ask(cached=cached), PROMISES, around(first))
        assert table.usd.tolist() != before
        rank(table, first, PROMISES, around(first))
        assert table.usd.tolist() == before


def test_where_all_are_as_good_all_get_some() -> None:
    world = World()
    for index in range(200):
        world.beat(f"w{index}")
    assert len({world.decide().worker.name for _ in range(1000)}) > 150


def test_a_shortlist_shows_what_was_when_it_was_made() -> None:
    world = busy_world(9, 20)
    decision = world.decide()
    shown = [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
    for each in shown:
        world.beat(each.worker, each.accelerator, running=200, waiting_prefill_tokens=50_000)
    world.plan(shares={H100: 1.0}, shadow=0.01)
    assert shown == [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
