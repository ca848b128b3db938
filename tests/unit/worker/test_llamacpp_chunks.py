"""Chunks of llama.cpp's server, read: counts from its counter, ids only where all are known, text never past a stop."""

from typing import Any

import pytest

from services.worker.engine import FinishReason, Sampling, TokenLogprob
from services.worker.engines.llamacpp_server import ChunkReader, completion_body


def chunk(made: int, text: str = "", ids: tuple[int, ...] = (), finish: str | None = None) -> dict[str, Any]:
    return {
        "choices": [{"text": text, "finish_reason": finish}],
        "__verbose": {"content": text, "tokens": list(ids), "tokens_predicted": made},
    }


def progress(total: int, cache: int, processed: int) -> dict[str, Any]:
    detail = {"total": total, "cache": cache, "processed": processed, "time_ms": 0}
    return {"__verbose": {"content": "", "tokens": [0], "tokens_predicted": 0, "prompt_progress": detail}}


def test_last_piece_of_the_prompt_comes_with_the_first_token() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9))
    assert reader.read(progress(100, 30, 30), 0.0) is None
    piece = reader.read(progress(100, 30, 94), 0.1)
    assert piece is not None
    assert (piece.prefill_tokens, piece.cached_tokens, piece.token_count) == (64, 30, 0)
    assert reader.read(progress(100, 30, 100), 0.2) is None
    first = reader.read(chunk(1, "a", (5,)), 0.2)
    second = reader.read(chunk(2, "b", (6,)), 0.3)
    assert first is not None
    assert second is not None
    assert (first.prefill_tokens, second.prefill_tokens) == (6, 0)


def test_several_tokens_of_one_character_are_counted_and_their_ids_left_out() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9))
    one = reader.read(chunk(1, "a", (5,)), 0.0)
    character = reader.read(chunk(4, "\N{PARTY POPPER}", (227,)), 0.1)
    assert one is not None
    assert character is not None
    assert (one.token_count, one.token_ids) == (1, (5,))
    assert (character.token_count, character.token_ids, character.text) == (3, (), "\N{PARTY POPPER}")


def test_tokens_of_an_unfinished_character_are_counted_at_the_end() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9))
    reader.read(chunk(1, "a", (5,)), 0.0)
    last = reader.read(chunk(3, finish="length"), 0.1)
    assert last is not None
    assert (last.token_count, last.finish, reader.finished) == (2, FinishReason.LENGTH, True)


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH)], ids=["stop", "length"]
)
def test_end_lets_out_what_was_held_back(reason: str, finish: FinishReason) -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9, stop=("END",)))
    held = reader.read(chunk(1, " E", (5,)), 0.0)
    last = reader.read(chunk(1, finish=reason), 0.1)
    assert held is not None
    assert last is not None
    assert (held.text, last.text, last.finish) == (" ", "E", finish)


def test_stop_string_that_began_before_a_break_is_found() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9, stop=("END",)), held="EN")
    last = reader.read(chunk(1, "D and more", (5,)), 0.0)
    assert last is not None
    assert (last.text, last.finish, last.token_count) == ("", FinishReason.STOP, 1)


def test_text_held_before_a_break_goes_out_when_it_was_no_stop() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9, stop=("END",)), held="EN")
    arrival = reader.read(chunk(1, "TER", (5,)), 0.0)
    assert arrival is not None
    assert arrival.text == "ENTER"


def test_error_of_the_server_ends_the_request() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9))
    last = reader.read({"error": {"code": 500, "message": "Compute error."}}, 0.0)
    assert last is not None
    assert (last.finish, last.error) == (FinishReason.ERROR, ("EngineFailed", "Compute error."))
    assert reader.finished


def test_seeds_of_64_bits_stay_apart_and_never_mean_a_random_one() -> None:
    def seed(value: int | None, resume_from: int = 0) -> int:
        body = completion_body((1,), Sampling(max_tokens=1, seed=value), 1, 10, resume_from)
        return int(body["seed"])

    seeds = [seed(0), seed(1), seed(1 << 32), seed(1 << 40), seed(1, resume_from=3)]
    assert seed(None) == 0xFFFF_FFFF
    assert seed(0xFFFF_FFFF) != 0xFFFF_FFFF
    assert len({seeds[0], seeds[1], seeds[3], seeds[4]}) == 4
    assert all(0 <= each < 0xFFFF_FFFF for each in seeds)


def test_log_probabilities_are_those_of_the_chunk_s_last_tokens() -> None:
    reader = ChunkReader(1, Sampling(max_tokens=9, logprobs=1))
    told = chunk(1, "a", (5,))
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.0}]
    told["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
    first = reader.read(told, 0.0)
    assert first is not None
    assert first.logprobs == (TokenLogprob("a", -0.1, (("a", -0.1),)),)


@pytest.mark.parametrize(("asked", "n_probs"), [(0, 1), (3, 3)])
def test_log_probabilities_without_alternatives_are_asked_for_with_one(asked: int, n_probs: int) -> None:
    assert completion_body([1], Sampling(max_tokens=1, logprobs=asked), 1, 64)["n_probs"] == n_probs
