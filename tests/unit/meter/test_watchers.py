import pytest

from services.mesh.errors import QueueFull
from services.meter.core.amounts import Amounts
from services.meter.core.usage import UsageKey, grouping
from services.meter.watchers import Watchers

KEY = UsageKey(60, "acme", "chat", "llama", "nvidia-l4", "l4-0", "l4", "standard")


def test_a_watcher_sees_what_was_booked_since_it_last_looked() -> None:
    watchers = Watchers()
    watcher = watchers.open(grouping(["tenant", "hour"], []))
    watchers.add({KEY: Amounts(requests=1, delivered_tokens=5), KEY._replace(minute=61): Amounts(delivered_tokens=2)})
    assert watcher.take() == [(("acme", 60), Amounts(requests=1, delivered_tokens=7))]
    assert watcher.take() == []


def test_a_filter_leaves_out_what_does_not_match() -> None:
    watchers = Watchers()
    watcher = watchers.open(grouping([], [("tenant", ["rival"])]))
    watchers.add({KEY: Amounts(requests=1)})
    assert watcher.take() == []


def test_what_is_taken_back_comes_off_later_reports_and_is_never_negative() -> None:
    watchers = Watchers()
    watcher = watchers.open(grouping([], []))
    watchers.add({KEY: Amounts(delivered_tokens=-5, generated_tokens=3)})
    assert watcher.take() == [((), Amounts(generated_tokens=3))]
    watchers.add({KEY: Amounts(delivered_tokens=9)})
    assert watcher.take() == [((), Amounts(delivered_tokens=4))]


def test_more_groups_than_a_message_may_hold_end_the_watching() -> None:
    watchers = Watchers()
    watcher = watchers.open(grouping(["tenant"], []))
    watchers.add({KEY._replace(tenant=f"t{number}"): Amounts(requests=1) for number in range(10_001)})
    with pytest.raises(QueueFull, match="more than 10000 groups"):
        watcher.take()


def test_the_number_of_watchers_is_bounded_and_closing_makes_room() -> None:
    watchers = Watchers()
    opened = [watchers.open(grouping([], [])) for _ in range(64)]
    with pytest.raises(QueueFull, match="64 callers"):
        watchers.open(grouping([], []))
    watchers.close(opened[0])
    watchers.open(grouping([], []))
