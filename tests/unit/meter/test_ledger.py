import random
from collections import defaultdict
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.events import Event, Outcome
from services.mesh.money import energy_cost_nusd, use_cost_nusd
from services.mesh.price_book import Price, PriceBook
from services.mesh.price_calendar import OpenedBook, PriceCalendar
from services.mesh.pricing import Pricing
from services.meter.core.amounts import NOTHING, Amounts, Place
from services.meter.core.conservation import unreported
from services.meter.core.costs import RateCard
from services.meter.core.ledger import Entry, Ledger
from services.meter.core.requests import Request
from tests.unit.meter.facts import MINUTE_MS, START_MS, admitted, entry, finished, lives, tokens

BOOK = PriceBook()
H100, L4 = (Place(worker, key, key) for worker, key in (("h100-0", "nvidia-h100-sxm"), ("l4-0", "nvidia-l4")))
CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000, "nvidia-l4": 800_000_000}, 80_000_000)
RATES = Pricing(BOOK).rates("llama-3.1-8b", "acme", "standard")


def _ledger(*past: PriceBook, max_kept: int = 1000) -> Ledger:
    opened = [OpenedBook(each, 0, 0) for each in past] + [OpenedBook(BOOK, 1, 1)]
    return Ledger(PriceCalendar(BOOK, opened), CARD, max_kept=max_kept)


def _book(ledger: Ledger, *events: Event) -> list[Entry]:
    for event in events:
        ledger.note(event)
    return ledger.settle()[0]


def _sum(entries: list[Entry]) -> Amounts:
    total = NOTHING
    for each in entries:
        total = total.plus(each.amounts)
    return total


def _by(entries: list[Entry], field: str) -> dict[object, Amounts]:
    sums: dict[object, Amounts] = defaultdict(lambda: NOTHING)
    for each in entries:
        sums[getattr(each, field)] = sums[getattr(each, field)].plus(each.amounts)
    return dict(sums)


def test_a_running_request_is_billed_what_was_generated() -> None:
    ledger = _ledger()
    first = _book(ledger, admitted("r"), tokens(entry("r", 0, 5)))
    second = _book(ledger, tokens(entry("r", 5, 7)))
    assert _sum(first).delivered_tokens == 5
    assert _sum(second).prompt_tokens == 0, "the prompt is billed once"
    total = _sum(first + second)
    assert (total.requests, total.prompt_tokens, total.delivered_tokens) == (1, 100, 12)
    assert total.price_nusd == RATES.price_nusd(100, 0, 12)


def test_admission_alone_books_nothing() -> None:
    assert _book(_ledger(), admitted("r")) == []


def test_generated_beyond_delivered_is_waste_that_nobody_pays() -> None:
    ledger = _ledger()
    total = _sum(
        _book(ledger, tokens(entry("r", 0, 50, last=True))) + _book(ledger, finished("r", 40, outcome="cancelled"))
    )
    assert (total.generated_tokens, total.delivered_tokens) == (50, 40)
    assert total.price_nusd == RATES.price_nusd(100, 0, 40)
    assert total.use_cost_nusd == use_cost_nusd(1_000_000, 2_690_000_000), "the house pays for the waste"


def test_cached_input_is_priced_at_its_rate() -> None:
    ledger = _ledger()
    total = _sum(_book(ledger, tokens(entry("r", 0, 3, cached_prompt_tokens=64)), finished("r", 3)))
    assert total.cached_prompt_tokens == 0, "the deliverer's word counts, and it said none"
    total = _sum(_book(ledger, tokens(entry("s", 0, 3, cached_prompt_tokens=64))))
    assert total.price_nusd == RATES.price_nusd(100, 64, 3) < RATES.price_nusd(100, 0, 3)


def test_a_prompt_without_a_delivered_token_is_billed_only_when_the_request_ended_by_itself() -> None:
    for outcome, billed in [("stop", 100), ("length", 100), ("error", 0), ("cancelled", 0)]:
        total = _sum(_book(_ledger(), tokens(entry("r", 0, 0, last=True)), finished("r", 0, outcome=outcome)))
        assert (outcome, total.prompt_tokens) == (outcome, billed)
        assert total.price_nusd == RATES.price_nusd(billed, 0, 0)


def test_a_cancelled_stream_whose_router_never_learnt_the_prompt_is_billed_by_the_worker() -> None:
    total = _sum(_book(_ledger(), tokens(entry("r", 0, 9)), finished("r", 9, prompt_tokens=0, outcome="cancelled")))
    assert total.price_nusd == RATES.price_nusd(100, 0, 9)


