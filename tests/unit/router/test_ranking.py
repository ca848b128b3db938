"""The quick arithmetic of a pick against the readable one: the same scores, and the same worker as trying every row."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import QueueFull
from services.router.core.prefixes import Cached
from services.router.core.ranking import Circumstances, bounds_usd, holders_of, rank, score
from services.router.core.scores import Ask, Terms, terms_of
from services.router.core.table import FIGURES, ModelTable
from tests.unit.router.worlds import H100, L4, MAX_QUEUE_S, MI300X, MODEL, PROMISES, World, ask

ROOM = FIGURES.index("room_tokens")
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
    tpots_s, most = PROMISES.band_tpots_s, asked.prompt_tokens - 1
    cached = [min(asked.cached.at(slot), most) for slot in table.slots.tolist()]
    return [terms_of(row, asked, each, tpots_s) for row, each in zip(table.figures.tolist(), cached, strict=True)]


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


def around(asked: Ask) -> Circumstances:
    return Circumstances(asked.prompt_tokens, MAX_QUEUE_S, -1.0)


@given(st.sampled_from(WORLDS), ASKS)
def test_a_ranking_has_the_scores_that_the_terms_add_up_to(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    terms, ranking = exhaustive(table, asked), score(table, asked, PROMISES, around(asked), np.arange(len(table)))
    feasible = [
        each.queue_s <= MAX_QUEUE_S and not serving.worker.closed_because and room > asked.prompt_tokens
        for each, serving, room in zip(terms, table.serving, table.figures[:, ROOM].tolist(), strict=True)
    ]
    assert np.array(ranking.usd) == pytest.approx(
        np.where(feasible, [each.score_usd for each in terms], np.inf), abs=1e-15
    )


@given(st.sampled_from(WORLDS), ASKS)
def test_no_row_that_is_not_scored_is_better_by_more_than_a_hundredth(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    every = score(table, asked, PROMISES, around(asked), np.arange(len(table)))
    ranking = rank(table, asked, PROMISES, around(asked))
    assert ranking.usd == pytest.approx([every.usd[row] for row in ranking.rows], rel=1e-9)
    assert len(set(ranking.rows.tolist())) == len(ranking.rows)
    if np.isfinite(every.usd).any():
        assert min(ranking.usd) <= min(every.usd) * 1.0101


@given(st.sampled_from(WORLDS), ASKS)
def test_no_score_is_below_its_bound(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    if asked.completion_tokens == 1:
        return  # no bound holds
    every = score(table, asked, PROMISES, around(asked), np.arange(len(table)))
    holders, shared_tokens = holders_of(table, asked)
    bound_usd = bounds_usd(table, asked, PROMISES, shared_tokens)
    others = [row for row in range(len(table)) if row not in holders]
    assert (bound_usd[others] <= np.array(every.usd)[others] * 1.0001 + 1e-8).all()


@given(st.sampled_from(WORLDS), ASKS)
def test_the_picked_worker_is_as_good_as_the_best_of_all(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    try:
        decision = world.decide(asked)
    except QueueFull:
        return
    every = score(table, asked, PROMISES, around(asked), np.arange(len(table)))
    if not np.isfinite(every.usd).any():
        return  # it went by the fewest tokens that the prompt can have
    best_usd, picked = min(every.usd), decision.picked
    assert picked.score_usd <= best_usd * 1.031
    row = next(row for row, each in enumerate(table.serving) if each.worker is decision.worker)
    assert picked.worker == decision.worker.name
    assert picked.score_usd == pytest.approx(every.usd[row], rel=1e-5, abs=1e-6 * asked.promise.miss_usd)
    best = decision.shortlist.candidate(0).score_usd
    assert best <= best_usd * 1.0101 + 1e-6 * asked.promise.miss_usd


def test_a_shortlist_shows_what_was_when_it_was_made() -> None:
    world = busy_world(9, 20)
    decision = world.decide()
    shown = [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
    for each in shown:
        world.beat(each.worker, each.accelerator, running=200, waiting_prefill_tokens=50_000)
    world.plan(shares={H100: 1.0}, shadow=0.01)
    assert shown == [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
