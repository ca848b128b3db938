"""Requests that may be computed only somewhere: never elsewhere; a refusal counts who keeps each constraint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.confines import Confines, Site
from services.mesh.errors import NoWorker, NoWorkerAllowed
from tests.unit.router.worlds import H100, L4, World, ask

EU = Confines(regions=("eu",))


def test_a_confined_request_takes_the_dear_worker_that_it_may() -> None:
    world = World()
    world.beat("cheap", H100, region="us", rate_nusd_per_hour=1_000_000_000)
    world.beat("dear", H100, region="eu", rate_nusd_per_hour=9_000_000_000)
    assert world.decide(ask()).worker.name == "cheap"
    found = world.decide(ask(confines=EU))
    assert found.worker.name == "dear"
    reasons = {
        each.worker: each.rejected_because for each in map(found.shortlist.candidate, range(len(found.shortlist)))
    }
    assert reasons == {"dear": "", "cheap": "is not within region=eu"}


def test_a_worker_that_says_anew_where_it_is_is_judged_anew() -> None:
    world = World()
    world.beat("a", H100, region="us")
    with pytest.raises(NoWorkerAllowed):
        world.decide(ask(confines=EU))
    world.beat("a", H100, region="eu")
    assert world.decide(ask(confines=EU)).worker.name == "a"


def test_a_refusal_counts_who_keeps_each_constraint() -> None:
    world = World()
    world.beat("a", H100, region="eu", data_classes=("cards",))
    world.beat("b", L4, region="us", data_classes=("health",))
    confines = Confines(regions=("eu",), data_classes=("health",))
    with pytest.raises(NoWorkerAllowed) as refused:
        world.decide(ask(confines=confines))
    said = str(refused.value)
    assert "region=eu;data=health" in said
    assert "region=eu is kept by 1 of 2 workers" in said
    assert "data=health is kept by 1 of 2 workers" in said


def test_a_confined_request_whose_worker_is_down_goes_nowhere_else() -> None:
    world = World()
    world.beat("a", H100, region="eu", state="draining")
    world.beat("b", H100, region="us")
    with pytest.raises(NoWorker, match="not within region=eu"):
        world.decide(ask(confines=EU))


_names = st.sampled_from(["a", "b", ""])
_cleared = st.lists(st.sampled_from(["x", "y"]), unique=True).map(tuple)


@given(
    sites=st.lists(st.builds(Site, _names, _names, _cleared), min_size=1, max_size=12),
    confines=st.builds(Confines, st.sampled_from([(), ("a",), ("a", "b")]), st.sampled_from([(), ("b",)]), _cleared),
)
def test_nothing_is_ever_placed_outside(sites: list[Site], confines: Confines) -> None:
    world = World()
    for number, site in enumerate(sites):
        world.beat(f"w{number}", H100, region=site.region, vendor=site.vendor, data_classes=site.data_classes)
    if any(map(confines.admits, sites)):
        assert confines.admits(world.decide(ask(confines=confines)).worker.site)
    else:
        with pytest.raises(NoWorkerAllowed):
            world.decide(ask(confines=confines))