def test_a_resumed_request_pays_its_prompt_once_and_each_worker_is_credited_its_tokens() -> None:
    entries = _book(
        _ledger(),
        tokens(entry("r", 0, 60)),
        tokens(entry("r", 50, 50, prompt_tokens=150, last=True), worker="l4-0", accelerator="nvidia-l4"),
        finished("r", 100, worker="l4-0", accelerator="nvidia-l4"),
    )
    places = _by(entries, "place")
    assert places[H100].delivered_tokens == places[L4].delivered_tokens == 50
    assert (places[H100].prompt_tokens, places[L4].prompt_tokens) == (100, 0)
    assert (places[H100].requests, places[L4].requests) == (1, 0)
    assert _sum(entries).generated_tokens == 110
    assert _sum(entries).price_nusd == RATES.price_nusd(100, 0, 100)


def test_every_deliverer_of_a_request_adds_what_it_delivered_and_none_is_billed_twice() -> None:
    ledger = _ledger()
    first = _book(ledger, tokens(entry("r", 0, 60, last=True)), finished("r", 55, outcome="error"))
    assert _sum(first).delivered_tokens == 55
    again = _book(
        ledger,
        tokens(entry("r", 50, 50, last=True), worker="l4-0", accelerator="nvidia-l4"),
        finished("r", 100, worker="l4-0", accelerator="nvidia-l4"),  # from 0: its client had the first 50
    )
    total = _sum(first + again)
    assert (total.requests, total.finished_requests, total.prompt_tokens) == (1, 1, 100)
    assert (total.delivered_tokens, total.generated_tokens) == (100, 110)
    assert total.price_nusd == RATES.price_nusd(100, 0, 100)


def test_a_router_that_speaks_for_a_dead_worker_takes_nothing_from_what_was_delivered() -> None:
    for order in (1, -1):
        ledger = _ledger()
        words = (
            finished("r", 0, outcome="error", prompt_tokens=0),
            finished("r", 30, worker="l4-0", accelerator="nvidia-l4"),
        )
        entries = _book(ledger, tokens(entry("r", 0, 20)))
        entries += _book(ledger, tokens(entry("r", 12, 18, last=True), worker="l4-0", accelerator="nvidia-l4"))
        for word in words[::order]:
            entries += _book(ledger, word)
        assert (_sum(entries).delivered_tokens, _sum(entries).finished_requests) == (30, 1)
        assert _sum(entries).price_nusd == RATES.price_nusd(100, 0, 30)


def test_what_a_dead_worker_made_for_a_client_that_never_came_back_is_waste() -> None:
    entries = _book(_ledger(), tokens(entry("r", 0, 20)), finished("r", 0, outcome="error", prompt_tokens=0))
    total = _sum(entries)
    assert (total.generated_tokens, total.delivered_tokens, total.price_nusd) == (20, 0, 0)


def test_finished_before_its_tokens_ends_in_the_same_books() -> None:
    usual, late = _ledger(), _ledger()
    events = (admitted("r"), tokens(entry("r", 0, 20)), tokens(entry("r", 20, 20, last=True)), finished("r", 38))
    in_order = [line for event in events for line in _book(usual, event)]
    reversed_order = [line for event in reversed(events) for line in _book(late, event)]
    assert _by(in_order, "place") == _by(reversed_order, "place")


def test_a_late_event_is_priced_by_the_book_that_was_in_force() -> None:
    old = PriceBook(
        name="list",
        version=7,
        prices=(
            Price(input_usd_per_mtok=Decimal(1), cached_input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1)),
        ),
    )
    ledger = _ledger(old)
    entries = _book(ledger, tokens(entry("r", 0, 10)))
    assert _sum(entries).price_nusd == RATES.price_nusd(100, 0, 10), "no router has said yet"
    entries += _book(ledger, admitted("r", price_book="list@7"))
    assert _sum(entries).price_nusd == 110 * 1_000
    entries += _book(ledger, finished("r", 10, price_book="list@9"))
    assert _sum(entries).price_nusd == RATES.price_nusd(100, 0, 10)
    assert ledger.take_findings() == ["price book 'list@9' is not known here; list@1 prices it"]


def test_the_same_id_of_two_tenants_is_two_requests() -> None:
    ledger = _ledger()
    entries = _book(ledger, tokens(entry("r", 0, 5, tenant="acme"), entry("r", 0, 5, tenant="rival")))
    assert {tenant: each.requests for tenant, each in _by(entries, "tenant").items()} == {"acme": 1, "rival": 1}


def test_an_unknown_accelerator_costs_its_energy_only_and_is_named() -> None:
    ledger = _ledger()
    total = _sum(_book(ledger, tokens(entry("r", 0, 5), accelerator="abacus")))
    assert total.use_cost_nusd == 0
    assert total.energy_cost_nusd == energy_cost_nusd(500_000, 80_000_000)
    assert ["abacus" in finding for finding in ledger.take_findings()] == [True]


def test_an_implausible_entry_is_refused_and_the_others_are_booked() -> None:
    ledger = _ledger()
    total = _sum(_book(ledger, tokens(entry("bad", 0, 5, device_ns=2**63), entry("good", 0, 5), entry("", 0, 5))))
    assert total.requests == 1
    assert [request_id for _, request_id, _ in ledger.take_refused()] == ["bad", ""]


