"""A worker in virtual time: the engine's own scheduler, stepped by the timing model.

In: requests, faults. Out: first tokens and ends of requests, heartbeats and step samples as a worker publishes them.
The tokens themselves are only counted: what they say decides nothing.

Most steps do nothing but decode the requests of the step before. When such a step begins, the ends of those that will
be like it are worked out at once, and one event stands for all of them. Whatever asks the worker something first has
it `_catch_up` with the steps that have ended by then; whatever changes what comes has it `_look_again`, so that the
step in flight is the last that stands as foreseen. All sums are made step by step, in the same order: nothing that
comes of a run depends on how far was looked ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.mesh.accelerators import Accelerator
from services.mesh.events import LatencyObserved, RoutingPlan, StepSample, WorkerHeartbeat, WorkerState
from services.mesh.money import NUSD_PER_USD
from services.mesh.timing import StepLoad, Timing
from services.twin.timeline import Timeline
from services.worker.core.batching import BatchLimits, Scheduler, StepPlan
from services.worker.core.kv_cache import BLOCK_TOKENS
from services.worker.core.power import MEMORY_BOUND_UTILISATION, utilisation
from services.worker.core.sequences import BatchedSequence, Phase
from services.worker.core.step_sampler import StepSampler

UNIX_MS: Final = 1_767_225_600_000  # of virtual second 0


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through a worker.

    Attributes:
        prompt_tokens: of the prompt, and of what was made elsewhere before.
        new_tokens: still to make.
        hashes: chain hashes of its full 16-token blocks, as far as they are known.
        made: tokens made here, once it has ended or was broken off.
        cached_tokens: of the prompt that were found in the cache.
    """

    id: int
    prompt_tokens: int
    new_tokens: int
    priority: int
    hashes: Sequence[int] = ()
    made: int = 0
    cached_tokens: int = 0
    submitted_s: float = 0.0
    first_s: float = 0.0
    ended_s: float = 0.0


class Listener(Protocol):
    """Whoever sent the jobs."""

    def first_token(self, worker: "TwinWorker", job: Job) -> None: ...
    def ended(self, worker: "TwinWorker", job: Job) -> None: ...
    def broken(self, worker: "TwinWorker", job: Job) -> None:
        """The worker failed with the job on it."""
        ...


@dataclass(slots=True)
class Totals:
    """Since the start; `up_s`, `idle_j` and `usd` (rent and energy) up to the last change of state or price.

    Attributes:
        energy_j: of steps; what idling drew is in `idle_j`.
    """

    busy_s: float = 0.0
    energy_j: float = 0.0
    tokens: int = 0
    steps: int = 0
    up_s: float = 0.0
    idle_j: float = 0.0
    usd: float = 0.0


