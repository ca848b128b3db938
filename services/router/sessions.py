"""The sessions to all workers: one each, opened when a worker that is ready is heard of, closed when it is gone."""

import asyncio
from collections.abc import Callable

from services.mesh.clock import Clock
from services.mesh.errors import WorkerLost
from services.mesh.events import WorkerState
from services.mesh.lifecycle import Lifecycle
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker
from services.router.session import WorkerSession


class Sessions:
    """Sessions by worker.

    Args:
        router: this router's id, told to workers.
        secret: the mesh's; empty for none.
    """

    def __init__(self, life: Lifecycle, fleet: Fleet, clock: Clock, router: str, secret: str) -> None:
        self._life = life
        self._fleet = fleet
        self._clock = clock
        self._router = router
        self._secret = secret
        self._open: dict[str, tuple[WorkerSession, asyncio.Task[None]]] = {}

    def warm(self, worker: KnownWorker) -> None:
        """Opens the session to a worker that takes requests, if there is none yet."""
        if worker.beat.state == WorkerState.READY:
            self.to(worker)

    def to(self, worker: KnownWorker) -> WorkerSession:
        """The session to a worker; a new one when it has moved to another address."""
        found = self._open.get(worker.name)
        if found is not None:
            if found[0].address == worker.beat.address:
                return found[0]
            self.close(worker.name)
        session = WorkerSession(worker.name, worker.beat.address, self._router, self._secret, self._linker(worker.name))
        self._open[worker.name] = (session, self._life.spawn(session.run(), f"session to {worker.name}"))
        return session

    def of(self, worker: str) -> WorkerSession | None:
        found = self._open.get(worker)
        return found[0] if found else None

    def close(self, worker: str) -> None:
        """Closes a worker's session; streams that still run there are lost."""
        found = self._open.pop(worker, None)
        if found is not None:
            session, task = found
            task.cancel()
            session.lose_all(WorkerLost(f"worker {worker!r} is gone"))

    def _linker(self, worker: str) -> Callable[[bool], None]:
        return lambda stands: self._fleet.linked(worker, stands, self._clock.monotonic_s())
