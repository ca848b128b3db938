"""vLLM, a llama.cpp server and five simulated accelerators serve one model under one name: the benchmark, as a test."""

from pathlib import Path

import pytest

from bench.mixed_replay import failures, run
from tests.engines.conftest import unavailable

pytestmark = pytest.mark.timeout(400)


async def test_a_replay_is_shared_by_unlike_engines_without_a_failure(tmp_path: Path) -> None:
    if why := unavailable():
        pytest.skip(why)
    document = await run(tmp_path, 300)
    assert failures(document) == []
    assert document["requests"]["finished"] + document["requests"]["refused"] == 300
    assert all(row["use_cost_nusd"] > 0 and row["energy_cost_nusd"] > 0 for row in document["by_accelerator"])
