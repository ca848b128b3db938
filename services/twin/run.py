"""One run in virtual time: a trace, a fleet, a policy; every request from arrival to end.

In: a `Scenario`, the trace's requests, and who decides. Out: an `Outcome`: every request with its times, every worker
with its totals. The same arguments give the same outcome, whatever the machine.

A broken stream goes on elsewhere at its next token, as in the mesh: prompt and made tokens are computed again.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from services.mesh.accelerators import Accelerator, Catalogue
from services.mesh.errors import SettingInvalid
from services.twin.mesh_policy import MeshPolicy
from services.twin.policies import BASELINES, Baseline, Policy, Verdict
from services.twin.requests import TwinRequest, requests_of
from services.twin.scaling import Scaling
from services.twin.scenario import EVENTS, Event, Scenario, by_name
from services.twin.timeline import Timeline
from services.twin.traces import TraceRequest
from services.twin.worker import Job, Listener, TwinWorker
from services.worker.core.batching import BatchLimits
from services.worker.core.kv_cache import BLOCK_TOKENS

_MOST_TRIES: Final = 5
_RETRY_S: Final = 0.05
_REPORT_S: Final = 0.05
_SETTLE_S: Final = 0.01
_COLLECT_EVERY: Final = 200_000  # objects
_ROUNDING: Final = 1e-6

PolicyMaker = Callable[[Scenario, Catalogue, Sequence[TwinWorker]], Policy]


def _baseline(kind: type[Baseline]) -> PolicyMaker:
    return lambda scenario, catalogue, workers: kind(workers, scenario.seed)


POLICIES: Final[dict[str, PolicyMaker]] = {
    "tokenworks": MeshPolicy,
    "tokenworks-unplanned": lambda scenario, catalogue, workers: MeshPolicy(scenario, catalogue, planned=False),
    **{kind.name: _baseline(kind) for kind in BASELINES},
}


def policy_maker(name: str) -> PolicyMaker:
    """Raises SettingInvalid: no policy is called so."""
    try:
        return POLICIES[name]
    except KeyError:
        raise SettingInvalid(f"policy {name!r} is not known; use one of: {', '.join(POLICIES)}") from None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went.

    Attributes:
        span_s: virtual seconds from the first arrival to the last end.
        hopeless: it was given up before its end; see `simulate`.
        cpu_s: processor seconds that the run took.
    """

    policy: str
    scenario: Scenario
    requests: Sequence[TwinRequest]
    workers: Sequence[TwinWorker]
    span_s: float
    cpu_s: float
    hopeless: bool = False


