"""The third witness: what workers' heartbeats count, against what is booked of their events."""

from typing import Final

from services.meter.core.conservation import Counts

SOURCE: Final = ("worker.w.tokens", "e1")
PATIENCE_S: Final = 10.0


def test_a_worker_that_made_more_than_it_reported_is_found_and_one_that_reported_it_late_is_not() -> None:
    counts = Counts()
    counts.beat(SOURCE, "w", 1, 50, 0.0)
    assert counts.check({SOURCE: 30}, 5.0, PATIENCE_S) == {}
    finding = counts.check({SOURCE: 30}, 10.0, PATIENCE_S)[SOURCE]
    assert finding is not None
    assert (finding.expected, finding.found) == (50, 30)
    counts.beat(SOURCE, "w", 2, 50, 15.0)
    assert counts.check({SOURCE: 50}, 20.0, PATIENCE_S) == {SOURCE: None}


def test_events_with_more_than_their_worker_made_are_found_once_it_has_counted_again() -> None:
    counts = Counts()
    counts.beat(SOURCE, "w", 1, 50, 0.0)
    counts.check({SOURCE: 80}, 10.0, PATIENCE_S)
    counts.beat(SOURCE, "w", 2, 60, 15.0)
    finding = counts.check({SOURCE: 80}, 20.0, PATIENCE_S)[SOURCE]
    assert finding is not None
    assert (finding.expected, finding.found) == (60, 80)


def test_a_worker_that_died_may_have_reported_more_than_its_last_heartbeat_counted() -> None:
    counts = Counts()
    counts.beat(SOURCE, "w", 1, 50, 0.0)
    for now_s in (10.0, 20.0, 30.0):
        assert counts.check({SOURCE: 80}, now_s, PATIENCE_S) == {SOURCE: None}
