"""The quick arithmetic of a pick against the readable one: the same scores, and the same worker as trying every row."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import QueueFull
from services.router.core.prefixes import Cached
from services.router.core.ranking import harm_usd, rank, within_reach
from services.router.core.scores import Ask, Scores
from services.router.core.table import Columns, ModelTable
from tests.unit.router.worlds import H100, L4, MAX_QUEUE_S, MI300X, MODEL, PROMISES, World, ask

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


def exhaustive(table: ModelTable, asked: Ask) -> Scores:
    cached = asked.cached.column(table.slots, asked.prompt_tokens - 1)
    columns = Columns(table.cells.astype(np.float64), len(PROMISES.band_tpots_s))
    return Scores(columns, PROMISES.band_tpots_s, asked, cached)


WORLDS = [busy_world(seed, workers) for seed, workers in enumerate((1, 2, 7, 40, 120))]
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
    st.dictionaries(st.integers(0, 119), st.floats(0.01, 1.0), max_size=5),
)


@given(st.sampled_from(WORLDS), ASKS)
def test_a_ranking_has_the_scores_that_the_terms_add_up_to(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    scores, ranking = exhaustive(table, asked), rank(table, asked)
    assert ranking.queue_s == pytest.approx(scores.queue_s, rel=1e-4)
    assert ranking.ttft_s == pytest.approx(scores.ttft_s, rel=1e-4)
    full = ranking.least_usd + harm_usd(ranking, np.arange(len(table)), PROMISES.band_tpots_s)
    # A score is what is left of greater amounts, each of which has seven digits: what misses cost, its own and others'.
    amounts_usd = asked.promise.miss_usd + float(table.at_stake_usd.sum(axis=0).max())
    assert full == pytest.approx(scores.score_usd, rel=1e-4, abs=1e-6 * amounts_usd)


@given(st.sampled_from(WORLDS), ASKS)
def test_no_row_out_of_reach_is_near_the_best(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    ranking = rank(table, asked)
    full = ranking.least_usd + harm_usd(ranking, np.arange(len(table)), PROMISES.band_tpots_s)
    rows, usd = within_reach(ranking, ranking.least_usd, PROMISES.band_tpots_s, 0.02)
    assert usd == pytest.approx(full[rows])
    assert usd.min() == full.min()
    assert set(np.flatnonzero(full <= full.min() * 1.02).tolist()) <= set(rows.tolist())


@given(st.sampled_from(WORLDS), ASKS)
def test_the_picked_worker_is_as_good_as_the_best_of_all(world: World, asked: Ask) -> None:
    table = world.fleet.models[MODEL]
    scores = exhaustive(table, asked)
    feasible = (table.room_tokens > asked.prompt_tokens) & (scores.queue_s <= MAX_QUEUE_S)
    if not feasible.any():
        return
    try:
        decision = world.decide(asked)
    except QueueFull:
        return
    best_usd = scores.score_usd[feasible].min()
    amounts_usd = asked.promise.miss_usd + float(table.at_stake_usd.sum(axis=0).max())
    assert decision.picked.score_usd <= best_usd * 1.021 + 1e-6 * amounts_usd
    row = next(row for row, each in enumerate(table.serving) if each.worker is decision.worker)
    assert decision.picked.score_usd == pytest.approx(scores.score_usd[row], rel=1e-6)
    assert decision.picked.worker == decision.worker.name
    best = decision.shortlist.candidate(0).score_usd
    assert best == pytest.approx(best_usd, rel=1e-4, abs=1e-6 * amounts_usd)


def test_a_shortlist_shows_what_was_when_it_was_made() -> None:
    world = busy_world(9, 20)
    decision = world.decide()
    shown = [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
    for each in shown:
        world.beat(each.worker, each.accelerator, running=200, waiting_prefill_tokens=50_000)
    world.plan(shares={H100: 1.0}, shadow=0.01)
    assert shown == [decision.shortlist.candidate(place) for place in range(len(decision.shortlist))]
