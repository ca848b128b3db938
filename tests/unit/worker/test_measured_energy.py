"""Measured energy is split to the microjoule between work and idling."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.core.devices import Reading
from services.worker.core.measured_energy import MeasuredEnergy

READINGS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),  # seconds since the last
        st.one_of(st.none(), st.floats(0.0, 2000.0)),
        st.one_of(st.none(), st.integers(0, 10**12)),
        st.floats(0.0, 4.0),  # busy seconds since the last, now and then more than passed
        st.booleans(),  # whether somebody takes
    ),
    max_size=30,
)


@settings(deadline=None)
@given(idle_w=st.floats(0.0, 500.0), readings=READINGS)
def test_what_was_measured_is_work_or_idling_or_waits_to_the_microjoule(
    idle_w: float, readings: list[tuple[float, float | None, int | None, float, bool]]
) -> None:
    book, now_s, busy_s, counter, taken = MeasuredEnergy(idle_w), 0.0, 0.0, 0, 0
    for seconds, power_w, step_uj, busy, takes in readings:
        now_s, busy_s = now_s + seconds, busy_s + busy
        counter += step_uj or 0
        book.read(now_s, Reading(power_w=power_w, energy_uj=None if step_uj is None else counter), busy_s)
        if takes:
            taken += book.take()
        assert book.measured_uj == taken + book.idle_uj + book.waiting_uj
        assert min(book.idle_uj, book.waiting_uj) >= 0


def read(book: MeasuredEnergy, *points: tuple[float, float, float]) -> None:
    """(now_s, watts, busy_s), the counter being exact."""
    for now_s, watts, busy_s in points:
        book.read(now_s, Reading(power_w=watts), busy_s)


def test_a_device_busy_all_along_works_for_all_its_energy() -> None:
    book = MeasuredEnergy(100.0)
    read(book, (0.0, 500.0, 0.0), (1.0, 500.0, 1.0), (2.0, 500.0, 2.0))
    assert (book.waiting_uj, book.idle_uj) == (1_000_000_000, 0)


def test_idling_is_the_houses() -> None:
    book = MeasuredEnergy(100.0)
    read(book, (0.0, 80.0, 0.0), (10.0, 80.0, 0.0))
    assert (book.waiting_uj, book.idle_uj) == (0, 800_000_000)


def test_a_window_half_busy_costs_the_house_its_idle_watts_for_the_other_half() -> None:
    book = MeasuredEnergy(100.0)
    read(book, (0.0, 300.0, 0.0), (1.0, 300.0, 0.5))
    assert (book.waiting_uj, book.idle_uj) == (250_000_000, 50_000_000)


def test_idle_watts_are_learnt_where_there_was_nothing_to_do() -> None:
    book = MeasuredEnergy(100.0)
    read(book, *((float(second), 60.0, 0.0) for second in range(60)))
    assert book.idle_w == pytest.approx(60.0, abs=0.1)


def test_the_counter_counts_where_there_is_one_and_watts_where_not() -> None:
    book = MeasuredEnergy(0.0)
    book.read(0.0, Reading(power_w=100.0, energy_uj=5), 0.0)
    book.read(1.0, Reading(power_w=900.0, energy_uj=120_000_005), 1.0)
    assert book.take() == 120_000_000
    book.read(2.0, Reading(power_w=100.0), 2.0)
    assert book.take() == 500_000_000  # the mean of 900 and 100 W


def test_a_counter_that_was_reset_counts_from_nothing() -> None:
    book = MeasuredEnergy(0.0)
    book.read(0.0, Reading(energy_uj=900), 0.0)
    book.read(1.0, Reading(energy_uj=40), 1.0)
    assert book.measured_uj == 40


def test_a_step_that_outlasts_a_window_is_busy_in_each() -> None:
    book = MeasuredEnergy(100.0)
    # The step ends at second 3 and is told then; until then its engine's guess is that it is under way.
    read(book, (0.0, 500.0, 0.0), (1.0, 500.0, 1.0), (2.0, 500.0, 2.0), (3.0, 500.0, 3.0))
    assert book.idle_uj == 0


def test_a_guess_that_was_too_high_is_made_up_for() -> None:
    book = MeasuredEnergy(100.0)
    read(book, (0.0, 300.0, 0.0), (1.0, 300.0, 1.0), (2.0, 300.0, 0.6))  # 0.4 s of the first second were idle
    assert book.idle_uj == 100_000_000
    read(book, (3.0, 300.0, 1.6))
    assert book.idle_uj == 100_000_000 + 40_000_000


def test_work_that_nobody_can_be_charged_for_is_the_houses() -> None:
    book = MeasuredEnergy(0.0)
    read(book, (0.0, 300.0, 0.0), (1.0, 300.0, 1.0))
    book.give_up()
    assert (book.idle_uj, book.waiting_uj) == (300_000_000, 0)
