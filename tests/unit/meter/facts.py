"""Events as workers and routers publish them, with defaults, for the meter's tests."""

from hypothesis import strategies as st

from services.mesh.events import Event, Outcome, RequestAdmitted, RequestFinished, TokenEntry, TokensGenerated

MINUTE_MS = 60_000
START_MS = 1_700_000_040_000  # a whole minute


def entry(
    request_id: str,
    from_index: int,
    count: int,
    *,
    tenant: str = "acme",
    workload: str = "chat",
    model: str = "llama-3.1-8b",
    slo_class: str = "standard",
    prompt_tokens: int = 100,
    cached_prompt_tokens: int = 0,
    device_ns: int = 1_000_000,
    energy_uj: int = 500_000,
    last: bool = False,
    traceparent: str = "",
) -> TokenEntry:
    return TokenEntry(
        request_id=request_id,
        tenant=tenant,
        workload=workload,
        model=model,
        slo_class=slo_class,
        from_index=from_index,
        count=count,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=cached_prompt_tokens,
        device_ns=device_ns,
        energy_uj=energy_uj,
        last=last,
        traceparent=traceparent,
    )


def tokens(
    *entries: TokenEntry,
    worker: str = "h100-0",
    accelerator: str = "nvidia-h100-sxm",
    at_unix_ms: int = START_MS,
    energy_source: str = "",
) -> TokensGenerated:
    return TokensGenerated(
        worker=worker,
        pool=accelerator,
        accelerator=accelerator,
        entries=entries,
        at_unix_ms=at_unix_ms,
        energy_source=energy_source,
    )


def admitted(
    request_id: str,
    *,
    tenant: str = "acme",
    workload: str = "chat",
    slo_class: str = "standard",
    price_book: str = "list@1",
    at_unix_ms: int = START_MS,
) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=request_id,
        router="router-0",
        tenant=tenant,
        workload=workload,
        model="llama-3.1-8b",
        slo_class=slo_class,
        prompt_tokens=90,
        max_tokens=512,
        worker="h100-0",
        pool="nvidia-h100-sxm",
        plan="llama-3.1-8b:1",
        at_unix_ms=at_unix_ms,
        price_book=price_book,
    )


def finished(
    request_id: str,
    delivered_count: int,
    *,
    delivered_from: int = 0,
    tenant: str = "acme",
    workload: str = "chat",
    slo_class: str = "standard",
    worker: str = "h100-0",
    accelerator: str = "nvidia-h100-sxm",
    prompt_tokens: int = 100,
    cached_prompt_tokens: int = 0,
    outcome: str = "length",
    slo_met: bool = True,
    price_book: str = "list@1",
    router: str = "router-0",
    trace_id: str = "0af7651916cd43dd8448eb211c80319c",
    at_unix_ms: int = START_MS,
) -> RequestFinished:
    return RequestFinished(
        request_id=request_id,
        router=router,
        tenant=tenant,
        workload=workload,
        model="llama-3.1-8b",
        slo_class=slo_class,
        worker=worker,
        pool=accelerator,
        accelerator=accelerator,
        delivered_from=delivered_from,
        delivered_count=delivered_count,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=cached_prompt_tokens,
        outcome=outcome,
        ttft_s=0.05,
        tpot_s=0.01,
        e2e_s=0.5,
        slo_met=slo_met,
        trace_id=trace_id,
        at_unix_ms=at_unix_ms,
        admitted_unix_ms=START_MS,
        price_book=price_book,
        plan="llama-3.1-8b:1",
    )


@st.composite
def lives(draw: st.DrawFn) -> list[Event]:
    """The events of some requests, each on one to three workers in turn, maybe resumed, cancelled or never finished."""
    events: list[Event] = []
    workers = (("h100-0", "nvidia-h100-sxm"), ("l4-0", "nvidia-l4"), ("x-0", "abacus"))
    for number in range(draw(st.integers(1, 3))):
        request_id, delivered, at_ms = f"r{number}", 0, START_MS + draw(st.integers(0, 3)) * 50_000
        prompt_tokens = draw(st.integers(0, 500))
        tenant, workload = draw(st.sampled_from([("acme", "chat"), ("acme", "summaries"), ("rival", "chat")]))
        events.append(admitted(request_id, tenant=tenant, workload=workload))
        worker, accelerator = workers[0]
        for _ in range(draw(st.integers(1, 3))):
            worker, accelerator = draw(st.sampled_from(workers))
            made = delivered
            for run in draw(st.lists(st.integers(0, 20), min_size=1, max_size=4)):
                at_ms += draw(st.integers(0, 40_000))
                fact = entry(
                    request_id,
                    made,
                    run,
                    tenant=tenant,
                    workload=workload,
                    prompt_tokens=prompt_tokens,
                    cached_prompt_tokens=draw(st.integers(0, prompt_tokens)),
                    device_ns=draw(st.integers(0, 10**9)),
                    energy_uj=draw(st.integers(0, 10**9)),
                )
                events.append(tokens(fact, worker=worker, accelerator=accelerator, at_unix_ms=at_ms))
                made += run
            delivered = draw(st.integers(delivered, made))
        if draw(st.booleans()):
            events.append(
                finished(
                    request_id,
                    delivered,
                    tenant=tenant,
                    workload=workload,
                    worker=worker,
                    accelerator=accelerator,
                    prompt_tokens=draw(st.sampled_from([0, prompt_tokens])),
                    outcome=draw(st.sampled_from([each for each in Outcome if each != Outcome.WRITTEN_OFF])),
                    at_unix_ms=at_ms + 1000,
                )
            )
    return events
