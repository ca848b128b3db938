"""From worker to client: contiguous, bounded for a slow client, and kept in a form that another worker goes on from."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import TokenworksError, WorkerLost
from services.router.messages import MOST_HELD_BYTES, Journal, Mailbox, Message, Unread, merged
from tokenworks.v1 import inference_pb2 as wire


def message(first: int, count: int = 1, *, ids: bool = True, finish: str = "") -> Message:
    response = wire.GenerateResponse(
        request_id="r",
        first_index=first,
        token_ids=range(first, first + count) if ids else (),
        text="".join(f"t{index} " for index in range(first, first + count)),
        token_count=count,
        finish=wire.Finish(reason=finish) if finish else None,
    )
    return Message(response.SerializeToString(), count)


class Client:
    """A sink that takes what comes while it is `reading`, and checks that nothing is missing."""

    def __init__(self) -> None:
        self.reading = True
        self.taken: list[bytes] = []
        self.ends: list[TokenworksError | None] = []

    def message(self, data: bytes) -> bool:
        assert not self.ends
        if self.reading:
            self.taken.append(data)
        return self.reading

    def ended(self, error: TokenworksError | None) -> None:
        self.ends.append(error)


def put(mailbox: Mailbox, message: Message) -> bool:
    return mailbox.put(message.data, message.tokens)


@pytest.fixture
def sent() -> list[int]:
    return []


def test_a_message_is_passed_on_as_it_is_within_the_call_that_brought_it(sent: list[int]) -> None:
    mailbox, client = Mailbox(sent.append), Client()
    early, late = message(0), message(1, 2)
    put(mailbox, early)
    assert not sent
    mailbox.attach(client)
    put(mailbox, late)
    assert client.taken == [early.data, late.data]
    assert client.taken[0] is early.data
    assert sent == [1, 2]


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=200), reads=st.lists(st.booleans(), max_size=200))
def test_a_slow_client_gets_larger_messages_and_never_a_gap(counts: list[int], reads: list[bool]) -> None:
    sent: list[int] = []
    mailbox, client, index = Mailbox(sent.append), Client(), 0
    mailbox.attach(client)
    for place, count in enumerate(counts):
        client.reading = place < len(reads) and reads[place]
        if client.reading:
            mailbox.flush()
        put(mailbox, message(index, count))
        index += count
        assert len(mailbox._held) < 32
    put(mailbox, message(index, 0, finish="stop"))
    mailbox.close()
    client.reading = True
    mailbox.flush()
    assert client.ends == [None]
    expected, finishes = 0, []
    for data, tokens in zip(client.taken, sent, strict=True):
        response = wire.GenerateResponse.FromString(data)
        assert response.first_index == expected
        assert list(response.token_ids) == list(range(expected, expected + tokens))
        assert response.text == "".join(f"t{token} " for token in response.token_ids)
        assert response.token_count == tokens
        expected += tokens
        finishes.append(response.finish.reason)
    assert expected == index
    assert finishes == [""] * (len(finishes) - 1) + ["stop"]


def test_what_is_held_is_taken_before_the_end_is_told(sent: list[int]) -> None:
    mailbox, client = Mailbox(sent.append), Client()
    client.reading = False
    mailbox.attach(client)
    put(mailbox, message(0))
    mailbox.close(WorkerLost("gone"))
    put(mailbox, message(1))
    mailbox.flush()
    assert (client.taken, client.ends) == ([], [])
    client.reading = True
    mailbox.flush()
    mailbox.flush()
    assert sent == [1]
    (error,) = client.ends
    assert isinstance(error, WorkerLost)


def test_more_than_may_be_held_is_noticed(sent: list[int]) -> None:
    mailbox, puts = Mailbox(sent.append), 0
    while put(mailbox, message(puts * 100, 100)):
        puts += 1
    assert MOST_HELD_BYTES / 2 < sum(len(each.data) for each in mailbox._held) < 2 * MOST_HELD_BYTES


def test_what_is_merged_keeps_what_the_parts_say() -> None:
    parts = [
        wire.GenerateResponse(
            first_index=index,
            token_count=1,
            logprobs=[wire.TokenLogprob(text="t", logprob=-index)],
            tool_calls_json=f'[{{"index": {index}}}]',
        )
        for index in range(2)
    ]
    whole = wire.GenerateResponse.FromString(merged([Message(each.SerializeToString(), 1) for each in parts]).data)
    assert [each.logprob for each in whole.logprobs] == [0, -1]
    assert json.loads(whole.tool_calls_json) == [{"index": 0}, {"index": 1}]


@given(st.lists(st.integers(1, 5), max_size=300), st.sampled_from([0, 10_000, 1 << 30]))
def test_a_journal_holds_every_token_whatever_the_messages(counts: list[int], most_bytes: int) -> None:
    unread = Unread(most_bytes=most_bytes)
    journals = [Journal(unread), Journal(unread)]
    for count in counts:
        for journal in journals:
            one = message(journal.next_index, count)
            journal.add(one.data, one.tokens)
    for journal in journals:
        ids, text = journal.resumed()
        assert list(ids) == list(range(sum(counts)))
        assert text == "".join(f"t{token} " for token in ids)
        assert journal.next_index == sum(counts)
    assert unread.held_bytes == 0


def test_what_journals_hold_unread_is_bounded_and_given_back() -> None:
    unread = Unread(most_bytes=20_000)
    journals = [Journal(unread) for _ in range(10)]
    for index in range(1000):
        for journal in journals:
            journal.add(message(index).data, 1)
        assert unread.held_bytes < 20_000 + 10 * 64 * 100
    for journal in journals:
        journal.close()
        journal.close()
    assert unread.held_bytes == 0


def test_a_journal_goes_on_from_what_its_client_brought() -> None:
    journal = Journal(Unread(), [7, 8], "ab", 2)
    assert journal.next_index == 2
    journal.add(message(2).data, 1)
    ids, text = journal.resumed()
    assert (list(ids), text, journal.next_index) == ([7, 8, 2], "abt2 ", 3)


def test_ids_that_are_not_complete_are_left_out() -> None:
    journal = Journal(Unread())
    journal.add(message(0, 2).data, 2)
    journal.add(message(2, 1, ids=False).data, 1)
    ids, text = journal.resumed()
    assert list(ids) == []
    assert text == "t0 t1 t2 "
