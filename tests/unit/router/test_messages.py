"""From worker to client: contiguous, bounded for a slow client, and kept in a form that another worker goes on from."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.errors import WorkerLost
from services.router.messages import Journal, Mailbox, Message
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


async def test_a_message_that_waits_alone_is_passed_on_as_it_is() -> None:
    mailbox = Mailbox()
    sent = message(0)
    mailbox.put(sent)
    assert await mailbox.take() is sent


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=200), takes=st.lists(st.booleans(), max_size=200))
def test_a_slow_client_gets_larger_messages_and_never_a_gap(counts: list[int], takes: list[bool]) -> None:
    async def run() -> None:
        mailbox, taken, index = Mailbox(), [], 0
        for place, count in enumerate(counts):
            mailbox.put(message(index, count))
            index += count
            assert len(mailbox._waiting) < 32
            if place < len(takes) and takes[place]:
                taken.append(await mailbox.take())
        mailbox.put(message(index, 0, finish="stop"))
        mailbox.close()
        while (last := await mailbox.take()) is not None:
            taken.append(last)
        expected, finishes = 0, []
        for each in taken:
            assert each is not None
            response = wire.GenerateResponse.FromString(each.data)
            assert response.first_index == expected
            assert list(response.token_ids) == list(range(expected, expected + each.tokens))
            assert response.text == "".join(f"t{token} " for token in response.token_ids)
            assert response.token_count == each.tokens
            expected += each.tokens
            finishes.append(response.finish.reason)
        assert expected == index
        assert finishes == [""] * (len(finishes) - 1) + ["stop"]

    asyncio.run(run())


async def test_what_waits_is_taken_before_the_error_is_raised() -> None:
    mailbox = Mailbox()
    mailbox.put(message(0))
    mailbox.close(WorkerLost("gone"))
    mailbox.put(message(1))
    assert (await mailbox.take()) is not None
    with pytest.raises(WorkerLost):
        await mailbox.take()


async def test_a_client_that_waits_is_woken_by_a_message_and_by_the_end() -> None:
    mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(message(0))
    assert (await waiting) is not None
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.close()
    assert await waiting is None


@given(st.lists(st.integers(1, 5), max_size=300))
def test_a_journal_holds_every_token_whatever_the_messages(counts: list[int]) -> None:
    journal = Journal()
    for count in counts:
        journal.add(message(journal.next_index, count))
    ids, text = journal.resumed()
    assert list(ids) == list(range(sum(counts)))
    assert text == "".join(f"t{token} " for token in ids)
    assert journal.next_index == sum(counts)


def test_ids_that_are_not_complete_are_left_out() -> None:
    journal = Journal()
    journal.add(message(0, 2))
    journal.add(message(2, 1, ids=False))
    ids, text = journal.resumed()
    assert list(ids) == []
    assert text == "t0 t1 t2 "
