"""Cases: an engine does what `EngineInfo.features` says, and refuses the rest by name."""

import json
from typing import Any

import pytest

from services.mesh.errors import Unsupported
from services.mesh.features import LOGPROBS, RESPONSE_FORMAT, TOOLS
from services.worker.contract.generation import CHAT, PROMPT, SOME, spelt_of
from services.worker.contract.running import Capability, Running, refused
from services.worker.engine import ChatMessage, Prompt

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": ["it", "was"]}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"good": {"type": "boolean"}},
            "required": ["good"],
            "additionalProperties": False,
        },
    },
}
_ASKING: dict[str, dict[str, Any]] = {
    LOGPROBS: {"logprobs": 2},
    RESPONSE_FORMAT: {"response_format_json": json.dumps(SCHEMA)},
    TOOLS: {"tools_json": json.dumps([TOOL])},
}


class Features:
    @pytest.mark.parametrize("feature", _ASKING)
    async def test_feature_that_it_does_not_have_is_refused_by_name(self, engine: Running, feature: str) -> None:
        if feature in engine.info.features:
            pytest.skip(f"{engine.info.engine} says that it has {feature}")
        assert feature in await refused(engine, Unsupported, CHAT, **_ASKING[feature])

    async def test_every_token_has_its_log_probability(self, engine: Running) -> None:
        _claims(engine, LOGPROBS)
        plain = await engine.generate(PROMPT, max_tokens=SOME)
        made = await engine.generate(PROMPT, max_tokens=SOME, logprobs=2)
        assert (made.text, made.count) == (plain.text, SOME)
        assert len(made.logprobs) == made.count
        assert spelt_of(made.text, [each.text for each in made.logprobs]) == made.text
        for each in made.logprobs:
            assert each.logprob <= 0
            assert len(each.top) == 2
            assert each.top[0][1] >= each.top[1][1]
            assert each.top[0][0] == each.text  # it is greedy
        assert not plain.logprobs

    async def test_answer_follows_the_response_format(self, engine: Running) -> None:
        _claims(engine, RESPONSE_FORMAT)
        made = await engine.generate(CHAT, max_tokens=200, ignore_eos=False, **_ASKING[RESPONSE_FORMAT])
        answer = json.loads(made.text)
        assert set(answer) == {"good"}
        assert isinstance(answer["good"], bool)

    async def test_tool_that_must_be_called_is_called(self, engine: Running) -> None:
        _claims(engine, TOOLS)
        engine.need(Capability.FORCED_TOOLS)
        chat = Prompt(chat=(ChatMessage("user", "what is it"),))
        choice = json.dumps({"type": "function", "function": {"name": "look_up"}})
        made = await engine.generate(chat, max_tokens=200, ignore_eos=False, tool_choice_json=choice, **_ASKING[TOOLS])
        deltas = [
            delta for output in made.outputs if output.tool_calls_json for delta in json.loads(output.tool_calls_json)
        ]
        assert [delta["function"]["name"] for delta in deltas if delta["function"].get("name")] == ["look_up"]
        arguments = json.loads("".join(delta["function"].get("arguments") or "" for delta in deltas))
        assert arguments["word"] in {"it", "was"}
        assert made.count > 0


def _claims(engine: Running, feature: str) -> None:
    if feature not in engine.info.features:
        pytest.skip(f"{engine.info.engine} does not say that it has {feature}; it refuses it by name")
