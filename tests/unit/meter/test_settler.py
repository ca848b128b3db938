"""What the settler writes, in turns: bookings wait for no more than one of them."""

from hypothesis import given
from hypothesis import strategies as st

from services.meter.core.journal import Account, Posting, Subject, Value
from services.meter.settler import turns

POSTING = Posting(Account.ACCRUED, Subject(), Value())


@given(sizes=st.lists(st.integers(1, 30), max_size=50), most=st.integers(1, 40))
def test_no_transaction_is_divided_or_left_out_and_no_turn_is_longer_than_it_has_to_be(
    sizes: list[int], most: int
) -> None:
    transactions = {f"t{number}": [POSTING] * size for number, size in enumerate(sizes)}
    parts = list(turns(transactions, most))
    assert [each for part in parts for each in part.items()] == list(transactions.items())
    for part in parts:
        assert len(part) == 1 or sum(map(len, part.values())) <= most
