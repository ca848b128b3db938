"""What a mesh has recorded, as a trace that can be run again: under another policy, on another fleet.

In: `RequestAdmitted`, `RequestFinished` and `TokensGenerated`, in any order, each once or more. Out: the requests in
order of arrival, with what became of them; and the workers that served them. A request that never ended, or that ended
with an error before a token, is left out: how long its answer would have been is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.mesh.events import Outcome, RequestAdmitted, RequestFinished, TokensGenerated
from services.twin.traces import TraceRequest

_SOME_TOKENS: Final = 1


@dataclass(frozen=True, slots=True)
class Happened:
    """What really was.

    Attributes:
        slo_attainment: part of the requests whose promises were kept.
        busy_s, energy_j: of the workers, by what they reported; `busy_s` by accelerator.
        left_out: requests that cannot be run again.
    """

    requests: int
    delivered_tokens: int
    cached_tokens: int
    span_s: float
    slo_attainment: float
    attainment_by_class: Mapping[str, float]
    busy_s: Mapping[str, float]
    energy_j: float
    left_out: int


class Recording:
    """Collects events of one model, or of all.

    Args:
        model: empty: of all models, which are then run as if they were one.
    """

    def __init__(self, model: str = "") -> None:
        self._model = model
        self._finished: dict[str, RequestFinished] = {}
        self._admitted: dict[str, RequestAdmitted] = {}
        self._made: dict[tuple[str, int, str, int], tuple[str, int, int]] = {}
        self._accelerators: dict[str, str] = {}

    def note(self, event: object) -> None:
        """Folds one event; a second time changes nothing."""
        match event:
            case RequestFinished() if self._wanted(event.model):
                before = self._finished.get(event.request_id)
                # A resumed stream ends once at each of its deliverers; the one that went furthest ended it.
                if before is None or _end(event) > _end(before):
                    self._finished[event.request_id] = event
                if event.worker and event.accelerator:
                    self._accelerators[event.worker] = event.accelerator
            case RequestAdmitted() if self._wanted(event.model):
                self._admitted[event.request_id] = event
            case TokensGenerated():
                for place, entry in enumerate(event.entries):
                    if self._wanted(entry.model):
                        key = event.worker, event.at_unix_ms, entry.request_id, place
                        self._made[key] = event.accelerator, entry.device_ns, entry.energy_uj

    @property
    def fleet(self) -> Sequence[tuple[str, str]]:
        """Workers that ended requests, each with its accelerator, by name."""
        return sorted(self._accelerators.items())

    def ended(self) -> list[RequestFinished]:
        """How the requests of `trace` ended, one each, in its order."""
        return sorted(self._whole(), key=lambda each: (_arrived_unix_ms(each), each.request_id))

    def trace(self) -> list[TraceRequest]:
        """The requests that can be run again, in order of arrival."""
        ended = self.ended()
        first_ms = _arrived_unix_ms(ended[0]) if ended else 0
        return [
            TraceRequest(
                arrival_s=(_arrived_unix_ms(each) - first_ms) / 1000,
                prompt_tokens=each.prompt_tokens,
                completion_tokens=_end(each),
                tenant=each.tenant,
                workload=each.workload,
                slo_class=each.slo_class,
                model=each.model,
                session_id=admitted.session_id if admitted else "",
                max_tokens=admitted.max_tokens if admitted else 0,
            )
            for each, admitted in ((each, self._admitted.get(each.request_id)) for each in ended)
        ]

    def happened(self) -> Happened:
        """What was delivered, and what it took."""
        whole = self._whole()
        by_class: dict[str, list[bool]] = {}
        for each in whole:
            by_class.setdefault(each.slo_class, []).append(each.slo_met)
        busy_s: dict[str, float] = {}
        for accelerator, device_ns, _ in self._made.values():
            busy_s[accelerator] = busy_s.get(accelerator, 0.0) + device_ns / 1e9
        begun_ms = min((each.admitted_unix_ms for each in whole), default=0)
        return Happened(
            requests=len(whole),
            delivered_tokens=sum(_end(each) for each in whole),
            cached_tokens=sum(each.cached_prompt_tokens for each in whole),
            span_s=(max((each.at_unix_ms for each in whole), default=0) - begun_ms) / 1000,
            slo_attainment=_part([each.slo_met for each in whole]),
            attainment_by_class={name: _part(met) for name, met in sorted(by_class.items())},
            busy_s=busy_s,
            energy_j=sum(energy_uj for _, _, energy_uj in self._made.values()) / 1e6,
            left_out=len(self._finished) - len(whole),
        )

    def _wanted(self, model: str) -> bool:
        return not self._model or model == self._model

    def _whole(self) -> list[RequestFinished]:
        return [
            each
            for each in self._finished.values()
            if each.outcome != Outcome.ERROR and _end(each) >= _SOME_TOKENS and each.prompt_tokens >= _SOME_TOKENS
        ]


def since(trace: Sequence[TraceRequest], seconds: float) -> list[TraceRequest]:
    """The last `seconds` of a trace, from 0 on."""
    if not trace:
        return []
    from_s = max(0.0, trace[-1].arrival_s - seconds)
    kept = [each for each in trace if each.arrival_s >= from_s]
    return [replace(each, arrival_s=each.arrival_s - kept[0].arrival_s) for each in kept]


def _arrived_unix_ms(event: RequestFinished) -> int:
    """When it was asked for: it may have waited at its router before it was let in."""
    return min(event.admitted_unix_ms, event.at_unix_ms - round(event.e2e_s * 1000))


def _end(event: RequestFinished) -> int:
    return event.delivered_from + event.delivered_count


def _part(met: Sequence[bool]) -> float:
    return sum(met) / len(met) if met else 1.0
