"""Whatever a stream loses comes again, as long as its publisher keeps it; what can't be had is told of once."""

import asyncio
from collections.abc import Collection, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.bus import EventId
from services.mesh.clock import FakeClock
from services.mesh.events import SequenceRange
from services.mesh.memory_bus import MemoryBroker
from services.mesh.publishing import EVENT_ID, MOST_RANGES
from services.mesh.sequences import ranges_of
from services.meter.core.conservation import Finding
from services.meter.core.marks import Marks
from services.meter.gaps import Gaps
from tests.unit.meter.facts import tokens

KEPT = 1024  # of what was acknowledged, by a publisher
SOURCE = ("worker.w.tokens", "e1")


async def test_a_gap_that_was_given_up_and_is_filled_by_the_next_start_of_its_publisher_is_gone() -> None:
    clock = FakeClock()
    gaps = Gaps(MemoryBroker().bus("meter", "meter-0"), clock, stands_s=1.0)
    found = []
    for _ in range(20):  # nobody answers under that name any more
        found += await gaps.look({SOURCE: ranges_of((4, 5))})
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
        await gaps.look({SOURCE: ranges_of((4,)), other: ranges_of((7,))})
        clock.advance(60.0)
    await gaps.look({other: ranges_of((7,))})
    assert gaps.take_closed() == []


class _Lossy:
    """A publisher, a stream that loses some of what it acknowledged, and the marks of who reads it."""

    def __init__(self, count: int) -> None:
        self.broker, self.clock = MemoryBroker(), FakeClock()
        self.marks = Marks()
        self.gaps = Gaps(self.broker.bus("meter", "meter-0"), self.clock, stands_s=1.0)
        worker = self.broker.bus("worker", "w")
        self.ids = [worker.publish(tokens()) for _ in range(count)]
        self.read_up_to = 0

    def lose(self, sequences: Collection[int]) -> None:
        for each in sequences:
            self.broker.lose("TW_TOKENS", str(self.ids[each - 1]))

    def read(self) -> None:
        for each in self.broker.standing("TW_TOKENS"):
            if each.sequence > self.read_up_to:
                self.marks.admit(EventId.parse(each.headers[EVENT_ID]))
                self.read_up_to = each.sequence
        self.marks.take_changed()

    async def look(self) -> Sequence[Finding]:
        found = await self.gaps.look(self.marks.gaps())
        self.clock.advance(60.0)
        return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(1, 40)), min_size=1, max_size=6))
def test_any_pattern_of_losses_heals_while_the_publisher_keeps_its_events(losses: list[set[int]]) -> None:
    async def heal() -> None:
        lossy = _Lossy(41)
        for lost in losses:  # what is sent again may be lost again
            lossy.lose(lost)
            lossy.read()
            assert await lossy.look() == []
        for _ in range(4):
            lossy.read()
            assert await lossy.look() == []
        assert lossy.marks.missing() == {}

    asyncio.run(heal())


async def test_more_ranges_than_one_request_takes_are_asked_for_in_several_and_what_is_not_kept_is_told_once() -> None:
    lossy = _Lossy(2 * MOST_RANGES + 400)
    lossy.lose(range(2, len(lossy.ids), 2))
    lossy.read()
    assert len(lossy.marks.gaps()[SOURCE[0], lossy.ids[0].epoch]) > MOST_RANGES
    findings: list[Finding] = []
    for _ in range(6):
        findings += await lossy.look()
        lossy.read()
    gone = len(lossy.ids) - KEPT
    assert [(each.subject, each.expected) for each in findings] == [(SOURCE[0], gone // 2)]
    assert lossy.marks.gaps() == {(SOURCE[0], lossy.ids[0].epoch): ranges_of(range(2, gone + 1, 2))}
    assert lossy.gaps.given_up == gone // 2


async def test_what_is_missing_for_a_moment_is_not_asked_for_though_other_events_of_its_publisher_are() -> None:
    lossy = _Lossy(9)
    lossy.lose([2])
    source = (SOURCE[0], lossy.ids[0].epoch)
    stored = len(lossy.broker.standing("TW_TOKENS"))
    for missing in ((2,), (2, 5), (5,)):
        await lossy.gaps.look({source: ranges_of(missing)})
        lossy.clock.advance(60.0)
    again = lossy.broker.standing("TW_TOKENS")[stored:]
    assert [EventId.parse(each.headers[EVENT_ID]).sequence for each in again] == [2, 5]


async def test_events_that_never_come_however_often_they_are_sent_are_given_up() -> None:
    lossy = _Lossy(5)
    source, found = (SOURCE[0], lossy.ids[0].epoch), []
    for _ in range(20):
        found += await lossy.gaps.look({source: (SequenceRange(2, 3),)})
        lossy.clock.advance(600.0)
    assert [each.expected for each in found] == [2]
    assert "2 to 3" in found[0].what
