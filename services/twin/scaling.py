"""Targets carried out in virtual time: workers join after their cold start, and leave by draining.

In: what a policy's plans say of each pool. Out: workers that start, are ready, drain, are gone.
"""

from collections.abc import Callable, Sequence
from functools import partial

from services.mesh.events import ReplicaTarget, WorkerState
from services.mesh.settings import ElasticPool
from services.twin.timeline import Timeline
from services.twin.worker import TwinWorker


class Scaling:
    """Starts and stops the workers of elastic pools."""

    def __init__(
        self,
        timeline: Timeline,
        workers: Sequence[TwinWorker],
        pools: Sequence[ElasticPool],
        told: Callable[[TwinWorker], None],
    ) -> None:
        """
        Args:
            told: of a worker whose state has changed.
        """
        self._timeline = timeline
        self._cold_start_s = {each.pool: each.cold_start_s for each in pools}
        self._of = {each.pool: [one for one in workers if one.device.key == each.pool] for each in pools}
        self._told = told
        self._ready_s: dict[str, float] = {}  # of workers that start, by name

    def carry_out(self, targets: Sequence[ReplicaTarget]) -> None:
        """What is asked for more starts; what is asked for less goes: first what starts, then what has least to do."""
        for target in targets:
            mine = self._of[target.pool]
            starting = [each for each in mine if each.state is WorkerState.STARTING]
            ready = [each for each in mine if each.state is WorkerState.READY]
            more = target.replicas - len(starting) - len(ready)
            for worker in [each for each in mine if each.state is WorkerState.FAILED][: max(0, more)]:
                self._start(worker, self._cold_start_s[target.pool])
            going = [*reversed(starting), *sorted(ready, key=lambda each: each.load)]
            for worker in going[: max(0, -more)]:
                if worker.state is WorkerState.STARTING:
                    worker.fail()
                else:
                    worker.drain()
                self._told(worker)

    def _start(self, worker: TwinWorker, cold_start_s: float) -> None:
        worker.start()
        self._told(worker)
        ready_s = self._ready_s[worker.name] = self._timeline.now_s + cold_start_s
        self._timeline.at(ready_s, partial(self._joins, worker, ready_s))

    def _joins(self, worker: TwinWorker, ready_s: float) -> None:
        # It may have been stopped meanwhile, and started once more.
        if worker.state is WorkerState.STARTING and self._ready_s[worker.name] == ready_s:
            worker.ready()
            self._told(worker)