def test_more_cached_than_prompt_tokens_count_as_all_cached() -> None:
    total = _sum(_book(_ledger(), finished("r", 5, prompt_tokens=10, cached_prompt_tokens=90)))
    assert total.price_nusd == RATES.price_nusd(10, 10, 5)


def test_tokens_are_dated_when_they_were_made_and_waste_is_taken_off_the_latest() -> None:
    ledger = _ledger()
    entries = _book(ledger, tokens(entry("r", 0, 60)))
    entries += _book(ledger, tokens(entry("r", 60, 30, last=True), at_unix_ms=START_MS + MINUTE_MS))
    entries += _book(ledger, finished("r", 50, at_unix_ms=START_MS + 2 * MINUTE_MS))
    minutes = _by(entries, "minute")
    start = START_MS // MINUTE_MS
    assert [minutes[start + each].generated_tokens for each in range(3)] == [60, 30, 0]
    assert [minutes[start + each].delivered_tokens for each in range(3)] == [50, 0, 0]


def test_a_complete_request_is_let_go_and_the_oldest_beyond_the_bound() -> None:
    ledger = _ledger(max_kept=2)
    _book(ledger, tokens(*(entry(f"r{number}", 0, 5) for number in range(3))))
    for event in (tokens(entry("done", 0, 5, last=True)), finished("done", 5)):
        ledger.note(event)
    ledger.release(ledger.settle()[1])
    assert ledger.absent([("done", "acme"), ("r0", "acme"), ("r1", "acme"), ("r2", "acme")]) == [
        ("done", "acme"),
        ("r0", "acme"),
    ]


@settings(deadline=None)
@given(events=lives(), seed=st.integers(0, 2**32), cut=st.integers(1, 5))
def test_the_books_end_up_the_same_in_any_order_and_any_batches(events: list[Event], seed: int, cut: int) -> None:
    in_order = _book(_ledger(), *events)
    shuffled = list(events)
    random.Random(seed).shuffle(shuffled)
    ledger, pieces = _ledger(), []
    for start in range(0, len(shuffled), cut):
        pieces += _book(ledger, *shuffled[start : start + cut])
    for field in ("place", "request_id"):
        nonzero = [{key: each for key, each in _by(lines, field).items() if any(each)} for lines in (in_order, pieces)]
        assert nonzero[0] == nonzero[1]


@given(events=lives())
def test_no_minute_and_no_place_ever_falls_below_zero(events: list[Event]) -> None:
    ledger = _ledger()
    books: dict[tuple[str, Place, int], Amounts] = defaultdict(lambda: NOTHING)
    for event in events:
        for line in _book(ledger, event):
            key = (line.request_id, line.place, line.minute)
            books[key] = books[key].plus(line.amounts)
            assert min(books[key]) >= 0


def test_what_the_meter_wrote_off_is_not_billed_however_far_its_deliverer_says_it_got() -> None:
    off, end = finished("r", 0, outcome=Outcome.WRITTEN_OFF, prompt_tokens=0), finished("r", 40)
    for ends in ((off, end), (end, off), (end, off, end)):
        total = _sum(_book(_ledger(), tokens(entry("r", 0, 50, last=True)), *ends))
        assert (total.generated_tokens, total.delivered_tokens, total.price_nusd) == (50, 0, 0)
        assert total.finished_requests == 1


@given(events=lives())
def test_tokens_delivered_are_tokens_billed_and_costs_are_those_of_the_device_time(events: list[Event]) -> None:
    entries = _book(_ledger(), *events)
    requests = _by(entries, "request_id")
    for event in events:
        if hasattr(event, "delivered_count"):
            billed = 0 if event.outcome == Outcome.WRITTEN_OFF else event.delivered_count
            assert requests[event.request_id].delivered_tokens == billed
            assert requests[event.request_id].finished_requests == 1
    for request_id, total in requests.items():
        assert total.requests == 1
        assert total.cached_prompt_tokens <= total.prompt_tokens
        assert total.delivered_tokens <= total.generated_tokens
        assert total.price_nusd == RATES.price_nusd(
            total.prompt_tokens, total.cached_prompt_tokens, total.delivered_tokens
        )
        places = _by([line for line in entries if line.request_id == request_id], "place")
        for place, each in places.items():
            rate = CARD.rate(place.accelerator)
            assert each.use_cost_nusd == rate.use_cost_nusd(each.device_ns)
            assert each.energy_cost_nusd == rate.energy_cost_nusd(each.energy_uj)


def test_an_end_that_claims_more_tokens_than_there_can_be_is_taken_for_the_most_that_the_log_can_say() -> None:
    most = 2**32 - 1
    request = Request(("r", "acme"), "chat", "llama-3.1-8b", "standard")
    request.note_finished(finished("r", most, delivered_from=most))
    assert [(start, end) for start, end, _ in unreported(request)] == [(0, most)]
