"""The router's metrics: what finished and how fast, what was refused, what broke, and how long a pick takes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Observation

from services.mesh import conventions as names
from services.mesh.errors import TokenworksError
from services.mesh.histograms import Histogram
from services.mesh.telemetry import Telemetry
from services.router.relay import Relay

_LABELS: Final = (names.GEN_AI_OPERATION, names.GEN_AI_REQUEST_MODEL, names.SLO_CLASS)
_TOKEN_BUCKETS: Final = (0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000)
_REACTION_BUCKETS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2, 5)
_DECISION_BUCKETS_S: Final = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


class Measures:
    """One router's instruments."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._meter = meter = telemetry.meter
        self._create = telemetry.histograms.create
        self._ttft = self._seconds(names.SERVER_TTFT, "Seconds to the client's first token", names.TTFT_BUCKETS_S)
        self._tpot = self._seconds(names.SERVER_TPOT, "Seconds per token after the first", names.TPOT_BUCKETS_S)
        self._duration = self._seconds(
            names.SERVER_DURATION, "Seconds a request took", names.DURATION_BUCKETS_S, names.ERROR_TYPE
        )
        self._decision = self._create(names.DECISION_DURATION, "s", "Seconds a pick took", _DECISION_BUCKETS_S, ())
        self._reaction = self._create(
            names.PLAN_REACTION,
            "s",
            "Seconds from news to the plan in force",
            _REACTION_BUCKETS_S,
            (names.PLAN_TRIGGER,),
        )
        self._tokens = self._create(
            names.CLIENT_TOKEN_USAGE,
            "{token}",
            "Tokens of a request",
            _TOKEN_BUCKETS,
            (*_LABELS, names.GEN_AI_TOKEN_TYPE),
        )
        self._refusals = meter.create_counter(names.REFUSALS, "{request}", "Requests not let in")
        self._broken = meter.create_counter(names.BROKEN_STREAMS, "{stream}", "Streams that a worker did not finish")

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Reports `count()` as the requests that run."""
        self._watch(count, names.IN_FLIGHT, "{request}", "Requests that run")

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Reports `count()` as the requests that wait for capacity."""
        self._watch(count, names.WAITING, "{request}", "Requests that wait for capacity")

    def watch_direct(self, count: Callable[[], int]) -> None:
        """Reports `count()` as the placements that are out."""
        self._watch(count, names.PLACEMENTS_OUT, "{placement}", "Placements not known to have ended")

    def decided(self, took_s: float) -> None:
        self._decision.record(took_s)

    def reacted(self, took_s: float, trigger: str) -> None:
        """A plan is in force, so long after the optimizer heard the news that called for it; between hosts whose clocks
        differ, by that much off."""
        self._reaction.record(max(0.0, took_s), trigger)

    def refused(self, error: TokenworksError) -> None:
        self._refusals.add(1, {names.ERROR_TYPE: error.reason})

    def broke(self, error: TokenworksError) -> None:
        self._broken.add(1, {names.ERROR_TYPE: error.reason})

    def finished(self, relay: Relay, now_s: float) -> None:
        asked, delivered_tokens = relay.asked, relay.delivered_tokens
        labels = ("chat", asked.model, asked.slo_class)
        self._duration.record(now_s - relay.admitted_s, *labels, relay.error.reason if relay.error else "")
        if delivered_tokens:
            self._ttft.record(relay.ttft_s, *labels)
            self._tokens.record(delivered_tokens, *labels, "output")
        if delivered_tokens > 1:
            self._tpot.record(relay.tpot_s, *labels)
        if relay.usage.prompt_tokens:
            self._tokens.record(relay.usage.prompt_tokens, *labels, "input")

    def _watch(self, count: Callable[[], int], name: str, unit: str, description: str) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(count())]

        self._meter.create_observable_gauge(name, [observe], unit, description)

    def _seconds(self, name: str, description: str, buckets_s: Sequence[float], *more: str) -> Histogram:
        return self._create(name, "s", description, buckets_s, (*_LABELS, *more))
