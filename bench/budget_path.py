"""What budgets cost on a request's own path, in CPU time: the router's and the worker's own code, and nothing else.

    python -m bench.budget_path

In: six budgets that all bound the request, as `bench.budget_ttft` sets them, and credit at hand. Out: microseconds of
CPU per request, step by step, and per token. A whole mesh takes so much in the background that its CPU time tells
little of this; here nothing else runs, and what other programs do to the machine is not in it.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from services.mesh.clock import SystemClock
from services.mesh.codec import encode
from services.mesh.credit import account_of
from services.mesh.events import BudgetsSet, BudgetTerms, Funding, LeaseGrant, LeaseGranted, RequestAdmitted
from services.mesh.holds import RequestCredit
from services.mesh.lessee import Lessees
from services.mesh.memory_bus import MemoryBroker
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import PriceCalendar
from services.mesh.settings import RouterSettings
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from services.router.funds import Funds, funds_of
from services.worker.requests import funded_of
from tokenworks.v1 import inference_pb2 as wire

_TENANT: Final = "local"
_PERIODS: Final = ("once", "minute", "hour", "day", "month")
_REQUESTS: Final = 1000
_ROUNDS: Final = 5
_MUCH: Final = 10**15
_PROMPT_TOKENS: Final = 100
_TOKENS: Final = 4096
A = TypeVar("A")
B = TypeVar("B")


def _terms() -> tuple[BudgetTerms, ...]:
    kinds = [("nusd", period) for period in _PERIODS] + [("tokens", "minute")]
    return tuple(
        BudgetTerms(
            budget=number,
            scope="tenant",
            subject="",
            unit=unit,
            period=period,
            limit=_MUCH,
            hard=True,
            notify_percents=(),
            set_unix_ms=0,
        )
        for number, (unit, period) in enumerate(kinds, start=1)
    )


def _asked(number: int) -> Asked:
    return Asked(
        request_id=f"0199b0c0-0000-7000-8000-{number:012d}",
        tenant=_TENANT,
        model="llama-3.1-8b",
        slo_class="standard",
        workload="bench/budget",
        session_id="",
        prompt=PromptFacts(kind=PromptKind.TEXT, size=4 * _PROMPT_TOKENS),
        sampling=SamplingValues(max_tokens=_TOKENS),
    )


def _supply(lessees: Lessees, credit: RequestCredit) -> None:
    """The meter's answer that gives the purse more than it will need."""
    purse, now_s = lessees.of(_TENANT).purse, time.monotonic()
    accounts = [account_of(hold) for each in credit.funding() for hold in each.holds] or [
        account_of(hold) for hold in credit.lacking(1, 1, lessees.of(_TENANT).unix_s())
    ]
    for account in accounts:
        purse.wait_for(account, _MUCH, 0)
    grants = tuple(
        LeaseGrant(
            budget=account.budget,
            subject=account.subject,
            window=account.window,
            granted=_MUCH,
            limit=_MUCH,
            spent=0,
            short=False,
            coming=False,
            recalled=False,
        )
        for account in accounts
    )
    answer = LeaseGranted(refused="", ttl_ms=3_600_000, grants=grants, at_unix_ms=0)
    purse.answered(purse.word(), answer, now_s, now_s)
    for account in accounts:
        purse.wait_for(account, -_MUCH, 0)


