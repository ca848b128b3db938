"""A worker in front of a server that lies about its usage: what it says of it, and what is billed."""

from pathlib import Path

import pytest

from tests.contract.openai_fake import Server, words
from tests.mesh.running_worker import running_worker
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh


async def test_worker_bills_what_came_and_says_that_its_server_lies(tmp_path: Path) -> None:
    server = Server(words(900), tells_ids=True)
    await server.http.start_server()
    settings = {"openai_url": str(server.http.make_url("/v1")), "models": ("ours",), "context_tokens": 64}
    try:
        async with running_worker(tmp_path, engine="openai", faults=False, **settings) as worker:
            session = await worker.session()
            received = await session.answer("r-1", model="ours", text="go", max_tokens=9)
            assert received.finish is not None
            assert received.finish.usage.completion_tokens == 5
            await worker.reported("r-1")
            assert sum(entry.count for entry in worker.entries) == 5
            told = await worker.stub.Describe(pb.DescribeRequest())
            assert "told 1 times what cannot be" in told.note
            assert "usage says 900 completion tokens where 5 came" in told.note
    finally:
        await server.http.close()
