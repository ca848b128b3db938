"""The fleet's bill of an hour, and whom it is allocated to; the parts add up to it, to the nano-dollar. Pure.

What is owed for an hour: each worker's paid time at its rate (of reservations first, as far as they reach), reserved
devices that no worker had, and each worker's energy at the tariff. What becomes of it, in this order:

- *Warm-up*, before a worker was ready: the house.
- *Use and energy* of each request, by the device time and energy that it caused there. Of these the house takes *waste*
  (tokens made and not delivered, as part of all that were made) and *replay* (where a stream went on that was begun
  elsewhere: its prompt, as part of prompt and `output_weight` times what was made).
- *Idle*: what is left of time and energy. By the rule, of a pool's hour together:
  `none`       it stays with the house;
  `by_use`     to the pool's requests of the hour, in proportion to their device time;
  `by_tokens`  in proportion to the tokens they were delivered.
  Where a pool did nothing in an hour, it stays with the house.

The ledger's lines have booked use and energy already as they happened; the bill books the difference, so that lines and
postings together come to what is owed. Where more work is reported in an hour than it was paid for (a report is dated a
moment after its work), the bill is shared by the work, and nothing is idle. Where a worker was never heard of, what it
reports to have worked is what it is paid for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from services.mesh.accelerators import split_devices
from services.mesh.money import NS_PER_HOUR, energy_cost_nusd, use_cost_nusd
from services.meter.core.fleet_rates import EnergyRate, FleetRates, Paid
from services.meter.core.journal import Account, Booked, Subject, add
from services.meter.core.presence import WorkerHour
from services.meter.core.shares import share_out

_UJ_PER_UG_AT_1_G_PER_KWH: Final = 3_600_000  # 3.6e12 uJ per kWh, 1e6 ug per g


class IdleRule(StrEnum):
    NONE = "none"
    BY_USE = "by_use"
    BY_TOKENS = "by_tokens"


class Work(NamedTuple):
    """One request's work at one place in an hour, and what the ledger's lines have of it.

    Attributes:
        replay_tokens: of its prompt, computed there although the request was begun elsewhere.
        use_nusd, energy_nusd: booked as it happened.
    """

    subject: Subject
    device_ns: int
    energy_uj: int
    generated_tokens: int
    delivered_tokens: int
    replay_tokens: int
    use_nusd: int
    energy_nusd: int

    @property
    def paid(self) -> Paid:
        return Paid(self.subject.worker, self.subject.pool, self.subject.accelerator)


@dataclass(frozen=True, slots=True)
class Rule:
    """How an hour is settled; both are settings."""

    idle: IdleRule
    output_weight: int


@dataclass(slots=True)
class _Worker:
    """One worker's hour."""

    paid_ns: int = 0
    warm_up_ns: int = 0
    energy_uj: int = 0
    heard: bool = False
    bill_nusd: int = 0
    work: list[Work] = field(default_factory=list)


class _Left(NamedTuple):
    """What of a worker's hour nobody used, and the micrograms that each request caused."""

    nusd: int
    carbon_ug: int
    carbons: Sequence[int]


@dataclass(slots=True)
class _Idle:
    """What a pool has idle, before the rule."""

    nusd: int = 0
    carbon_ug: int = 0
    workers: dict[Paid, _Left] = field(default_factory=dict)
    work: list[tuple[Work, int]] = field(default_factory=list)  # with its own micrograms

    def take(self, paid: Paid, left: _Left, work: Sequence[Work]) -> None:
        self.nusd += left.nusd
        self.carbon_ug += left.carbon_ug
        self.workers[paid] = left
        self.work += zip(work, left.carbons, strict=True)


