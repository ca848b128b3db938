from hypothesis import given
from hypothesis import strategies as st

from services.mesh.pricing import Rates
from services.meter.core.amounts import Place
from services.meter.core.attribution import Run, owners, price_by_place, tokens_by_place
from services.meter.core.ranges import Ranges

A, B, C = (Place(name, "pool", "accelerator") for name in "abc")
_PLACES = st.sampled_from([A, B, C])
_RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), max_size=4).map(
    lambda parts: Ranges((start, start + count) for start, count in parts)
)


def test_what_a_successor_made_again_belongs_to_the_successor() -> None:
    runs = owners(Ranges([(0, 100)]), {A: Ranges([(0, 60)]), B: Ranges([(50, 100)])}, C)
    assert runs == [Run(0, 50, A), Run(50, 100, B)]


def test_an_index_that_nobody_reported_belongs_to_the_place_the_deliverer_named() -> None:
    assert owners(Ranges([(0, 10)]), {A: Ranges([(0, 4)])}, C) == [Run(0, 4, A), Run(4, 10, C)]


def test_only_billed_indexes_have_an_owner() -> None:
    assert owners(Ranges([(5, 8)]), {A: Ranges([(0, 100)])}, C) == [Run(5, 8, A)]


@given(billed=_RANGES, generated=st.dictionaries(_PLACES, _RANGES), otherwise=_PLACES)
def test_every_billed_token_has_one_owner_and_the_price_splits_exactly(
    billed: Ranges, generated: dict[Place, Ranges], otherwise: Place
) -> None:
    runs = owners(billed, generated, otherwise)
    assert Ranges((start, end) for start, end, _ in runs) == billed
    assert sum(tokens_by_place(runs).values()) == billed.count
    for start, end, place in runs:
        assert place == otherwise or generated[place].covers(Ranges([(start, end)]))
    rates = Rates(33_333_333, 11_111_111, 77_777_777)
    prices = price_by_place(rates, 101, 37, runs, home=A)
    assert sum(prices.values()) == rates.price_nusd(101, 37, billed.count)
    assert min(prices.values()) >= 0
