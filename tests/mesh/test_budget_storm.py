"""One small storm against a budget, as `make budget-storm` makes fifty large ones."""

import pytest

from bench.budget_storm import Storm, run

pytestmark = pytest.mark.mesh


async def test_killed_routers_and_meters_overspend_nothing_and_strand_nothing() -> None:
    outcome = await run(1, Storm(routers=2, streams=24, tokens=6000, workers=1, seconds=4.0, every_s=1.0))
    assert outcome.routers_killed + outcome.meters_killed > 0
    assert not outcome.overspent, outcome
    assert outcome.usable >= 0.99, outcome
