"""What every engine promises a worker (services/worker/contract), held by vLLM's OpenAI server."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest_asyncio

from services.worker.contract.cases import EngineContract
from services.worker.contract.running import Running
from services.worker.contract.subject import Subject
from tests.engines.conftest import unavailable
from tests.engines.vllm_server import SharedServer


class TestVllmServer(EngineContract):
    server: ClassVar = SharedServer()
    subject = Subject("vllm-server", server.serve, unavailable, server.serve_alone)

    @pytest_asyncio.fixture(scope="class", loop_scope="class", autouse=True)
    @classmethod
    async def ended(cls) -> AsyncIterator[None]:
        """Ends the server with the class."""
        yield
        await cls.server.close()

    async def test_it_is_known_and_says_how_much_its_cache_holds(self, engine: Running) -> None:
        assert engine.info.note.endswith("as vllm")
        assert engine.info.kv_capacity_tokens > engine.info.context_tokens
        assert engine.info.features == ("logprobs", "response_format", "tools")
