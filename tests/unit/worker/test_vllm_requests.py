"""A request in vLLM's words, and what cannot be asked for."""

import json
from typing import Any

import pytest

from services.mesh.errors import InvalidRequest, ResumeRefused, Unsupported
from services.worker.engine import EngineRequest, Prompt, Sampling
from services.worker.engines.vllm_requests import check_resume, sampling_fields, structured_fields


def request(response_format_json: str = "", resume_from: int = 0, **sampling: Any) -> EngineRequest:
    return EngineRequest(
        sequence=1,
        request_id="r-1",
        model="m",
        prompt=Prompt(text="x"),
        sampling=Sampling(**{"max_tokens": 9, **sampling}),
        resume_from=resume_from,
        response_format_json=response_format_json,
    )


def test_sampling_values_are_passed_on_and_stop_strings_are_not() -> None:
    fields = sampling_fields(request(temperature=0.5, top_p=0.9, top_k=3, logprobs=2, stop=("x",)), 7)
    assert fields["max_tokens"] == 7
    assert (fields["temperature"], fields["top_p"], fields["top_k"], fields["logprobs"]) == (0.5, 0.9, 3, 2)
    assert "stop" not in fields
    assert fields["seed"] is None


@pytest.mark.parametrize("seed", [0, 7, (1 << 64) - 1])
@pytest.mark.parametrize("resume_from", [0, 1, 1_000_000])
def test_seed_is_one_that_vllm_takes(seed: int, resume_from: int) -> None:
    given = sampling_fields(request(seed=seed, resume_from=resume_from), 7)["seed"]
    assert 0 <= given < 1 << 63


def test_seed_is_kept_and_draws_anew_after_a_break() -> None:
    seeds = [sampling_fields(request(seed=7, resume_from=at), 7)["seed"] for at in (0, 1, 2)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        (None, {}),
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"json_object": True}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            {"json": {"type": "object"}},
        ),
    ],
)
def test_response_formats_of_openai_are_known(asked: Any, fields: dict[str, Any]) -> None:
    assert structured_fields("" if asked is None else json.dumps(asked)) == fields


@pytest.mark.parametrize("asked", ["no json", "[]", "{}", '{"type": "json_schema"}', '"text"'])
def test_response_format_that_is_none_is_refused(asked: str) -> None:
    with pytest.raises(InvalidRequest, match="response_format"):
        structured_fields(asked)


def test_response_format_of_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="grammar"):
        structured_fields('{"type": "grammar"}')


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"presence_penalty": -0.1}, "presence_penalty"),
        ({"response_format_json": '{"type": "json_object"}'}, "response_format"),
    ],
)
def test_what_the_tokens_before_a_break_decide_is_not_gone_on_with(options: dict[str, Any], names: str) -> None:
    check_resume(request(**options))
    with pytest.raises(ResumeRefused, match=names):
        check_resume(request(resume_from=3, **options))


def test_plain_request_goes_on() -> None:
    check_resume(request(resume_from=3, seed=1, temperature=0.7, stop=("x",), logprobs=1))