class _Run:
    """The state of one run; listens to its workers."""

    def __init__(
        self,
        scenario: Scenario,
        catalogue: Catalogue,
        trace: Sequence[TraceRequest],
        policy: PolicyMaker,
        least_attainment: float,
    ) -> None:
        self._scenario = scenario
        self._timeline = Timeline()
        there, more = scenario.fleet.workers, scenario.not_yet_there(catalogue)
        self.workers = [
            _worker(name, device, scenario, catalogue, timeline=self._timeline, listener=self, rank=rank)
            for rank, (name, device) in enumerate((*there, *more))
        ]
        for worker in self.workers[len(there) :]:
            worker.fail()
        self._scaling = Scaling(self._timeline, self.workers, scenario.elastic, self._told)
        self._by_name = {each.name: each for each in self.workers}
        self.policy = policy(scenario, catalogue, self.workers)
        promises = dict(by_name(scenario.classes))
        self.requests = list(requests_of(trace, scenario.class_names(trace), promises, scenario.speed))
        self._open = len(self.requests)
        counts = Counter(each.promise.name for each in self.requests)
        self._may_miss = {name: count * (1.0 - least_attainment) + _ROUNDING for name, count in counts.items()}
        self.hopeless = False
        self._next = 0
        self._settling = False

    def go(self) -> float:
        """Runs to the end; the virtual second of it."""
        timeline, scenario = self._timeline, self._scenario
        self._beat()
        self._report()
        for event in scenario.events:
            timeline.at(event.at_s, partial(self._befall, event))
        if self.requests:
            timeline.at(self.requests[0].arrival_s, self._arrive)
            timeline.run(self.requests[-1].arrival_s + scenario.drain_s)
        for request in self.requests:
            if not request.outcome:
                request.outcome = "unfinished"
        for worker in self.workers:
            worker.finish()
        return timeline.now_s

    def first_token(self, worker: TwinWorker, job: Job) -> None:
        request = self.requests[job.id]
        now_s = self._timeline.now_s + self._scenario.hop_s
        if not request.first_s:
            request.first_s = now_s + self._scenario.hop_s
        request.cached_tokens = max(request.cached_tokens, job.cached_tokens)
        self.policy.first_token(request, worker.name, now_s)

    def ended(self, worker: TwinWorker, job: Job) -> None:
        request = self.requests[job.id]
        request.delivered += job.made
        request.last_s = job.ended_s + 2 * self._scenario.hop_s
        self.policy.left(request, worker.name, self._timeline.now_s)
        self._finish(request, "length")

    def broken(self, worker: TwinWorker, job: Job) -> None:
        request = self.requests[job.id]
        request.delivered += job.made
        request.tries += 1
        self.policy.left(request, worker.name, self._timeline.now_s)
        if request.delivered >= request.completion_tokens:
            request.last_s = self._timeline.now_s
            self._finish(request, "length")
            return
        self._timeline.after(self._scenario.hop_s, partial(self._place, request, (worker.name,)))

    def _arrive(self) -> None:
        request = self.requests[self._next]
        self._next += 1
        if self._next < len(self.requests):
            self._timeline.at(self.requests[self._next].arrival_s, self._arrive)
        self._timeline.after(self._scenario.hop_s, partial(self._admit, request))

    def _admit(self, request: TwinRequest) -> None:
        verdict = self.policy.admit(request, self._timeline.now_s)
        if verdict is None:
            self._again(request, ())
        elif verdict is not Verdict.WAITS:
            self._settled(request, verdict)
        elif not self._settling:
            self._settling = True
            self._timeline.after(_SETTLE_S, self._settle)

    def _settle(self) -> None:
        """Looks after those that wait, as often as a router does."""
        for request, verdict in self.policy.settle(self._timeline.now_s):
            self._settled(request, verdict)
        self._settling = self.policy.waiting > 0
        if self._settling:
            self._timeline.after(_SETTLE_S, self._settle)

    def _settled(self, request: TwinRequest, verdict: str | Verdict) -> None:
        if isinstance(verdict, Verdict):
            self._finish(request, "refused")
        else:
            self._timeline.after(self._scenario.hop_s, partial(self._submit, request, verdict))

    def _place(self, request: TwinRequest, avoid: tuple[str, ...]) -> None:
        now_s = self._timeline.now_s
        name = self.policy.pick(request, avoid, now_s)
        if name is None:
            self._again(request, avoid)
            return
        self.policy.placed(request, name, now_s)
        self._timeline.after(self._scenario.hop_s, partial(self._submit, request, name))

    def _submit(self, request: TwinRequest, name: str) -> None:
        job = Job(
            id=request.index,
            prompt_tokens=request.prompt_tokens + request.delivered,
            new_tokens=request.completion_tokens - request.delivered,
            priority=request.priority,
            hashes=request.hashes() if request.prefix else (),
        )
        if self._by_name[name].submit(job):
            request.legs.append(name)
            return
        self.policy.left(request, name, self._timeline.now_s)
        self._again(request, (name,))

    def _again(self, request: TwinRequest, avoid: tuple[str, ...]) -> None:
        request.tries += 1
        if request.tries >= _MOST_TRIES:
            self._finish(request, "refused")
            return
        self._timeline.after(_RETRY_S * 2**request.tries, partial(self._place, request, avoid))

    def _finish(self, request: TwinRequest, outcome: str) -> None:
        request.outcome = outcome
        self._open -= 1
        if not request.slo_met:
            self._may_miss[request.promise.name] -= 1
            if self._may_miss[request.promise.name] < 0:
                self.hopeless = True
                self._timeline.stop()
        self.policy.finished(request, self._timeline.now_s)

    def _beat(self) -> None:
        now_s = self._timeline.now_s
        for worker in self.workers:
            self.policy.heard(worker.heartbeat(), now_s)
        self.policy.tick(now_s)
        self._scaling.carry_out(self.policy.targets)
        if self._open:
            self._timeline.after(self._scenario.heartbeat_s, self._beat)

    def _report(self) -> None:
        now_s = self._timeline.now_s
        for worker in self.workers:
            if (samples := worker.take_samples()) is not None:
                self.policy.heard(samples, now_s)
        if self._open:
            self._timeline.after(_REPORT_S, self._report)

    def _befall(self, event: Event) -> None:
        for name in event.workers:
            worker = self._by_name[name]
            match event.kind:
                case "slow":
                    worker.slow_down(event.amount)
                    continue
                case "fail":
                    worker.fail()
                case "start":
                    worker.start()
                    self._timeline.after(event.amount, partial(self._befall, Event(0.0, "ready", (name,))))
                case "ready":
                    worker.ready()
                case "price":
                    worker.reprice(event.amount, 1.0)
                case _:
                    worker.reprice(1.0, event.amount)
            self._told(worker)

    def _told(self, worker: TwinWorker) -> None:
        self.policy.heard(worker.heartbeat(), self._timeline.now_s)


