"""Every span, attribute and metric name of the mesh, and the edges a request's trace must have.

Names follow OpenTelemetry's GenAI, messaging and RPC conventions; those are still in development and move, so they are
spelled here and nowhere else. Subjects hold ids, so span names use their templates.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LONGEST_NAME: Final = 256  # characters of any name on the bus: of a tenant, a worker, a model, a request
MOST_SERIES: Final = 4096  # of one instrument; the others are summed up as one, as OpenTelemetry's SDKs do
OVERFLOW: Final = "otel.metric.overflow"

# Attributes: GenAI
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_TOKEN_TYPE: Final = "gen_ai.token.type"
PROVIDER: Final = "tokenworks"

# Attributes: messaging
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_DESTINATION_TEMPLATE: Final = "messaging.destination.template"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_BATCH_COUNT: Final = "messaging.batch.message_count"
MESSAGING_CONSUMER_GROUP: Final = "messaging.consumer.group.name"

# Attributes: RPC and errors
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"

# Attributes: ours
REQUEST_ID: Final = "tokenworks.request.id"
TENANT: Final = "tokenworks.tenant"
WORKLOAD: Final = "tokenworks.workload"
SLO_CLASS: Final = "tokenworks.slo_class"
WORKER: Final = "tokenworks.worker"
POOL: Final = "tokenworks.pool"
ACCELERATOR: Final = "tokenworks.accelerator"
TOLD_BY: Final = "tokenworks.told_by"  # what measured a figure, or "catalogue"
PLAN: Final = "tokenworks.plan"
CANDIDATES: Final = "tokenworks.route.candidates"  # best first: "worker=usd", at most 5
SCORE_USD: Final = "tokenworks.route.score_usd"
PREDICTED_TTFT_S: Final = "tokenworks.route.predicted_ttft_s"
PREDICTED_TPOT_S: Final = "tokenworks.route.predicted_tpot_s"
ENGINE_QUEUE_S: Final = "tokenworks.engine.queue_s"
ENGINE_TTFT_S: Final = "tokenworks.engine.ttft_s"
ENGINE_TPOT_S: Final = "tokenworks.engine.tpot_s"
PLAN_TRIGGER: Final = "tokenworks.plan.trigger"
PLAN_STATUS: Final = "tokenworks.plan.status"
PLAN_APPLIED: Final = "tokenworks.plan.applied"  # false: advice, or older than the plan in force
PRICE_NUSD: Final = "tokenworks.price_nusd"
USE_COST_NUSD: Final = "tokenworks.use_cost_nusd"
ENERGY_COST_NUSD: Final = "tokenworks.energy_cost_nusd"

# Metrics: GenAI server
SERVER_TTFT: Final = "gen_ai.server.time_to_first_token"
SERVER_TPOT: Final = "gen_ai.server.time_per_output_token"
SERVER_DURATION: Final = "gen_ai.server.request.duration"
CLIENT_TOKEN_USAGE: Final = "gen_ai.client.token.usage"
RPC_SERVER_DURATION: Final = "rpc.server.call.duration"
# Metrics: router
IN_FLIGHT: Final = "tokenworks.router.in_flight"  # {request}
WAITING: Final = "tokenworks.router.waiting"  # {request}, for capacity
PLACEMENTS_OUT: Final = "tokenworks.router.placements_out"  # {placement}, direct
DECISION_DURATION: Final = "tokenworks.router.decision.duration"  # s, one pick
PLAN_REACTION: Final = "tokenworks.router.plan.reaction"  # s, from news heard to the plan in force, by trigger
REFUSALS: Final = "tokenworks.router.refusals"  # {request}, by error.type
BROKEN_STREAMS: Final = "tokenworks.router.broken_streams"  # {stream} that a worker refused or broke off, by error.type
# Metrics: the bus
BUS_OUTBOX: Final = "tokenworks.bus.outbox"  # {message}, unacknowledged
BUS_PUBLISHED: Final = "tokenworks.bus.published"
BUS_RETRIED: Final = "tokenworks.bus.retried"
BUS_CONSUMED: Final = "tokenworks.bus.consumed"
BUS_FAILED: Final = "tokenworks.bus.failed"  # {message} whose reader raised
BUS_DEAD: Final = "tokenworks.bus.dead"  # undecodable, put aside on tw.dead.<durable>
# Metrics: hardware
HW_ENERGY: Final = "hw.energy"
HW_POWER: Final = "hw.power"
UTILISATION: Final = "tokenworks.worker.utilisation"
COMPLAINTS: Final = "tokenworks.engine.complaints"  # answers of which a server told what cannot be

# Metrics: the meter's
BOOKED_TOKENS: Final = "tokenworks.meter.booked.tokens"  # {token}, by gen_ai.token.type
BOOKED_NUSD: Final = "tokenworks.meter.booked.nusd"  # by tokenworks.amount
BOOKED_ENTRIES: Final = "tokenworks.meter.booked.entries"
METER_LAG: Final = "tokenworks.meter.lag"  # events delivered or waiting and not booked, by consumer
DUPLICATES: Final = "tokenworks.meter.duplicates"
CLOUD_EVENTS_TOLD: Final = "tokenworks.meter.cloudevents.told"
CLOUD_EVENTS_REFUSED: Final = "tokenworks.meter.cloudevents.refused"
CLOUD_EVENTS_WAITING: Final = "tokenworks.meter.cloudevents.waiting"  # lines of the ledger
MISSING_EVENTS: Final = "tokenworks.meter.missing_events"  # gaps in publishers' sequences
DRIFT: Final = "tokenworks.meter.drift"  # {finding} of the audit that stands, by tokenworks.drift.kind
DRIFT_REPAIRED: Final = "tokenworks.meter.drift.repaired"
DRIFT_KIND: Final = "tokenworks.drift.kind"
RUNAWAYS: Final = "tokenworks.runaways"  # {finding}, by the two below
RUNAWAY_KIND: Final = "tokenworks.runaway.kind"
RUNAWAY_GRADE: Final = "tokenworks.runaway.grade"
REFUSED_ENTRIES: Final = "tokenworks.meter.refused_entries"
AMOUNT: Final = "tokenworks.amount"
BUDGETS_REACHED: Final = "tokenworks.meter.budgets.reached"  # {budget} percentages of spending, by the next two
BUDGET_SCOPE: Final = "tokenworks.budget.scope"
BUDGET_PERCENT: Final = "tokenworks.budget.percent"
# Metrics: the optimizer's; costs in US dollars per hour, by model
SOLVE_DURATION: Final = "tokenworks.optimizer.solve.duration"  # s, by tokenworks.plan.trigger
PLAN_AGE: Final = "tokenworks.optimizer.plan.age"  # s, by model
PLAN_COST: Final = "tokenworks.optimizer.plan.cost"
PLAN_BASELINE_COST: Final = "tokenworks.optimizer.plan.baseline_cost"
PLAN_UNSERVED: Final = "tokenworks.optimizer.plan.unserved"  # {request}/s, by model
PLAN_FAILURES: Final = "tokenworks.optimizer.plan.failures"  # by error.type
REALISED_COST: Final = "tokenworks.optimizer.realised_cost"
TIMING_ERROR: Final = "tokenworks.optimizer.timing_error"  # predicted against observed steps, by pool
POOL_UTILISATION: Final = "tokenworks.optimizer.pool.utilisation"  # planned, by pool
SHADOW_PRICE: Final = "tokenworks.optimizer.pool.shadow_price"  # USD per device-second, by pool

TTFT_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
TPOT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_BUCKETS_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

# Span names
CLIENT_SPAN: Final = "generate {model}"  # the client's
ROUTER_SPAN: Final = "tokenworks.v1.Router/Generate"
PLACE_SPAN: Final = "tokenworks.v1.Router/Place"
ROUTE_SPAN: Final = "route {model}"
DELIVERY_SPAN: Final = "tokenworks.v1.Worker/Generate"
WORKER_SPAN: Final = "chat {model}"  # {gen_ai.operation.name} {gen_ai.request.model}
SOLVE_SPAN: Final = "solve {model}"
APPLY_SPAN: Final = "apply {model}"  # a router takes a plan over


def publish_span(template: str) -> str:
    return f"publish {template}"


def create_span(template: str) -> str:
    """One message of a batch, made for one request; the batch's publish span links to it."""
    return f"create {template}"


