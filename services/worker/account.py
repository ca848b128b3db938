"""What one request has made and taken since it was last reported. Filled per step, emptied per report."""

from dataclasses import dataclass

from opentelemetry.trace import Span

from services.mesh.events import MODELLED, Funding, TokenEntry
from services.worker.requests import Order


@dataclass(slots=True, eq=False, kw_only=True)
class Account:
    """The unreported part of a request's work.

    Attributes:
        traceparent: context of the request's span here, or of the router's where nothing is exported.
        from_index, count: consecutive tokens that were made and not reported.
        device_ns: the request's part of the steps since the last report.
        modelled_uj: its part of their energy by the model, until it is settled what its energy is.
        energy_uj, energy_source: settled and not reported; the source is that of all of it, or of the lesser part.
        last: nothing comes after what is in here.
        funding: what is held for it, where the mesh has not been told yet.
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
    modelled_uj: int = 0
    energy_uj: int = 0
    energy_source: str = ""
    last: bool = False
    funding: tuple[Funding, ...] = ()
    noted: bool = False
    span: Span | None = None

    @property
    def complete(self) -> bool:
        """The next entry is the last one."""
        return self.last and not self.modelled_uj

    def charge(self, energy_uj: int, source: str) -> None:
        """Settles what was modelled: this is its energy, by `source`."""
        if self.energy_uj and self.energy_source != source:
            source = MODELLED  # not all of it is measured, so none of it is said to be
        self.energy_uj += energy_uj
        self.energy_source = source
        self.modelled_uj = 0

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
            last=self.complete,
            traceparent=traceparent,
            funding=self.funding,
        )

    def reported(self) -> None:
        """What is in here was taken over by the bus."""
        self.from_index += self.count
        self.count = self.device_ns = self.energy_uj = 0
        self.energy_source = ""
        self.funding = ()
        self.noted = False


def account_of(order: Order, traceparent: str) -> Account:
    """The account of a request that begins here."""
    request = order.engine
    return Account(
        request_id=request.request_id,
        tenant=order.tenant,
        workload=order.workload,
        model=request.model,
        slo_class=order.slo_class,
        traceparent=traceparent,
        from_index=request.resume_from,
    )
