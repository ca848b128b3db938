"""A server looked after: is it well, how busy is it, and with whose work.

In: the server, how many requests of ours run there. Out: its load, and the reason when it is given up. A server that
other clients use too is as busy as they make it: what they run is what it says beyond what is ours. Its figures may be
old (vLLM's stay as they were when its last request was cancelled), so others are believed only when two looks in a row
agree, and only while the server gets on with something.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from services.worker.engines.openai_metrics import ServerLoad
from services.worker.engines.openai_server import OpenAiServer

_MISSED_LIMIT: Final = 3  # health checks in a row


class Watch:
    """What is known of one server.

    Attributes:
        load: as it last said.
        others_running, others_waiting: requests of other clients there.
    """

    def __init__(self, server: OpenAiServer, health: str, metrics: str | None, ours: Callable[[], int]) -> None:
        """`ours`: how many requests run there at this moment; `metrics`: None where there is no such page."""
        self.load = ServerLoad()
        self.others_running = 0
        self.others_waiting = 0
        self._server = server
        self._health = health
        self._metrics = metrics
        self._ours = ours
        self._seen = (0, 0)
        self._progress: float | None = None

    async def until_lost(self, every_s: float) -> str:
        """Looks every `every_s` seconds; returns, with the reason, when the server has been missed too often."""
        missed = 0
        while True:
            # Once missed, it is asked again sooner: whoever waits there should go elsewhere soon.
            await asyncio.sleep(every_s / 4 if missed else every_s)
            why = await self._server.unwell(self._health)
            missed = missed + 1 if why else 0
            if missed >= _MISSED_LIMIT:
                return f"{self._server.url}{self._health} failed {missed} times in a row, at last because it {why}"
            if not why:
                await self.look()

    async def look(self) -> None:
        """Reads the metrics page, where there is one."""
        if self._metrics is None:
            return
        before = self._ours()
        load = await self._server.load(self._metrics)
        if load.tells_nothing:
            return  # busy, or gone: the health check will say
        self.load = load
        ours = max(before, self._ours())
        moving = load.progress is None or load.progress != self._progress
        self._progress = load.progress
        running = max(0, (load.running or 0) - ours) if moving else 0
        waiting = max(0, (load.waiting or 0) - max(0, ours - (load.running or 0))) if moving else 0
        self.others_running, self.others_waiting = min(running, self._seen[0]), min(waiting, self._seen[1])
        self._seen = (running, waiting)
