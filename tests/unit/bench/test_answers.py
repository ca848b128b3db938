"""What a client reads, in pieces cut anywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.datapath.answers import TOKEN_TEXT, End, HttpAnswer, TokenCounter
from tokenworks.v1 import inference_pb2 as wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(*events: str) -> bytes:
    bodies = [f"data: {event}\n\n".encode() for event in events]
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def token_events(count: int) -> list[str]:
    return [f'{{"choices": [{{"delta": {{"content": "{TOKEN_TEXT}"}}}}]}}'] * count


def read(data: bytes, cuts: list[int]) -> HttpAnswer:
    answer, at = HttpAnswer(), 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        if cut > at:
            answer.feed(data[at:cut])
            at = cut
    return answer


@settings(deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, 3000), max_size=30))
def test_a_whole_answer_is_counted_whole_wherever_it_is_cut(tokens: int, cuts: list[int]) -> None:
    answer = read(HEAD + chunked(*token_events(tokens), "[DONE]"), cuts)
    assert (answer.status, answer.tokens, answer.end) == (200, tokens, End.WHOLE)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=10))
def test_an_answer_that_ends_with_an_error_is_broken(cuts: list[int]) -> None:
    answer = read(HEAD + chunked(*token_events(3), '{"error": {"message": "gone"}}', "[DONE]"), cuts)
    assert answer.end is End.BROKEN


def test_an_answer_without_its_last_event_is_broken() -> None:
    assert read(HEAD + chunked(*token_events(3)), []).end is End.BROKEN


def test_an_answer_whose_connection_breaks_is_broken() -> None:
    answer = HttpAnswer()
    answer.feed((HEAD + chunked(*token_events(3), "[DONE]"))[:-24])
    assert answer.end is End.OPEN
    answer.closed()
    assert (answer.tokens, answer.end) == (3, End.BROKEN)


def test_a_refusal_is_broken_when_its_body_is_over_and_tells_that_the_server_closes() -> None:
    answer = HttpAnswer()
    answer.feed(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 5\r\n\r\nbu")
    assert answer.end is End.OPEN
    answer.feed(b"sy.")
    assert (answer.status, answer.end, answer.close) == (503, End.BROKEN, True)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=8), max_size=20))
def test_pieces_hold_as_many_tokens_as_the_whole(pieces: list[bytes]) -> None:
    counter = TokenCounter()
    assert sum(counter.feed(piece) for piece in pieces) == b"".join(pieces).count(b"~k")


@pytest.mark.parametrize("index", range(0, 300, 7))
def test_a_protobuf_message_holds_one_token_whatever_its_numbers(index: int) -> None:
    for at in (index, 126, 126 << 7):
        message = wire.GenerateResponse(
            request_id="0199", first_index=at, token_ids=(1,), text=TOKEN_TEXT, token_count=1
        )
        message.finish.usage.completion_tokens = at + 1
        assert TokenCounter().feed(message.SerializeToString()) == 1
