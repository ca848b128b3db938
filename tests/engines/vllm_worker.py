"""A process with a vLLM engine in it, to be killed: prints the id of the engine core's process, then waits.

python -m tests.engines.vllm_worker DIRECTORY
"""

import asyncio
import sys
from pathlib import Path

from services.mesh.clock import SystemClock
from services.worker.engines.vllm import VllmEngine
from tests.engines.conftest import vllm_settings


async def main(directory: Path) -> None:
    engine = VllmEngine(vllm_settings(directory), SystemClock())
    await engine.start(lambda _: None, lambda _: None)
    print(engine.process_id, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":  # the engine core's process imports this module again
    asyncio.run(main(Path(sys.argv[1])))
