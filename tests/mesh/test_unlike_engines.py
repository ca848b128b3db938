"""One model under one name on unlike engines, each with a tokenizer of its own: whoever dies, streams go on."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from services.mesh.settings import WorkerSettings
from tests.contract.engine_subjects import LLAMACPP as SUBJECT
from tests.contract.engine_subjects import llamacpp_process, tiny_llamacpp_settings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import LocalMesh, eventually
from tokenworks import Client, Result
from tokenworks.v1 import inference_pb2 as pb

pytestmark = pytest.mark.mesh

MODEL: Final = "smollm2-135m-instruct"  # by its name in the catalogue; the real ones are tiny and random
TOKENS: Final = 200
FREE: Final = {"port": 0, "http_port": 0, "models": (MODEL,), "engine_restart_s": 0.2}


def workers(directory: Path, address: str) -> list[WorkerSettings]:
    tiny = tiny_llamacpp_settings(directory)
    real: dict[str, Any] = {"accelerator": "cpu-epyc-turin", **FREE}
    return [
        WorkerSettings(id="sim-0", accelerator="nvidia-l4", engine="simulated", faults=True, speed=0.5, **FREE),
        WorkerSettings(id="llamacpp-0", engine="llamacpp", llamacpp_model_path=tiny.llamacpp_model_path, **real),
        WorkerSettings(id="openai-0", engine="openai", openai_url=address, max_batch=4, **real),
    ]


async def stream(client: Client, number: int) -> Result:
    """One whole stream; its client fails it when its indexes are not contiguous from 0."""
    prompt = f"river {number}: the boat and the sea"
    async with client.generate(text=prompt, model=MODEL, max_tokens=TOKENS, ignore_eos=True, temperature=0) as made:
        tokens = sum([piece.token_count async for piece in made])
    assert made.result is not None
    assert made.result.completion_tokens == tokens == TOKENS
    return made.result


async def streams(mesh: LocalMesh, count: int) -> list[Result]:
    client = mesh.client()
    return await asyncio.gather(*[stream(client, number) for number in range(count)])


async def making(mesh: LocalMesh, *names: str) -> None:
    async def so() -> bool:
        return all(mesh.parts[name].running.streams.generated_tokens for name in names)

    await eventually(so, f"{' and '.join(names)} make tokens")


async def test_streams_move_between_unlike_engines_and_keep_their_indexes(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    if why := SUBJECT.unavailable():
        pytest.skip(why)
    async with llamacpp_process(tmp_path) as (address, server):
        mesh = await start_mesh(*workers(tmp_path, address))
        simulated, in_process, server_s = (
            mesh.parts[name].running.engine.info.tokenizer for name in ("sim-0", "llamacpp-0", "openai-0")
        )
        assert in_process == server_s != simulated

        running = asyncio.create_task(streams(mesh, 24))
        await making(mesh, "sim-0", "openai-0")
        await mesh.inject("sim-0", pb.InjectFaultRequest.KIND_ENGINE_DIES)
        os.kill(server.pid, signal.SIGKILL)
        results = await running
        moved = Counter(tuple(each.worker for each in result.segments) for result in results)
        assert any({"sim-0", "llamacpp-0"} <= set(route) for route in moved), moved
        for result in results:
            ends = [0]
            for each in result.segments:
                assert each.from_index == ends[-1]
                ends.append(each.from_index + each.count)
            assert ends[-1] == TOKENS
        total = await mesh.settled(24)
        assert total.delivered_tokens == 24 * TOKENS <= total.generated_tokens
        assert total.price_nusd == sum(result.price_nusd for result in results)