def settle_hour(
    hour: int, hours: Iterable[WorkerHour], work: Iterable[Work], rates: FleetRates, rule: Rule
) -> dict[str, Booked]:
    """What is to be booked for an hour since 1970: a balanced state for each pool; "" has unused reservations.

    Args:
        hours: of every start of a worker that was paid for in it.
        work: all that is dated in it.
    """
    workers: dict[Paid, _Worker] = {}
    for each in hours:
        worker = workers.setdefault(Paid(each.start.worker, each.pool, each.accelerator), _Worker())
        worker.heard = True
        worker.paid_ns += each.paid_ns
        worker.warm_up_ns += min(each.warm_up_ns, each.paid_ns)
        worker.energy_uj += each.energy_uj
    for done in work:
        workers.setdefault(done.paid, _Worker()).work.append(done)
    for worker in workers.values():
        if not worker.heard:
            worker.paid_ns = sum(each.device_ns for each in worker.work)
            worker.energy_uj = sum(each.energy_uj for each in worker.work)
    settled: dict[str, Booked] = {}
    _bill_time(hour, workers, rates, settled.setdefault("", {}))
    idle: dict[str, _Idle] = {}
    for paid in sorted(workers):
        booked = settled.setdefault(paid.pool, {})
        left = _settle_worker(paid, workers[paid], rates.energy(paid, hour), rule, booked)
        idle.setdefault(paid.pool, _Idle()).take(paid, left, workers[paid].work)
    for pool, each_idle in idle.items():
        _allocate(each_idle, rule.idle, settled[pool])
    return {pool: booked for pool, booked in settled.items() if booked}


def _bill_time(hour: int, workers: dict[Paid, _Worker], rates: FleetRates, house: Booked) -> None:
    """Sets what each worker's time is billed at; reservations that reach further go to the house."""
    for paid, worker in workers.items():
        worker.bill_nusd = use_cost_nusd(worker.paid_ns, rates.nusd_per_hour(paid, hour))
    by_device: dict[str, list[tuple[int, int]]] = {}  # reserved device-nanoseconds, nano-dollars per hour
    for reservation in rates.reserved(hour):
        reach_ns = reservation.devices * NS_PER_HOUR
        by_device.setdefault(reservation.accelerator, []).append((reach_ns, reservation.nusd_per_hour))
    for key, reserved in sorted(by_device.items()):
        owed_nusd = sum(use_cost_nusd(ns, nusd) for ns, nusd in reserved)
        reserved_ns = sum(ns for ns, _ in reserved)
        mine = [each for each in sorted(workers) if split_devices(each.accelerator)[0] == key]
        used = [workers[each].paid_ns * split_devices(each.accelerator)[1] for each in mine]
        covered_ns = min(sum(used), reserved_ns)
        covered_nusd = owed_nusd * covered_ns // reserved_ns
        if covered_ns:
            # Every worker has the same part of its time reserved; the rest costs its own rate.
            beyond_ns = sum(used) - covered_ns
            for each, part in zip(mine, share_out(covered_nusd, used), strict=True):
                workers[each].bill_nusd = part + workers[each].bill_nusd * beyond_ns // sum(used)
        unused = Subject(accelerator=key)
        add(house, Account.FLEET, unused, covered_nusd - owed_nusd)
        add(house, Account.HOUSE_RESERVED, unused, owed_nusd - covered_nusd)


