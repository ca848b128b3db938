"""A client that lost its router goes on at any other, with what it has; one that reads slowly misses nothing."""

import asyncio
import json
import socket

import grpc
import pytest

from services.mesh.errors import QueueFull
from tests.mesh.router.conftest import StartRouter
from tests.mesh.router.fake_worker import MODEL, breaking, say_nothing, text_of
from tests.mesh.router.router_under_test import DEADLINE_S, Answer, Router, eventually
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh


async def resumed(router: Router, tokens: int, had: int, **changes: object) -> Answer:
    """The rest of an answer of `tokens`, of which its client has `had`."""
    call = router.generate(
        tokens,
        request_id="mine",
        resume_from=had,
        resumed_token_ids=pb.TokenIds(ids=range(had)),
        resumed_text=text_of(0, had),
        **changes,
    )
    answer = Answer(first=had)
    async for message in call:
        answer.add(message)
    return answer


async def test_an_answer_goes_on_at_a_router_that_never_saw_it(router: Router) -> None:
    worker = await router.worker("w0")
    answer = await resumed(router, 8, 3, resumed_ttft_s=0.25, resumed_s=2.0)
    assert answer.tokens == 5
    order = worker.opened[0].order
    assert (order.request.resume_from, list(order.resumed_token_ids.ids)) == (3, [0, 1, 2])
    assert order.resumed_text == text_of(0, 3)
    assert not order.request.resumed_text
    finish = answer.finish
    assert (finish.usage.completion_tokens, finish.price_nusd) == (8, 7 * 50 + 8 * 100)
    await eventually(lambda: bool(router.finished), "it has finished")
    event = router.finished[0]
    assert (event.delivered_from, event.delivered_count, event.outcome) == (0, 8, "length")
    assert event.ttft_s == pytest.approx(0.25)
    assert event.e2e_s >= 2.0
    assert not router.admitted  # whoever let it in first has said so


async def test_one_that_breaks_again_goes_on_with_all_there_is(router: Router) -> None:
    await router.worker("w0", breaking(5, lambda opened: opened.session.put_nowait(None)), rate_nusd_per_hour=1)
    second = await router.worker("w1")
    assert (await resumed(router, 8, 3)).tokens == 5
    order = second.opened[0].order
    assert (order.request.resume_from, list(order.resumed_token_ids.ids)) == (5, [0, 1, 2, 3, 4])
    assert order.resumed_text == text_of(0, 5)


async def test_a_client_that_is_back_before_its_loss_was_noticed_takes_the_stream_over(router: Router) -> None:
    worker = await router.worker("w0", breaking(3, say_nothing))
    first = router.generate(8, request_id="mine")
    for _ in range(3):
        await first.read()
    going_on = asyncio.create_task(resumed(router, 8, 3))
    await eventually(lambda: len(worker.opened) == 2, "it is with the worker again")
    assert worker.opened[0].cancelled == "cancelled"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await first.read()
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    opened = worker.opened[1]
    opened.send(opened.tokens(5), opened.finish())
    assert (await going_on).tokens == 5


async def test_another_tenant_cannot_take_a_stream_over(router: Router) -> None:
    await router.worker("w0", breaking(1, say_nothing))
    first = router.generate(8, request_id="mine")
    await first.read()
    other = (("authorization", f"Bearer {router.other_key}"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resumed(router, 8, 1, metadata=other)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    first.cancel()


async def test_a_resume_that_is_refused_leaves_no_trace(router: Router) -> None:
    await router.worker("w0", lambda opened: opened.send(opened.error(QueueFull("full"))))
    for changes in ({"resumed_token_ids": pb.TokenIds(ids=[1])}, {}):
        _, error = await router.refusal(
            request_id="mine", resume_from=3, resumed_text="abc" if changes else "", **changes
        )
        assert error.reason == "ResumeRefused"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resumed(router, 8, 3)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not router.published


async def test_a_slow_reader_gets_everything_and_the_router_holds_little(start_router: StartRouter) -> None:
    router = await start_router()
    worker = await router.worker("w0", say_nothing)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 20_000, "stream": True}
    headers = {"Authorization": f"Bearer {router.key}"}
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect(("127.0.0.1", router.running.http_port))
    reader, writer = await asyncio.open_connection(sock=small, limit=1 << 10)
    raw = json.dumps(body)
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n"
        f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n{raw}".encode()
    )
    await eventually(lambda: bool(worker.opened), "the worker has it")
    opened = worker.opened[0]
    (relay,) = router.running.dispatcher.running()
    for _ in range(400):  # far more than fits on the way, and nobody reads
        opened.send(*[opened.tokens(1) for _ in range(50)])
    opened.send(opened.finish())
    await eventually(lambda: bool(relay.outcome), "the answer is complete")
    assert relay.delivered_tokens < 20_000
    async with asyncio.timeout(DEADLINE_S):
        text = (await reader.read()).decode()
    assert text.count("data: ") < 20_000
    assert "".join(part.split('"')[0] for part in text.split('"text":"')[1:]) == text_of(0, 20_000)
    writer.close()
    assert (await router.last_word()).delivered_count == 20_000


async def test_a_client_that_never_reads_is_let_go_by_name(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.router.messages.MOST_HELD_BYTES", 4 << 10)
    router = await start_router()
    worker = await router.worker("w0", say_nothing)
    call = router.generate(1_000_000)
    await eventually(lambda: bool(worker.opened), "the worker has it")
    opened = worker.opened[0]
    (relay,) = router.running.dispatcher.running()
    while not opened.cancelled:
        opened.send(opened.tokens(1000))
        await asyncio.sleep(0)
    await eventually(lambda: relay.outcome == "cancelled", "it is let go")
    answer = Answer()

    async def read_all() -> None:
        async for message in call:
            answer.add(message)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "does not read" in (caught.value.details() or "")
    event = await router.last_word()
    assert (event.delivered_count, event.outcome) == (answer.tokens, "cancelled")
