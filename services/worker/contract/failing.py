"""Cases: an engine whose process dies says so, quickly and with a reason, and ends what ran on it."""

import asyncio
from typing import Final

from services.mesh.errors import EngineFailed
from services.worker.contract.generation import PROMPT
from services.worker.contract.running import Running, refused
from services.worker.contract.subject import Fresh
from services.worker.engine import FinishReason

_QUICKLY_S: Final = 20.0  # of which most is for machines that are busy


class Failing:
    async def test_killed_in_mid_stream_it_fails_with_a_reason_and_ends_what_ran(self, mortal: Fresh) -> None:
        async with mortal() as engine:
            failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            engine.on_failure = lambda reason: None if failed.done() else failed.set_result(reason)
            sequences = await _streaming(engine)
            engine.kill_process()
            async with asyncio.timeout(_QUICKLY_S):
                assert await failed
                made = [await engine.made(sequence) for sequence in sequences]
            assert FinishReason.ERROR in {each.finish for each in made}
            for each in made:
                assert each.finish in {FinishReason.ERROR, FinishReason.LENGTH}
                if each.finish is FinishReason.ERROR:
                    name, message = each.error
                    assert name == EngineFailed.__name__
                    assert message
            await refused(engine, EngineFailed, PROMPT)
            assert (engine.engine.stats().running, engine.engine.stats().waiting) == (0, 0)


async def _streaming(engine: Running) -> list[int]:
    """More requests than there are places, the first of which have tokens already."""
    places = min(4, engine.info.max_batch)
    sequences = [await engine.submit(PROMPT, max_tokens=450) for _ in range(2 * places)]
    await engine.until(lambda: all(engine.so_far(sequence).count for sequence in sequences[:places]))
    return sequences
