"""What the ledger gets of a batch's reports."""

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.codec import decode, encode
from services.mesh.events import Event, Funding, Hold, TokenEntry, TokensGenerated
from services.meter.core.amounts import Place
from services.meter.core.costs import Rate
from services.meter.core.ranges import Ranges
from services.meter.core.requests import Segment
from services.meter.core.runs import Run, Runs
from tests.unit.meter.facts import MINUTE_MS, START_MS, entry, lives, tokens

H100 = Place("h100-0", "nvidia-h100-sxm", "nvidia-h100-sxm")


def _generated(run: Run) -> Ranges:
    segment = Segment(run.place, Rate(0, 0))
    run.add_to(segment)
    return segment.generated


def test_reports_of_one_request_become_one_run() -> None:
    runs = Runs()
    assert [runs.fold(tokens(entry("r", 5 * each, 5), entry("s", each, 1))) for each in range(3)] == [6, 6, 6]
    first, second = runs.runs
    assert (first.key, first.place, first.start, first.end, first.device_ns) == (("r", "acme"), H100, 0, 15, 3_000_000)
    assert (second.key, second.start, second.end) == (("s", "acme"), 0, 3)


def test_indexes_with_a_gap_stay_apart() -> None:
    runs = Runs()
    for start, count in ((0, 5), (9, 1), (10, 2), (20, 0), (30, 1)):
        runs.fold(tokens(entry("r", start, count)))
    (run,) = runs.runs
    assert str(_generated(run)) == "0-5,9-12,30-31"


def test_places_minutes_and_sources_of_energy_are_kept_apart() -> None:
    runs = Runs()
    runs.fold(tokens(entry("r", 0, 5)))
    runs.fold(tokens(entry("r", 5, 5), worker="l4-0", accelerator="nvidia-l4"))
    runs.fold(tokens(entry("r", 10, 5), at_unix_ms=START_MS + MINUTE_MS))
    runs.fold(tokens(entry("r", 15, 5), energy_source="nvml"))
    assert [(each.place.worker, each.minute - START_MS // MINUTE_MS, each.measured) for each in runs.runs] == [
        ("h100-0", 0, False),
        ("l4-0", 0, False),
        ("h100-0", 1, False),
        ("h100-0", 0, True),
    ]


def test_what_is_held_is_read_only_where_somebody_wants_to_know() -> None:
    held = (Funding(funder="router-0/1", holds=(Hold(budget=1, subject="", window=0, amount=7),)),)
    told = TokenEntry(
        request_id="r", tenant="acme", workload="", model="", slo_class="", from_index=0, count=1, prompt_tokens=0,
        cached_prompt_tokens=0, device_ns=0, energy_uj=0, funding=held,
    )  # fmt: skip
    for funded in (True, False):
        runs = Runs(funded=funded)
        runs.fold(decode(TokensGenerated, encode(tokens(entry("r", 1, 1), told))))
        assert runs.runs[0].funding == ([held] if funded else None)


@given(events=lives(), cut=st.integers(1, 9))
def test_folded_reports_add_up_to_what_they_say_as_sent_or_as_received(events: list[Event], cut: int) -> None:
    reports = [event for event in events if isinstance(event, TokensGenerated)][:cut]
    sent, received = Runs(), Runs()
    for report in reports:
        assert sent.fold(report) == received.fold(decode(TokensGenerated, encode(report)))
    for runs in (sent, received):
        told = [each for report in reports for each in report.entries]
        assert sum(run.device_ns for run in runs.runs) == sum(each.device_ns for each in told)
        assert sum(run.energy_uj for run in runs.runs) == sum(each.energy_uj for each in told)
        for run in runs.runs:
            assert run.entry.request_id == run.key[0]
        for key in {run.key for run in runs.runs}:
            made = Ranges().union(*(_generated(run) for run in runs.runs if run.key == key))
            expected = Ranges(
                sorted((e.from_index, e.from_index + e.count) for e in told if (e.request_id, e.tenant) == key)
            )
            assert made == expected
