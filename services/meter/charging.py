"""Works out charges and invoices from the books: lines and postings, priced by the books that price them now.

In: days, months, tenants. Out: `Charges`, drafts of invoices, and the reasons why one cannot be issued yet. Everything
here runs in a thread of those that read.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest
from services.mesh.price_calendar import PriceCalendar
from services.mesh.pricing import Pricing
from services.mesh.settings import InvoiceSettings
from services.meter.core.amounts import MS_PER_MINUTE
from services.meter.core.charges import (
    MINUTES_PER_DAY,
    Bounds,
    Charged,
    ChargeKey,
    Charges,
    Issued,
    billing_of,
    by_tenant,
    month_name,
    parse_month,
    pieces,
)
from services.meter.core.invoices import Invoice, invoice_of
from services.meter.core.volumes import period_of
from services.meter.store.charges import ChargeReader, PricedLines
from services.meter.store.invoices import InvoiceReader

_LINES_A_PIECE: Final = 200_000
_SETTLED_S: Final = 120.0  # after an hour is booked: commitments and the last credits are, too


class Charging:
    """Args:
    settle_after_s: after a month's end its last hour is booked.
    """

    def __init__(
        self,
        *,
        reader: ChargeReader,
        invoices: InvoiceReader,
        prices: PriceCalendar,
        terms: InvoiceSettings,
        settle_after_s: float,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._invoices = invoices
        self._prices = prices
        self._terms = terms
        self._settle_after_s = settle_after_s
        self._clock = clock

    def next_day(self, from_minute: int, to_unix_ms: int) -> int | None:
        """The first minute of the first day with charges that begins in [from, to); 0: no end. None: there is none."""
        begin = -(-from_minute // MINUTES_PER_DAY) * MINUTES_PER_DAY
        found = self._reader.next_day(begin)
        return None if found is None or (to_unix_ms and found * MS_PER_MINUTE >= to_unix_ms) else found

    def bounds(self) -> Bounds:
        return self._reader.bounds()

    def of_day(self, day_minute: int, tenants: Sequence[str], bounds: Bounds) -> Charges:
        """All charges of a day that the books hold up to `bounds`."""
        issued = by_tenant(self._invoices.issued(tuple(tenants)))
        return self._collect(
            day_minute, day_minute + MINUTES_PER_DAY, tenants, after=Bounds(), bounds=bounds, issued=issued
        )

    def draft(self, tenant: str, month: str) -> tuple[Invoice, Bounds]:
        """A tenant's invoice of a month that has none, as the books are now, and up to where they are."""
        from_minute, to_minute = parse_month(month)
        bounds, mine = self._reader.bounds(), self._invoices.issued((tenant,))
        issued = {tenant: mine}
        charges = self._collect(from_minute, to_minute, (tenant,), after=Bounds(), bounds=bounds, issued=issued)
        if mine:  # what came to light of earlier months since the last invoice
            late = self._collect(0, from_minute, (tenant,), after=mine[-1].cuts, bounds=bounds, issued=issued)
            for key, each in late.by_key.items():
                charges.add(key, each)
        on_it = [
            (key, each)
            for key, each in charges.ordered()
            if not key.billing.invoice and key.billing.from_minute == from_minute
        ]
        draft = invoice_of(
            on_it,
            tenant=tenant,
            from_minute=from_minute,
            to_minute=to_minute,
            issuer=self._terms.issuer,
            issuer_address=self._terms.address,
        )
        return draft, bounds

    def check_issuable(self, tenant: str, month: str) -> None:
        """Whether a month's invoice may be issued now.

        Raises:
            InvalidRequest: the month is not over and booked, is before one that is invoiced, or an earlier one comes
                first.
        """
        from_minute, to_minute = parse_month(month)
        ready_s = to_minute * 60 + self._settle_after_s + _SETTLED_S
        if self._clock.unix_ms() < ready_s * 1000:
            raise InvalidRequest(
                f"month = {month!r} is not over, or its last hour is not booked yet; its invoice can be issued"
                f" {self._settle_after_s + _SETTLED_S:.0f} s after its end"
            )
        mine = self._invoices.issued((tenant,))
        if mine and from_minute < mine[-1].to_minute:
            raise InvalidRequest(
                f"month = {month!r}: {tenant!r} has an invoice of {month_name(mine[-1].from_minute)} already, and what"
                " came to light of earlier months is on the next one"
            )
        expected = mine[-1].to_minute if mine else self._first_month(tenant, from_minute)
        while expected < from_minute:
            end = period_of(expected, "month")[1]
            earlier, _ = self.draft(tenant, month_name(expected))
            if earlier.lines:
                raise InvalidRequest(
                    f"month = {month!r}: {month_name(expected)} of {tenant!r} comes first; issue that invoice"
                )
            expected = end

    def require_detail(self, from_minute: int) -> None:
        """Whether requests and lines from a minute on are all there.

        Raises:
            InvalidRequest: some were dropped.
        """
        kept = self._reader.detail_from_minute()
        if from_minute < kept:
            day = datetime.fromtimestamp(kept * 60, UTC).date()
            raise InvalidRequest(
                f"what was booked line by line before {day} is dropped by meter.keep_detail_days; ask from {day} on, or"
                " for usage, which is kept"
            )

    def _first_month(self, tenant: str, default: int) -> int:
        """The first that there may be an invoice of."""
        first = self._reader.first_minute(tenant)
        if first is None:
            return default
        start, end = period_of(max(first, kept := self._reader.detail_from_minute()), "month")
        return end if start < kept else start

    def _collect(
        self,
        from_minute: int,
        to_minute: int,
        tenants: Sequence[str],
        *,
        after: Bounds,
        bounds: Bounds,
        issued: Mapping[str, Sequence[Issued]],
    ) -> Charges:
        """Charges dated in [from, to) of what is after `after` and up to `bounds`."""
        charges = Charges()
        cuts = [each.cuts for some in issued.values() for each in some]
        ranges = self._reader.line_ranges(from_minute, to_minute, bounds.line)
        ranges = [(max(start, after.line), end) for start, end in ranges if end > after.line]
        eras = self._eras()
        for piece in pieces(ranges, (each.line for each in cuts), _LINES_A_PIECE):
            for lines in self._reader.lines(piece, from_minute, to_minute, tenants, eras):
                at = Bounds(line=piece[1])
                billing = billing_of(issued.get(lines.tenant, ()), at, lines.day_minute)
                pricing = self._pricing(lines, eras)
                key = ChargeKey(
                    lines.day_minute,
                    lines.tenant,
                    lines.model,
                    lines.slo_class,
                    lines.accelerator,
                    billing,
                    pricing.label,
                    lines.workload,
                )
                rates = pricing.rates(lines.model, lines.tenant, lines.slo_class)
                list_rates = pricing.rates(lines.model, "", lines.slo_class)
                charged = Charged(lines.tokens, lines.price_nusd, 0, 0, lines.requests, rates, list_rates)
                charges.add(key, charged)
        spans = pieces([(after.posting, bounds.posting)], (each.posting for each in cuts), bounds.posting + 1)
        for start, end in spans:
            for each in self._reader.posted(start, end, from_minute, to_minute, tenants):
                at = Bounds(posting=end)
                billing = billing_of(issued.get(each.tenant, ()), at, each.day_minute)
                key = ChargeKey(
                    each.day_minute,
                    each.tenant,
                    each.model,
                    each.slo_class,
                    each.accelerator,
                    billing,
                    "",
                    each.workload,
                )
                charges.add(key, Charged(credit_nusd=each.credit_nusd, adjustment_nusd=each.adjustment_nusd))
        return charges

    def _eras(self) -> list[int]:
        """Times of admission at which what prices a request may change, besides its router's word."""
        return sorted({each for each in self._boundaries() if each})

    def _boundaries(self) -> Iterator[int]:
        yield from (each.effective_unix_ms for each in self._prices.opened)
        for each in self._prices.reratings:
            yield from (each.from_unix_ms, each.to_unix_ms)

    def _pricing(self, lines: PricedLines, eras: Sequence[int]) -> Pricing:
        """What prices these lines now, see `PriceCalendar`."""
        admitted_unix_ms = eras[lines.era - 1] if lines.era else 0
        label = self._prices.label_for(lines.named_book, admitted_unix_ms)
        found = self._prices.pricing(label)
        return found or self._prices.at(admitted_unix_ms or lines.day_minute * MS_PER_MINUTE)
