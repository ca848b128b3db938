"""A third party's engine in a worker of the mesh, without a change to it."""

from pathlib import Path

import pytest

from tests.contract.acme_distribution import install_acme
from tests.mesh.running_worker import running_worker

pytestmark = pytest.mark.mesh


async def test_worker_serves_with_an_engine_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install_acme(site)
    monkeypatch.syspath_prepend(site)
    async with running_worker(tmp_path, engine="acme", models=("acme-7b",), faults=False) as worker:
        session = await worker.session()
        received = await session.answer("r-1", model="acme-7b", max_tokens=12)
        assert received.finish is not None
        assert (received.finish.reason, len(received.token_ids)) == ("length", 12)
        await worker.reported("r-1")
        assert sum(entry.count for entry in worker.entries) == 12
        await worker.until(lambda: worker.beat.engine == "acme", "the heartbeat names the engine")
