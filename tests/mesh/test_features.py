"""Features through the whole mesh: a real engine behind router and meter, as the official `openai` package sees it."""

import json
from pathlib import Path

import openai
import pytest

from services.mesh.settings import WorkerSettings
from services.worker.engines.llamacpp import llamacpp_unavailable
from tests.contract.engine_subjects import tiny_llamacpp_settings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import simulated

pytestmark = pytest.mark.mesh

SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}


def llamacpp(directory: Path) -> WorkerSettings:
    settings = tiny_llamacpp_settings(directory, id="llamacpp-0", engine="llamacpp", port=0, http_port=0)
    if why := llamacpp_unavailable(settings):
        pytest.skip(why)
    return settings


async def test_a_real_engine_s_features_reach_an_openai_client(start_mesh: StartMesh, tmp_path: Path) -> None:
    mesh = await start_mesh(llamacpp(tmp_path), simulated("h100-0"))
    port = mesh.parts["router"].running.http_port
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=mesh.key, max_retries=0, timeout=30)
    async with client:
        shaped = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "is it good"}],
            temperature=0,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}},
        )
        answer = json.loads(shaped.choices[0].message.content or "")
        assert set(answer) == {"good"}
        told = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "is it good"}],
            temperature=0,
            max_tokens=6,
            n=2,
            logprobs=True,
            top_logprobs=2,
        )
        for choice in told.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            assert "".join(each.token for each in choice.logprobs.content) == choice.message.content
            assert all(len(each.top_logprobs) == 2 for each in choice.logprobs.content)
        with pytest.raises(openai.BadRequestError, match="response_format: no engine that serves model"):
            await client.chat.completions.create(
                model="llama-3.1-8b",
                messages=[{"role": "user", "content": "is it good"}],
                response_format={"type": "json_object"},
            )
