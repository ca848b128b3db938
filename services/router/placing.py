"""Where a request goes: what is expected of it, the pick, the record of it for Explain, and its span.

In: a request in plain values. Out: a decision; and once it is carried out, what the fleet, the prefix index and the
plan's shares need to know of it.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from random import Random
from typing import Final

from opentelemetry.trace import Span, Status, StatusCode

from services.mesh import conventions as names
from services.mesh.clock import Clock
from services.mesh.errors import TokenworksError
from services.mesh.telemetry import Telemetry, context_of, links_to, trace_id_of
from services.router.core.estimates import Estimates
from services.router.core.fleet import Fleet
from services.router.core.known_worker import KnownWorker, Placed
from services.router.core.plans import PlanInForce
from services.router.core.policy import Decision, decide
from services.router.core.records import DecisionRecord
from services.router.core.request import Asked, Promise
from services.router.core.scores import Ask, Terms, terms_of
from services.router.core.tally import Tally
from services.router.measures import Measures

_SPAN_CANDIDATES: Final = 5
_NO_SPAN: Final = nullcontext()
_NOBODY: Final[frozenset[str]] = frozenset()


class Placing:
    """Decides and keeps count of what was decided.

    Args:
        max_queue_s: a worker predicted to queue a request longer is not picked.

    Attributes:
        tally: of what was carried out, for the other routers.
    """

    def __init__(
        self, fleet: Fleet, *, max_queue_s: float, clock: Clock, rng: Random, telemetry: Telemetry, measures: Measures
    ) -> None:
        self.tally = Tally()
        self._fleet = fleet
        self.max_queue_s = max_queue_s
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._measures = measures
        self._estimates = Estimates()

    def record(self, asked: Asked, ask: Ask, decision: Decision, traceparent: str, took_s: float) -> DecisionRecord:
        """Of a decision that took so long: for Explain, and as a span that is a child of `traceparent`."""
        plan = decision.plan
        if self._telemetry.exporting:
            with self._span(asked, plan, traceparent) as span:
                _describe(span, decision)
        self._measures.decided(took_s)
        return DecisionRecord(
            asked=asked,
            prompt_tokens=ask.prompt_tokens,
            completion_tokens=ask.completion_tokens,
            picked_worker=decision.worker.name,
            plan=plan.name if plan else "",
            plan_age_s=self._clock.monotonic_s() - plan.since_s if plan else 0.0,
            shortlist=decision.shortlist,
            trace_id=trace_id_of(traceparent),
            decided_unix_ms=self._clock.unix_ms(),
            decision_us=took_s * 1e6,
            lengths=self._estimates.lengths(asked),
        )

    def refused(self, asked: Asked, traceparent: str, error: TokenworksError) -> None:
        """The request goes nowhere: as a span that is a child of `traceparent`."""
        if self._telemetry.exporting:
            with suppress(TokenworksError), self._span(asked, self._fleet.plans.get(asked.model), traceparent):
                raise error

    def ask(self, asked: Asked, excluded: Collection[str] = (), made_tokens: int = 0) -> Ask:
        """What is to be placed: the request, less the `made_tokens` of its answer that exist, which are replayed."""
        prompt_tokens = self._estimates.prompt_tokens(asked.model, asked.prompt)
        return Ask(
            prompt_tokens=prompt_tokens + made_tokens,
            fewest_prompt_tokens=self._estimates.fewest_prompt_tokens(asked.prompt) + made_tokens,
            completion_tokens=self._estimates.completion_tokens(asked, made_tokens),
            mean_completion_tokens=self._estimates.mean_completion_tokens(asked.model),
            promise=self._fleet.promises.classes[asked.slo_class],
            cached=self._fleet.prefixes.expected(asked.model, asked.prompt.chain, prompt_tokens),
            excluded=frozenset(excluded) if excluded else _NOBODY,
            features=asked.features,
            confines=asked.confines,
            trial=self._fleet.trial_of(asked.model, asked.request_id),
        )

    def urgency(self, promise: Promise, prompt_tokens: int, waited_s: float) -> int:
        """The priority of a request that has waited so long; see `Promises.urgency`."""
        return self._fleet.promises.urgency(promise, promise.ttft_promise_s(prompt_tokens) - waited_s)

    def decide(self, asked: Asked, ask: Ask, max_queue_s: float | None = None, least_spare: float = 0.0) -> Decision:
        """A decision for the request: no span, no record.

        Args:
            max_queue_s: instead of the usual one.
            least_spare: see `policy.decide`.

        Raises:
            NoWorker, PromptTooLong, QueueFull: see `policy.decide`.
        """
        most_s = self.max_queue_s if max_queue_s is None else max_queue_s
        return decide(
            self._fleet,
            asked.model,
            ask,
            max_queue_s=most_s,
            now_s=self._clock.monotonic_s(),
            rng=self._rng,
            least_spare=least_spare,
        )

    def staying(self, asked: Asked, worker: KnownWorker, made_tokens: int) -> Terms | None:
        """The terms of what is left of a request on the worker that runs it, where its prompt is computed; None where
        that serves the model no more."""
        fleet = self._fleet
        fleet.write_down(self._clock.monotonic_s())
        table = fleet.models.get(asked.model)
        row = table.row_of.get(worker.slot) if table is not None else None
        if table is None or row is None:
            return None
        ask = self.ask(asked, made_tokens=made_tokens)
        *figures, _ = table.figures[:, row].tolist()
        return terms_of([*figures, ask.prompt_tokens], ask, fleet.promises.band_tpots_s)  # all of it is cached

    def carried_out(self, asked: Asked, ask: Ask, decision: Decision) -> Placed:
        """The request is on its way to the decision's worker."""
        worker, now_s = decision.worker, self._clock.monotonic_s()
        self._fleet.prefixes.placed(asked.prompt.chain, worker.slot, now_s)
        self.tally.add(
            worker.name,
            worker.beat.epoch,
            prefill_tokens=max(0, ask.prompt_tokens - decision.cached_tokens),
            prompt_tokens=ask.prompt_tokens,
        )
        plan = decision.plan
        if plan is not None and decision.workload_class is not None:
            plan.placed(decision.workload_class, worker.pool)
        return self._fleet.place(
            worker,
            model=asked.model,
            slo_class=asked.slo_class,
            priority=ask.promise.priority,
            prompt_tokens=ask.prompt_tokens,
            cached_tokens=decision.cached_tokens,
            completion_tokens=ask.completion_tokens,
            explored=decision.explored,
            now_s=now_s,
        )

    def learn(
        self,
        asked: Asked,
        worker: KnownWorker,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        expected_cached: int,
        cached_tokens: int,
    ) -> None:
        """An answer ended by itself, made by one worker: the next expectation can be better."""
        self._estimates.learn(asked, prompt_tokens, completion_tokens)
        prefixes = self._fleet.prefixes
        prefixes.learn(asked.model, expected_cached, cached_tokens, believed=prefixes.believes(worker.slot))

    @contextmanager
    def _span(self, asked: Asked, plan: PlanInForce | None, traceparent: str) -> Iterator[Span]:
        span = self._telemetry.tracer.start_span(
            names.ROUTE_SPAN.replace("{model}", asked.model),
            context_of(traceparent),
            links=links_to([plan.traceparent] if plan else []),
            attributes={
                names.REQUEST_ID: asked.request_id,
                names.GEN_AI_REQUEST_MODEL: asked.model,
                names.TENANT: asked.tenant,
                names.SLO_CLASS: asked.slo_class,
                names.PLAN: plan.name if plan else "",
            },
        )
        try:
            yield span
        except TokenworksError as error:
            span.set_attribute(names.ERROR_TYPE, error.reason)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end()


def _describe(span: Span, decision: Decision) -> None:
    picked = decision.picked
    best = [decision.shortlist.candidate(place) for place in range(min(_SPAN_CANDIDATES, len(decision.shortlist)))]
    span.set_attributes(
        {
            names.WORKER: picked.worker,
            names.POOL: picked.pool,
            names.ACCELERATOR: picked.accelerator,
            names.SCORE_USD: picked.score_usd,
            names.PREDICTED_TTFT_S: picked.ttft_s,
            names.PREDICTED_TPOT_S: picked.tpot_s,
            names.CANDIDATES: [f"{each.worker}={each.score_usd:.9f}" for each in best],
        }
    )