def process_span(template: str) -> str:
    return f"process {template}"


def settle_span(template: str) -> str:
    """Booking one request's last message; the message is the parent."""
    return f"settle {template}"


class Relation(StrEnum):
    CHILD = "child"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Edge:
    """From one span to the next, as (service, span name); `{model}` stands for any model."""

    source: tuple[str, str]
    target: tuple[str, str]
    relation: Relation


_TOKENS: Final = "tw.tokens.{pool}.{worker}"
_LATENCY: Final = "tw.latency.{pool}.{worker}"
_ADMITTED: Final = "tw.requests.{router}.admitted"
_FINISHED: Final = "tw.requests.{router}.finished"
_PLAN: Final = "tw.plan.{model}"

# The edges of the mesh. CHILD: the target is a child of the source, in the request's trace. LINK: the target span
# carries a link to the source. tests/mesh/test_traces.py holds real traffic against this table.
EDGES: Final = (
    Edge(("client", CLIENT_SPAN), ("router", ROUTER_SPAN), Relation.CHILD),
    Edge(("router", ROUTER_SPAN), ("router", ROUTE_SPAN), Relation.CHILD),
    Edge(("router", ROUTER_SPAN), ("worker", WORKER_SPAN), Relation.CHILD),
    Edge(("router", ROUTER_SPAN), ("router", publish_span(_ADMITTED)), Relation.CHILD),
    Edge(("router", ROUTER_SPAN), ("router", publish_span(_FINISHED)), Relation.CHILD),
    Edge(("router", publish_span(_FINISHED)), ("meter", settle_span(_FINISHED)), Relation.CHILD),
    # Direct: the client asks the router for a place, and the worker for the tokens.
    Edge(("client", CLIENT_SPAN), ("router", PLACE_SPAN), Relation.CHILD),
    Edge(("router", PLACE_SPAN), ("router", ROUTE_SPAN), Relation.CHILD),
    Edge(("client", CLIENT_SPAN), ("worker", DELIVERY_SPAN), Relation.CHILD),
    Edge(("worker", DELIVERY_SPAN), ("worker", WORKER_SPAN), Relation.CHILD),
    Edge(("worker", DELIVERY_SPAN), ("worker", publish_span(_ADMITTED)), Relation.CHILD),
    Edge(("worker", DELIVERY_SPAN), ("worker", publish_span(_FINISHED)), Relation.CHILD),
    Edge(("worker", publish_span(_FINISHED)), ("meter", settle_span(_FINISHED)), Relation.CHILD),
    Edge(("worker", publish_span(_FINISHED)), ("meter", process_span(_FINISHED)), Relation.LINK),
    Edge(("worker", publish_span(_ADMITTED)), ("meter", process_span(_ADMITTED)), Relation.LINK),
    # Either way.
    Edge(("worker", WORKER_SPAN), ("worker", create_span(_TOKENS)), Relation.CHILD),
    Edge(("worker", create_span(_TOKENS)), ("meter", settle_span(_TOKENS)), Relation.CHILD),
    Edge(("worker", create_span(_TOKENS)), ("worker", publish_span(_TOKENS)), Relation.LINK),
    Edge(("worker", publish_span(_TOKENS)), ("meter", process_span(_TOKENS)), Relation.LINK),
    Edge(("router", publish_span(_FINISHED)), ("meter", process_span(_FINISHED)), Relation.LINK),
    Edge(("router", publish_span(_ADMITTED)), ("meter", process_span(_ADMITTED)), Relation.LINK),
    Edge(("worker", WORKER_SPAN), ("worker", publish_span(_LATENCY)), Relation.LINK),
    Edge(("worker", publish_span(_LATENCY)), ("optimizer", SOLVE_SPAN), Relation.LINK),
    Edge(("optimizer", SOLVE_SPAN), ("optimizer", publish_span(_PLAN)), Relation.CHILD),
    Edge(("optimizer", publish_span(_PLAN)), ("router", APPLY_SPAN), Relation.CHILD),
    Edge(("optimizer", publish_span(_PLAN)), ("router", ROUTE_SPAN), Relation.LINK),
)
