"""Every worker the router knows of, folded from events: who serves what, how loaded, how slow, under which plan.

In: heartbeats, step samples, plans, what prefix caches hold, the router's own placements, sessions that come and go.
Out: one `ModelTable` per model for `policy`, the `PrefixIndex`, and who is in trouble. Time is an argument: monotonic
seconds of this router, and its Unix milliseconds where a sender's clock is compared with ours.

Slowness is judged here, from step samples: observed over predicted step seconds under the timing in force. It adapts
within a few samples and decays towards 1 while nothing is observed, so that a worker that recovered is tried again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Final

from services.mesh.accelerators import Catalogue
from services.mesh.events import NO_PLAN_VERSION, LatencyObserved, PrefixesChanged, RoutingPlan, WorkerHeartbeat
from services.mesh.priorities import rank_of, yields
from services.mesh.timing import StepLoad, Timing
from services.router.core.exploration import Exploration
from services.router.core.known_worker import Correction, KnownWorker, Placed
from services.router.core.plans import PlanInForce, Trial
from services.router.core.prefixes import PrefixIndex
from services.router.core.promises import Promises
from services.router.core.scores import there_tpot_s
from services.router.core.serving import DevicePrice, Serving, bounded_slow
from services.router.core.table import ModelTable

_FORGET_AFTER_S: Final = 60.0
_MOST_WORKERS: Final = 16_384
_MOST_MODELS: Final = 4096
_MOVE_WHEN_STALLED_S: Final = 3.0
_MOVE_WHEN_SLOW: Final = 3.0  # times as slow as expected
_USUAL_LOAD: Final = StepLoad(decode_sequences=8, kv_tokens=8000)
_STAND_IN_MODEL: Final = "llama-3.1-8b"
_JOULES_PER_KWH: Final = 3.6e6
_NUSD_S_PER_HOUR: Final = 3.6e12  # nano-dollars per hour in a dollar per second


@dataclass(frozen=True, slots=True)
class Trouble:
    """A worker whose running requests are better moved."""

    worker: str
    because: str


@dataclass(frozen=True, slots=True)
class Slow:
    """A worker that takes much longer than expected; `tpot_s`: by model, seconds per token as it is there."""

    worker: str
    tpot_s: Mapping[str, float]


class Fleet:
    """The router's view of all workers.

    Args:
        catalogue: where timings and watts start.
        heartbeat_timeout_s: a worker silent for longer is lost, unless the whole bus is silent.
        tariff_usd_per_kwh: of energy.
        exploration: what may be spent on workers of which nothing is known lately.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        promises: Promises,
        *,
        heartbeat_timeout_s: float,
        tariff_usd_per_kwh: float,
        exploration: Exploration,
    ) -> None:
        self._catalogue = catalogue
        self._tariff_usd_per_kwh = tariff_usd_per_kwh
        self.promises = promises
        self.heartbeat_timeout_s = heartbeat_timeout_s
        self.exploration = exploration
        self.models: dict[str, ModelTable] = {}
        self.plans: dict[str, PlanInForce] = {}
        self.trials: dict[str, Trial] = {}
        self.prefixes = PrefixIndex()
        self._workers: dict[str, KnownWorker] = {}
        self._serving: dict[int, dict[str, Serving]] = {}  # by incarnation, then model
        self._incarnations = 0
        self._free_slots: list[int] = []  # a heap: low numbers keep what has a bit for each slot short
        self._heard_s = float("-inf")
        self._unwritten: dict[int, KnownWorker] = {}  # by incarnation, whose rows lag behind

    def __len__(self) -> int:
        return len(self._workers)

    def worker(self, name: str) -> KnownWorker | None:
        return self._workers.get(name)

    def workers(self) -> Iterator[KnownWorker]:
        return iter(self._workers.values())

    def bus_silent(self, now_s: float) -> bool:
        """Nobody was heard for the timeout: then it is the bus that is lost, and open sessions say who lives."""
        return now_s - self._heard_s > self.heartbeat_timeout_s

    def lost(self, worker: KnownWorker, now_s: float) -> bool:
        if not self._late(worker, now_s):
            return False
        return not (worker.linked and self.bus_silent(now_s))

    def _late(self, worker: KnownWorker, now_s: float) -> bool:
        return now_s - worker.heard_s > self.heartbeat_timeout_s

    def heartbeat(self, beat: WorkerHeartbeat, now_s: float, now_unix_ms: int) -> None:
        """Folds one heartbeat; one that comes out of order is ignored, and a worker more than `_MOST_WORKERS`: it is
        taken in once others have been silent for long enough to be dropped."""
        known = self._workers.get(beat.worker)
        if known is None and len(self._workers) >= _MOST_WORKERS:
            return
        if known is None or known.beat.epoch != beat.epoch:
            if known is not None and beat.epoch == known.epoch_before and not self._late(known, now_s):
                return  # the last words of an earlier epoch; no clock tells, since a host's may have been set back
            known = self._enter(beat, known, now_s)
        elif beat.sequence <= known.beat.sequence:
            return
        before = known.beat
        self._heard_s = now_s
        known.fold(beat, now_s, now_unix_ms)
        if not _same_offer(before, beat) or not self._serving[known.incarnation]:
            self._offer(known, now_s)
        self._write(known, now_s)

    def latency(self, observed: LatencyObserved, now_s: float) -> None:
        """Folds the step samples of one worker and model into its slowness."""
        known = self._workers.get(observed.worker)
        serving = self._serving[known.incarnation].get(observed.model) if known else None
        if known is None or serving is None:
            return
        seen_s = predicted_s = 0.0
        for step in observed.steps:
            load = StepLoad(step.prefill_tokens, step.attended_tokens, step.decode_sequences, step.kv_tokens)
            seen_s += step.step_s
            predicted_s += serving.timing.step_s(load)
        if seen_s > 0 and predicted_s > 0:
            serving.observe(seen_s, predicted_s, len(observed.steps), now_s)
            self._write(known, now_s)

    def prefixes_changed(self, event: PrefixesChanged, now_s: float) -> None:
        """Folds what a worker's prefix cache holds; of a worker or a start of it that is not known, nothing."""
        known = self._workers.get(event.worker)
        if known is not None and known.beat.epoch == event.epoch:
            self.prefixes.changed(known.slot, event, now_s)

    def plan(self, plan: RoutingPlan, traceparent: str, now_s: float) -> bool:
        """Puts a plan in force, or to the test; False: it is older than the one in force, or only advice.

        Versions tell, which grow whatever the clocks of optimizers say; one that nobody can have made is ignored too.

        Args:
            traceparent: context of the span that published it.
        """
        if plan.advisory:
            return False
        before = self.plans.get(plan.model)
        if plan.version >= NO_PLAN_VERSION or (before is not None and plan.version <= before.version):
            return False
        trial = self.trials.get(plan.model)
        if trial is not None and plan.version <= trial.version:
            return False
        if plan.canary_share > 0 and before is not None:  # where none is in force, there is nothing to try it beside
            self.trials[plan.model] = Trial(plan, traceparent, now_s, before)
            return True
        self.trials.pop(plan.model, None)
        self.plans[plan.model] = PlanInForce(plan, traceparent, now_s, before)
        if len(self.plans) > _MOST_MODELS:
            idle = next((model for model in self.plans if not self.models.get(model)), next(iter(self.plans)))
            del self.plans[idle]
            self.trials.pop(idle, None)
        table = self.models.get(plan.model)
        for serving in table.serving if table else ():
            old_s = serving.timing.step_s(_USUAL_LOAD)
            serving.timing, shadow_usd_per_s = self._planned(serving.worker, plan.model)
            serving.price = replace(serving.price, shadow_usd_per_s=shadow_usd_per_s)
            # Observed = predicted * slow must not jump because the prediction was refitted.
            if (new_s := serving.timing.step_s(_USUAL_LOAD)) > 0:
                serving.slow = bounded_slow(serving.slow * old_s / new_s)
            serving.write_offer()
            self._write(serving.worker, now_s)
        return True

    def trial_of(self, model: str, request_id: str) -> Trial | None:
        """The plan that is tried, where the request follows it; None where it follows the one in force."""
        trial = self.trials.get(model)
        return trial if trial is not None and trial.has(request_id) else None

    def place(
        self,
        worker: KnownWorker,
        *,
        model: str,
        slo_class: str,
        priority: int,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        explored: bool,
        now_s: float,
    ) -> Placed:
        """Notes a request sent to `worker`, which serves `model`; give it back with `finished`."""
        self.exploration.placed(explored)
        fresh = max(0, prompt_tokens - cached_tokens)
        promise = self.promises.classes[slo_class]
        correction = Correction(now_s, 1, fresh, prompt_tokens, rank_of(priority))
        worker.correct(correction)
        worker.growth_tokens += completion_tokens / 2
        serving = self._serving[worker.incarnation][model]
        serving.arrive(
            promise,
            priority=priority,
            fresh_tokens=fresh,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            now_s=now_s,
        )
        serving.begins(self.promises.band_of(slo_class), promise.miss_usd, yields(priority))
        self._unwritten[worker.incarnation] = worker
        return Placed(worker, model, slo_class, prompt_tokens, completion_tokens, correction, yields(priority))

    def placed_by_others(
        self, worker: str, epoch: str, *, requests: int, prefill_tokens: int, prompt_tokens: int, now_s: float
    ) -> None:
        """Other routers sent requests to a worker; counts until a heartbeat shows them."""
        known = self._workers.get(worker)
        if known is not None and known.beat.epoch == epoch:
            known.correct(Correction(now_s, requests, prefill_tokens, prompt_tokens))
            self._write(known, now_s)

    def prefilled(self, placed: Placed, now_s: float) -> None:
        """The request's first token came."""
        if not placed.done:
            placed.worker.prefilled(placed.correction)
            self._unwritten[placed.worker.incarnation] = placed.worker

    def finished(self, placed: Placed, now_s: float) -> None:
        """The request no longer runs there. Calling it again changes nothing."""
        if placed.done:
            return
        placed.done = True
        worker = placed.worker
        worker.growth_tokens -= placed.completion_tokens / 2
        if not worker.undo(placed.correction):
            ended_tokens = placed.prompt_tokens + placed.completion_tokens
            worker.correct(Correction(now_s, -1, 0, -ended_tokens, placed.correction.rank))
        serving = self._serving.get(worker.incarnation, {}).get(placed.model)
        if serving is not None:  # else the worker left meanwhile
            band = self.promises.band_of(placed.slo_class)
            serving.ends(band, self.promises.classes[placed.slo_class].miss_usd, placed.yields)
            self._unwritten[worker.incarnation] = worker

    def linked(self, name: str, stands: bool, now_s: float) -> None:
        """The session to a worker was opened, or was lost or could not be opened."""
        known = self._workers.get(name)
        if known is not None:
            known.linked, known.unreachable = stands, not stands
            self._write(known, now_s)

    def write_down(self, now_s: float) -> None:
        """Brings the tables in line with what was placed and has ended: for who reads them next, since between two
        picks a request begins, computes its prompt and ends, and each changes its worker's row."""
        if self._unwritten:
            unwritten, self._unwritten = self._unwritten, {}
            for known in unwritten.values():
                self._write(known, now_s)

    def troubled(self, now_s: float) -> list[Trouble]:
        """Workers that are linked and yet do nothing: their engine stands still, or they are silent."""
        found = []
        for known in self._workers.values():
            if known.linked and known.stands_still(_MOVE_WHEN_STALLED_S):
                found.append(Trouble(known.name, f"its engine has stood still for {known.stalled_s:.1f} s"))
            elif known.linked and self.lost(known, now_s):
                found.append(Trouble(known.name, f"no heartbeat for {now_s - known.heard_s:.1f} s"))
        return found

    def slow(self, now_s: float) -> list[Slow]:
        """Linked workers whose steps take a multiple of what is expected, as observed lately."""
        self.write_down(now_s)
        found = []
        for known in self._workers.values():
            if not known.linked:
                continue
            tpot_s = {
                model: there_tpot_s(serving.table.figures[:, serving.row].tolist(), len(self.promises.band_tpots_s))
                for model, serving in self._serving[known.incarnation].items()
                if serving.decayed_slow(now_s) >= _MOVE_WHEN_SLOW
            }
            if tpot_s:
                found.append(Slow(known.name, tpot_s))
        return found

    def forget(self, now_s: float) -> list[str]:
        """Drops workers that have been silent for a minute; their names. A silent bus drops nobody."""
        if self.bus_silent(now_s):
            return []
        gone = [each for each in self._workers.values() if now_s - each.heard_s > _FORGET_AFTER_S]
        for known in gone:
            self._leave(known)
            del self._workers[known.name]
        return [known.name for known in gone]

    def _enter(self, beat: WorkerHeartbeat, before: KnownWorker | None, now_s: float) -> KnownWorker:
        if before is not None:
            self._leave(before)
        self._incarnations += 1
        slot = heappop(self._free_slots) if self._free_slots else len(self._serving)
        linked = before is not None and before.linked  # a session may stand again before its worker's first heartbeat
        known = KnownWorker(self._incarnations, slot, beat, now_s, now_s, now_s, linked=linked)
        known.epoch_before = before.beat.epoch if before is not None else ""
        self._workers[beat.worker] = known
        self._serving[known.incarnation] = {}
        return known

    def _leave(self, known: KnownWorker) -> None:
        self.prefixes.forget(known.slot)
        heappush(self._free_slots, known.slot)
        for model, serving in self._serving.pop(known.incarnation).items():
            self.models[model].remove(serving.row)
        if len(self.models) > _MOST_MODELS:  # those that nobody serves any more are remembered as long as there is room
            self.models = {model: table for model, table in self.models.items() if len(table)}

    def _offer(self, known: KnownWorker, now_s: float) -> None:
        """Brings the rows of a worker in line with the models it serves and what it is."""
        beat, mine = known.beat, self._serving[known.incarnation]
        for model in set(mine) - set(beat.models):
            self.models[model].remove(mine.pop(model).row)
        device = self._catalogue.find(beat.accelerator)
        watts = device.tdp_w if device else max(beat.power_w, 0.0)
        bands = len(self.promises.band_tpots_s)
        for model in beat.models:
            timing, shadow_usd_per_s = self._planned(known, model)
            table = self.models.get(model)
            if table is None:
                table = self.models[model] = ModelTable(model, bands)
            serving = Serving(
                worker=known,
                table=table,
                timing=timing,
                price=DevicePrice(
                    use_usd_per_s=beat.rate_nusd_per_hour / _NUSD_S_PER_HOUR,
                    energy_usd_per_s=watts * self._tariff_usd_per_kwh / _JOULES_PER_KWH,
                    shadow_usd_per_s=shadow_usd_per_s,
                ),
                slow=bounded_slow(beat.slowdown) if beat.slowdown > 0 else 1.0,
                slow_s=now_s,
                at_stake_usd=[0.0] * bands,
            )
            if (before := mine.get(model)) is not None:
                serving.row, serving.at_stake_usd = before.row, before.at_stake_usd
                serving.yielding_usd = before.yielding_usd
                serving.ours, serving.yielding = before.ours, before.yielding
                serving.slow, serving.slow_s = before.slow, before.slow_s
                serving.tried_s = before.tried_s
                table.replace(serving.row, serving)
            else:
                serving.row = table.add(serving)
            serving.write_offer()
            mine[model] = serving

    def _write(self, known: KnownWorker, now_s: float) -> None:
        for serving in self._serving.get(known.incarnation, {}).values():
            serving.write(now_s)

    def _planned(self, known: KnownWorker, model: str) -> tuple[Timing, float]:
        """Timing and shadow price in force: the plan's for the worker's pool, else the catalogue's and none."""
        plan = self.plans.get(model)
        pool = plan.pools.get(known.beat.pool) if plan else None
        timing = (pool.timing if pool else None) or self._catalogue_timing(known.beat.accelerator, model)
        return timing, pool.shadow_usd_per_s if pool else 0.0

    def _catalogue_timing(self, accelerator: str, model: str) -> Timing:
        catalogue = self._catalogue
        shape = catalogue.models.get(model) or catalogue.models[_STAND_IN_MODEL]
        device = catalogue.find(accelerator)
        if device is None:  # unknown hardware starts as the slowest known; its step samples soon tell
            device = min(catalogue.accelerators.values(), key=lambda each: each.bandwidth_bytes_s)
        return catalogue.timing(device, shape)


def _same_offer(one: WorkerHeartbeat, other: WorkerHeartbeat) -> bool:
    """Whether two heartbeats of a worker tell of the same device with the same settings."""
    return (
        one.models == other.models
        and one.pool == other.pool
        and one.accelerator == other.accelerator
        and one.rate_nusd_per_hour == other.rate_nusd_per_hour
        and one.features == other.features
        and one.region == other.region
        and one.vendor == other.vendor
        and one.data_classes == other.data_classes
        and one.prefill_chunk_tokens == other.prefill_chunk_tokens
    )
