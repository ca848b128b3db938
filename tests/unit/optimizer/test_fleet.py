import pytest

from services.mesh.money import NUSD_PER_USD
from services.optimizer.core import fleet as core
from services.optimizer.core.fleet import FORGET_S, STALLED_S, Fleet
from services.optimizer.core.power import Power
from tests.unit.optimizer.facts import CATALOGUE, H100, L4, MODEL, SMALL_MODEL, heartbeat


def fleet() -> Fleet:
    return Fleet(CATALOGUE, 2.0)


def counting(of: Fleet, now_s: float) -> list[str]:
    return [member.beat.worker for member in of.counting(now_s)]


def test_only_ready_workers_that_were_heard_lately_count() -> None:
    found = fleet()
    for worker, state in (("a", "ready"), ("b", "starting"), ("c", "draining"), ("d", "failed")):
        found.heard(heartbeat(worker, state=state), 0.0)
    assert counting(found, 2.0) == ["a"]
    assert counting(found, 2.1) == []
    assert found.models() == {MODEL}


def test_worker_whose_steps_stand_still_while_something_runs_does_not_count() -> None:
    found = fleet()
    seconds = [index * 0.25 for index in range(40)]
    for index, now_s in enumerate(seconds):
        found.heard(heartbeat("stuck", sequence=index + 1, running=3, steps=7), now_s)
        found.heard(heartbeat("slow", sequence=index + 1, running=3, steps=int(now_s / 2)), now_s)
        found.heard(heartbeat("idle", sequence=index + 1, running=0, steps=7), now_s)
    assert seconds[-1] > STALLED_S
    assert counting(found, seconds[-1]) == ["slow", "idle"]
    found.heard(heartbeat("stuck", sequence=100, running=3, steps=8), seconds[-1])
    assert "stuck" in counting(found, seconds[-1])


def test_late_heartbeat_changes_nothing() -> None:
    found = fleet()
    found.heard(heartbeat("a", sequence=5, state="draining"), 0.0)
    found.heard(heartbeat("a", sequence=4), 0.1)
    assert counting(found, 0.1) == []
    found.heard(heartbeat("a", sequence=1, epoch="e2"), 0.2)
    assert counting(found, 0.2) == ["a"]


def test_signature_changes_exactly_when_who_counts_does() -> None:
    found = fleet()
    found.heard(heartbeat("a"), 0.0)
    before = found.signature(0.0)
    found.heard(heartbeat("a", sequence=2, running=3, steps=4, kv_cache_usage=0.5), 0.3)
    assert found.signature(0.3) == before
    found.heard(heartbeat("b"), 0.3)
    assert found.signature(0.3) != before
    assert found.signature(2.4) == frozenset()


def test_pool_offers_what_its_least_worker_does() -> None:
    found = fleet()
    found.heard(heartbeat("a", max_batch=64, kv_capacity_tokens=0, rate_nusd_per_hour=2 * NUSD_PER_USD), 0.0)
    found.heard(heartbeat("b", max_batch=32, kv_capacity_tokens=9000, rate_nusd_per_hour=4 * NUSD_PER_USD), 0.0)
    found.heard(heartbeat("c", L4, models=(SMALL_MODEL,), prefill_chunk_tokens=0), 0.0)
    pools = {roster.pool: roster for roster in found.rosters(0.0)}
    assert set(pools) == {H100, L4}
    assert pools[H100].workers == ("a", "b")
    assert (pools[H100].max_batch, pools[H100].kv_capacity_tokens) == (32, 9000)
    assert pools[H100].rate_usd_per_hour == pytest.approx(3.0)
    assert pools[L4].models == (SMALL_MODEL,)
    assert pools[L4].prefill_chunk_tokens > 0


def test_rate_is_the_workers_own_else_the_catalogues_else_nothing() -> None:
    found = fleet()
    found.heard(heartbeat("a", rate_nusd_per_hour=5 * NUSD_PER_USD), 0.0)
    found.heard(heartbeat("b", rate_nusd_per_hour=0), 0.0)
    assert found.rate_usd_per_hour("a", H100) == 5.0
    assert found.rate_usd_per_hour("b", H100) == pytest.approx(2.69)
    assert found.rate_usd_per_hour("nobody", L4) == pytest.approx(0.80)
    assert found.rate_usd_per_hour("nobody", "acme-9000") == 0.0


def test_unknown_accelerator_is_in_the_fleet() -> None:
    found = fleet()
    found.heard(heartbeat("x", "acme-9000", power_w=50.0), 0.0)
    assert [roster.pool for roster in found.rosters(0.0)] == ["acme-9000"]


def test_worker_that_is_gone_is_forgotten() -> None:
    found = fleet()
    found.heard(heartbeat("a"), 0.0)
    assert found.forget_gone(FORGET_S) == []
    assert found.forget_gone(FORGET_S + 1) == ["a"]
    assert found.models() == set()


def test_watts_are_learnt_idle_and_loaded() -> None:
    power, now_ms, busy_ns = Power(105.0, 700.0), 0, 0
    before = heartbeat("a", power_w=60.0)
    for sequence in range(2, 400):
        busy = sequence % 2 == 0
        now_ms += 250
        busy_ns += 125_000_000 if busy else 0
        now = heartbeat(
            "a", sequence=sequence, at_unix_ms=1000 + now_ms, busy_ns=busy_ns, power_w=260.0 if busy else 60.0
        )
        power.observe(before, now)
        before = now
    assert power.idle_w == pytest.approx(60.0, rel=0.05)
    assert power.loaded_w == pytest.approx(460.0, rel=0.05)  # half busy at 260 W


def test_heartbeats_that_cannot_be_right_teach_no_watts() -> None:
    power = Power(105.0, 700.0)
    first = heartbeat("a")
    for odd in (
        heartbeat("a", sequence=2, power_w=0.0),
        heartbeat("a", sequence=2, power_w=-5.0),
        heartbeat("a", sequence=2, power_w=1e9),
        heartbeat("a", sequence=2, power_w=100.0, at_unix_ms=0),
        heartbeat("a", sequence=2, power_w=100.0, epoch="e2"),
    ):
        power.observe(first, odd)
    assert (power.idle_w, power.loaded_w) == (105.0, 700.0)


def test_more_workers_than_there_may_be_are_left_out_until_others_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_MEMBERS", 2)
    found = fleet()
    for worker in ("a", "b", "c"):
        found.heard(heartbeat(worker), 0.0)
    assert list(found.workers()) == ["a", "b"]
    found.heard(heartbeat("a", sequence=2), FORGET_S)
    assert found.forget_gone(FORGET_S + 1) == ["b"]
    found.heard(heartbeat("c", sequence=2), FORGET_S + 1)
    assert list(found.workers()) == ["a", "c"]
