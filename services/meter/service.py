"""The meter's gRPC service: who used what, at what price and cost; budgets; one request's bill.

In: requests of metering.proto, from who knows the mesh's secret. Out: answers from the books, or an error that names
the field, its value, and what would do.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import grpc

from services.mesh.clock import Clock
from services.mesh.errors import InvalidRequest, UnknownRequest
from services.mesh.events import BudgetTerms, DriftFound
from services.mesh.rpc import require_mesh_secret
from services.meter.announcer import Announcer
from services.meter.answers import bill_of, row_of
from services.meter.audit import Audit
from services.meter.bookkeeper import Bookkeeper
from services.meter.budget_calls import check_room, is_tenants_own, states, terms_of
from services.meter.core.budgets import Credit
from services.meter.core.journal import HOUSE, Account
from services.meter.core.usage import DIMENSIONS
from services.meter.feed import Feed
from services.meter.inquiry import Inquiry, grouping_of
from services.meter.lessor import Lessor
from services.meter.runaways import Runaways
from services.meter.settler import Settler
from services.meter.store.bill import BillReader
from services.meter.store.dropped import NOTHING_DROPPED
from services.meter.store.questions import Questions
from services.meter.thread import WorkThreads
from services.meter.watchers import Watchers
from tokenworks.v1 import events_pb2, metering_pb2, metering_pb2_grpc

SERVICE_NAME: Final = "tokenworks.v1.Meter"
_SCOPES: Final = ("tenant", "workload", "caller", "session")
_MAX_TENANT: Final = 128
_MAX_NUSD: Final = 2**63 - 1
_OF_BILLS: Final = (Account.USE, Account.ENERGY, Account.IDLE, *HOUSE)
_WATCH_MS: Final = (100, 60_000)

Context = grpc.aio.ServicerContext[Any, Any]


class MeterService(metering_pb2_grpc.MeterServicer):
    def __init__(
        self,
        *,
        bookkeeper: Bookkeeper,
        questions: Questions,
        writing: WorkThreads,
        reading: WorkThreads,
        feed: Feed,
        announcer: Announcer,
        watchers: Watchers,
        audit: Audit,
        runaways: Runaways,
        lessor: Lessor,
        settler: Settler,
        bills: BillReader,
        inquiry: Inquiry,
        clock: Clock,
        secrets: Sequence[str],
    ) -> None:
        self._bookkeeper = bookkeeper
        self._questions = questions
        self._writing = writing
        self._reading = reading
        self._feed = feed
        self._announcer = announcer
        self._watchers = watchers
        self._audit = audit
        self._runaways = runaways
        self._lessor = lessor
        self._settler = settler
        self._bills = bills
        self._inquiry = inquiry
        self._clock = clock
        self._secrets = secrets

    async def GetUsage(self, request: metering_pb2.GetUsageRequest, context: Context) -> metering_pb2.GetUsageResponse:
        """Times count in whole minutes: all that [from, to) touches; what is billed by the hour, in whole hours."""
        require_mesh_secret(context, self._secrets)
        return await self._inquiry.usage(request)

    async def WatchUsage(
        self, request: metering_pb2.WatchUsageRequest, context: Context
    ) -> AsyncIterator[metering_pb2.UsageDelta]:
        """A message every `every_ms`, also when nothing was booked."""
        require_mesh_secret(context, self._secrets)
        wanted = grouping_of(request.group_by, request.filters, DIMENSIONS)
        shortest_ms, longest_ms = _WATCH_MS
        every_ms = request.every_ms or 1000
        if not shortest_ms <= every_ms <= longest_ms:
            raise InvalidRequest(f"every_ms = {every_ms} is not within {shortest_ms} to {longest_ms}; 0 means 1000")
        watcher = self._watchers.open(wanted)
        try:
            while await self._watchers.wait(every_ms / 1000):
                yield metering_pb2.UsageDelta(
                    rows=[row_of(wanted, group, amounts) for group, amounts in watcher.take()],
                    at_unix_ms=self._clock.unix_ms(),
                )
        finally:
            self._watchers.close(watcher)

    async def SetBudget(self, request: metering_pb2.SetBudgetRequest, context: Context) -> metering_pb2.Budget:
        require_mesh_secret(context, self._secrets)
        tenant = _tenant(request.tenant)
        if request.unit:
            terms = terms_of(request)
            if not is_tenants_own(terms) or request.soft:
                return await self._set_other(tenant, terms, lift=request.lift)
            limit_nusd = None if request.lift else terms.limit
        else:
            if request.limit_nusd < 0:
                raise InvalidRequest(f"limit_nusd = {request.limit_nusd} is negative; give 0 or more, or unlimited")
            if request.unlimited and request.limit_nusd:
                raise InvalidRequest(f"unlimited together with limit_nusd = {request.limit_nusd}; give one of them")
            limit_nusd = None if request.unlimited else request.limit_nusd
        spent_nusd = await self._writing.run(
            partial(self._bookkeeper.set_limit, tenant, limit_nusd, now_unix_ms=self._clock.unix_ms())
        )
        # At once: what is booked from here on is told to the announcer, which has to know the tenant.
        credit = self._announcer.set_limit(tenant, limit_nusd, spent_nusd)
        await self._lessor.announce(tenant)
        return _budget(credit)

    async def _set_other(self, tenant: str, terms: BudgetTerms, *, lift: bool) -> metering_pb2.Budget:
        budget = _budget(await self._credit(tenant))
        if lift:
            if not await self._lessor.lift(tenant, terms):
                raise InvalidRequest(
                    f"tenant {tenant!r} has no such budget: {terms.scope} {terms.subject} {terms.unit} {terms.period};"
                    " `tokenworks budget list` shows those it has"
                )
            return budget
        await self._writing.run(partial(self._bookkeeper.look, lambda vault, _: check_room(vault, tenant), tenant))
        stored = await self._lessor.set(tenant, terms)
        budget.state.CopyFrom(next(each for each in await self._states(tenant) if each.budget == stored.budget))
        return budget

    async def ListBudgets(
        self, request: metering_pb2.ListBudgetsRequest, context: Context
    ) -> metering_pb2.ListBudgetsResponse:
        require_mesh_secret(context, self._secrets)
        return metering_pb2.ListBudgetsResponse(budgets=await self._states(request.tenant))

    async def _states(self, tenant: str) -> list[metering_pb2.BudgetState]:
        look = partial(states, tenant, self._clock.unix_ms() // 1000)
        found = await self._writing.run(partial(self._bookkeeper.look, look, tenant))
        return [each for some in found for each in some]

    async def GetBudget(self, request: metering_pb2.GetBudgetRequest, context: Context) -> metering_pb2.Budget:
        """A tenant without a budget is unlimited, also one that was never billed."""
        require_mesh_secret(context, self._secrets)
        return _budget(await self._credit(_tenant(request.tenant)))

    async def _credit(self, tenant: str) -> Credit:
        known = self._announcer.of(tenant)
        return known or Credit(tenant, None, await self._reading.run(partial(self._questions.spent_nusd, tenant)))

    async def GetRequest(self, request: metering_pb2.GetRequestRequest, context: Context) -> metering_pb2.RequestBill:
        require_mesh_secret(context, self._secrets)
        if not request.request_id:
            raise InvalidRequest("request_id is empty; give the id that the first response of the stream carried")
        found = await self._reading.run(partial(self._questions.request, request.request_id))
        if found is None:
            raise UnknownRequest(
                f"nothing is booked for request {request.request_id!r}; check the id, or ask again when the meter has"
                f" caught up ({self._feed.lag_events} events wait)"
            )
        booked = await self._reading.run(partial(self._bills.of_request, *found.key))
        standing = self._settler.standing_of(found.key)
        settled = not standing and any(posting.account in _OF_BILLS for _, posting in booked)
        price_book = self._bookkeeper.prices.label_for(found.price_book, found.admitted_unix_ms)
        return bill_of(found, price_book, [*booked, *standing], settled=settled)

    async def ListRunaways(
        self, request: metering_pb2.ListRunawaysRequest, context: Context
    ) -> metering_pb2.ListRunawaysResponse:
        require_mesh_secret(context, self._secrets)
        found = [each for each in self._runaways.standing() if request.tenant in {"", each.tenant}]
        return metering_pb2.ListRunawaysResponse(found=[events_pb2.RunawayFound(**asdict(each)) for each in found])

    async def LiftRunaway(
        self, request: metering_pb2.LiftRunawayRequest, context: Context
    ) -> metering_pb2.ListRunawaysResponse:
        """Answers with what is still in force."""
        require_mesh_secret(context, self._secrets)
        if request.scope not in _SCOPES:
            raise InvalidRequest(f"scope = {request.scope!r} is none of: {', '.join(_SCOPES)}")
        self._runaways.lift(_tenant(request.tenant), request.scope, request.name)
        return await self.ListRunaways(metering_pb2.ListRunawaysRequest(tenant=request.tenant), context)

    async def Audit(self, request: metering_pb2.AuditRequest, context: Context) -> metering_pb2.AuditResponse:
        require_mesh_secret(context, self._secrets)
        audit, checked, bookkeeper = self._audit, self._audit.checked, self._bookkeeper
        gone = await self._writing.run(bookkeeper.dropped) if bookkeeper.detail_from_unix_ms else NOTHING_DROPPED
        return metering_pb2.AuditResponse(
            standing=[_drift(each) for each in audit.standing],
            repaired=[_drift(each) for each in audit.repaired],
            requests_checked=checked.requests,
            rounds=checked.rounds,
            round_ended_unix_ms=checked.round_ended_unix_ms,
            generated_tokens=checked.generated_tokens,
            delivered_tokens=checked.delivered_tokens,
            missing_events=audit.missing_events,
            lost_events=audit.lost_events,
            lag_events=self._feed.lag_events,
            detail_from_unix_ms=bookkeeper.detail_from_unix_ms,
            dropped_lines=gone.lines,
            dropped_requests=gone.amounts.requests,
            dropped_price_nusd=gone.amounts.price_nusd,
            months=await self._reading.run(self._questions.months),
        )


def _drift(found: DriftFound) -> metering_pb2.Drift:
    return metering_pb2.Drift(
        kind=found.kind,
        subject=found.subject,
        tenant=found.tenant,
        expected=found.expected,
        found=found.found,
        what=found.what,
        repaired=found.repaired,
        done=found.done,
        at_unix_ms=found.at_unix_ms,
    )


def _tenant(tenant: str) -> str:
    if not 1 <= len(tenant) <= _MAX_TENANT:
        raise InvalidRequest(f"tenant = {tenant!r} must have 1 to {_MAX_TENANT} characters")
    return tenant


def _budget(credit: Credit) -> metering_pb2.Budget:
    return metering_pb2.Budget(
        tenant=credit.tenant,
        limit_nusd=credit.limit_nusd or 0,
        unlimited=credit.unlimited,
        spent_nusd=credit.spent_nusd,
        remaining_nusd=credit.remaining_nusd,
        exhausted=credit.exhausted,
    )
