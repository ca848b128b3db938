"""The requests of a real engine: which run, which wait, how each ends; and the steps that their tokens came from.

In: requests, cancellations, and arrivals from whoever runs a request (a thread, a task). Out: `StepOutput`s. The engine
itself only encodes a request, runs it, and delivers what comes.

An engine has a number of places. Requests beyond them wait here, not in the engine: in order of priority, bounded, and
cancelled without a trace. What is delivered is gathered for a moment and told together, so that the tokens that one
step made for all sequences are one report.
"""

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.mesh.clock import Clock
from services.mesh.errors import DuplicateRequest, EngineFailed, QueueFull, UnknownModel
from services.mesh.priorities import by_rank
from services.mesh.settings import WorkerSettings
from services.worker.core.measured_steps import Arrival, MeasuredSteps
from services.worker.engine import EngineRequest, EngineStats, FinishReason, OnStep, SequenceOutput, StepOutput
from services.worker.engines.prompts import EncodedRequest

_GATHER_S: Final = 0.001  # tokens of one step arrive within this of each other
_CANCEL_DEADLINE_S: Final = 5.0


@dataclass(order=True, slots=True)
class Job:
    """A request from submission to its last output; ordered as it waits.

    Attributes:
        cancelled: whoever runs it looks at this between two tokens.
        on_cancel: called when a running job is cancelled, where looking is not enough.
    """

    priority: int
    number: int
    request: EngineRequest = field(compare=False)
    submitted_s: float = field(compare=False)
    encoded: EncodedRequest = field(default=EncodedRequest((), 0, 0, ""), compare=False)
    cancelled: bool = field(default=False, compare=False)
    on_cancel: Callable[[], object] | None = field(default=None, compare=False)


