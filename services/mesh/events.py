"""What happened, as services tell each other: frozen dataclasses, past tense. `codec.py` puts them on the wire.

Units are in the names: `_s` seconds, `_ns` nanoseconds, `_uj` microjoules, `_nusd` nano-dollars, `_unix_ms`
milliseconds since 1970. Field names are those of `protos/tokenworks/v1/events.proto` and `planning.proto`; a test holds
them together.

Of the two that every request has, those who make and read them pay for each field's being frozen, three quarters of
what an object takes: nobody changes one all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

NO_PLAN_VERSION: Final = 1 << 62  # versions are milliseconds since 1970, or a little more: no plan has one so large
MODELLED: Final = "catalogue"  # the source of watts and energy that no meter measured


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Outcome(StrEnum):
    """Why a stream ended."""

    STOP = "stop"
    LENGTH = "length"
    BUDGET = "budget"
    CANCELLED = "cancelled"
    RUNAWAY = "runaway"
    ERROR = "error"
    WRITTEN_OFF = "written_off"  # says the meter, whatever its deliverer says: nothing of it is billed


class RunawayGrade(StrEnum):
    """What is done about what runs away, each grade with what those before it do."""

    NONE = "none"
    NOTIFY = "notify"
    SLOW = "slow"
    CAP = "cap"
    STOP = "stop"


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Hold:
    """Credit of one account (`credit.Account`) that is set aside for one request.

    Several are made for each request that budgets bound: a frozen one takes twice as long to make. Nobody changes one.

    Attributes:
        amount: nano-dollars or tokens, as the budget counts; 0 of a budget that only notifies.
    """

    budget: int
    subject: str
    window: int
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """All that one holder of leases (`holder/epoch`) has set aside for one request so far."""

    funder: str
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """A run of consecutive tokens of one request, made by one worker; `count` may be 0 for work without a token.

    Attributes:
        funding: all credit held for the request, where that changed since the last entry.
    """

    request_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    from_index: int
    count: int
    prompt_tokens: int
    cached_prompt_tokens: int
    device_ns: int
    energy_uj: int
    last: bool = False
    traceparent: str = ""
    funding: tuple[Funding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensGenerated:
    """What a worker made; `energy_source` measured the entries' energy, `MODELLED` or empty where nothing did."""

    worker: str
    pool: str
    accelerator: str
    entries: Sequence[TokenEntry]  # a tuple, or `entries.WireEntries`
    at_unix_ms: int
    energy_source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLatency:
    """Latencies of one finished request, measured at the engine; `tpot_s` is 0 when fewer than two tokens came."""

    request_id: str
    slo_class: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    queue_s: float
    ttft_s: float
    tpot_s: float
    worst_gap_s: float
    batch: int
    kv_cache_usage: float
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """One engine step: what was in it (`timing.StepLoad`) and how long it took."""

    prefill_tokens: int
    decode_sequences: int
    kv_tokens: int
    step_s: float
    attended_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyObserved:
    worker: str
    pool: str
    accelerator: str
    model: str
    requests: Sequence[RequestLatency]  # a tuple, or `entries.WireEntries`: most readers want the steps alone
    steps: tuple[StepSample, ...]
    at_unix_ms: int


@dataclass(unsafe_hash=True, slots=True, kw_only=True)  # not frozen: see the module
class RequestAdmitted:
    """Attributes:
    key, team: of the caller, by name; empty where there is none.
    conversation: of a request without a session: named by the earlier ones that its prompt goes on from.
    """

    request_id: str
    router: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    prompt_tokens: int
    max_tokens: int
    worker: str
    pool: str
    plan: str
    at_unix_ms: int
    price_book: str
    funding: tuple[Funding, ...] = ()
    session_id: str = ""
    key: str = ""
    team: str = ""
    conversation: str = ""
    within: str = ""


