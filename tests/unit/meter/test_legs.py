"""Legs of one answer: whoever delivers it, one after the other, from wherever its client went on. Whatever they
overlap, in whatever order their words come, however often, and whoever of them never says a word: delivered is the
union of what they tell, billed once.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.events import Event, RequestFinished
from services.mesh.price_book import PriceBook
from services.mesh.price_calendar import PriceCalendar
from services.mesh.pricing import Pricing
from services.meter.core.amounts import NOTHING, Amounts, Place
from services.meter.core.conservation import Audited, Kind, check
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Ledger
from services.meter.core.ranges import Ranges
from services.meter.core.requests import Request
from services.meter.store.rows import of_request, of_segment, request_of, segment_of
from services.meter.store.schema import requests, segments
from tests.unit.meter.facts import START_MS, admitted, entry, finished, tokens

PLACES = (("h100-0", "nvidia-h100-sxm"), ("l4-0", "nvidia-l4"), ("l4-1", "nvidia-l4"))
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)
RATES = Pricing(PriceBook()).rates("llama-3.1-8b", "acme", "standard")


class Leg(NamedTuple):
    """One deliverer's part.

    Attributes:
        start: what its client had; `end`: what it handed over, and `made` what its engine made.
        since_start: its word counts from `start`, and not from the first token of the answer.
        told: its word reaches the bus.
    """

    place: tuple[str, str]
    start: int
    end: int
    made: int
    since_start: bool
    told: bool


@st.composite
def answers(draw: st.DrawFn) -> list[Leg]:
    """One to five legs, at whatever places; each begins at what its client has by then."""
    legs: list[Leg] = []
    has = 0
    for _ in range(draw(st.integers(1, 5))):
        handed_over = draw(st.integers(0, 30))
        made = handed_over + draw(st.integers(0, 10))
        # The connection may break before the last of what is handed over reaches the client.
        reaches = draw(st.integers(0, handed_over))
        place, since_start, told = draw(st.sampled_from(PLACES)), draw(st.booleans()), draw(st.booleans())
        legs.append(Leg(place, has, has + handed_over, has + made, since_start, told))
        has += reaches
    return legs


def _words(legs: list[Leg]) -> list[Event]:
    events: list[Event] = [admitted("r")]
    for number, leg in enumerate(legs):
        worker, accelerator = leg.place
        at_ms = START_MS + number * 40_000
        half = (leg.start + leg.made) // 2
        for first, end in ((leg.start, half), (half, leg.made)):
            fact = entry("r", first, end - first, last=end == leg.made)
            events.append(tokens(fact, worker=worker, accelerator=accelerator, at_unix_ms=at_ms))
        if leg.told:
            begin = leg.start if leg.since_start else 0
            events.append(
                finished(
                    "r",
                    leg.end - begin,
                    delivered_from=begin,
                    worker=worker,
                    accelerator=accelerator,
                    outcome="length" if number == len(legs) - 1 else "error",
                    at_unix_ms=at_ms + 1000,
                )
            )
    return events


def _stored(request: Request) -> Request:
    """As the database gives it back."""
    row = dict(zip(requests.columns.keys(), of_request(request), strict=True))
    found = request_of(row)
    for segment in request.segments.values():
        columns = dict(zip(segments.columns.keys(), of_segment(request.key, segment), strict=True))
        found.segments[segment.place] = segment_of(columns)
    return found


def _booked(batches: Iterable[Sequence[Event]]) -> tuple[Request, dict[Place, dict[int, Amounts]]]:
    """The request and its lines; each batch by another meter, so that what is known of it comes from the store."""
    request: Request | None = None
    lines: dict[Place, dict[int, Amounts]] = {}
    for batch in batches:
        ledger = Ledger(PriceCalendar(PriceBook()), CARD)
        ledger.adopt([_stored(request)] if request is not None else [])
        for event in batch:
            ledger.note(event)
        entries, (request,) = ledger.settle()
        for each in entries:
            dated = lines.setdefault(each.place, {})
            dated[each.minute] = dated.get(each.minute, NOTHING).plus(each.amounts)
    assert request is not None
    return request, lines


@settings(deadline=None)
@given(legs=answers(), seed=st.integers(0, 2**32), cut=st.integers(1, 4), deliverers_again=st.integers(0, 3))
def test_what_legs_deliver_is_their_union_in_any_order_and_is_billed_once(
    legs: list[Leg], seed: int, cut: int, deliverers_again: int
) -> None:
    events, chance = _words(legs), Random(seed)
    ends = [each for each in events if isinstance(each, RequestFinished)]
    coming = [*events, *(chance.choice(ends) for _ in range(deliverers_again if ends else 0))]
    chance.shuffle(coming)
    request, lines = _booked(coming[start : start + cut] for start in range(0, len(coming), cut))
    told = [leg.end for leg in legs if leg.told]
    prompt_tokens = 100
    if told:
        billed = max(told)
        assert request.delivered == Ranges([(0, billed)])
        assert request.finish is not None
        assert request.finish.delivered_end == billed
        prompt_tokens = 100 if billed or request.finish.outcome == "length" else 0
    else:  # while nobody has told an end, what was made is billed
        billed = max(leg.made for leg in legs)
        prompt_tokens = 100 if billed else 0
    booked = request.booked
    assert (booked.delivered_tokens, booked.requests, booked.prompt_tokens) == (billed, 1, prompt_tokens)
    assert booked.price_nusd == RATES.price_nusd(prompt_tokens, 0, billed)
    assert booked.generated_tokens >= booked.delivered_tokens, "generated = delivered + waste"
    found = {each.kind for each in check(request.key, Audited(request, lines), RATES)}
    assert found <= (set() if told else {Kind.UNFINISHED}), "the books agree in themselves"


def test_what_a_client_brought_along_is_billed_though_the_one_who_delivered_it_never_says_so() -> None:
    legs = [
        Leg(PLACES[0], 0, 50, 60, since_start=False, told=False),  # killed
        Leg(PLACES[1], 50, 80, 80, since_start=True, told=True),
    ]
    request, _ = _booked([_words(legs)])
    assert (request.booked.delivered_tokens, request.booked.generated_tokens) == (80, 90)
    by_worker = {place.worker: each.booked.delivered_tokens for place, each in request.segments.items()}
    assert by_worker == {"h100-0": 50, "l4-0": 30}
