"""Placements that are out end, whatever was lost on the way: by word, by expiry, or with their worker."""

from typing import Any

from services.router.core.open_placements import RESUME_WITHIN_S, At, OpenPlacement, OpenPlacements, Over
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues
from tests.unit.router.worlds import MODEL, World

TTL_S = 12.0
AFTER_S = TTL_S + 3.0


def nobody(_: At) -> bool:
    return False


class Out:
    """Placements at the workers of a small fleet."""

    def __init__(self) -> None:
        self.world = World()
        for worker in ("a", "b"):
            self.world.beat(worker)
        self.open = OpenPlacements()

    def place(self, request_id: str, worker: str = "a", at_s: float = 0.0) -> OpenPlacement:
        known = self.world.fleet.worker(worker)
        assert known is not None
        asked = Asked(
            request_id=request_id,
            tenant="acme",
            model=MODEL,
            slo_class="standard",
            workload="",
            session_id="",
            prompt=PromptFacts(kind=PromptKind.TEXT, size=20),
            sampling=SamplingValues(),
        )
        placed = self.world.fleet.place(
            known,
            model=MODEL,
            slo_class="standard",
            priority=0,
            prompt_tokens=10,
            cached_tokens=0,
            completion_tokens=20,
            explored=False,
            now_s=self.world.now_s,
        )
        record: Any = None  # nothing here looks at it
        placement = OpenPlacement(asked, placed, record, 0, "", at_s + TTL_S)
        self.open.add(placement)
        return placement

    def sweep(self, now_s: float, gone: Any = nobody, idle: Any = nobody) -> Over:
        return self.open.sweep(now_s, gone, idle)


def test_a_placement_nobody_takes_is_over_some_time_after_it_expired() -> None:
    out = Out()
    first, second = out.place("r-1"), out.place("r-2", at_s=5.0)
    assert out.sweep(TTL_S) == Over([], [], [])
    assert out.sweep(AFTER_S) == Over([first], [], [])
    assert out.sweep(AFTER_S + 5.0) == Over([second], [], [])
    assert len(out.open) == 0


def test_a_placement_that_was_taken_lasts_until_its_end_is_told() -> None:
    out = Out()
    placement = out.place("r-1")
    out.open.took(placement.at, ["r-1", "never placed"], 1.0)
    assert out.sweep(10_000.0) == Over([], [], [])
    assert out.open.ended(placement.at, "r-1") is placement
    assert out.open.ended(placement.at, "r-1") is None


def test_the_end_of_an_earlier_leg_does_not_end_the_later_one() -> None:
    out = Out()
    first = out.place("r-1", "a")
    out.open.remove(first)
    second = out.place("r-1", "b")
    assert out.open.ended(first.at, "r-1") is None
    assert out.open.of("r-1") is second


def test_requests_of_a_lost_worker_wait_for_their_clients_and_are_then_closed() -> None:
    out = Out()
    lost, sound = out.place("r-1", "a"), out.place("r-2", "b")
    for each in (lost, sound):
        out.open.took(each.at, [each.asked.request_id], 1.0)

    def gone(at: At) -> bool:
        return at.worker == "a"

    assert out.sweep(20.0, gone) == Over([], [], [])
    assert out.sweep(20.0 + RESUME_WITHIN_S - 1, gone) == Over([], [], [])
    assert out.sweep(20.0 + RESUME_WITHIN_S, gone) == Over([], [lost], [])
    assert out.open.of("r-2") is sound


def test_a_worker_that_is_heard_again_keeps_its_requests() -> None:
    out = Out()
    placement = out.place("r-1")
    out.open.took(placement.at, ["r-1"], 1.0)
    out.sweep(20.0, lambda _: True)
    out.sweep(30.0)
    assert out.sweep(20.0 + RESUME_WITHIN_S + 5, lambda _: True) == Over([], [], [])


def test_a_placement_at_a_lost_worker_may_have_been_taken_though_nobody_said_so() -> None:
    out = Out()
    placement = out.place("r-1")
    out.sweep(1.0, lambda _: True)
    assert out.sweep(AFTER_S, lambda _: True) == Over([], [], [])
    assert out.sweep(1.0 + RESUME_WITHIN_S, lambda _: True) == Over([], [placement], [])


def test_a_worker_with_nothing_to_do_has_ended_what_it_took() -> None:
    out = Out()
    placement = out.place("r-1")
    out.open.took(placement.at, ["r-1"], 1.0)
    assert out.sweep(30.0, idle=lambda _: True) == Over([], [], [])
    assert out.sweep(33.0, idle=lambda _: True) == Over([], [], [placement])
