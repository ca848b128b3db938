"""The fleet's bill: its parts add up to it, to the nano-dollar, whatever the work, the workers and the rule."""

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.cost_settings import DeviceRate, Reservation, Tariff
from services.mesh.money import NS_PER_HOUR, energy_cost_nusd, use_cost_nusd
from services.meter.core.fleet_bill import IdleRule, Rule, Work, settle_hour
from services.meter.core.fleet_rates import FleetRates, Paid
from services.meter.core.journal import HOUSE, Account, Booked, Subject, difference
from services.meter.core.presence import MS_PER_HOUR, Presence, Start, WorkerHour
from services.meter.core.shares import share_out

HOUR = 490_000
CATALOGUE = {"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}


def _rates(**changed: object) -> FleetRates:
    given_values = {
        "catalogue": CATALOGUE,
        "rates": (),
        "reservations": (),
        "tariff_nusd_per_kwh": 80_000_000,
        "grid_g_per_kwh": 400,
        "tariffs": (),
    }
    return FleetRates(**{**given_values, **changed})  # type: ignore[arg-type]


def _paid(worker: str, paid_ns: int, *, accelerator: str = "nvidia-h100-sxm", **more: int) -> WorkerHour:
    return WorkerHour(HOUR, Start(worker, "e"), accelerator, accelerator, paid_ns=paid_ns, **more)


def _work(request_id: str, worker: str, device_ns: int, *, accelerator: str = "nvidia-h100-sxm", **more: int) -> Work:
    subject = Subject(request_id, "acme", "chat", "llama", accelerator, worker, accelerator, "standard")
    made = more.pop("generated_tokens", 10)
    energy_uj = more.pop("energy_uj", 0)
    return Work(
        subject,
        device_ns=device_ns,
        energy_uj=energy_uj,
        generated_tokens=made,
        delivered_tokens=more.pop("delivered_tokens", made),
        replay_tokens=more.pop("replay_tokens", 0),
        use_nusd=use_cost_nusd(device_ns, CATALOGUE.get(accelerator, 0)),
        energy_nusd=energy_cost_nusd(energy_uj, 80_000_000),
    )


def _sum(settled: dict[str, Booked], *accounts: Account) -> int:
    return sum(
        value.amount_nusd for one in settled.values() for (account, _), value in one.items() if account in accounts
    )


def test_an_hour_that_was_half_used_is_half_idle_and_the_requests_pay_it_by_their_use() -> None:
    work = [_work("a", "h", NS_PER_HOUR // 8), _work("b", "h", 3 * NS_PER_HOUR // 8)]
    settled = settle_hour(HOUR, [_paid("h", NS_PER_HOUR)], work, _rates(), Rule(IdleRule.BY_USE, 4))
    booked = settled["nvidia-h100-sxm"]
    idle = {key[1].request_id: value.amount_nusd for key, value in booked.items() if key[0] is Account.IDLE}
    assert idle == {"a": 2_690_000_000 // 8, "b": 3 * 2_690_000_000 // 8}
    assert _sum(settled, Account.FLEET) == -2_690_000_000
    assert _sum(settled, Account.USE) == 0, "the ledger's lines have it already"


def test_without_a_rule_idle_stays_with_the_house() -> None:
    settled = settle_hour(HOUR, [_paid("h", NS_PER_HOUR)], [_work("a", "h", 1)], _rates(), Rule(IdleRule.NONE, 4))
    assert _sum(settled, Account.HOUSE_IDLE) == 2_690_000_000
    assert _sum(settled, Account.IDLE) == 0


def test_warm_up_waste_and_replay_are_the_houses() -> None:
    work = [
        _work("wasted", "h", 1000 * 10**9, generated_tokens=10, delivered_tokens=4),
        _work("moved", "h", 1000 * 10**9, generated_tokens=10, replay_tokens=40),
    ]
    hours = [_paid("h", NS_PER_HOUR, warm_up_ns=NS_PER_HOUR // 10)]
    settled = settle_hour(HOUR, hours, work, _rates(), Rule(IdleRule.BY_USE, 4))
    cost_nusd = use_cost_nusd(1000 * 10**9, 2_690_000_000)
    assert _sum(settled, Account.HOUSE_WARM_UP) == 269_000_000
    assert _sum(settled, Account.HOUSE_WASTE) == cost_nusd * 6 // 10
    assert _sum(settled, Account.HOUSE_REPLAY) == cost_nusd // 2


def test_reserved_devices_are_paid_for_whether_used_or_not() -> None:
    at = datetime.fromtimestamp(HOUR * 3600, UTC)
    reservation = Reservation(accelerator="nvidia-h100-sxm", devices=2, usd_per_hour=Decimal(1), since=at)
    rates = _rates(reservations=(reservation,))
    settled = settle_hour(HOUR, [_paid("h", NS_PER_HOUR)], [], rates, Rule(IdleRule.BY_USE, 4))
    assert _sum(settled, Account.HOUSE_RESERVED) == 1_000_000_000
    assert _sum(settled, Account.FLEET) == -2_000_000_000
    four = [_paid(name, NS_PER_HOUR) for name in "abcd"]
    settled = settle_hour(HOUR, four, [], rates, Rule(IdleRule.BY_USE, 4))
    assert _sum(settled, Account.FLEET) == -(2 * 1_000_000_000 + 2 * 2_690_000_000)


def test_rates_and_tariffs_count_from_their_dates_hours_and_for_their_workers() -> None:
    at = datetime.fromtimestamp(HOUR * 3600, UTC)
    rates = _rates(
        rates=(
            DeviceRate(accelerator="nvidia-l4", usd_per_hour=Decimal("0.5")),
            DeviceRate(accelerator="nvidia-l4", usd_per_hour=Decimal("0.2"), market="spot", workers="spot-*"),
            DeviceRate(accelerator="nvidia-l4", capex_usd=Decimal(8760), life_years=Decimal(1), since=at),
        ),
        tariffs=(
            Tariff(from_hour=22, to_hour=6, usd_per_kwh=Decimal("0.05"), grid_g_per_kwh=100),
            Tariff(usd_per_kwh=Decimal("0.10")),
        ),
    )
    own, spot = Paid("a", "p", "nvidia-l4"), Paid("spot-1", "p", "nvidia-l4-x2")
    assert rates.nusd_per_hour(own, HOUR - 1) == 500_000_000
    assert rates.nusd_per_hour(own, HOUR) == 1_000_000_000
    assert rates.nusd_per_hour(spot, HOUR - 1) == 1_000_000_000, "the first of equal dates, for two devices"
    night = HOUR - HOUR % 24 + 23
    assert rates.energy(own, night) == (50_000_000, 100)
    assert rates.energy(own, night + 8) == (100_000_000, 400)


@given(
    paid=st.lists(
        st.tuples(
            st.sampled_from(["nvidia-h100-sxm", "nvidia-l4", "abacus"]),
            st.integers(0, NS_PER_HOUR),
            st.integers(0, NS_PER_HOUR),
            st.integers(0, 10**13),
        ),
        max_size=4,
    ),
    work=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(["nvidia-h100-sxm", "nvidia-l4", "abacus"]),
            st.integers(0, NS_PER_HOUR),
            st.integers(0, 10**12),
            st.integers(0, 50),
            st.integers(0, 60),
            st.integers(0, 500),
        ),
        max_size=12,
    ),
    rule=st.sampled_from(list(IdleRule)),
    reserved=st.integers(0, 3),
)
def test_every_hour_balances_and_its_parts_come_to_the_bill(
    paid: list[tuple[str, int, int, int]],
    work: list[tuple[int, str, int, int, int, int, int]],
    rule: IdleRule,
    reserved: int,
) -> None:
    hours = [
        _paid(f"w{number}", ns, accelerator=kind, warm_up_ns=min(warm, ns), energy_uj=uj)
        for number, (kind, ns, warm, uj) in enumerate(paid)
    ]
    done = [
        _work(
            f"r{number}",
            f"w{worker}",
            ns,
            accelerator=kind,
            energy_uj=uj,
            generated_tokens=made,
            delivered_tokens=min(made, delivered),
            replay_tokens=replayed,
        )
        for number, (worker, kind, ns, uj, made, delivered, replayed) in enumerate(work)
    ]
    at = datetime.fromtimestamp(HOUR * 3600, UTC)
    hour_usd = Decimal("0.31")
    reservations = [
        Reservation(accelerator="nvidia-l4", devices=devices, usd_per_hour=hour_usd, since=at)
        for devices in [reserved] * bool(reserved)
    ]
    settled = settle_hour(HOUR, hours, done, _rates(reservations=reservations), Rule(rule, 4))
    for booked in settled.values():
        assert sum(value.amount_nusd for value in booked.values()) == 0
    bill_nusd = -_sum(settled, Account.FLEET, Account.FLEET_ENERGY)
    lines_nusd = sum(each.use_nusd + each.energy_nusd for each in done)
    costs_nusd = lines_nusd + _sum(settled, Account.USE, Account.ENERGY, Account.IDLE, *HOUSE)
    assert costs_nusd == bill_nusd
    assert _sum(settled, Account.POOL_IDLE) == 0
    by_request: dict[tuple[str, str], int] = defaultdict(int)
    for booked in settled.values():
        for (account, subject), value in booked.items():
            if account in (Account.USE, Account.ENERGY):
                by_request[subject.request_id, account] += value.amount_nusd
    for each in done:
        assert by_request[each.subject.request_id, Account.USE] + each.use_nusd >= 0
        assert by_request[each.subject.request_id, Account.ENERGY] + each.energy_nusd >= 0


@given(before=st.lists(st.integers(0, NS_PER_HOUR), max_size=4), late=st.lists(st.integers(0, NS_PER_HOUR), max_size=3))
def test_an_hour_settled_again_after_late_lines_is_as_if_they_had_come_in_time(
    before: list[int], late: list[int]
) -> None:
    hours, rule = [_paid("w0", NS_PER_HOUR // 2, energy_uj=10**9)], Rule(IdleRule.BY_USE, 4)
    work = [_work(f"r{number}", "w0", ns) for number, ns in enumerate(before + late)]
    first = settle_hour(HOUR, hours, work[: len(before)], _rates(), rule)
    whole = settle_hour(HOUR, hours, work, _rates(), rule)
    for pool in first.keys() | whole.keys():
        booked = dict(first.get(pool, {}))
        for posting in difference(whole.get(pool, {}), booked):
            key, there = (posting.account, posting.subject), booked.get((posting.account, posting.subject))
            value = posting.value if there is None else type(there)(*map(sum, zip(there, posting.value, strict=True)))
            booked[key] = value
        assert {key: value for key, value in booked.items() if any(value)} == whole.get(pool, {})


@given(amount=st.integers(0, 10**15), weights=st.lists(st.integers(0, 10**13), min_size=1).filter(any))
def test_shares_add_up_and_none_is_off_by_a_whole_unit(amount: int, weights: list[int]) -> None:
    parts = share_out(amount, weights)
    assert sum(parts) == amount
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - amount * weight) < sum(weights)


@given(
    beats=st.lists(st.tuples(st.integers(0, 2 * MS_PER_HOUR), st.integers(0, 10**9)), min_size=1, max_size=12),
    restart_after=st.integers(0, 12),
)
def test_paid_time_and_energy_are_those_between_the_first_and_the_last_heartbeat(
    beats: list[tuple[int, int]], restart_after: int
) -> None:
    """Also when the meter starts anew in between."""
    start, at_ms, energy_uj, presence = Start("w", "e"), HOUR * MS_PER_HOUR + 12_345, 0, Presence()
    stored: dict[int, WorkerHour] = {}
    first_ms = at_ms
    for number, (later_ms, spent_uj) in enumerate([(0, 0), *beats]):
        at_ms, energy_uj = at_ms + later_ms, energy_uj + (spent_uj if later_ms else 0)
        presence.beat(start, "p", "nvidia-l4", warming_up=False, at_unix_ms=at_ms, energy_uj=energy_uj)
        if number == restart_after:
            stored.update({each.hour: each for each in presence.take_changed()})
            presence = Presence()
            presence.restore(stored.values())
    stored.update({each.hour: each for each in presence.take_changed()})
    assert sum(each.paid_ns for each in stored.values()) == (at_ms - first_ms) * 1_000_000
    assert sum(each.energy_uj for each in stored.values()) == energy_uj
    assert all(each.paid_ns <= NS_PER_HOUR for each in stored.values())
