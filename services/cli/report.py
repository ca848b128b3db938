"""What a run of traffic came to, from the client's side and the meter's: pure arithmetic.

In: one `Outcome` per request, as the client saw it, and what the meter booked meanwhile. Out: one document (plain
dictionaries, as `--json` prints it) with latencies, promises kept, failures by reason, money per million tokens, and
whether clients and meter agree to the token and the nano-dollar.

Percentiles interpolate linearly between the closest ranks. TPOT is the mean gap after the first token. A promise is
judged here as the client felt it; a request that was refused or failed has not kept it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.mesh.errors import CallerError, CapacityError, from_reason

QUANTILES: Final = (0.50, 0.90, 0.99)
_TRACES_SHOWN: Final = 3
_FAILURES_SHOWN: Final = 5
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """TTFT within `ttft_s + ttft_s_per_prompt_token * prompt_tokens`, TPOT within `tpot_s`."""

    ttft_s: float
    ttft_s_per_prompt_token: float
    tpot_s: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request as its client saw it.

    Attributes:
        ttft_s: None when no token came.
        tpot_s: None when fewer than two tokens came.
        late_s: how much later than the trace says it was sent.
        completion_tokens: received, whatever the end.
        reason: a finish reason, or an error's name.
        error: the error's message; empty when the stream finished.
        segments: (worker, accelerator, tokens).
    """

    request_id: str
    trace_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    prompt_tokens: int
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float = 0.0
    late_s: float = 0.0
    reason: str = ""
    error: str = ""
    price_nusd: int = 0
    segments: tuple[tuple[str, str, int], ...] = ()

    @property
    def refused(self) -> bool:
        """The mesh said no before it did anything: the request was wrong, or the mesh was full."""
        return bool(self.error) and not self.completion_tokens and _is_refusal(self.reason)

    @property
    def failed(self) -> bool:
        return bool(self.error) and not self.refused

    def kept(self, promise: Promise) -> bool:
        if self.error or self.ttft_s is None:
            return False
        in_time = self.ttft_s <= promise.ttft_s + promise.ttft_s_per_prompt_token * self.prompt_tokens
        return in_time and (self.tpot_s is None or self.tpot_s <= promise.tpot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What the meter booked for some of the traffic."""

    requests: int = 0
    prompt_tokens: int = 0
    delivered_tokens: int = 0
    generated_tokens: int = 0
    price_nusd: int = 0
    use_cost_nusd: int = 0
    energy_cost_nusd: int = 0
    device_ns: int = 0
    energy_uj: int = 0
    measured_energy_uj: int = 0
    finished_requests: int = 0
    slo_met_requests: int = 0

    def __add__(self, other: "Booked") -> "Booked":
        return Booked(**{name: getattr(self, name) + getattr(other, name) for name in Booked.__slots__})

    def __sub__(self, earlier: "Booked") -> "Booked":
        return Booked(**{name: getattr(self, name) - getattr(earlier, name) for name in Booked.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the meter booked during a run, in total and by what the report groups by."""

    total: Booked
    by_accelerator: Mapping[str, Booked]
    by_tenant_workload: Mapping[tuple[str, str], Booked]
    by_slo_class: Mapping[str, Booked]
    lag_events: int
    waited_s: float


@dataclass(slots=True)
class Run:
    """A run of traffic while it goes on.

    Attributes:
        promises: by SLO class, as the client judges them.
        synthesised: what the trace did not say and was made up, in words.
    """

    promises: Mapping[str, Promise]
    synthesised: Sequence[str] = ()
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    @property
    def completion_tokens(self) -> int:
        return sum(each.completion_tokens for each in self.outcomes)

    @property
    def finished(self) -> int:
        return sum(1 for each in self.outcomes if not each.error)

    def document(self, books: Books | None, *, duration_s: float, cpu_s: float) -> Document:
        """The whole report.

        Args:
            books: None where the meter could not be asked.
            duration_s: from the first request sent to the last stream ended.
            cpu_s: processor time this client used meanwhile.
        """
        tokens = self.completion_tokens
        outcomes = self.outcomes
        return {
            "requests": {
                "sent": len(outcomes),
                "finished": self.finished,
                "refused": sum(1 for each in outcomes if each.refused),
                "failed": sum(1 for each in outcomes if each.failed),
                "by_reason": dict(Counter(each.reason for each in outcomes).most_common()),
            },
            "tokens": {
                "prompt": sum(each.prompt_tokens for each in outcomes if not each.error),
                "cached_prompt": sum(each.cached_prompt_tokens for each in outcomes),
                "completion": tokens,
            },
            "duration_s": duration_s,
            "tokens_per_s": tokens / duration_s if duration_s > 0 else 0.0,
            "latency": {
                "ttft_s": quantiles([each.ttft_s for each in outcomes if each.ttft_s is not None]),
                "tpot_s": quantiles([each.tpot_s for each in outcomes if each.tpot_s is not None]),
                "e2e_s": quantiles([each.e2e_s for each in outcomes if not each.error]),
            },
            "slo": self._slo(books),
            "by_accelerator": self._by_accelerator(books),
            "by_tenant_workload": self._by_tenant_workload(books),
            "money": _money(books.total) if books else None,
            "meter": self._agreement(books) if books else None,
            "client": {
                "cpu_us_per_token": cpu_s * 1e6 / tokens if tokens else None,
                "sent_late_s": quantiles([each.late_s for each in outcomes]),
            },
            "traces": [
                {"request_id": each.request_id, "trace_id": each.trace_id, "model": each.model}
                for each in outcomes
                if not each.error
            ][:_TRACES_SHOWN],
            "failures": [
                {"request_id": each.request_id, "trace_id": each.trace_id, "reason": each.reason, "message": each.error}
                for each in outcomes
                if each.error
            ][:_FAILURES_SHOWN],
            "synthesised": list(self.synthesised),
        }

    def _slo(self, books: Books | None) -> list[Document]:
        rows = []
        for slo_class, group in _grouped(self.outcomes, lambda each: each.slo_class).items():
            promise = self.promises.get(slo_class)
            met = sum(1 for each in group if promise and each.kept(promise))
            booked = books.by_slo_class.get(slo_class, Booked()) if books else Booked()
            rows.append(
                {
                    "slo_class": slo_class,
                    "requests": len(group),
                    "met": met,
                    "attainment": met / len(group),
                    "router_finished": booked.finished_requests,
                    "router_met": booked.slo_met_requests,
                    "ttft_s": quantiles([each.ttft_s for each in group if each.ttft_s is not None]),
                    "tpot_s": quantiles([each.tpot_s for each in group if each.tpot_s is not None]),
                }
            )
        return rows

    def _by_accelerator(self, books: Books | None) -> list[Document]:
        requests: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for each in self.outcomes:
            for accelerator in {accelerator for _, accelerator, _ in each.segments}:
                requests[accelerator] += 1
            for _, accelerator, count in each.segments:
                tokens[accelerator] += count
        names = sorted({*tokens, *(books.by_accelerator if books else ())} - {""}, key=lambda name: -tokens[name])
        return [
            {"accelerator": name, "requests": requests[name], "completion_tokens": tokens[name]}
            | _money(books.by_accelerator.get(name, Booked()) if books else Booked())
            for name in names
        ]

    def _by_tenant_workload(self, books: Books | None) -> list[Document]:
        groups = _grouped(self.outcomes, lambda each: (each.tenant, each.workload))
        return [
            {
                "tenant": tenant,
                "workload": workload,
                "requests": len(group),
                "prompt_tokens": sum(each.prompt_tokens for each in group if not each.error),
                "completion_tokens": sum(each.completion_tokens for each in group),
            }
            | _money(books.by_tenant_workload.get((tenant, workload), Booked()) if books else Booked())
            for (tenant, workload), group in sorted(groups.items())
        ]

    def _agreement(self, books: Books) -> Document:
        """Clients' count against the meter's; prices are compared where every stream told its price."""
        price_nusd = sum(each.price_nusd for each in self.outcomes)
        told = not any(each.error and each.completion_tokens for each in self.outcomes)
        tokens = self.completion_tokens
        booked = books.total
        return {
            "equal": tokens == booked.delivered_tokens and (not told or price_nusd == booked.price_nusd),
            "client_tokens": tokens,
            "meter_tokens": booked.delivered_tokens,
            "client_price_nusd": price_nusd,
            "meter_price_nusd": booked.price_nusd,
            "generated_tokens": booked.generated_tokens,
            "waste_tokens": booked.generated_tokens - booked.delivered_tokens,
            "lag_events": books.lag_events,
            "waited_s": books.waited_s,
        }


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a part `q` (0 to 1) of the sorted `values` lies, interpolated linearly.

    Raises:
        ValueError: no values, where a quantile is undefined.
    """
    if not values:
        raise ValueError("a quantile of no values is undefined")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p90 and p99; None for no values."""
    return {f"p{round(q * 100)}": quantile(values, q) for q in QUANTILES} if values else None


def usd_per_mtok(amount_nusd: int, tokens: int) -> float | None:
    """Dollars per million tokens, for a reader; None for no tokens."""
    return amount_nusd / 1e9 / tokens * 1e6 if tokens else None


def _money(booked: Booked) -> Document:
    cost_nusd = booked.use_cost_nusd + booked.energy_cost_nusd
    return {
        "price_nusd": booked.price_nusd,
        "use_cost_nusd": booked.use_cost_nusd,
        "energy_cost_nusd": booked.energy_cost_nusd,
        "margin_nusd": booked.price_nusd - cost_nusd,
        "cost_usd_per_mtok": usd_per_mtok(cost_nusd, booked.delivered_tokens),
        "price_usd_per_mtok": usd_per_mtok(booked.price_nusd, booked.delivered_tokens),
        "energy_j": booked.energy_uj / 1e6,
        "measured_energy_j": booked.measured_energy_uj / 1e6,
        "device_s": booked.device_ns / 1e9,
    }


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], Any]) -> dict[Any, list[Outcome]]:
    groups: dict[Any, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        groups[key(each)].append(each)
    return dict(groups)


def _is_refusal(reason: str) -> bool:
    return isinstance(from_reason(reason, ""), CallerError | CapacityError)