def simulate(
    scenario: Scenario,
    catalogue: Catalogue,
    trace: Sequence[TraceRequest],
    policy: str,
    *,
    least_attainment: float = 0.0,
) -> Outcome:
    """Runs the trace on the fleet under the policy.

    Args:
        least_attainment: 0 to 1; once a class has missed so many promises that it falls below, whatever comes, the run
            is given up.

    Raises:
        SettingInvalid: the policy, the model or a worker that an event names is not known; or the model does not fit;
            or pools are elastic, and the policy makes no plans that say how many there should be.
    """
    maker = policy_maker(policy)
    if scenario.elastic and policy != MeshPolicy.name:
        raise SettingInvalid(f"policy {policy!r} says of no pool how many replicas it wants; use {MeshPolicy.name!r}")
    known = {name for name, _ in scenario.fleet.workers}
    for event in scenario.events:
        if event.kind not in EVENTS:
            raise SettingInvalid(f"{event.kind!r} at {event.at_s:g} s is none of: {', '.join(EVENTS)}")
        if missing := sorted(set(event.workers) - known):
            raise SettingInvalid(f"worker {missing[0]!r} of the event at {event.at_s:g} s is not in the fleet")
    started_s = time.process_time()
    with _collecting_seldom():
        run = _Run(scenario, catalogue, trace, maker, least_attainment)
        span_s = run.go()
    cpu_s = time.process_time() - started_s
    return Outcome(policy, scenario, run.requests, run.workers, span_s, cpu_s, run.hopeless)


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """A run keeps all its requests, which have no cycles: looking for garbage among them took a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _worker(
    name: str,
    device: Accelerator,
    scenario: Scenario,
    catalogue: Catalogue,
    *,
    timeline: Timeline,
    listener: Listener,
    rank: int,
) -> TwinWorker:
    shape = catalogue.model(scenario.model)
    timing = catalogue.timing(device, shape)
    blocks = catalogue.kv_capacity_tokens(device, shape) // BLOCK_TOKENS
    if blocks < 1:
        raise SettingInvalid(f"{scenario.model} does not fit into {device.key}; leave it out of the fleet")
    limits = BatchLimits(
        max_batch=scenario.engine.max_batch,
        max_waiting=scenario.engine.max_waiting,
        prefill_chunk_tokens=scenario.engine.chunk_tokens(timing),
        kv_blocks=blocks,
    )
    return TwinWorker(
        name,
        device,
        scenario.model,
        timing,
        limits,
        context_tokens=min(shape.context_tokens, blocks * BLOCK_TOKENS),
        timeline=timeline,
        listener=listener,
        tariff_usd_per_kwh=scenario.tariff_usd_per_kwh,
        rank=rank,
        steps_ahead=scenario.steps_ahead,
    )
