"""A gap that was given up is told of once, and is told to be gone when its events come after all."""

from services.mesh.clock import FakeClock
from services.mesh.memory_bus import MemoryBroker
from services.meter.gaps import Gaps

SOURCE = ("worker.w.tokens", "e1")


async def test_a_gap_that_was_given_up_and_is_filled_by_the_next_start_of_its_publisher_is_gone() -> None:
    clock = FakeClock()
    gaps = Gaps(MemoryBroker().bus("meter", "meter-0"), clock, stands_s=1.0)
    found = []
    for _ in range(20):  # nobody answers under that name any more
        found += await gaps.look({SOURCE: (4, 5)})
        clock.advance(60.0)
    assert [(each.subject, each.expected) for each in found] == [("worker.w.tokens", 2)]
    assert gaps.given_up == 2
    assert gaps.take_closed() == []
    assert await gaps.look({}) == []
    assert gaps.take_closed() == ["worker.w.tokens"]
    assert (gaps.take_closed(), gaps.given_up) == ([], 0)


async def test_a_publisher_is_not_well_again_while_another_start_of_it_lacks_events() -> None:
    clock = FakeClock()
    gaps = Gaps(MemoryBroker().bus("meter", "meter-0"), clock, stands_s=1.0)
    other = (SOURCE[0], "e2")
    for _ in range(20):
        await gaps.look({SOURCE: (4,), other: (7,)})
        clock.advance(60.0)
    await gaps.look({other: (7,)})
    assert gaps.take_closed() == []
