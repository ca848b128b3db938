"""Answers in OpenAI's form: a stream says of itself what a whole answer says."""

import json
from typing import Any

from services.mesh.openai.answers import Answer
from tokenworks.v1 import inference_pb2 as wire


def _last(worker: str) -> wire.GenerateResponse:
    usage = wire.Usage(prompt_tokens=12, cached_prompt_tokens=4, completion_tokens=3)
    segments = [
        wire.Segment(worker=worker, accelerator="nvidia-l4", from_index=0, count=1),
        wire.Segment(worker="w-2", accelerator="", from_index=1, count=2),
    ]
    finish = wire.Finish(reason="length", usage=usage, price_nusd=1234, segments=segments)
    return wire.GenerateResponse(text="so", token_count=3, finish=finish)


def _streamed(*lasts: wire.GenerateResponse) -> dict[str, Any]:
    """The event of the stream that carries its usage."""
    answer = Answer("chat", "r-1", "m", 1_700_000_000, include_usage=True, answers=len(lasts))
    answers = [answer, *(answer.beside(index) for index in range(1, len(lasts)))]
    events = b"".join(each.events(last) for each, last in zip(answers, lasts, strict=True)).split(b"\n\n")
    told: dict[str, Any] = json.loads(events[-3].removeprefix(b"data: "))  # before [DONE] and the end
    return told


def test_a_stream_is_told_the_usage_and_the_account_of_a_whole_answer() -> None:
    for lasts in ([_last('w-1"\\é漢')], [_last("w-1"), _last("w-3")]):
        whole = json.loads(
            Answer("chat", "r-1", "m", 1_700_000_000, answers=len(lasts)).whole(*[[last] for last in lasts])
        )
        streamed = _streamed(*lasts)
        assert streamed["usage"] == whole["usage"]
        assert streamed["tokenworks"] == whole["tokenworks"]
