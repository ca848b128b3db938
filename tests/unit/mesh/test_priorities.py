"""Ranks of priorities."""

from services.mesh.priorities import RANKS, by_rank, rank_of


def test_priorities_out_of_range_count_as_the_first_or_the_last_rank() -> None:
    assert [rank_of(priority) for priority in (-7, 0, 1, RANKS - 1, RANKS, 99)] == [0, 0, 1, 3, 3, 3]
    assert by_rank([(0, 5), (2, 1), (50, 2), (3, 4)]) == (5, 0, 1, 6)
