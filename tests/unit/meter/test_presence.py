"""What workers are paid for holds though a clock or a counter of theirs jumps."""

from services.meter.core.presence import MS_PER_HOUR, NS_PER_MS, Presence, Start

START = Start("h100-0", "e1")
UNIX_MS = 500_000 * MS_PER_HOUR


def _paid(beats: list[tuple[int, int]]) -> tuple[int, int]:
    """(paid ms, energy uJ) after heartbeats at so many milliseconds, with so much energy."""
    presence = Presence()
    for at_ms, energy_uj in beats:
        presence.beat(START, "p", "a", warming_up=False, at_unix_ms=at_ms, energy_uj=energy_uj)
    hours = presence.take_changed()
    return sum(each.paid_ns for each in hours) // NS_PER_MS, sum(each.energy_uj for each in hours)


def test_time_between_heartbeats_is_paid_for_however_long_the_meter_was_away() -> None:
    assert _paid([(UNIX_MS, 0), (UNIX_MS + 50 * MS_PER_HOUR, 700)]) == (50 * MS_PER_HOUR, 700)


def test_a_host_whose_clock_is_set_by_years_is_not_paid_for_years() -> None:
    beats = [(1000, 0), (2000, 5), (UNIX_MS, 10), (UNIX_MS + 250, 12)]  # booted in 1970, then it heard the time
    assert _paid(beats) == (1250, 12)


def test_a_counter_that_jumps_is_no_energy() -> None:
    beats = [(UNIX_MS, 0), (UNIX_MS + 250, 100), (UNIX_MS + 500, (1 << 64) - 1), (UNIX_MS + 750, (1 << 64) - 1)]
    assert _paid(beats) == (750, 100)
