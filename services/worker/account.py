"""What one request has made and taken since it was last reported. Filled per step, emptied per report."""

from dataclasses import dataclass

from opentelemetry.trace import Span

from services.mesh.events import TokenEntry


@dataclass(slots=True, eq=False, kw_only=True)
class Account:
    """The unreported part of a request's work.

    Attributes:
        traceparent: context of the request's span here, or of the router's where nothing is exported.
        from_index, count: consecutive tokens that were made and not reported.
        device_ns, energy_uj: the request's parts of the steps since the last report.
        last: nothing comes after what is in here.
        noted: the reporter has it in its list.
        span: of the message that the request's entries are, while spans are exported.
    """

    request_id: str
    tenant: str
    workload: str
    model: str
    slo_class: str
    traceparent: str
    from_index: int
    count: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    device_ns: int = 0
    energy_uj: int = 0
    last: bool = False
    noted: bool = False
    span: Span | None = None

    def entry(self, traceparent: str) -> TokenEntry:
        return TokenEntry(
            request_id=self.request_id,
            tenant=self.tenant,
            workload=self.workload,
            model=self.model,
            slo_class=self.slo_class,
            from_index=self.from_index,
            count=self.count,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            device_ns=self.device_ns,
            energy_uj=self.energy_uj,
            last=self.last,
            traceparent=traceparent,
        )

    def reported(self) -> None:
        """What is in here was taken over by the bus."""
        self.from_index += self.count
        self.count = self.device_ns = self.energy_uj = 0
        self.noted = False
