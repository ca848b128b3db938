"""The map: a request's life, numbered, with the file for each step.

 1. A program asks: prompt, sampling, SLO class, workload. It reads pieces, and gets usage, price and a trace id.
        tokenworks/client.py  tokenworks/stream.py  tokenworks/tracing.py
 2. The router's edge takes the call; errors become statuses, every method has a span and limits.
        services/router/service.py  services/mesh/rpc.py  services/mesh/fast_grpc.py  services/mesh/grpc_call.py
        services/router/gateway.py  services/mesh/fast_http.py  services/mesh/http1.py  services/mesh/http_call.py
 3. Whose key is it? May it come in? Values, size, credit, room: a refusal leaves no trace.
        services/mesh/access.py  services/mesh/keys.py  services/router/core/admission.py
        services/router/reception.py  services/router/entrance.py
    Where no worker can take it soon, it waits its turn, by its tenant's share and its class, or is told at once.
        services/router/room.py  services/router/core/admittance.py
        services/router/core/fairness.py  services/router/core/lateness.py
    What runs away from its own history is held back.
        services/meter/runaways.py  services/meter/core/runaway.py
        services/worker/runaways.py  services/router/core/restraints.py
 4. From its arrival to its end, one place knows the request.
        services/router/dispatch.py
 5. Where to? Filter, score in expected dollars, pick; and the record of why.
        services/router/placing.py  services/router/core/policy.py  services/router/core/records.py
    Every worker is held against the request, by formulas that stand once and are compiled when the router starts.
        services/router/core/scores.py  services/router/core/ranking.py  services/router/core/fused.py
    It rests on heartbeats, samples of steps, the plan in force, and what other routers have just placed.
        services/router/feed.py  services/router/core/fleet.py  services/router/core/plans.py  services/router/others.py
    Or straight: the router signs a placement, the client streams from the worker; that delivers, prices and reports.
        services/router/direct.py  services/mesh/placement.py  tokenworks/paths.py  services/worker/deliveries.py
    Which worker has the prompt's beginning in its cache: its engine's blocks, told in links of the prompt's chain.
        services/mesh/prefix_chain.py  services/worker/prefixes.py  services/router/core/prefixes.py
 6. It travels on the one session to that worker; the worker checks it and gives it to its engine.
        services/router/session.py  services/mesh/grpc_stream.py  services/mesh/http2.py
        services/worker/session.py  services/worker/requests.py
 7. The engine makes tokens, in steps that all its requests share.
        services/worker/streams.py  services/worker/running.py
        services/worker/engine.py  services/worker/engines/llamacpp.py
    A simulated accelerator: batching, KV cache, time and watts of a step.
        services/worker/engines/simulated.py  services/worker/core/simulation.py  services/mesh/timing.py
    How long its steps may take and how many run at once, the plan says: promises of those who decode hold (15).
        services/worker/tuning.py  services/optimizer/core/knobs.py
    How much of each step every request caused; what the accelerator is, what it drew, and whose energy that was.
        services/worker/core/attribution.py  services/worker/hardware/machine.py
        services/worker/hardware/power_meter.py  services/worker/energy_shares.py
 8. One frame per step goes back, with the tokens of all of the router's streams.
        services/worker/outgoing.py
 9. The relay passes bytes on, knows what came and what the client has taken, and goes on elsewhere when a worker fails.
        services/router/relay.py  services/router/messages.py  services/router/http_sinks.py
    What is late at a worker that became slow, or stands still, is moved away from it; and what a plan has elsewhere.
        services/router/moves.py
    A client goes on elsewhere by itself, with what it has, when a worker or a router fails it.
        tokenworks/stream.py  tokenworks/mending.py  tokenworks/pulse.py  services/router/core/resumes.py
10. Facts go to the bus: what was admitted, made, delivered, how long it took, how the worker is.
        services/router/announcer.py  services/worker/reporter.py  services/worker/heartbeat.py
11. The bus: subjects and guarantees in one table, events and their wire.
        services/mesh/subjects.py  services/mesh/events.py  services/mesh/codec.py
    Numbered, sent in order, retried; read in batches, acked after the effect.
        services/mesh/bus.py  services/mesh/publishing.py  services/mesh/nats/bus.py
12. The meter drops what it has booked before and books the rest once, effect and high-water mark in one transaction.
        services/meter/feed.py  services/meter/bookkeeper.py  services/meter/core/runs.py  services/meter/store/books.py
        services/meter/sharing.py  services/meter/booking.py  services/meter/desk.py  services/meter/store/shards.py
    Facts in any order end in the same books: billed = delivered. Prices and costs are integer nano-dollars.
        services/meter/core/ledger.py  services/mesh/pricing.py  services/mesh/money.py  services/meter/core/costs.py
    Which book prices a request, and what a correction changes; what the fleet cost in an hour, and whom that goes to.
        services/mesh/price_calendar.py  services/meter/reratings.py
        services/meter/settler.py  services/meter/core/fleet_bill.py  services/meter/core/journal.py
    Budgets: credit is leased to routers, held for a request slice by slice, and spent when its bill is final.
        services/router/funds.py  services/mesh/paying.py  services/mesh/holds.py  services/mesh/purse.py
        services/worker/funding.py  services/meter/lessor.py  services/meter/vault.py
        services/meter/core/leases.py  services/meter/core/funded.py
13. What a tenant has left goes back to the routers.
        services/meter/announcer.py
14. The optimizer hears all of it: what accelerators can do, what is asked for.
        services/optimizer/feed.py  services/optimizer/core/capacity.py  services/optimizer/core/demand.py
15. It solves which work belongs where, on news or each second; its plan shapes the next pick (5).
        services/optimizer/loop.py  services/optimizer/core/plan.py  services/optimizer/core/planner.py
    Each plan is held to what it predicted; why a pool is used as it is.
        services/optimizer/core/decisions.py  services/optimizer/core/why.py
16. Who used what, at what cost; why a request went where it went.
        services/meter/service.py  services/cli/usage.py  services/cli/explain.py
        services/meter/inquiry.py  services/meter/store/callers.py  services/meter/answers_http.py
    What comes, when budgets run out, what is out of the ordinary, what promises cost.
        services/meter/insight.py  services/meter/outlooks.py
        services/meter/core/outlook.py  services/meter/core/anomalies.py
    What leaves the books for others: invoices, FOCUS, Parquet, CloudEvents.
        services/meter/export_service.py  services/meter/core/invoices.py  services/cli/focus.py
        services/meter/telling.py

Beneath: settings, a service's life, what accelerators and models are, errors, names of spans and edges of a trace.
        services/mesh/settings.py  services/mesh/lifecycle.py  services/mesh/accelerators.py
        services/mesh/errors.py  services/mesh/conventions.py  services/mesh/telemetry.py
Beside: `tokenworks up` starts all of it on one machine; `replay` plays recorded traffic into it and compares.
        services/cli/up_run.py  services/cli/supervisor.py
        services/cli/drive.py  services/twin/traces.py  services/cli/report.py
And `tokenworks chaos` breaks a mesh on a seeded schedule while streams run, mends it, and holds it to its promises.
        services/chaos/__init__.py  services/chaos/run.py  services/chaos/core/verdict.py

Imports only go down: cli, twin, the services, mesh, tokenworks. A service imports mesh and itself, never another one.
"""