class RequestLine:
    """All requests of one engine that serves one model.

    Attributes:
        model: the name that `worker.models` gives it.
        places: how many requests run at once.
    """

    def __init__(self, settings: WorkerSettings, clock: Clock, places: int) -> None:
        """Raises SettingInvalid: the accelerator is not in the catalogue."""
        catalogue = load_catalogue()
        accelerator = catalogue.accelerator(settings.accelerator)
        self.model = settings.models[0] if settings.models else ""
        self.places = places
        shape = catalogue.models.get(self.model)
        timing = catalogue.timing(accelerator, shape) if shape is not None else None
        self._steps = MeasuredSteps(self.model, accelerator, timing)
        self._idle_w = accelerator.idle_w
        self._max_waiting = settings.max_waiting
        self._clock = clock
        self._opened_s = clock.monotonic_s()
        self._refusal = "the engine is not started"
        self._submitted = 0
        self._jobs: dict[int, Job] = {}
        self._waiting: list[Job] = []
        self._running: dict[int, Job] = {}
        self._arrivals: deque[Arrival] = deque()  # filled from anywhere, emptied by the loop
        self._woken = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Set by open:
        self._loop: asyncio.AbstractEventLoop
        self._on_step: OnStep
        self._encode: Callable[[EngineRequest], Awaitable[EncodedRequest]]
        self._run: Callable[[Job], object]
        self._features: Sequence[str]

    def open(
        self,
        on_step: OnStep,
        encode: Callable[[EngineRequest], Awaitable[EncodedRequest]],
        run: Callable[[Job], object],
        features: Sequence[str] = (),
    ) -> None:
        """Requests are taken from here on.

        Args:
            encode: raises what a request is refused with.
            run: starts to run a job and returns; the job's last arrival has `finish` set.
            features: see `EngineInfo`.
        """
        self._loop, self._on_step = asyncio.get_running_loop(), on_step
        self._encode, self._run, self._features = encode, run, features
        self._opened_s = self._clock.monotonic_s()
        self._refusal = ""

    def refuse(self, reason: str) -> None:
        """No request is taken any more; those that are here go on."""
        self._refusal = reason

    async def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        self._check_open()
        if request.sequence in self._jobs:
            raise DuplicateRequest(f"sequence {request.sequence} runs already")
        if request.model != self.model:
            raise UnknownModel(f"model {request.model!r} is not served here; {self.model!r} is")
        request.require(self._features)
        if len(self._jobs) >= self.places + self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests wait already, as many as may")
        self._submitted += 1
        job = Job(request.priority, self._submitted, request, self._clock.monotonic_s())
        self._jobs[request.sequence] = job
        self._idle.clear()
        try:
            job.encoded = await self._encode(request)
            self._check_open()
        except BaseException:
            self._forget(request.sequence)
            raise
        if job.cancelled or job.encoded.max_tokens <= 0:
            self._end_unstarted(job, FinishReason.CANCELLED if job.cancelled else FinishReason.LENGTH)
            return
        insort(self._waiting, job)
        self._fill_places()

    def cancel(self, sequence: int) -> None:
        """See `Engine.cancel`."""
        job = self._jobs.get(sequence)
        if job is None or job.cancelled:
            return
        job.cancelled = True  # seen by whoever runs it, or by submit
        if job in self._waiting:
            self._waiting.remove(job)
            self._end_unstarted(job, FinishReason.CANCELLED)
        elif job.on_cancel is not None:
            job.on_cancel()

    def deliver(self, arrival: Arrival) -> None:
        """Takes what a running job got; from any thread.

        Raises:
            RuntimeError: the event loop is closed.
        """
        self._arrivals.append(arrival)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._gather)

    def report(self, arrivals: Sequence[Arrival]) -> None:
        """Tells at once what came, on the loop: for an engine that knows its steps, what one of them made."""
        steps = self._steps.fold(arrivals)
        for arrival in arrivals:
            if arrival.finish is not None and self._running.pop(arrival.sequence, None) is not None:
                self._forget(arrival.sequence)
        if steps:
            self._on_step(steps)
        self._fill_places()

    def end_running(self, error: tuple[str, str]) -> None:
        """Ends everything that runs or waits with an error, because the engine is gone."""
        now_s = self._clock.monotonic_s()
        for job in list(self._waiting):
            self._waiting.remove(job)
            self._end_unstarted(job, FinishReason.ERROR, error)
        for sequence, job in self._running.items():
            self.deliver(Arrival(sequence=sequence, at_s=now_s, finish=FinishReason.ERROR, error=error))
            job.cancelled = True
            if job.on_cancel is not None:
                job.on_cancel()

    def stats(self, kv_capacity_tokens: int) -> EngineStats:
        """See `Engine.stats`; of a cache that holds `kv_capacity_tokens`, 0 where that is not known."""
        steps = self._steps
        idle_s = max(0.0, self._clock.monotonic_s() - self._opened_s - steps.busy_ns / 1e9)
        lacking = by_rank(
            (job.priority, max(len(job.encoded.token_ids), job.encoded.prompt_tokens)) for job in self._waiting
        )
        return EngineStats(
            running=len(self._running),
            waiting=len(self._jobs) - len(self._running),
            waiting_prefill_tokens=sum(lacking),
            waiting_by_priority=by_rank((job.priority, 1) for job in self._waiting),
            prefill_tokens_by_priority=lacking,
            kv_cache_usage=min(1.0, steps.kv_tokens / kv_capacity_tokens) if kv_capacity_tokens else 0.0,
            slowdown=steps.slowdown,
            power_w=steps.power_w,
            busy_ns=steps.busy_ns,
            energy_uj=steps.energy_uj + int(idle_s * self._idle_w * 1e6),
            steps=steps.steps,
        )

    async def close(self, grace_s: float) -> bool:
        """Takes no more; lets requests end within `grace_s` seconds, then cancels them.

        Returns:
            False when some did not end although they were cancelled.
        """
        self.refuse("the engine is stopped")
        if await self._idle_within(grace_s):
            return True
        for sequence in list(self._jobs):
            self.cancel(sequence)
        return await self._idle_within(_CANCEL_DEADLINE_S)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _check_open(self) -> None:
        if self._refusal:
            raise EngineFailed(self._refusal)

    def _fill_places(self) -> None:
        while self._waiting and len(self._running) < self.places:
            job = self._waiting.pop(0)
            now_s = self._clock.monotonic_s()
            sequence = job.request.sequence
            self._running[sequence] = job
            self._steps.open(sequence, now_s, prompt_tokens=job.encoded.prompt_tokens, queue_s=now_s - job.submitted_s)
            self._run(job)

    def _gather(self) -> None:
        if len(self._arrivals) >= len(self._running):
            self._report()
        else:
            self._loop.call_later(_GATHER_S, self._report)

    def _report(self) -> None:
        self._woken = False  # before taking, so that what comes now wakes the loop again
        self.report([self._arrivals.popleft() for _ in range(len(self._arrivals))])

    def _end_unstarted(self, job: Job, finish: FinishReason, error: tuple[str, str] | None = None) -> None:
        """Tells the end of a request that never ran; after the caller's turn, as all outputs come."""
        self._forget(job.request.sequence)
        output = SequenceOutput(
            sequence=job.request.sequence,
            token_count=0,
            text="",
            finish=finish,
            error=error,
            prompt_tokens=job.encoded.prompt_tokens,
            queue_s=self._clock.monotonic_s() - job.submitted_s,
        )
        self._loop.call_soon(self._on_step, [StepOutput(step_s=0.0, outputs=(output,), model=self.model)])

    def _forget(self, sequence: int) -> None:
        del self._jobs[sequence]
        if not self._jobs:
            self._idle.set()
