"""An engine hangs when requests run in it and no step ends, look after look."""

from services.worker.core.stillness import LOOKS, Stillness


def test_an_engine_that_never_steps_while_requests_run_hangs_after_so_many_looks() -> None:
    stillness = Stillness()
    assert [stillness.hangs(1, 7) for _ in range(LOOKS + 1)] == [False] * LOOKS + [True]


def test_one_step_or_an_idle_moment_begins_again() -> None:
    stillness = Stillness()
    for running, steps in [(1, 7)] * LOOKS + [(1, 8)] + [(1, 8)] * (LOOKS - 1) + [(0, 8)] + [(3, 8)] * (LOOKS - 1):
        assert not stillness.hangs(running, steps)


def test_an_idle_engine_never_hangs() -> None:
    stillness = Stillness()
    assert not any(stillness.hangs(0, 0) for _ in range(10 * LOOKS))
