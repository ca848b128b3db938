"""Whether the costs of all requests come to the fleet's bill, to the nano-dollar: a trace on a fleet that changes.

    python -m bench.fleet_bill [TRACE] [--fleet "…"] [--limit N] [--speed S] [--rule by_use] [--out]

The trace (a generated one where none is given) is played in virtual time through the twin: the mesh's own scheduler,
policy and planner, with workers that join late, leave, die with streams on them, and come back. What a worker would
publish (tokens made with their device time and energy, heartbeats) and a deliverer (admissions, ends) is booked by the
meter's own bookkeeper in a SQLite file. A tenth of the events comes late, after the hours were billed, and some come
twice; then the hours are billed again. Rates and tariffs change by date and hour; the house's part is shown.

What must hold exactly: every transaction sums to zero; for each hour use + energy + idle + house = bill; and the bill
is each worker's paid time at its rate and its energy at the tariff, worked out apart. Exit status 1 where it does not.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

from bench.record import write
from services.mesh.accelerators import Catalogue, load_catalogue
from services.mesh.bus import Delivered, EventId
from services.mesh.cost_settings import DeviceRate, Tariff
from services.mesh.events import (
    Event,
    LatencyObserved,
    RequestAdmitted,
    RequestFinished,
    TokenEntry,
    TokensGenerated,
    WorkerHeartbeat,
    WorkerState,
)
from services.mesh.money import energy_cost_nusd, format_usd, use_cost_nusd
from services.mesh.price_book import PriceBook
from services.mesh.subjects import subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.core.fleet_bill import IdleRule, Rule, settle_hour
from services.meter.core.fleet_rates import FleetRates, Paid
from services.meter.core.journal import HOUSE, Account, Booked, difference
from services.meter.core.presence import MS_PER_HOUR, Presence, Start, WorkerHour
from services.meter.core.shares import share_out
from services.meter.store.bill import BillHour, BillReader, BillWriter
from services.meter.store.books import Transaction
from services.meter.store.database import Database
from services.twin import traces
from services.twin.mesh_policy import MeshPolicy
from services.twin.requests import TwinRequest
from services.twin.run import POLICIES, simulate
from services.twin.scenario import Event as Befalls
from services.twin.scenario import Fleet, Scenario, usual_classes
from services.twin.traces import TraceRequest
from services.twin.worker import UNIX_MS, TwinWorker

FLEET: Final = "2 nvidia-h100-sxm, 2 amd-mi300x, 2 nvidia-l4, 1 google-tpu-v6e, 1 intel-gaudi3"
MODEL: Final = "llama-3.1-8b"
_BATCH: Final = 500
_WARM_UP_MS: Final = 30_000
_TARIFF_NUSD: Final = 80_000_000
_LOST_TOKENS: Final = 3  # made by a worker that dies, and delivered to nobody


@dataclass(slots=True)
class Seen:
    """One worker as its last heartbeat told."""

    busy_ns: int = 0
    energy_uj: int = 0
    epoch: str = ""
    here: dict[int, TwinRequest] = field(default_factory=dict)  # requests that were there since


class Recorder(MeshPolicy):
    """The mesh's policy, writing down what workers and routers would have published."""

    name = "recorded"

    def __init__(self, scenario: Scenario, catalogue: Catalogue) -> None:
        super().__init__(scenario, catalogue)
        self.events: list[tuple[str, Event]] = []
        self.presence = Presence()
        self._catalogue = catalogue
        self._seen: dict[str, Seen] = defaultdict(Seen)
        self._begun: dict[int, int] = {}  # tokens delivered before the leg under way
        self._idle_uj: dict[str, int] = defaultdict(int)

    def heard(self, event: WorkerHeartbeat | LatencyObserved, now_s: float) -> None:
        super().heard(event, now_s)
        if isinstance(event, WorkerHeartbeat) and event.state is WorkerState.READY:
            self._beat(event)

    def placed(self, request: TwinRequest, worker: str, now_s: float) -> None:
        super().placed(request, worker, now_s)
        self._seen[worker].here[request.index] = request
        self._begun[request.index] = request.delivered
        if not request.legs and request.tries == 0:
            self.events.append(("router.router-0.requests", _admitted(request, worker, now_s)))

    def left(self, request: TwinRequest, worker: str, now_s: float) -> None:
        super().left(request, worker, now_s)
        begun = self._begun.pop(request.index, None)
        if begun is None:
            return
        made, died = request.delivered - begun, request.delivered < request.completion_tokens
        if made or died:
            count = made + (_LOST_TOKENS if died else 0)
            entry = _entry(request, begun, count, prompt_tokens=request.prompt_tokens + begun)
            self._made(worker, [entry], now_s)

    def finished(self, request: TwinRequest, now_s: float) -> None:
        super().finished(request, now_s)
        self.events.append(("router.router-0.requests", _finished(request, self._accelerator(request), now_s)))

    def _beat(self, beat: WorkerHeartbeat) -> None:
        """Shares the work since the last heartbeat among those who were there; keeps the time that is paid for."""
        worker, seen = beat.worker, self._seen[beat.worker]
        device = self._catalogue.accelerator(beat.accelerator)
        start, at_ms = Start(worker, beat.epoch), beat.at_unix_ms
        if beat.epoch != seen.epoch:
            seen.epoch = beat.epoch
            self._idle_uj[worker] = 0
            self.presence.beat(
                start, beat.pool, beat.accelerator, warming_up=True, at_unix_ms=at_ms - _WARM_UP_MS, energy_uj=0
            )
            self._idle_uj[worker] += int(device.idle_w * _WARM_UP_MS * 1000)
            self._energy_base(worker, beat)
            self.presence.beat(
                start,
                beat.pool,
                beat.accelerator,
                warming_up=True,
                at_unix_ms=at_ms,
                energy_uj=self._idle_uj[worker],
            )
        busy_ns, energy_uj = beat.busy_ns - seen.busy_ns, beat.energy_uj - seen.energy_uj
        there = [each for each in seen.here.values() if each.index >= 0]
        if busy_ns and there:
            devices, energies = share_out(busy_ns, [1] * len(there)), share_out(energy_uj, [1] * len(there))
            entries = [
                _entry(request, request.delivered, 0, device_ns=ns, energy_uj=uj)
                for request, ns, uj in zip(there, devices, energies, strict=True)
            ]
            self._made(worker, entries, (at_ms - UNIX_MS) / 1000)
        idle_ns = max(0, 250_000_000 - busy_ns)
        self._idle_uj[worker] += energy_uj + int(device.idle_w * idle_ns / 1000)
        self.presence.beat(
            start,
            beat.pool,
            beat.accelerator,
            warming_up=False,
            at_unix_ms=at_ms,
            energy_uj=self._idle_uj[worker],
        )
        seen.busy_ns, seen.energy_uj = beat.busy_ns, beat.energy_uj
        seen.here = {index: each for index, each in seen.here.items() if index in self._begun}

    def _energy_base(self, worker: str, beat: WorkerHeartbeat) -> None:
        """The twin's totals go on over a restart; a new process counts from 0."""
        seen = self._seen[worker]
        seen.busy_ns, seen.energy_uj, seen.here = beat.busy_ns, beat.energy_uj, {}

    def _made(self, worker: str, entries: Sequence[TokenEntry], now_s: float) -> None:
        accelerator = worker.rpartition("-")[0]
        event = TokensGenerated(
            worker=worker,
            pool=accelerator,
            accelerator=accelerator,
            entries=tuple(entries),
            at_unix_ms=_ms(now_s),
            energy_source="",
        )
        self.events.append((f"worker.{worker}.tokens", event))

    def _accelerator(self, request: TwinRequest) -> str:
        return request.legs[-1].rpartition("-")[0] if request.legs else ""


