"""Which worker made each billed token, so that tokens and price can be grouped by worker and still add up. Pure.

In: the billed indexes, and what each place generated. Out: runs of billed indexes with one owner each, and the price of
each owner's part.

A token delivered once may have been generated twice: when a worker is lost, what it made beyond the last delivered
token is made again by its successor. The successor starts at the first index that was not delivered, so of the ranges
that hold an index, the one that starts last made the delivered token. An index that nobody has reported yet belongs to
the place that the deliverer named, until its tokens arrive.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from services.mesh.money import price_nusd
from services.mesh.pricing import Rates
from services.meter.core.amounts import Place
from services.meter.core.ranges import Ranges


class Run(NamedTuple):
    """Billed indexes from `start` up to and without `end`, delivered from `place`."""

    start: int
    end: int
    place: Place


def owners(billed: Ranges, generated: Mapping[Place, Ranges], otherwise: Place) -> list[Run]:
    """The billed indexes in ascending order, each with the place that it was delivered from.

    Args:
        otherwise: the owner of indexes that no place has reported.
    """
    made = sorted((start, end, place) for place, ranges in generated.items() for start, end in ranges)
    runs: list[Run] = []
    for first, stop in billed:
        cuts = sorted({first, stop, *(cut for start, end, _ in made for cut in (start, end) if first < cut < stop)})
        for start, end in pairwise(cuts):
            place = max((each for each in made if each[0] <= start and end <= each[1]), default=(0, 0, otherwise))[2]
            if runs and runs[-1].place == place and runs[-1].end == start:
                runs[-1] = Run(runs[-1].start, end, place)
            else:
                runs.append(Run(start, end, place))
    return runs


def tokens_by_place(runs: Iterable[Run]) -> dict[Place, int]:
    """Billed tokens of each place."""
    tokens: dict[Place, int] = {}
    for start, end, place in runs:
        tokens[place] = tokens.get(place, 0) + end - start
    return tokens


def price_by_place(
    rates: Rates, prompt_tokens: int, cached_prompt_tokens: int, runs: Sequence[Run], home: Place
) -> dict[Place, int]:
    """The request's price, split by place; the parts add up to `rates.price_nusd` of the whole, to the nano-dollar.

    The prompt is priced at `home`; each run at the difference that it makes to the price of all output before it.
    """
    prices = {home: rates.price_nusd(prompt_tokens, cached_prompt_tokens, 0)}
    tokens, before_nusd = 0, 0
    for start, end, place in runs:
        tokens += end - start
        after_nusd = price_nusd(tokens, rates.output_nusd_per_mtok)
        prices[place] = prices.get(place, 0) + after_nusd - before_nusd
        before_nusd = after_nusd
    return prices
