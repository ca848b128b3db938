"""One tenant asks for far more than there is: it waits, and is refused; its neighbour gets what it asks for."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from services.mesh.keys import KeyStore
from services.mesh.settings import RouterSettings
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import MODEL, eventually, simulated
from tokenworks import Client, GenerateError

pytestmark = pytest.mark.mesh

_SLOTS: Final = 10  # one of which is kept for whoever takes less than its share
_WAIT: Final = 6  # of one tenant, at most
_PATIENT: Final[dict[str, Any]] = {"model": MODEL, "ignore_eos": True, "slo_class": "batch", "deadline_s": 300.0}


async def test_a_flood_waits_and_is_refused_and_its_neighbour_is_neither(start_mesh: StartMesh, tmp_path: Path) -> None:
    mesh = await start_mesh(
        simulated("h100-0", max_batch=_SLOTS), router=RouterSettings(port=0, http_port=0, max_waiting_per_tenant=_WAIT)
    )
    keys = KeyStore(tmp_path / "mesh-0" / "keys.json")
    flood, neighbour = (mesh.client(key=keys.create(name, "", 0)) for name in ("flood", "neighbour"))
    refused: list[GenerateError] = []
    begun = 0

    async def ask(number: int) -> None:
        nonlocal begun
        try:
            async with flood.generate(text=f"flood {number}", max_tokens=20_000, **_PATIENT) as generation:
                await anext(generation)
                begun += 1
                async for _ in generation:
                    pass
        except GenerateError as error:
            refused.append(error)

    flooding = [asyncio.create_task(ask(number)) for number in range(3 * _SLOTS)]
    try:

        async def is_settled() -> bool:
            return begun + len(refused) >= len(flooding) - _WAIT

        await eventually(is_settled, "each of the flood runs, waits or was refused")
        served = [await _answer(neighbour, number) for number in range(4)]
    finally:
        for each in flooding:
            each.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    assert served == [8, 8, 8, 8]
    assert begun < _SLOTS
    assert len(refused) >= len(flooding) - _WAIT - _SLOTS
    assert {each.reason for each in refused} == {"QueueFull"}
    assert all(each.retry_after_s for each in refused)


async def _answer(client: Client, number: int) -> int:
    async with client.generate(text=f"neighbour {number}", max_tokens=8, **_PATIENT) as generation:
        return sum([piece.token_count async for piece in generation])