class TwinWorker:
    """One accelerator with one model.

    Attributes:
        state: as a heartbeat says it.
        totals: complete whenever a heartbeat or `finish` was asked for.
    """

    def __init__(
        self,
        name: str,
        device: Accelerator,
        model: str,
        timing: Timing,
        limits: BatchLimits,
        *,
        context_tokens: int,
        timeline: Timeline,
        listener: Listener,
        tariff_usd_per_kwh: float = 0.0,
        rank: int = 0,
        steps_ahead: int = 0,
    ) -> None:
        """
        Args:
            rank: of its steps' ends on the timeline, before those of higher ranks and before anything else.
            steps_ahead: that are worked out in one go at most.
        """
        self.name = name
        self.device = device
        self.model = model
        self.timing = timing
        self.limits = limits
        self.context_tokens = context_tokens
        self.state = WorkerState.READY
        self.totals = Totals()
        self._timeline = timeline
        self._listener = listener
        self._rank = rank
        self._steps_ahead = steps_ahead
        self._slow = 1.0
        self._scheduler = Scheduler(limits, timing=timing)
        self._tuned = (0.0, 0)
        self._jobs: dict[int, tuple[Job, BatchedSequence]] = {}
        self._plan: StepPlan | None = None  # of the step in flight
        self._step_s = 0.0
        # Of it and the steps that are foreseen to be like it: what each takes by the model, how slow, and when it ends.
        self._foreseen_s: list[float] = []
        self._foreseen_slow = 1.0
        self._ends_s: list[float] = []
        self._at = 0  # of the step in flight among them
        self._turn = 0  # the end of a step that was foreseen before this one's is void
        self._epoch = 0
        self._sequence = 0
        self._rate_usd_per_s = device.rate_nusd_per_hour / NUSD_PER_USD / 3600
        self._tariff_usd_per_j = tariff_usd_per_kwh / 3.6e6
        self._accounted_s = self._accounted_busy_s = self._accounted_j = 0.0
        self._seen_s = self._modelled_s = 0.0
        self._sampler = StepSampler()
        self._samples: list[StepSample] = []

    @property
    def load(self) -> int:
        """Requests there."""
        return len(self._jobs)

    def slow_down(self, factor: float) -> None:
        """From its next step on it takes `factor` times as long as modelled."""
        self._look_again()
        self._slow = factor

    def submit(self, job: Job) -> bool:
        """Takes a job; False when it cannot: the queue is full, the worker is down, or it would never fit."""
        scheduler = self._scheduler
        if self.state is not WorkerState.READY or scheduler.is_full:
            return False
        if not scheduler.fits(job.prompt_tokens, job.new_tokens):
            return False
        job.submitted_s, job.first_s = self._timeline.now_s, 0.0
        sequence = BatchedSequence(
            id=job.id,
            prompt_tokens=job.prompt_tokens,
            new_tokens=job.new_tokens,
            priority=job.priority,
            block_hashes=list(job.hashes),
        )
        self._jobs[job.id] = job, sequence
        self._look_again()
        scheduler.submit(sequence)
        if self._plan is None:
            self._begin_step()
        return True

    def tune(self, plan: RoutingPlan) -> None:
        """Obeys a plan, as far as it is about this worker's pool and model."""
        for pool in plan.pools if plan.model == self.model else ():
            if pool.pool == self.device.key:
                tuned = pool.step_s, pool.max_batch
                if tuned != self._tuned:
                    self._look_again()
                    self._tuned = tuned
                    self._scheduler.tune(*tuned)

    def fail(self) -> None:
        """It is gone, with all that it had."""
        self._account()
        self.state = WorkerState.FAILED
        self._turn += 1
        self._plan = None
        self._ends_s = []
        scheduler, self._scheduler = self._scheduler, Scheduler(self.limits, timing=self.timing)
        self._scheduler.tune(*self._tuned)
        lost, self._jobs = self._jobs, {}
        for job, sequence in lost.values():
            job.made = scheduler.made_tokens(sequence)
            self.totals.tokens += job.made
            self._listener.broken(self, job)

    def drain(self) -> None:
        """It takes nothing more, and is gone once what it has is done."""
        if self.state is WorkerState.READY:
            self._account()
            self.state = WorkerState.DRAINING
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if self.state is WorkerState.DRAINING and not self._jobs:
            self.fail()

    def ready(self) -> None:
        """It is back, with an empty cache."""
        if self.state is WorkerState.READY:
            return
        self._account()
        self.state = WorkerState.READY
        self._epoch += 1
        self._sequence = 0

    def start(self) -> None:
        """A failed worker is paid for again, and does nothing yet."""
        if self.state is WorkerState.FAILED:
            self._account()
            self.state = WorkerState.STARTING

    def reprice(self, rate_factor: float, tariff_factor: float) -> None:
        """From now on it costs so many times as much, and its energy."""
        self._account()
        self._rate_usd_per_s *= rate_factor
        self._tariff_usd_per_j *= tariff_factor

    def finish(self) -> None:
        """The run is over."""
        self._account()

    def _account(self) -> None:
        """Books what it cost since the last time, in the state and at the prices that it had."""
        self._catch_up()
        totals, now_s = self.totals, self._timeline.now_s
        if self.state is not WorkerState.FAILED:
            up_s = now_s - self._accounted_s
            idle_j = max(0.0, up_s - (totals.busy_s - self._accounted_busy_s)) * self.device.idle_w
            totals.up_s += up_s
            totals.idle_j += idle_j
            drawn_j = totals.energy_j - self._accounted_j + idle_j
            totals.usd += up_s * self._rate_usd_per_s + drawn_j * self._tariff_usd_per_j
        self._accounted_s, self._accounted_busy_s, self._accounted_j = now_s, totals.busy_s, totals.energy_j

    def heartbeat(self) -> WorkerHeartbeat:
        self._catch_up()
        scheduler, limits = self._scheduler, self.limits
        self._sequence += 1
        slowdown = self._seen_s / self._modelled_s if self._modelled_s else 1.0
        self._seen_s, self._modelled_s = self._seen_s / 2, self._modelled_s / 2
        return WorkerHeartbeat(
            worker=self.name,
            pool=self.device.key,
            accelerator=self.device.key,
            engine="simulated",
            models=(self.model,),
            address=self.name,
            epoch=f"{self.name}/{self._epoch}",
            sequence=self._sequence,
            state=self.state,
            running=scheduler.running,
            waiting=scheduler.waiting,
            waiting_prefill_tokens=scheduler.uncomputed_tokens,
            waiting_by_priority=scheduler.waiting_by_rank,
            prefill_tokens_by_priority=scheduler.uncomputed_by_rank,
            kv_cache_usage=scheduler.kv.usage,
            kv_capacity_tokens=limits.kv_blocks * BLOCK_TOKENS,
            context_tokens=self.context_tokens,
            max_batch=scheduler.max_batch,
            step_s=scheduler.step_s,
            max_waiting=limits.max_waiting,
            slowdown=slowdown,
            power_w=self.device.idle_w,
            busy_ns=int(self.totals.busy_s * 1e9),
            generated_tokens=self.totals.tokens,
            energy_uj=int(self.totals.energy_j * 1e6),
            simulated=True,
            rate_nusd_per_hour=round(self._rate_usd_per_s * 3600 * NUSD_PER_USD),
            failed_because="as scheduled" if self.state is WorkerState.FAILED else "",
            at_unix_ms=UNIX_MS + int(self._timeline.now_s * 1000),
            steps=self.totals.steps,
            prefill_chunk_tokens=limits.prefill_chunk_tokens,
        )

    def take_samples(self) -> LatencyObserved | None:
        """The steps sampled since the last call, as a worker reports them every 50 ms; None when there are none."""
        self._catch_up()
        if not self._samples:
            return None
        steps, self._samples = tuple(self._samples), []
        return LatencyObserved(
            worker=self.name,
            pool=self.device.key,
            accelerator=self.device.key,
            model=self.model,
            requests=(),
            steps=steps,
            at_unix_ms=UNIX_MS + int(self._timeline.now_s * 1000),
        )

    def _begin_step(self) -> None:
        plan = self._plan = self._scheduler.plan_step()
        if plan is None:
            return
        ahead = self._scheduler.like_it(self._steps_ahead) if self._steps_ahead and not plan.chunks else 0
        timing, slow, end_s = self.timing, self._slow, self._timeline.now_s
        foreseen_s = [timing.step_s(plan.load)] if not ahead else timing.decodes_s(plan.load, ahead + 1)
        ends_s = self._ends_s = []
        for modelled_s in foreseen_s:
            end_s += modelled_s * slow
            ends_s.append(end_s)
        self._foreseen_s, self._foreseen_slow, self._at = foreseen_s, slow, 0
        self._step_s = foreseen_s[0] * slow
        self._modelled_s += foreseen_s[0]
        self._seen_s += self._step_s
        self._expect_end()

    def _expect_end(self) -> None:
        """Of the last step that is foreseen."""
        self._turn += 1
        turn = self._turn
        self._timeline.at(self._ends_s[-1], lambda: self._end_step(turn), self._rank)

    def _catch_up(self) -> None:
        """Completes the foreseen steps that have ended by now, but for the last one, whose end is an event."""
        ends_s, first = self._ends_s, self._at
        last, now_s = len(ends_s) - 1, self._timeline.now_s
        if first >= last or ends_s[first] > now_s:
            return
        plan = self._plan
        assert plan is not None, "steps are foreseen from one on"
        load, totals, sampler, device, slow = plan.load, self.totals, self._sampler, self.device, self._foreseen_slow
        step_s, at, modelled_s = self._step_s, first, self._foreseen_s[first]
        while at < last and (end_s := ends_s[at]) <= now_s:
            totals.busy_s += step_s
            totals.energy_j += step_s * device.power_w(MEMORY_BOUND_UTILISATION * modelled_s / modelled_s)
            if sampler.wants(load, end_s):
                kv_tokens = load.kv_tokens + (at - first) * load.decode_sequences
                self._sampled(StepLoad(decode_sequences=load.decode_sequences, kv_tokens=kv_tokens), step_s)
            at += 1
            modelled_s = self._foreseen_s[at]
            step_s = modelled_s * slow
            self._modelled_s += modelled_s
            self._seen_s += step_s
        totals.steps += at - first
        self._step_s, self._at = step_s, at
        self._plan = self._scheduler.skip(at - first)

    def _look_again(self) -> None:
        """Something changes: after the step in flight it is to be seen what comes."""
        self._catch_up()
        if self._at < len(self._ends_s) - 1:
            del self._ends_s[self._at + 1 :]
            self._expect_end()

    def _end_step(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._catch_up()
        plan = self._plan
        assert plan is not None, "a step ends once"
        now_s, load, totals = self._timeline.now_s, plan.load, self.totals
        left = self._scheduler.complete_step()
        totals.steps += 1
        totals.busy_s += self._step_s
        totals.energy_j += self._step_s * self.device.power_w(utilisation(self.timing, load))
        if self._sampler.wants(load, now_s):
            self._sampled(load, self._step_s)
        for sequence, _, _ in plan.chunks:
            if sequence.phase in _BEGUN:
                job = self._jobs[sequence.id][0]
                if not job.first_s:
                    job.first_s, job.cached_tokens = now_s, sequence.cached_tokens
                    self._listener.first_token(self, job)
        for sequence in left:
            job, _ = self._jobs.pop(sequence.id)
            job.made, job.ended_s = sequence.made_tokens, now_s
            totals.tokens += job.made
            self._listener.ended(self, job)
        self._begin_step()
        self._leave_when_done()

    def _sampled(self, load: StepLoad, step_s: float) -> None:
        self._samples.append(
            StepSample(
                prefill_tokens=load.prefill_tokens,
                decode_sequences=load.decode_sequences,
                kv_tokens=load.kv_tokens,
                step_s=step_s,
                attended_tokens=load.attended_tokens,
            )
        )


_BEGUN: Final = (Phase.DECODE, Phase.ENDED)