@dataclass(unsafe_hash=True, slots=True, kw_only=True)  # not frozen: see the module
class RequestFinished:
    """The deliverer's witness: what reached the client, from `delivered_from`, `delivered_count` tokens.

    Attributes:
        delivered_from: what is before it the client had when it came to this deliverer, so that is delivered too.
    """

    request_id: str
    router: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    worker: str
    pool: str
    accelerator: str
    delivered_from: int
    delivered_count: int
    prompt_tokens: int
    cached_prompt_tokens: int
    outcome: str
    ttft_s: float
    tpot_s: float
    e2e_s: float
    slo_met: bool
    trace_id: str
    at_unix_ms: int
    admitted_unix_ms: int
    price_book: str
    plan: str
    funding: tuple[Funding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeartbeat:
    """A worker's state, four times a second. May be lost: nothing that counts rests on it.

    Attributes:
        waiting_prefill_tokens: prompt tokens admitted or queued and not computed yet.
        power_source: what measured `power_w` and `energy_uj`; `MODELLED` where nothing did.
        utilisation: of the accelerator, recent, 0 to 1; `utilisation_source` measured it, and where that is `MODELLED`
            or empty it is the part of its time that the engine worked.
        http_url: of its OpenAI endpoint for clients with a placement; empty: it serves none.
        features: beyond plain generation: "logprobs", "response_format", "tools".
        restarts: of the engine, since the epoch began.
        tokenizer: a fingerprint, equal where token ids mean the same; empty: it reports none, or does not know.
        slowdown: observed over modelled step seconds, recent; 1.0 when nothing ran.
        waiting_by_priority, prefill_tokens_by_priority: `waiting` and `waiting_prefill_tokens` by priority: 0, 1, 2 and
            3 with all from there on; empty where the engine does not tell them apart.
        busy_ns, generated_tokens, energy_uj, steps: totals since the epoch began.
        step_s: what its steps take at most while they compute prompts, about; 0: only their tokens are bounded.
        region, vendor, data_classes: its site, see `mesh/confines.py`.
        spot: it may be taken away at short notice.
    """

    worker: str
    pool: str
    accelerator: str
    engine: str
    models: tuple[str, ...]
    address: str
    epoch: str
    sequence: int
    state: str
    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_cache_usage: float
    kv_capacity_tokens: int
    context_tokens: int
    max_batch: int
    max_waiting: int
    slowdown: float
    power_w: float
    busy_ns: int
    generated_tokens: int
    energy_uj: int
    simulated: bool
    rate_nusd_per_hour: int
    failed_because: str
    at_unix_ms: int
    steps: int
    prefill_chunk_tokens: int
    power_source: str = MODELLED
    utilisation: float = 0.0
    http_url: str = ""
    features: tuple[str, ...] = ()
    restarts: int = 0
    tokenizer: str = ""
    utilisation_source: str = ""
    waiting_by_priority: tuple[int, ...] = ()
    prefill_tokens_by_priority: tuple[int, ...] = ()
    step_s: float = 0.0
    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()
    spot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixesChanged:
    """What a worker's prefix cache holds, as links of `prefix_chain.chain`.

    Attributes:
        sequence: from 1 in an epoch, without gaps; a gap means that changes were lost.
        reset: what was held before is gone.
        held, dropped: links that are in the cache from now on, and that are no longer.
    """

    worker: str
    epoch: str
    sequence: int
    reset: bool
    held: tuple[int, ...]
    dropped: tuple[int, ...]
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementEnded:
    """One direct stream's end, as in its RequestFinished."""

    request_id: str
    outcome: str
    delivered_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementsUsed:
    """What became of a router's placements at one worker. May be lost: nothing that counts rests on it.

    Attributes:
        taken: requests whose client came.
    """

    worker: str
    router: str
    epoch: str
    taken: tuple[str, ...]
    ended: tuple[PlacementEnded, ...]
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAtWorker:
    """Requests that a router sent to one worker; `prefill_tokens` of their prompt tokens are not cached there."""

    worker: str
    epoch: str
    requests: int
    prefill_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpending:
    """What a tenant's placements are expected to cost in device-seconds."""

    tenant: str
    spent_nusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementsMade:
    """What a router has just sent to workers. May be lost: heartbeats show the same a moment later.

    Attributes:
        address: where this router alone answers, `host:port`; its other port may be shared with others.
        placed: since its last word; empty where it only says that it is there.
        spent: since its last word, by tenant: routers share capacity out among tenants together.
        waiting: requests that wait here for capacity.
        refused: requests that were refused for lack of it since the router's last word.
    """

    router: str
    address: str
    placed: tuple[PlacedAtWorker, ...]
    at_unix_ms: int
    spent: tuple[TenantSpending, ...] = ()
    waiting: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsAnswered:
    """Requests whose answers a router has handed over to their end. May be lost: what is billed does not rest on it."""

    router: str
    request_ids: tuple[str, ...]
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditChanged:
    tenant: str
    limit_nusd: int
    spent_nusd: int
    remaining_nusd: int
    unlimited: bool
    exhausted: bool
    suspended: bool
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTerms:
    """One budget: what it counts, how much of it there is, how often it refills. Words are those of `credit.py`.

    Attributes:
        budget: its number, never used again.
        subject: a name in its scope; `*`: each has an account of its own; empty: the tenant.
        hard: streams end at the last funded token; else it is only told.
    """

    budget: int
    scope: str
    subject: str
    unit: str
    period: str
    limit: int
    hard: bool
    notify_percents: tuple[int, ...]
    set_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetsSet:
    """All budgets of one tenant, as they are from now on."""

    tenant: str
    budgets: tuple[BudgetTerms, ...]
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReached:
    """A budget's spending has come to a percentage that is told of."""

    tenant: str
    budget: int
    scope: str
    subject: str
    unit: str
    period: str
    window: int
    limit: int
    spent: int
    percent: int
    hard: bool
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRecalled:
    """Some holder lacks credit: who has some of this account idle returns it. May be lost: each answer says it too."""

    meter: str
    budget: int
    subject: str
    window: int
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBookOpened:
    """A price book is in force from `first_unix_ms` on; `body_json` is a `price_book.PriceBook`. A label's prices never
    change.

    Attributes:
        recorded_unix_ms: when it was told; 0: when it came into force.
    """

    label: str
    body_json: str
    first_unix_ms: int
    recorded_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesRerated:
    """What was admitted from `from_unix_ms` on, and before `to_unix_ms` (0: no end), is priced by the books as they
    were known at `recorded_unix_ms`."""

    rerating: str
    from_unix_ms: int
    to_unix_ms: int
    recorded_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFound:
    """The meter's audit found that books, witnesses or streams do not agree, or has made them agree again.

    Attributes:
        subject: the request, tenant, publisher or worker that it is about.
        done: what was done about it, or what would do.
    """

    meter: str
    kind: str
    subject: str
    tenant: str
    expected: int
    found: int
    what: str
    repaired: bool
    done: str
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunawayFound:
    """A tenant, workload, session or request runs away, or does so no more.

    Attributes:
        found_by: the meter or worker that found it.
        scope: "tenant", "workload", "caller" (its name is `workload/key`), "session" or "request"; `name` is its name,
            empty for a tenant.
        kind: "velocity", "spend", "endless_agent" or "repetition".
        grade: a `RunawayGrade`.
        dry_run: nothing is done about it, only said.
        observed, usual: in `unit`.
        allowed_rps: requests per second that it keeps where it is slowed.
        cap_tokens: what its answers may have where they are capped.
        evidence: in words.
        until_unix_ms: it holds until then, where nothing newer is said.
    """

    found_by: str
    tenant: str
    scope: str
    name: str
    kind: str
    grade: str
    dry_run: bool
    observed: float
    usual: float
    unit: str
    allowed_rps: float
    cap_tokens: int
    evidence: str
    at_unix_ms: int
    until_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendAnomalyFound:
    """A tenant, or one of its workloads, was billed far more in an hour than is usual for it at that time.

    Attributes:
        workload: empty for the tenant as a whole.
        under_way: the hour was not over yet.
        usual_nusd: at that hour of the day, by its own history; up to `threshold_nusd` it would be ordinary.
        score: robust z-score, in spreads from what is usual.
        hours: of history that it rests on.
        evidence: in words.
    """

    found_by: str
    tenant: str
    workload: str
    hour_unix_ms: int
    under_way: bool
    spent_nusd: int
    usual_nusd: int
    threshold_nusd: int
    score: float
    hours: int
    evidence: str
    at_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadClass:
    """Requests of one SLO class whose prompts and answers fall into one bucket; `_to` 0 means no end."""

    slo_class: str
    prompt_tokens_from: int
    prompt_tokens_to: int
    completion_tokens_from: int
    completion_tokens_to: int
    demand_rps: float
    mean_prompt_tokens: float
    mean_completion_tokens: float
    within: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where one workload class goes: `workload_class` indexes `RoutingPlan.classes`."""

    workload_class: int
    pool: str
    share: float
    feasible: bool
    device_s_per_request: float
    usd_per_request: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCoefficients:
    """The fields of `timing.Timing`, seconds."""

    prefill_overhead_s: float
    prefill_s_per_token: float
    decode_base_s: float
    decode_s_per_sequence: float
    decode_s_per_kv_token: float
    prefill_s_per_attended_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What is believed of a pool, and what its engines are asked for.

    Attributes:
        step_s: what a step shall take at most while prompts are computed; 0: as the engines are set up.
        max_batch: sequences that shall run at once at most; 0: as the engines are set up.
    """

    pool: str
    accelerator: str
    workers: int
    shadow_usd_per_device_s: float
    utilisation: float
    timing: TimingCoefficients
    observations: int
    mean_error: float
    rate_usd_per_hour: float
    step_s: float = 0.0
    max_batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    cost_usd_per_hour: float
    baseline_cost_usd_per_hour: float
    unserved_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a plan rests on.

    Attributes:
        seen_unix_ms: when the news that called for the plan was heard; 0: none did.
    """

    latency_events: int
    token_events: int
    request_events: int
    window_s: float
    traceparents: tuple[str, ...]
    trigger: str
    seen_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLimit:
    """A bound of the program that binds, or is passed for want of anything better.

    Attributes:
        name: "capacity", "carbon", "spot" or "placement".
        of: the pool, or what the requests are confined to; empty: the whole mesh.
        unit: of `used` and `most`.
        usd_per_unit: what one more unit would save.
        exceeded: it could not be kept.
    """

    name: str
    of: str
    unit: str
    used: float
    most: float
    usd_per_unit: float
    exceeded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTarget:
    """How many replicas of a pool there should be.

    Attributes:
        replicas: that should run or be starting; `ready` are there now.
        forecast_rps: of requests that the pool shall take, when what is started now is ready.
        cold_start_s: until one that is started is ready.
        because: "demand"; "forecast": of when what is started now is ready; "held": as asked for lately; "overlap":
            kept until its successor is ready; "least", "most": bounds.
    """

    pool: str
    accelerator: str
    replicas: int
    ready: int
    forecast_rps: float
    cold_start_s: float
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPlan:
    """Where the optimizer wants one model's work; named `model:version`.

    Attributes:
        advisory: it is only said; routers go on without it.
        limits: that bind, the dearest first.
        canary_share: of requests that follow it while it is tried beside the one before; 0: all do.
        rolled_back: name of the plan that this one undoes, `because` of what; empty: of none.
        targets: how many replicas there should be.
    """

    model: str
    version: int
    made_unix_ms: int
    classes: tuple[WorkloadClass, ...] = ()
    shares: tuple[Share, ...] = ()
    pools: tuple[PoolPlan, ...] = ()
    prediction: Prediction = field(
        default=Prediction(cost_usd_per_hour=0.0, baseline_cost_usd_per_hour=0.0, unserved_rps=0.0)
    )
    evidence: Evidence = field(
        default=Evidence(
            latency_events=0, token_events=0, request_events=0, window_s=0.0, traceparents=(), trigger="start"
        )
    )
    status: str = "idle"
    solve_s: float = 0.0
    advisory: bool = False
    limits: tuple[PlanLimit, ...] = ()
    canary_share: float = 0.0
    rolled_back: str = ""
    because: str = ""
    targets: tuple[ReplicaTarget, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}:{self.version}"


@dataclass(frozen=True, slots=True)
class SequenceRange:
    """Numbers of one publisher's events: 1 <= `first` <= `last`, both among them."""

    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRequested:
    """A reader lacks these events of `publisher`, which is `<service>.<instance>.<channel>`: send them again.

    Attributes:
        sequences: one by one, from readers that know no ranges.
    """

    publisher: str
    epoch: str
    ranges: tuple[SequenceRange, ...] = ()
    sequences: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GapAnswered:
    """What is asked for, was published, and is in neither list is to be asked for again: an answer is bounded.

    Attributes:
        sent_ranges: the stream has them again, or has them in a moment.
        lacking: the publisher does not keep them any more.
        last: the highest number published on the channel; 0 where the epoch is an earlier one.
        sent: only to who asked one by one: the numbers in `sent_ranges`.
    """

    sent_ranges: tuple[SequenceRange, ...]
    lacking: tuple[SequenceRange, ...]
    last: int
    sent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLine:
    """One account in a holder's word; amounts as its budget counts.

    Attributes:
        granted, returned: in all, since its epoch began, as it knows.
        idle: of what was granted, held for no request.
        least, want: idle credit that requests wait for, and that it would like to have.
        stuck: held for requests that wait for more: none of it comes back before they get it, or give up.
    """

    budget: int
    subject: str
    window: int
    granted: int
    returned: int
    idle: int
    least: int
    want: int
    stuck: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """A hold for a request of which nothing was made."""

    request_id: str
    tenant: str
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAsked:
    """A holder's word to the meter: totals only, so that it may be lost, come twice or late.

    Attributes:
        epoch: of the holder: new, and greater, at each of its starts.
        linger_ms: what it has funded may come to light so long after its death.
        ended: it will ask for nothing more.
    """

    holder: str
    epoch: str
    lines: tuple[LeaseLine, ...]
    unused: tuple[Unused, ...] = ()
    linger_ms: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """One account in the meter's answer.

    Attributes:
        granted: in all, since the holder's epoch began.
        short: less than requests wait for.
        coming: others hold credit that may come back.
        recalled: others wait for what is idle here.
    """

    budget: int
    subject: str
    window: int
    granted: int
    limit: int
    spent: int
    short: bool
    coming: bool
    recalled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted:
    """The meter's answer; `refused` says why the holder has no say any more, and is empty where it has.

    Attributes:
        at_unix_ms: by the meter's clock, whose windows a holder's are; 0: not told.
    """

    refused: str
    ttl_ms: int
    grants: tuple[LeaseGrant, ...]
    at_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take no new work, finish or move what runs within `grace_ms`, then exit."""

    grace_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveStreams:
    """End these direct streams with an error upon which their clients go on elsewhere.

    Attributes:
        epoch: the start of the worker that is meant.
        request_ids: those that do not run there are passed over.
        because: for the streams' clients and for the log.
    """

    epoch: str
    request_ids: tuple[str, ...]
    because: str


Control = Drain | MoveStreams


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAnswered:
    accepted: bool
    message: str


Event = (
    TokensGenerated
    | LatencyObserved
    | RequestAdmitted
    | RequestFinished
    | WorkerHeartbeat
    | PrefixesChanged
    | PlacementsUsed
    | PlacementsMade
    | RequestsAnswered
    | CreditChanged
    | BudgetsSet
    | BudgetReached
    | CreditRecalled
    | PriceBookOpened
    | PricesRerated
    | RoutingPlan
    | DriftFound
    | RunawayFound
    | SpendAnomalyFound
)
