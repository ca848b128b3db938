import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.mesh.timing import Timing
from services.worker.core.attribution import decode_work_s, prefill_work_s, share_out, work_units

TIMING = Timing(
    prefill_overhead_s=0.001,
    prefill_s_per_token=0.00001,
    prefill_s_per_attended_token=1e-9,
    decode_base_s=0.006,
    decode_s_per_sequence=0.00002,
    decode_s_per_kv_token=5e-8,
)
NOTHING = Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@given(st.integers(0, 1 << 62), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=60).filter(any))
def test_parts_add_up_exactly_and_each_is_its_share_rounded_down_or_up(total: int, units: list[int]) -> None:
    parts = share_out(total, units)
    assert sum(parts) == total
    whole = sum(units)
    for part, unit in zip(parts, units, strict=True):
        assert total * unit // whole <= part <= -(-total * unit // whole)


@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=60), st.integers(0, 10**12))
def test_a_step_is_shared_exactly_whatever_its_work(own_s: list[float], total: int) -> None:
    for timing in (TIMING, NOTHING):
        assert sum(share_out(total, work_units(timing, own_s))) == total


def test_equal_work_has_equal_parts() -> None:
    assert share_out(9, work_units(TIMING, decode_work_s(TIMING, [500, 500, 500]))) == [3, 3, 3]


def test_the_weights_are_read_for_all_alike_and_the_rest_by_who_caused_it() -> None:
    own_s = [*decode_work_s(TIMING, [1000, 3000]), prefill_work_s(TIMING, 512, 512 * 513 // 2)]
    nanoseconds = share_out(round((sum(own_s) + TIMING.decode_base_s) * 1e9), work_units(TIMING, own_s))
    assert nanoseconds == pytest.approx([(each + 0.002) * 1e9 for each in own_s], abs=2)


def test_a_part_of_nothing_is_nothing() -> None:
    assert share_out(0, [1, 2, 3]) == [0, 0, 0]
