"""What policies are compared on is what it says, and the time after a blow is counted right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.policy import back_s
from bench.policy_scenes import AZURE, FAILING, bursty, scenario, scenes
from services.mesh.accelerators import load_catalogue
from services.twin.requests import TwinRequest, requests_of
from services.twin.scenario import by_name, usual_classes

CATALOGUE = load_catalogue()


def test_a_drawn_trace_has_the_lengths_it_promises_and_is_the_same_each_time() -> None:
    trace = bursty(4000, 1)
    prompts = [each.prompt_tokens for each in trace]
    assert np.median(prompts) == pytest.approx(1500, rel=0.06)
    assert np.quantile(prompts, 0.99) == pytest.approx(7400, rel=0.15)
    assert np.median([each.completion_tokens for each in trace]) == pytest.approx(13, abs=1)
    assert 4000 / trace[-1].arrival_s == pytest.approx(4.0, rel=0.15)
    assert bursty(50, 1) == trace[:50]
    assert bursty(50, 2) != trace[:50]


def test_demand_doubles_within_a_minute_and_stays_so() -> None:
    found, _ = scenes(None, quick=False)
    by = {each.name: each for each in found}
    usual, doubled, struck_s = by["failures"], by["doubling"], by["doubling"].struck_s
    speed = usual.speed

    def rate_rps(trace: list[float], from_s: float, to_s: float) -> float:
        return sum(from_s <= at_s < to_s for at_s in trace) / (to_s - from_s)

    arrivals = [each.arrival_s / speed for each in doubled.trace]
    before = rate_rps(arrivals, 0, struck_s)
    assert rate_rps(arrivals, struck_s + 60, arrivals[-1]) == pytest.approx(2 * before, rel=0.15)
    assert [each.prompt_tokens for each in doubled.trace] == [each.prompt_tokens for each in usual.trace]


def test_without_the_public_traces_scenes_are_left_out_with_where_to_get_them() -> None:
    found, missing = scenes(Path("/nowhere"), quick=True)
    assert [each.name for each in found] == ["bursts", "failures", "doubling"]
    assert any(AZURE.name in each and "https://" in each for each in missing)


def test_every_worker_that_fails_is_in_the_fleet() -> None:
    (struck,) = [each for each in scenes(None, quick=True)[0] if each.name == "failures"]
    fleet = {name for name, _ in scenario(CATALOGUE, "30 ms", struck).fleet.workers}
    assert set(FAILING) <= fleet


def test_what_is_missed_after_a_blow_counts_until_the_last_bad_window() -> None:
    assert back_s(_requests(missed=()), 10.0) == 0.0
    assert back_s(_requests(missed=(5, 6)), 10.0) == 0.0  # before it
    assert back_s(_requests(missed=(12, 13)), 10.0) == 5.0
    assert back_s(_requests(missed=(12, 17)), 10.0) == 10.0
    assert back_s(_requests(missed=(29,)), 10.0) == -1.0


def _requests(missed: tuple[int, ...]) -> list[TwinRequest]:
    trace = [replace(each, arrival_s=float(number)) for number, each in enumerate(bursty(30, 1))]
    made = list(requests_of(trace, ["batch"] * len(trace), dict(by_name(usual_classes())), 1.0))
    for number, each in enumerate(made):
        each.first_s, each.last_s = each.arrival_s + 0.1, each.arrival_s + 0.2
        each.delivered = each.completion_tokens
        each.outcome = "refused" if number in missed else "length"
    return made
