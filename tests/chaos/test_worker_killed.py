"""Fifty streams on one worker that is killed: each goes on at another one, and its client sees one stream."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.chaos.core.streams import Heard, wrong_with
from services.mesh.settings import MeshSettings, MeterSettings
from tests.mesh.local_mesh import LocalMesh, eventually, simulated
from tests.mesh.worker_process import worker_process
from tokenworks import Client

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

STREAMS = 50
TOKENS = 200
SPEED = 0.3  # long streams, few steps


class Asking:
    """One stream: what has come of it, and what its end told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.heard = Heard(time.monotonic())
        self.told_tokens = 0

    async def run(self, client: Client) -> None:
        async with client.generate(
            text=f"tell of river {self.number}", max_tokens=TOKENS, seed=self.number, ignore_eos=True, temperature=0.0,
            model="llama-3.1-8b",
        ) as stream:  # fmt: skip
            async for piece in stream:
                self.heard.piece(piece.first_index, piece.token_count, piece.text, time.monotonic())
        assert stream.result is not None
        self.told_tokens = stream.result.completion_tokens


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "relayed"])
async def test_fifty_streams_on_a_worker_that_is_killed_end_without_a_gap_or_a_repeat(
    tmp_path: Path, direct: bool, record_property: Callable[[str, object], None]
) -> None:
    mesh = LocalMesh(tmp_path)
    try:
        await mesh.start(
            (),
            mesh=MeshSettings(drain_grace_s=5.0, secret="a secret of the mesh"),
            # What the killed one had made and not reported is booked on the deliverer's word.
            meter=MeterSettings(port=0, http_port=0, audit_every_s=0.25, audit_patience_s=1.0),
        )
        client = mesh.client(direct=direct)
        first = simulated("killed", speed=SPEED)
        async with worker_process(mesh, first) as process:
            await mesh.wait_for_workers(1)
            asked = [Asking(number) for number in range(STREAMS)]
            running = [asyncio.create_task(each.run(client)) for each in asked]

            async def all_run() -> bool:
                return all(each.heard.tokens for each in asked)

            await eventually(all_run, "every stream has its first token")
            await mesh.start_worker(simulated("other", speed=SPEED))
            await mesh.wait_for_workers(2)
            assert not any(each.done() for each in running), "all of them run when it dies"
            process.kill()
            await process.wait()
            await asyncio.gather(*running)
        undisturbed = [Asking(number) for number in range(STREAMS)]
        await asyncio.gather(*(each.run(client) for each in undisturbed))
        wrong = [
            wrong_with(each.heard, other.heard.text, each.told_tokens)
            for each, other in zip(asked, undisturbed, strict=True)
        ]
        assert [each for each in wrong if each] == []
        assert {each.told_tokens for each in asked} == {TOKENS}
        longest_s = max(each.heard.longest_pause_s for each in asked)
        record_property("longest_pause_s", longest_s)
        print(f"{STREAMS} streams, 0 gaps, 0 repeats; the longest pause was {longest_s:.2f} s")  # with -s
        total = await mesh.settled(2 * STREAMS)
        assert total.delivered_tokens == 2 * STREAMS * TOKENS
    finally:
        await mesh.stop()
