"""An outbox under any order of sends, acknowledgements and fresh starts keeps its order and loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.bus import EventId
from services.mesh.clock import FakeClock
from services.mesh.codec import encode_gap
from services.mesh.events import GapRequested, SequenceRange
from services.mesh.publishing import MESSAGE_ID, MOST_AGAIN, MOST_RANGES, Outbox, Outgoing, Publisher
from services.mesh.subjects import TOKENS
from services.mesh.telemetry import start_telemetry
from tests.contract.bus_worlds import tokens


def _message(sequence: int) -> Outgoing:
    return Outgoing(EventId("p", "e", sequence), "s", {}, b"")


def _outbox(count: int) -> Outbox:
    outbox = Outbox(TOKENS, 1000)
    for sequence in range(1, count + 1):
        outbox.add(_message(sequence))
    return outbox


def _sent(outbox: Outbox, window: int) -> list[int]:
    found = []
    while (message := outbox.next_to_send(window)) is not None:
        found.append(message.id.sequence)
    return found


def test_no_more_than_the_window_is_in_flight() -> None:
    outbox = _outbox(10)
    assert _sent(outbox, 4) == [1, 2, 3, 4]
    outbox.acknowledge(1)
    outbox.acknowledge(2)
    assert _sent(outbox, 4) == [5, 6]


def test_a_fresh_start_sends_from_the_first_unacknowledged_and_leaves_out_what_arrived() -> None:
    outbox = _outbox(5)
    assert _sent(outbox, 5) == [1, 2, 3, 4, 5]
    outbox.acknowledge(1)
    outbox.acknowledge(4)
    assert outbox.start_over() == 3
    assert _sent(outbox, 5) == [2, 3, 5]


def test_a_late_or_repeated_acknowledgement_changes_nothing() -> None:
    outbox = _outbox(2)
    _sent(outbox, 2)
    assert outbox.acknowledge(1)
    assert not outbox.acknowledge(1)
    assert not outbox.acknowledge(99)
    assert len(outbox) == 1
    assert outbox.oldest == 2


@given(st.lists(st.one_of(st.integers(1, 30), st.sampled_from(["send", "over", "add"])), max_size=120))
def test_an_outbox_holds_exactly_what_was_not_acknowledged_in_order(steps: list[object]) -> None:
    outbox, added, acknowledged, in_pass = Outbox(TOKENS, 1000), 0, set[int](), list[int]()
    for step in steps:
        if step == "add":
            added += 1
            outbox.add(_message(added))
        elif step == "over":
            outbox.start_over()
            in_pass = []
        elif step == "send":
            in_pass += _sent(outbox, 8)
            assert in_pass == sorted(set(in_pass))
        elif isinstance(step, int) and step <= added:
            outbox.acknowledge(step)
            acknowledged.add(step)
    outbox.start_over()
    assert _sent(outbox, 1000) == [each for each in range(1, added + 1) if each not in acknowledged]


@pytest.mark.parametrize("text", ["", "p", "p:1", ":e:1", "p::1", "p:e:0", "p:e:-1", "p:e:x"])
def test_what_is_no_event_id_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an event id"):
        EventId.parse(text)


@given(
    st.from_regex(r"[a-z.0-9-]{1,20}", fullmatch=True),
    st.from_regex(r"[a-f0-9]{1,12}", fullmatch=True),
    st.integers(1, 2**63 - 1),
)
def test_an_event_id_reads_back(publisher: str, epoch: str, sequence: int) -> None:
    event_id = EventId(publisher, epoch, sequence)
    assert EventId.parse(str(event_id)) == event_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:b",
        "a:b:0",
        "a:b:-1",
        "a:b:\u0663",
        f"a:b:{1 << 63}",
        "a:b:" + "9" * 5000,
        ":b:1",
        "a::1",
        "a" * 600 + ":b:1",
    ],
)
def test_what_is_no_event_id_is_told_from_one(text: str) -> None:
    with pytest.raises(ValueError, match="is not an event id"):
        EventId.parse(text)
    assert EventId.parse(f"w.a:b.tokens:e:{(1 << 63) - 1}") == EventId("w.a:b.tokens", "e", (1 << 63) - 1)


def _asked(publisher: Publisher, *ranges: SequenceRange, epoch: str, sequences: tuple[int, ...] = ()) -> GapRequested:
    return GapRequested(publisher=f"{publisher.name}.tokens", epoch=epoch, ranges=ranges, sequences=sequences)


def _publisher(count: int) -> tuple[Publisher, str]:
    """One whose first `count` events are acknowledged, but for the last."""
    publisher = Publisher("worker", "w", start_telemetry("worker", "w"), FakeClock(), 5000)
    epoch = ""
    for sequence in range(1, count + 1):
        epoch = publisher.publish(tokens(), "").epoch
        if sequence < count:
            publisher.acknowledged("tokens", sequence)
    return publisher, epoch


def test_a_request_for_ranges_gets_what_is_kept_and_is_told_what_is_not() -> None:
    publisher, epoch = _publisher(1100)  # the first 75 are not kept
    gap = _asked(publisher, SequenceRange(70, 80), SequenceRange(1098, 5000), SequenceRange(78, 82), epoch=epoch)
    found, answer = publisher.again(encode_gap(gap))
    assert [each.id.sequence for each in found] == [*range(76, 83), 1098, 1099]
    assert not any(MESSAGE_ID in each.headers for each in found)
    assert answer.lacking == (SequenceRange(70, 75),)
    assert answer.sent_ranges == (SequenceRange(76, 82), SequenceRange(1098, 1100))  # the last is on its way
    assert (answer.last, answer.sent) == (1100, ())


def test_one_answer_is_bounded_and_what_it_does_not_speak_of_is_neither_sent_nor_lacking() -> None:
    publisher, epoch = _publisher(1026)
    for sequence in range(1026, 1300):  # acknowledged behind one that is not: all are held
        publisher.publish(tokens(), "")
        publisher.acknowledged("tokens", sequence + 1)
    found, answer = publisher.again(encode_gap(_asked(publisher, SequenceRange(1, (1 << 63) - 1), epoch=epoch)))
    assert len(found) == MOST_AGAIN
    assert answer.lacking == (SequenceRange(1, 1),)
    assert answer.sent_ranges == (SequenceRange(2, 1026),)


def test_a_reader_that_knows_no_ranges_is_answered_number_by_number() -> None:
    publisher, epoch = _publisher(5)
    found, answer = publisher.again(encode_gap(_asked(publisher, epoch=epoch, sequences=(2, 4, 0, 9))))
    assert ([each.id.sequence for each in found], answer.sent) == ([2, 4], (2, 4))


@pytest.mark.parametrize(
    ("ranges", "wrong"),
    [
        ((SequenceRange(0, 3),), "no range"),
        ((SequenceRange(4, 3),), "no range"),
        ((SequenceRange(1, 1 << 63),), "no range"),
        ((SequenceRange(1, 1),) * (MOST_RANGES + 1), "at most 512"),
    ],
)
def test_what_is_no_range_or_too_many_of_them_is_refused_by_name(ranges: tuple[SequenceRange, ...], wrong: str) -> None:
    publisher, epoch = _publisher(2)
    with pytest.raises(ValueError, match=wrong):
        publisher.again(encode_gap(_asked(publisher, *ranges, epoch=epoch)))