class Path:
    """The steps of the path, each timed over many requests at once."""

    def __init__(self) -> None:
        clock = SystemClock()
        self._lessees = Lessees("router-0", MemoryBroker().bus("router", "router-0"), clock)
        self._settings = RouterSettings()
        self._funds = Funds(
            self._settings,
            lessees=self._lessees,
            prices=PriceCalendar(PriceBook()),
            clock=clock,
            spawn=lambda coroutine, _: coroutine.close(),
        )
        self._funds.budgets.set(BudgetsSet(tenant=_TENANT, budgets=_terms(), at_unix_ms=0))
        self._now_unix_ms = clock.unix_ms()
        bounds = self._funds.budgets.bounds(_asked(0))
        rates = PriceCalendar(PriceBook()).at(self._now_unix_ms).rates("llama-3.1-8b", _TENANT, "standard")
        _supply(self._lessees, RequestCredit(bounds, rates, told={}))
        self.us: dict[str, list[float]] = {}

    def _step(self, name: str, do: Callable[[A], B], values: Sequence[A]) -> list[B]:
        started_s = time.process_time()
        done = [do(value) for value in values]
        self.us.setdefault(name, []).append((time.process_time() - started_s) / len(values) * 1e6)
        return done

    async def run(self) -> None:
        """Once through all steps."""
        number = len(self.us.get("hold", ())) * _REQUESTS
        asked = [_asked(number + each) for each in range(_REQUESTS)]
        started_s = time.process_time()
        credits_: list[RequestCredit] = []
        for each in asked:
            credit, _ = await self._funds.fund(each, _PROMPT_TOKENS, self._now_unix_ms)
            assert credit is not None, "six budgets bound it"
            credits_.append(credit)
        self.us.setdefault("hold", []).append((time.process_time() - started_s) / _REQUESTS * 1e6)
        orders = self._step("say so to the worker", lambda credit: funds_of(credit).SerializeToString(), credits_)
        self._step("read by the worker", lambda order: funded_of(wire.Funds.FromString(order)), orders)
        self._step("events without", encode, [self._event(each, ()) for each in asked])
        events = [self._event(each, credit.funding()) for each, credit in zip(asked, credits_, strict=True)]
        self._step("events with", encode, events)
        self._step("another slice", self._extend, list(zip(asked, credits_, strict=True)))
        self._step("end", self._funds.ended, asked)

    def _event(self, asked: Asked, funding: tuple[Funding, ...]) -> RequestAdmitted:
        return RequestAdmitted(
            request_id=asked.request_id,
            router="router-0",
            tenant=asked.tenant,
            workload=asked.workload,
            model=asked.model,
            slo_class=asked.slo_class,
            prompt_tokens=_PROMPT_TOKENS,
            max_tokens=_TOKENS,
            worker="h100-0",
            pool="nvidia-h100-sxm",
            plan="",
            at_unix_ms=self._now_unix_ms,
            price_book="list@1",
            funding=funding,
        )

    def _extend(self, running: tuple[Asked, RequestCredit]) -> None:
        asked, credit = running
        more: list[bool] = []
        self._funds.extend(credit, asked, _PROMPT_TOKENS, credit.completion_tokens, more.append)
        assert more == [True], "there is credit at hand"
        funds_of(credit)


def measure() -> dict[str, Any]:
    """CPU microseconds, the median of some rounds."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    path = Path()
    for _ in range(_ROUNDS):
        asyncio.run(path.run())
    us = {name: round(statistics.median(some), 1) for name, some in path.us.items()}
    events_us = 2 * (us.pop("events with") - us.pop("events without"))  # admitted and finished
    slice_tokens = RouterSettings().credit_slice_tokens
    return {
        "steps_us": us | {"in two events": round(events_us, 1)},
        "before_first_token_us": round(us["hold"] + us["say so to the worker"] + us["read by the worker"], 1),
        "per_request_us": round(sum(us.values()) - us["another slice"] + events_us, 1),
        "per_token_us": round(us["another slice"] / slice_tokens, 3),
    }


def told(found: dict[str, Any]) -> str:
    """In words."""
    steps = ", ".join(f"{name} {us:.0f}" for name, us in found["steps_us"].items())
    return (
        f"the path alone, CPU: {found['before_first_token_us']:.0f} µs before the first token,"
        f" {found['per_request_us']:.0f} µs per request, {found['per_token_us']:.2f} µs per token ({steps})"
    )


if __name__ == "__main__":
    print(told(measure()))
