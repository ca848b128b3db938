"""Meters come to fair parts of the partitions, and stay there."""

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.partitions import ALL, PARTITIONS
from services.meter.core.balance import Part, to_give, to_take

METERS = ("a", "b", "c", "d", "e")


class Meters:
    """Shards and who has them; those of nobody are free."""

    def __init__(self, there: set[str]) -> None:
        self.there = there
        self.shards: dict[int, tuple[frozenset[int], str]] = {0: (ALL, "")}

    @property
    def held(self) -> dict[str, int]:
        held = dict.fromkeys(self.there, 0)
        for partitions, meter in self.shards.values():
            if meter in held:
                held[meter] += len(partitions)
        return held

    def turn(self, me: str) -> bool:
        """One look of one meter; whether it changed anything."""
        free = [Part(number, some) for number, (some, meter) in self.shards.items() if meter not in self.there]
        if part := to_take(me, free, self.held):
            self.shards[part.shard] = part.partitions, me
            return True
        mine = [Part(number, some) for number, (some, meter) in self.shards.items() if meter == me]
        gift = to_give(me, mine, self.held)
        if gift is None:
            return False
        partitions, _ = self.shards[gift.shard]
        if gift.partitions == partitions:
            self.shards[gift.shard] = partitions, gift.to
        else:
            self.shards[gift.shard] = partitions - gift.partitions, me
            self.shards[len(self.shards)] = gift.partitions, gift.to
        return True

    def settle(self) -> int:
        """Turns until nothing changes; how many did."""
        changes = 0
        while sum(self.turn(each) for each in sorted(self.there)):
            changes += 1
            assert changes < 100, self.shards
        return changes


def test_two_meters_have_half_each_by_one_split() -> None:
    meters = Meters({"a", "b"})
    meters.settle()
    assert meters.held == {"a": 8, "b": 8}
    assert len(meters.shards) == 2


def test_a_meter_that_comes_back_gets_the_shard_of_the_one_that_went() -> None:
    meters = Meters({"a", "b"})
    meters.settle()
    meters.there.discard("b")
    meters.settle()
    assert meters.held == {"a": PARTITIONS}
    meters.there.add("b")
    meters.settle()
    assert meters.held == {"a": 8, "b": 8}
    assert len(meters.shards) == 2


@given(st.lists(st.sets(st.sampled_from(METERS), min_size=1), min_size=1, max_size=8))
def test_whoever_comes_and_goes_all_partitions_are_booked_and_nobody_has_more_than_twice_as_many(
    times: list[set[str]],
) -> None:
    meters = Meters(set())
    for there in times:
        meters.there = set(there)
        meters.settle()
        assert sum(meters.held.values()) == PARTITIONS
        assert max(meters.held.values()) < 2 * min(meters.held.values()) + 2
        assert sorted(each for some, _ in meters.shards.values() for each in some) == sorted(ALL)
