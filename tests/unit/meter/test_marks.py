from hypothesis import given
from hypothesis import strategies as st

from services.mesh.bus import EventId
from services.meter.core.marks import WINDOW, Mark, Marks


def _id(sequence: int, epoch: str = "e1") -> EventId:
    return EventId("worker.h100-0.tokens", epoch, sequence)


@given(sequences=st.lists(st.integers(1, 50), max_size=100))
def test_each_event_is_admitted_once_in_any_order(sequences: list[int]) -> None:
    marks = Marks()
    admitted = [sequence for sequence in sequences if marks.admit(_id(sequence))]
    assert sorted(admitted) == sorted(set(sequences))
    lacking = max(sequences, default=0) - len(set(sequences))
    assert sum(marks.missing().values()) == lacking


def test_a_new_epoch_counts_from_one_again() -> None:
    marks = Marks()
    assert marks.admit(_id(1))
    assert marks.admit(_id(1, "e2"))
    assert not marks.admit(_id(1, "e2"))


def test_stored_marks_drop_what_was_booked_before_a_restart() -> None:
    marks = Marks()
    marks.admit(_id(1))
    marks.admit(_id(3))
    restarted = Marks(marks.take_changed())
    assert [restarted.admit(_id(sequence)) for sequence in (1, 2, 3, 4)] == [False, True, False, True]


def test_only_changed_marks_are_stored_again() -> None:
    marks = Marks()
    marks.admit(_id(1))
    assert len(marks.take_changed()) == 1
    marks.admit(_id(1))
    assert marks.take_changed() == []


def test_a_gap_older_than_the_window_is_given_up_and_counted() -> None:
    marks = Marks()
    marks.admit(_id(1))
    marks.admit(_id(3))
    for sequence in range(4, WINDOW + 4):
        marks.admit(_id(sequence))
    marks.take_changed()
    assert (marks.lost, marks.missing()) == (1, {})
    assert not marks.admit(_id(2))


def test_a_first_sight_late_in_a_history_keeps_a_bounded_number_of_gaps() -> None:
    marks = Marks()
    assert marks.admit(_id(10**9))
    assert sum(marks.missing().values()) < WINDOW
    assert marks.admit(_id(10**9 - 5))


def test_marks_used_longest_ago_are_let_go_and_taken_up_again_as_they_were_stored() -> None:
    marks, stored = Marks(), {}
    for number in range(20):
        for sequence in (1, 3):
            assert marks.admit(_id(sequence, f"e{number}"))
        stored |= dict(marks.take_changed())
        marks.release(5)
    assert sum(marks.missing().values()) == 5
    assert marks.lost == 15
    late = [_id(2, "e0"), _id(3, "e0"), _id(1, "e19")]
    sources = [(each.publisher, each.epoch) for each in late]
    assert marks.absent(sources) == sources[:1]
    marks.adopt([(source, stored[source]) for source in marks.absent(sources)])
    assert [marks.admit(each) for each in late] == [True, False, False]


def test_publishers_that_begin_late_in_their_numbers_are_let_go_before_what_they_lack_fills_the_memory() -> None:
    marks = Marks()
    assert marks.admit(_id(1, "first"))
    for number in range(100):
        assert marks.admit(_id(10**9 + number, f"stranger-{number}"))
        marks.take_changed()
        marks.release(most_missing=10 * WINDOW)
        assert sum(marks.missing().values()) <= 10 * WINDOW
    assert len(marks.missing()) == 10
    assert marks.absent([("worker.h100-0.tokens", "first")])  # it is stored, and asked for when it is heard again
    marks.adopt([(("worker.h100-0.tokens", "first"), Mark(1))])
    assert not marks.admit(_id(1, "first"))
    assert marks.admit(_id(2, "first"))
    assert marks._missing == sum(marks.missing().values())
