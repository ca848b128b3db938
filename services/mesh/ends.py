"""The end of a request by whoever did not deliver it: how far it got is known at most, nothing of how it went."""

from typing import Protocol

from services.mesh.events import Outcome, RequestFinished


class Named(Protocol):
    """What a request is called by, and whose it is."""

    @property
    def request_id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def slo_class(self) -> str: ...


def undelivered_end(request: Named, at_unix_ms: int, *, router: str = "", had_tokens: int = 0) -> RequestFinished:
    """An end in error, of which only this is known; `dataclasses.replace` adds what else is.

    Args:
        router: who says so.
        had_tokens: that its client has, from the first on.
    """
    return RequestFinished(
        request_id=request.request_id,
        router=router,
        tenant=request.tenant,
        workload=request.workload,
        model=request.model,
        slo_class=request.slo_class,
        worker="",
        pool="",
        accelerator="",
        delivered_from=0,
        delivered_count=had_tokens,
        prompt_tokens=0,
        cached_prompt_tokens=0,
        outcome=Outcome.ERROR,
        ttft_s=0.0,
        tpot_s=0.0,
        e2e_s=0.0,
        slo_met=False,
        trace_id="",
        at_unix_ms=at_unix_ms,
        admitted_unix_ms=0,
        price_book="",
        plan="",
    )
