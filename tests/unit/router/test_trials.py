"""A plan that is tried: a part of the requests follows it, the same at every router; the others do not notice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.plans import Trial
from tests.unit.router.worlds import H100, MI300X, MODEL, World, ask

SHARE = 0.25


def trial_world() -> World:
    """By the plan that is tried, the cheaper worker's time is dear."""
    world = World()
    world.beat("a", H100, rate_nusd_per_hour=1_000_000_000)
    world.beat("b", H100, pool="other", rate_nusd_per_hour=1_500_000_000)
    world.plan(version=1)
    world.plan(version=2, shadow=2.0 / 3600, canary_share=SHARE)
    return world


def trial_of(world: World) -> Trial:
    return world.fleet.trials[MODEL]


@given(st.lists(st.uuids().map(str), min_size=50, max_size=50, unique=True))
def test_every_router_says_the_same_of_which_requests_follow_a_trial(ids: list[str]) -> None:
    one, other = trial_of(trial_world()), trial_of(trial_world())
    assert [one.has(each) for each in ids] == [other.has(each) for each in ids]


def test_about_its_share_of_the_requests_follow_a_trial() -> None:
    world = trial_world()
    followers = [each for each in range(2000) if world.fleet.trial_of(MODEL, f"request-{each}")]
    assert len(followers) == pytest.approx(2000 * SHARE, rel=0.1)


def test_requests_that_follow_it_go_by_its_prices_and_the_others_by_those_in_force() -> None:
    world = trial_world()
    figures = world.fleet.models[MODEL].figures.copy()
    tried, usual = world.decide(ask(trial=trial_of(world))), world.decide(ask())
    assert (tried.worker.name, usual.worker.name) == ("b", "a")
    assert tried.plan is not None
    assert usual.plan is not None
    assert (tried.plan.version, usual.plan.version) == (2, 1)
    np.testing.assert_array_equal(world.fleet.models[MODEL].figures[:-1], figures[:-1])


def test_the_next_whole_plan_ends_a_trial() -> None:
    world = trial_world()
    world.plan(version=2)
    assert world.fleet.trials, "one that is not newer changes nothing"
    world.plan(version=3)
    assert not world.fleet.trials
    assert world.fleet.plans[MODEL].version == 3


def test_a_router_that_knows_no_other_plan_follows_the_one_that_is_tried() -> None:
    world = World()
    world.beat("m", MI300X)
    world.plan(version=2, canary_share=SHARE)
    assert world.fleet.plans[MODEL].version == 2