def _settle_worker(paid: Paid, worker: _Worker, energy: EnergyRate, rule: Rule, booked: Booked) -> _Left:
    energy_nusd = energy_cost_nusd(worker.energy_uj, energy.tariff_nusd_per_kwh)
    carbon_ug = worker.energy_uj * energy.grid_g_per_kwh // _UJ_PER_UG_AT_1_G_PER_KWH
    used_ns, used_uj = [each.device_ns for each in worker.work], [each.energy_uj for each in worker.work]
    uses, warm_up_nusd, idle_nusd = _parts(worker.bill_nusd, worker.paid_ns, used_ns, worker.warm_up_ns)
    energies, _, idle_energy_nusd = _parts(energy_nusd, worker.energy_uj, used_uj, 0)
    carbons, _, idle_carbon_ug = _parts(carbon_ug, worker.energy_uj, used_uj, 0)
    itself = Subject(accelerator=paid.accelerator, worker=paid.worker, pool=paid.pool)
    add(booked, Account.FLEET, itself, -worker.bill_nusd)
    add(booked, Account.FLEET_ENERGY, itself, -energy_nusd)
    add(booked, Account.ACCRUED, itself, sum(each.use_nusd + each.energy_nusd for each in worker.work))
    add(booked, Account.HOUSE_WARM_UP, itself, warm_up_nusd)
    for each, use_nusd, its_energy_nusd in zip(worker.work, uses, energies, strict=True):
        costs = ((Account.USE, use_nusd, each.use_nusd), (Account.ENERGY, its_energy_nusd, each.energy_nusd))
        for account, cost_nusd, accrued_nusd in costs:
            lost_nusd = 0
            for house, part, whole in _for_nothing(each, rule.output_weight):
                lost = cost_nusd * part // whole
                add(booked, house, each.subject, lost)
                lost_nusd += lost
            add(booked, account, each.subject, cost_nusd - lost_nusd - accrued_nusd)
    return _Left(idle_nusd + idle_energy_nusd, idle_carbon_ug, carbons)


def _parts(amount: int, paid: int, used: Sequence[int], warm_up: int) -> tuple[list[int], int, int]:
    """What of an amount paid for a quantity is of each use of it, of the warm-up, and of neither."""
    total = sum(used) + warm_up
    if total > paid or not paid:
        if not total:
            return [0] * len(used), 0, amount
        *parts, warm = share_out(amount, [*used, warm_up])
        return parts, warm, 0
    # As the ledger's lines round, so that there is nothing to correct where the rate is the one they knew.
    parts = [(amount * each * 2 + paid) // (2 * paid) for each in used]
    warm = amount * warm_up // paid
    left = amount - warm - sum(parts)
    if left < 0:
        *parts, warm = share_out(amount, [*used, warm_up])
        left = 0
    return parts, warm, left


def _for_nothing(work: Work, output_weight: int) -> list[tuple[Account, int, int]]:
    """What of the work served no tenant: the account, and which part of which whole."""
    found = []
    replay, made = work.replay_tokens, work.generated_tokens
    whole = replay + made * output_weight
    if replay:
        found.append((Account.HOUSE_REPLAY, replay, whole))
    if 0 <= work.delivered_tokens < made:
        found.append((Account.HOUSE_WASTE, (made - work.delivered_tokens) * output_weight, whole))
    return found


def _allocate(idle: _Idle, rule: IdleRule, booked: Booked) -> None:
    weights = []
    if rule is IdleRule.BY_USE:
        weights = [each.device_ns for each, _ in idle.work]
    elif rule is IdleRule.BY_TOKENS:
        weights = [max(0, each.delivered_tokens) for each, _ in idle.work]
    if not any(weights):
        for paid, left in idle.workers.items():
            itself = Subject(accelerator=paid.accelerator, worker=paid.worker, pool=paid.pool)
            add(booked, Account.HOUSE_IDLE, itself, left.nusd, left.carbon_ug)
        for each, carbon_ug in idle.work:
            add(booked, Account.ENERGY, each.subject, 0, carbon_ug)
        return
    for paid, left in idle.workers.items():
        itself = Subject(accelerator=paid.accelerator, worker=paid.worker, pool=paid.pool)
        add(booked, Account.POOL_IDLE, itself, left.nusd)
    pool = next(iter(idle.workers)).pool
    add(booked, Account.POOL_IDLE, Subject(pool=pool), -idle.nusd)
    amounts, carbons = share_out(idle.nusd, weights), share_out(idle.carbon_ug, weights)
    for (each, own_ug), nusd, carbon_ug in zip(idle.work, amounts, carbons, strict=True):
        add(booked, Account.IDLE, each.subject, nusd, own_ug + carbon_ug)
