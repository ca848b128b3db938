import pytest

from services.mesh.errors import InvalidRequest, InvalidSampling, TokenworksError, Unsupported
from services.mesh.placement import PlacementClaims
from services.mesh.pricing import Rates
from services.worker.engine import ChatMessage, Prompt
from services.worker.requests import direct, relayed
from tokenworks.v1 import inference_pb2 as pb

CLAIMS = PlacementClaims(
    id="p-1",
    request_id="r-1",
    router="router-0",
    worker="worker-0",
    epoch="e-1",
    tenant="acme",
    model="llama-3.1-8b",
    slo_class="interactive",
    workload="support",
    plan="llama-3.1-8b:4",
    price_book="list@1",
    rates=Rates(50_000_000, 25_000_000, 100_000_000),
    admitted_unix_ms=0,
    resume_from=0,
    ttft_promise_s=2.0,
    ttft_promise_s_per_prompt_token=0.001,
    tpot_promise_s=0.1,
    priority=1,
    funded_tokens=50,
    prompt_tokens=3,
    expires_unix_ms=0,
)


def opened(**request: object) -> pb.OpenStream:
    fields = {"request_id": "r-1", "model": "llama-3.1-8b", "text": "hello", **request}
    return pb.OpenStream(stream=1, tenant="acme", request=pb.GenerateRequest(**fields))  # type: ignore[arg-type]


def test_what_is_unset_has_its_default() -> None:
    sampling = relayed(opened(), 1, 8192).engine.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (8192, 1.0, 1.0, None)


def test_what_is_set_to_zero_is_zero() -> None:
    asked = pb.Sampling(temperature=0.0, seed=0, max_tokens=9000)
    sampling = relayed(opened(sampling=asked), 1, 8192).engine.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (8192, 0.0, 0)


def test_a_resumed_request_carries_what_was_delivered() -> None:
    stream = opened(resume_from=2)
    stream.resumed_token_ids.ids.extend([7, 8])
    stream.resumed_text = "a b"
    stream.resumed_tokenizer = "t"
    engine = relayed(stream, 5, 8192).engine
    assert (engine.sequence, engine.resume_from, engine.resumed_token_ids, engine.resumed_text) == (5, 2, (7, 8), "a b")
    assert engine.resumed_tokenizer == "t"


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        ({"text": "hi"}, Prompt(text="hi")),
        ({"token_ids": pb.TokenIds(ids=[1, 2])}, Prompt(token_ids=(1, 2))),
        ({"chat": pb.Chat(messages=[pb.ChatMessage(role="user")])}, Prompt(chat=(ChatMessage("user", ""),))),
    ],
)
def test_a_prompt_has_three_forms(request_: dict[str, object], prompt: Prompt) -> None:
    assert relayed(opened(**request_), 1, 8192).engine.prompt == prompt


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        ({"request_id": ""}, InvalidRequest, "request_id"),
        ({"text": ""}, InvalidRequest, "text is empty"),
        ({"token_ids": pb.TokenIds()}, InvalidRequest, "token ids"),
        ({"chat": pb.Chat()}, InvalidRequest, "at least one message"),
        ({"chat": pb.Chat(messages=[pb.ChatMessage(content="x")])}, InvalidRequest, "a role"),
        ({"sampling": pb.Sampling(max_tokens=0)}, InvalidSampling, "max_tokens is 0"),
        ({"sampling": pb.Sampling(temperature=2.5)}, InvalidSampling, "temperature is 2.5"),
        ({"sampling": pb.Sampling(temperature=float("nan"))}, InvalidSampling, "temperature is nan"),
        ({"sampling": pb.Sampling(top_p=0.0)}, InvalidSampling, "top_p is 0"),
        ({"sampling": pb.Sampling(presence_penalty=-3.0)}, InvalidSampling, "presence_penalty"),
        ({"sampling": pb.Sampling(frequency_penalty=float("inf"))}, InvalidSampling, "frequency_penalty"),
        ({"sampling": pb.Sampling(stop=[""])}, InvalidSampling, "none empty"),
        ({"sampling": pb.Sampling(stop=["x"] * 17)}, InvalidSampling, "stop has 17"),
        ({"sampling": pb.Sampling(n=2)}, Unsupported, "n is 2"),
        ({"sampling": pb.Sampling(logprobs=21)}, InvalidSampling, "logprobs is 21"),
        ({"tools_json": "[{}]"}, InvalidRequest, "tools are for chats"),
        ({"tools_json": "{}"}, InvalidRequest, "must be a JSON list"),
        ({"response_format_json": "[]"}, InvalidRequest, "must be a JSON object"),
        ({"response_format_json": "{"}, InvalidRequest, "response_format_json is not JSON"),
        ({"response_format_json": "{}", "sampling": pb.Sampling(ignore_eos=True)}, Unsupported, "ignore_eos"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    request_: dict[str, object], error: type[TokenworksError], says: str
) -> None:
    with pytest.raises(error, match=says):
        relayed(opened(**request_), 1, 8192)


def test_what_a_request_needs_beyond_plain_generation_is_named() -> None:
    message = pb.ChatMessage(role="tool", content="x", tool_call_id="c1", name="f", tool_calls_json="[]")
    request = relayed(
        opened(
            chat=pb.Chat(messages=[message]),
            tools_json="[{}]",
            tool_choice_json='"auto"',
            response_format_json='{"type": "json_object"}',
            sampling=pb.Sampling(logprobs=0),
        ),
        1,
        8192,
    ).engine
    assert request.features == ("logprobs", "response_format", "tools")
    assert request.prompt.chat == (ChatMessage("tool", "x", "[]", "c1", "f"),)
    assert (request.sampling.logprobs, request.tools_json, request.tool_choice_json) == (0, "[{}]", '"auto"')
    assert relayed(opened(), 1, 8192).engine.features == ()


def test_a_request_without_a_prompt_is_refused() -> None:
    stream = opened()
    stream.request.ClearField("prompt")
    with pytest.raises(InvalidRequest, match="no prompt"):
        relayed(stream, 1, 8192)


def test_a_placed_request_is_whose_and_as_long_as_the_placement_says() -> None:
    request = pb.GenerateRequest(text="hello", slo_class="batch", workload="mine", sampling=pb.Sampling(max_tokens=900))
    order = direct(request, CLAIMS, "", 1, 8192)
    assert (order.tenant, order.slo_class, order.workload, order.plan) == (
        "acme",
        "interactive",
        "support",
        CLAIMS.plan,
    )
    assert (order.engine.request_id, order.engine.model) == ("r-1", "llama-3.1-8b")
    assert order.engine.sampling.max_tokens == 50


def test_another_request_than_the_placed_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'r-2' was not placed"):
        direct(pb.GenerateRequest(request_id="r-2", text="hello"), CLAIMS, "", 1, 8192)
    with pytest.raises(InvalidRequest, match="'other' was not placed"):
        direct(pb.GenerateRequest(model="other", text="hello"), CLAIMS, "", 1, 8192)
