"""The schedule is a function of its seed, meets every way to break a mesh early, and holds to what is asked for."""

from collections import Counter

import pytest

from services.chaos.core.faults import OF_LINKS, OF_PROCESSES, FaultKind, Role, Target
from services.chaos.core.schedule import chosen, in_turn, schedule

TARGETS = (
    Target("router-0", Role.ROUTER, OF_PROCESSES),
    Target("worker-0", Role.WORKER, (*OF_PROCESSES, FaultKind.SLOW)),
    Target("worker-1", Role.WORKER, (*OF_PROCESSES, FaultKind.SLOW)),
    Target("worker-1", Role.WORKER_LINK, OF_LINKS),
    Target("nats-0", Role.BUS, (FaultKind.KILL, FaultKind.REPEAT)),
)
WAYS = {(target.role, kind) for target in TARGETS for kind in target.kinds}


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    assert schedule(1, TARGETS, 50, 1.5) == schedule(1, TARGETS, 50, 1.5)
    assert schedule(1, TARGETS, 50, 1.5) != schedule(2, TARGETS, 50, 1.5)


def test_every_way_to_break_the_mesh_comes_once_before_any_comes_twice() -> None:
    first = schedule(7, TARGETS, len(WAYS), 1.0)
    assert {(fault.role, fault.kind) for fault in first} == WAYS


def test_faults_come_in_order_and_every_target_gets_some() -> None:
    faults = schedule(3, TARGETS, 400, 1.5)
    assert [fault.number for fault in faults] == list(range(1, 401))
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert faults[-1].at_s == pytest.approx(400 * 1.5, rel=0.1)
    hit = Counter(fault.target for fault in faults)
    assert min(hit[target.name] for target in TARGETS) > 20


def test_only_what_is_asked_for_is_broken() -> None:
    only = chosen(TARGETS, ["kill:worker", "slow:worker-1", "repeat"])
    assert [(target.name, target.kinds) for target in only] == [
        ("worker-0", (FaultKind.KILL,)),
        ("worker-1", (FaultKind.KILL, FaultKind.SLOW)),
        ("nats-0", (FaultKind.REPEAT,)),
    ]
    assert chosen(TARGETS, []) == TARGETS


@pytest.mark.parametrize("only", ["explode", "repeat:worker-0", "kill:worker-9"])
def test_what_cannot_be_broken_is_refused_by_name(only: str) -> None:
    with pytest.raises(ValueError, match=only):
        chosen(TARGETS, [only])


def test_in_turn_every_target_is_killed_once() -> None:
    faults = in_turn(TARGETS, FaultKind.KILL, 4.0)
    assert [fault.target for fault in faults] == ["router-0", "worker-0", "worker-1", "nats-0"]
    assert [fault.at_s for fault in faults] == [4.0, 8.0, 12.0, 16.0]


def test_a_fault_says_in_words_what_it_does() -> None:
    words = {fault.words for fault in schedule(5, TARGETS, 60, 1.0)}
    assert any(each.startswith("slow worker-") and "times for" in each for each in words)
    assert any(each.startswith("delay worker link worker-1 by") for each in words)
    assert any(each.startswith("repeat nats-0") and each.endswith("messages") for each in words)
    assert "kill nats-0" in words