def _ms(now_s: float) -> int:
    return UNIX_MS + int(now_s * 1000)


def _entry(
    request: TwinRequest, start: int, count: int, *, prompt_tokens: int = 0, device_ns: int = 0, energy_uj: int = 0
) -> TokenEntry:
    return TokenEntry(
        request_id=f"r{request.index}",
        tenant=request.tenant,
        workload=request.workload,
        model=MODEL,
        slo_class=request.promise.name,
        from_index=start,
        count=count,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=0,
        device_ns=device_ns,
        energy_uj=energy_uj,
    )


def _admitted(request: TwinRequest, worker: str, now_s: float) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=f"r{request.index}",
        router="router-0",
        tenant=request.tenant,
        workload=request.workload,
        model=MODEL,
        slo_class=request.promise.name,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.completion_tokens,
        worker=worker,
        pool="",
        plan="",
        at_unix_ms=_ms(now_s),
        price_book="list@1",
    )


def _finished(request: TwinRequest, accelerator: str, now_s: float) -> RequestFinished:
    return RequestFinished(
        request_id=f"r{request.index}",
        router="router-0",
        tenant=request.tenant,
        workload=request.workload,
        model=MODEL,
        slo_class=request.promise.name,
        worker=request.legs[-1] if request.legs else "",
        pool=accelerator,
        accelerator=accelerator,
        delivered_from=0,
        delivered_count=request.delivered,
        prompt_tokens=request.prompt_tokens,
        cached_prompt_tokens=0,
        outcome="length" if request.outcome == "length" else "error",
        ttft_s=request.ttft_s,
        tpot_s=request.tpot_s,
        e2e_s=now_s - request.arrival_s,
        slo_met=request.slo_met,
        trace_id="",
        at_unix_ms=_ms(now_s),
        admitted_unix_ms=_ms(request.arrival_s),
        price_book="list@1",
        plan="",
    )


