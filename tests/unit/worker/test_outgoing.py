import asyncio
import json

from services.mesh.errors import QueueFull
from services.worker.engine import TokenLogprob
from services.worker.outgoing import Outgoing
from tokenworks.v1 import inference_pb2 as pb


def put(outgoing: Outgoing, number: int, first_index: int, ids: list[int], text: str) -> None:
    chunk = outgoing.chunk(number, f"r-{number}", first_index)
    chunk.token_count += len(ids)
    chunk.token_ids += tuple(ids)
    chunk.text += text


def responses(frame: pb.StepFrame) -> dict[int, pb.GenerateResponse]:
    return {chunk.stream: pb.GenerateResponse.FromString(chunk.response) for chunk in frame.chunks}


async def test_a_reader_that_lags_gets_larger_chunks_and_no_gap() -> None:
    outgoing = Outgoing()
    put(outgoing, 1, 0, [10], "a")
    put(outgoing, 2, 5, [20], "x")
    put(outgoing, 1, 1, [11, 12], "bc")
    frame, ended = outgoing.take_frame()
    found = responses(frame)
    assert ended == []
    assert [chunk.stream for chunk in frame.chunks] == [1, 2]
    assert (found[1].first_index, list(found[1].token_ids), found[1].text, found[1].token_count) == (
        0,
        [10, 11, 12],
        "abc",
        3,
    )
    assert (found[2].first_index, list(found[2].token_ids), found[2].request_id) == (5, [20], "r-2")
    assert (frame.chunks[0].first_index, frame.chunks[0].token_count, frame.chunks[0].last) == (0, 3, False)
    put(outgoing, 1, 3, [13], "d")
    assert list(responses(outgoing.take_frame()[0])[1].token_ids) == [13]


async def test_tokens_and_the_end_of_a_stream_travel_in_one_chunk() -> None:
    outgoing = Outgoing()
    put(outgoing, 1, 0, [10], "a")
    outgoing.chunk(1, "r-1", 1).end(pb.Finish(reason="stop", usage=pb.Usage(completion_tokens=1)))
    put(outgoing, 2, 0, [20], "x")
    frame, ended = outgoing.take_frame()
    found = responses(frame)
    assert [chunk.last for chunk in frame.chunks] == [True, False]
    assert ended == [1]
    assert (found[1].finish.reason, found[1].token_count) == ("stop", 1)
    assert not found[2].HasField("finish")


async def test_an_error_is_named_beside_the_tokens_that_came_before_it() -> None:
    outgoing = Outgoing()
    put(outgoing, 1, 0, [10], "a")
    outgoing.chunk(1, "r-1", 1).end(QueueFull("full", retry_after_s=0.25))
    outgoing.chunk(2, "r-2", 0).end(QueueFull("full"))
    with_tokens, without = outgoing.take_frame()[0].chunks
    assert pb.GenerateResponse.FromString(with_tokens.response).token_count == 1
    assert (with_tokens.error.reason, with_tokens.error.message, with_tokens.error.retry_after_ms) == (
        "QueueFull",
        "full",
        250,
    )
    assert (without.last, without.response, without.error.retry_after_ms) == (True, b"", 1000)


async def test_a_frame_has_a_bound_and_the_rest_follows() -> None:
    outgoing = Outgoing()
    for number in range(1, 6):
        put(outgoing, number, 0, [1] * 100, "x" * 500_000)
    sizes = []
    while not outgoing.is_empty:
        sizes.append(len(outgoing.take_frame()[0].chunks))
    assert sizes == [3, 2]


async def test_the_writer_ends_when_nothing_waits_and_nothing_will_come() -> None:
    outgoing = Outgoing()
    waiting = asyncio.ensure_future(outgoing.wait())
    put(outgoing, 1, 0, [1], "x")
    outgoing.wake()
    assert await waiting is True
    outgoing.close()
    assert await outgoing.wait() is True
    outgoing.take()
    assert await outgoing.wait() is False


async def test_what_few_answers_have_beside_their_tokens_grows_together_and_stays_with_its_stream() -> None:
    outgoing = Outgoing()
    put(outgoing, 1, 0, [10], "a")
    outgoing.chunk(1, "r-1", 1).add((TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.5))),), '[{"index": 0}]')
    put(outgoing, 1, 1, [11], "b")
    outgoing.chunk(1, "r-1", 2).add((TokenLogprob("b", -0.25),), '[{"index": 1}]')
    put(outgoing, 2, 0, [20], "x")
    found = responses(outgoing.take_frame()[0])
    assert [(each.text, each.logprob) for each in found[1].logprobs] == [("a", -0.5), ("b", -0.25)]
    assert [top.text for top in found[1].logprobs[0].top] == ["a", "b"]
    assert json.loads(found[1].tool_calls_json) == [{"index": 0}, {"index": 1}]
    assert (len(found[2].logprobs), found[2].tool_calls_json) == (0, "")