def generated_trace(requests: int, span_s: float, seed: int) -> list[TraceRequest]:
    """Traffic for where no trace is at hand: it swells and ebbs, with long and short prompts."""
    rng = random.Random(seed)
    arrivals = sorted(rng.betavariate(2, 2) * span_s for _ in range(requests))
    return [
        TraceRequest(
            arrival_s=at - arrivals[0],
            prompt_tokens=int(rng.lognormvariate(6.2, 1.0)) + 1,
            completion_tokens=int(rng.lognormvariate(4.6, 0.8)) + 1,
            tenant=rng.choice(("acme", "globex", "initech")),
        )
        for at in arrivals
    ]


def fleet_rates(catalogue: Catalogue) -> FleetRates:
    """Dated rates: a spot device from the second hour on, one that is owned, tariffs by hour of day."""
    second_hour = datetime.fromtimestamp(UNIX_MS // 1000 + 3600, UTC)
    return FleetRates(
        catalogue={key: each.rate_nusd_per_hour for key, each in catalogue.accelerators.items()},
        rates=(
            DeviceRate(
                accelerator="nvidia-l4",
                usd_per_hour=Decimal("0.31"),
                market="spot",
                workers="nvidia-l4-1",
                since=second_hour,
            ),
            DeviceRate(
                accelerator="amd-mi300x", capex_usd=Decimal(15_000), opex_usd_per_hour=Decimal("0.40"), market="owned"
            ),
        ),
        reservations=(),
        tariff_nusd_per_kwh=_TARIFF_NUSD,
        grid_g_per_kwh=445,
        tariffs=(Tariff(from_hour=1, to_hour=2, usd_per_kwh=Decimal("0.24"), grid_g_per_kwh=600),),
    )


def changes(workers: Sequence[str], span_s: float) -> tuple[Befalls, ...]:
    """Who joins late, leaves, dies and comes back, spread over the run."""
    events = [Befalls(0.001, "fail", (workers[-1],)), Befalls(span_s * 0.2, "ready", (workers[-1],))]
    for number, worker in enumerate(workers[:-1]):
        at_s = span_s * (0.25 + 0.6 * number / len(workers))
        events += [Befalls(at_s, "fail", (worker,))]
        if number % 3 != 2:  # the others leave for good
            events += [Befalls(at_s + span_s * 0.1, "ready", (worker,))]
    return tuple(sorted(events, key=lambda each: each.at_s))


def delivered(events: Sequence[tuple[str, Event]]) -> Iterator[Delivered]:
    sequences: dict[str, int] = defaultdict(int)
    for publisher, event in events:
        sequences[publisher] += 1
        yield Delivered(EventId(publisher, "e", sequences[publisher]), event, subject_of(event))


class Bills:
    """The settler's work on a database that nothing else writes."""

    def __init__(self, database: Database, keeper: Bookkeeper, rates: FleetRates, rule: Rule) -> None:
        self._keeper = keeper
        self.reader = BillReader(database)
        self._writer = BillWriter(database)
        self._rates = rates
        self._rule = rule
        self._rounds = 0

    def store(self, paid: Sequence[WorkerHour]) -> None:
        self._keeper.within(lambda transaction: self._writer.put_worker_hours(transaction, paid))

    def settle(self) -> int:
        """Bills every hour by all lines there are; the number of postings that it took."""
        self._rounds += 1
        _, lines = self.reader.lines(0, 1 << 62)
        made = 0
        for hour in sorted(self.reader.hours().keys() | lines.keys()):
            first, last = lines.get(hour, (0, 0))
            work = self.reader.work(BillHour(hour, first, last))
            target = settle_hour(hour, self.reader.worker_hours(hour), work, self._rates, self._rule)
            booked: dict[str, Booked] = defaultdict(dict)
            for key, value in self.reader.posted("bill", hour, hour + 1).items():
                booked[key[1].pool][key] = value
            transactions = {
                f"bill:{hour}:{pool}:{self._rounds}": postings
                for pool in target.keys() | booked.keys()
                if (postings := difference(target.get(pool, {}), booked.get(pool, {})))
            }
            made += sum(map(len, transactions.values()))

            def post(transaction: Transaction, hour: int = hour, made: Any = transactions) -> None:
                self._writer.post(transaction, "bill", hour, made, now_unix_ms=UNIX_MS)

            self._keeper.within(post)
        return made


@dataclass(frozen=True, slots=True)
class Checked:
    """An hour, in nano-dollars: what is owed as worked out apart, as posted, and what its parts come to."""

    hour: int
    owed_nusd: int
    posted_nusd: int
    parts_nusd: int
    unbalanced: int


def check(bills: Bills, rates: FleetRates) -> list[Checked]:
    found = []
    for hour in sorted(bills.reader.hours()):
        paid: dict[Paid, list[int]] = defaultdict(lambda: [0, 0])
        for each in bills.reader.worker_hours(hour):
            sums = paid[Paid(each.start.worker, each.pool, each.accelerator)]
            sums[0] += each.paid_ns
            sums[1] += each.energy_uj
        owed = sum(
            use_cost_nusd(ns, rates.nusd_per_hour(who, hour))
            + energy_cost_nusd(uj, rates.energy(who, hour).tariff_nusd_per_kwh)
            for who, (ns, uj) in paid.items()
        )
        by_account: dict[Account, int] = defaultdict(int)
        for (account, _), value in bills.reader.posted("bill", hour, hour + 1).items():
            by_account[account] += value.amount_nusd
        posted = -by_account[Account.FLEET] - by_account[Account.FLEET_ENERGY]
        kinds = (Account.USE, Account.ENERGY, Account.IDLE, *HOUSE)
        parts = bills.reader.accrued(hour) + sum(by_account[account] for account in kinds)
        found.append(Checked(hour, owed, posted, parts, len(bills.reader.unbalanced(hour, hour + 1))))
    return found


def run(trace: Sequence[TraceRequest], fleet: str, *, speed: float, rule: IdleRule, folder: Path) -> dict[str, Any]:
    """Plays, books, bills and checks; the figures."""
    catalogue = load_catalogue()
    workers = Fleet.parse(fleet, catalogue)
    span_s = trace[-1].arrival_s / speed
    scenario = Scenario(
        fleet=workers,
        model=MODEL,
        classes=usual_classes(),
        speed=speed,
        events=changes([name for name, _ in workers.workers], span_s),
    )
    recorders: list[Recorder] = []

    def recorded(scenario: Scenario, catalogue: Catalogue, workers: Sequence[TwinWorker]) -> Recorder:
        recorders.append(Recorder(scenario, catalogue))
        return recorders[-1]

    POLICIES[Recorder.name] = recorded
    outcome = simulate(scenario, catalogue, trace, Recorder.name)
    recorder = recorders[0]
    rates = fleet_rates(catalogue)
    database = Database(f"sqlite:///{folder / 'meter.db'}")
    keeper = Bookkeeper(database, "bench", PriceBook(), RateCard(dict(rates.catalogue), _TARIFF_NUSD), UNIX_MS)
    bills = Bills(database, keeper, rates, Rule(rule, 4))
    rng = random.Random(1)
    messages = list(delivered(recorder.events))
    late = [each for each in messages if rng.random() < 0.1]
    lateness = {each.id for each in late}
    on_time = [each for each in messages if each.id not in lateness]
    started_s = time.process_time()
    duplicates = 0
    for start in range(0, len(on_time), _BATCH):
        batch = on_time[start : start + _BATCH]
        duplicates += keeper.book([*batch, *rng.sample(batch, len(batch) // 20)], UNIX_MS).duplicates
    booked_s = time.process_time() - started_s
    bills.store(recorder.presence.take_changed())
    first_postings = bills.settle()
    rng.shuffle(late)
    for start in range(0, len(late), _BATCH):
        keeper.book(late[start : start + _BATCH], UNIX_MS)
    started_s = time.process_time()
    late_postings = bills.settle()
    settled_s = time.process_time() - started_s
    hours = check(bills, rates)
    by_account: dict[str, int] = defaultdict(int)
    carbon_ug = 0
    for (account, _), value in bills.reader.posted("bill", 0, 1 << 40).items():
        by_account[account] += value.amount_nusd
        carbon_ug += value.carbon_ug
    database.close()
    return {
        "requests": len(outcome.requests),
        "resumed": sum(len(each.legs) > 1 for each in outcome.requests),
        "events": len(messages),
        "late": len(late),
        "duplicates": duplicates,
        "hours": [(each.hour * MS_PER_HOUR - UNIX_MS) // MS_PER_HOUR for each in hours],
        "postings": first_postings,
        "postings_after_late": late_postings,
        "bill_nusd": sum(each.owed_nusd for each in hours),
        "parts_nusd": sum(each.parts_nusd for each in hours),
        "agrees": all(each.owed_nusd == each.posted_nusd == each.parts_nusd and not each.unbalanced for each in hours),
        "accounts_nusd": dict(sorted(by_account.items())),
        "carbon_g": carbon_ug / 1e6,
        "twin_cpu_s": outcome.cpu_s,
        "booking_cpu_s": booked_s,
        "settling_cpu_s": settled_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trace", type=Path, nargs="?", help="Azure CSV, Mooncake JSON lines, or ours")
    parser.add_argument("--fleet", default=FLEET)
    parser.add_argument("--limit", type=int, default=0, help="only so many requests; 0: all")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--rule", choices=[each.value for each in IdleRule], default=IdleRule.BY_USE.value)
    parser.add_argument("--out", action="store_true", help="write bench/results/fleet_bill.json")
    args = parser.parse_args()
    if args.trace is not None and not args.trace.is_file():
        print(f"skipped: there is no trace {args.trace}; without one, a generated trace is played")
        return 0
    if args.trace is None:
        trace = generated_trace(args.limit or 2000, 7200.0, 1)
    else:
        with args.trace.open(encoding="utf-8-sig") as lines:
            trace = list(islice(traces.read(lines, args.trace.name), args.limit or None))
    with tempfile.TemporaryDirectory() as folder:
        found = run(trace, args.fleet, speed=args.speed, rule=IdleRule(args.rule), folder=Path(folder))
    for name, nusd in found["accounts_nusd"].items():
        print(f"{name:<16}{nusd / 1e9:>20,.9f} $")
    print(
        f"{found['requests']:,} requests, {found['resumed']:,} of them resumed; {found['events']:,} events,"
        f" {found['late']:,} late, {found['duplicates']:,} twice; {len(found['hours'])} hours;"
        f" {found['postings']:,} postings, {found['postings_after_late']:,} more after the late events"
    )
    verdict = "equal, to the nano-dollar" if found["agrees"] else "NOT EQUAL"
    print(f"bill {format_usd(found['bill_nusd'], 9)}, its parts {format_usd(found['parts_nusd'], 9)}: {verdict}")
    if args.out:
        write("fleet_bill", {**found, "trace": args.trace.name if args.trace else "generated", "rule": args.rule})
    return 0 if found["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
