"""What a mesh recorded can be run again, and is told as it was."""

from typing import Any

import pytest

from services.mesh.events import RequestAdmitted, RequestFinished, TokenEntry, TokensGenerated
from services.twin.recorded import Recording, since


def finished(request_id: str, at_ms: int, **changes: Any) -> RequestFinished:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "router": "r",
        "tenant": "acme",
        "workload": "chat",
        "model": "m",
        "slo_class": "standard",
        "worker": "w1",
        "pool": "p",
        "accelerator": "nvidia-l4",
        "delivered_from": 0,
        "delivered_count": 20,
        "prompt_tokens": 100,
        "cached_prompt_tokens": 0,
        "outcome": "length",
        "ttft_s": 0.1,
        "tpot_s": 0.02,
        "e2e_s": 0.5,
        "slo_met": True,
        "trace_id": "",
        "at_unix_ms": at_ms + 500,
        "admitted_unix_ms": at_ms,
        "price_book": "",
        "plan": "",
    }
    return RequestFinished(**{**fields, **changes})


def generated(device_ns: int, energy_uj: int) -> TokensGenerated:
    entry = TokenEntry(
        request_id="a",
        tenant="acme",
        workload="chat",
        model="m",
        slo_class="standard",
        from_index=0,
        count=20,
        prompt_tokens=100,
        cached_prompt_tokens=0,
        device_ns=device_ns,
        energy_uj=energy_uj,
    )
    return TokensGenerated(worker="w1", pool="p", accelerator="nvidia-l4", entries=(entry,), at_unix_ms=7)


def test_requests_come_as_they_came_whatever_the_order_of_their_events() -> None:
    recording = Recording()
    for event in (finished("b", 3_000, slo_met=False), finished("a", 1_000, delivered_count=5), finished("b", 3_000)):
        recording.note(event)
    recording.note(RequestAdmitted(**_admitted("a", session_id="s1")))
    first, second = recording.trace()
    assert (first.arrival_s, first.completion_tokens, first.session_id) == (0.0, 5, "s1")
    assert (second.arrival_s, second.completion_tokens, second.slo_class) == (2.0, 20, "standard")
    assert recording.fleet == [("w1", "nvidia-l4")]
    assert recording.happened().slo_attainment == 0.5


def test_a_request_came_when_it_was_asked_for_however_long_it_waited() -> None:
    recording = Recording()
    recording.note(finished("a", 1_000))
    recording.note(finished("b", 3_000, e2e_s=1.25))  # let in after 0.75 s, and over 0.5 s later
    recording.note(RequestAdmitted(**_admitted("b", max_tokens=64)))
    first, second = recording.trace()
    assert second.arrival_s - first.arrival_s == pytest.approx(1.25)
    assert (first.max_tokens, second.max_tokens) == (0, 64)


def test_a_resumed_answer_is_as_long_as_its_last_deliverer_says_and_counts_once() -> None:
    recording = Recording()
    recording.note(finished("a", 1_000, delivered_from=8, delivered_count=12, worker="w2"))
    recording.note(finished("a", 1_000, delivered_count=8, outcome="error"))
    (request,) = recording.trace()
    assert request.completion_tokens == 20
    assert recording.happened().requests == 1


def test_what_ended_without_an_answer_or_belongs_to_another_model_is_left_out() -> None:
    recording = Recording("m")
    recording.note(finished("a", 1_000))
    recording.note(finished("b", 2_000, outcome="error", delivered_count=0))
    recording.note(finished("c", 2_000, model="other"))
    assert len(recording.trace()) == 1
    assert recording.happened().left_out == 1


def test_device_seconds_and_joules_are_what_workers_told_once() -> None:
    recording = Recording()
    for _ in range(2):
        recording.note(generated(2_000_000_000, 5_000_000))
    assert recording.happened().busy_s == {"nvidia-l4": 2.0}
    assert recording.happened().energy_j == pytest.approx(5.0)


def test_only_the_end_of_a_recording_may_be_wanted() -> None:
    recording = Recording()
    for number in range(10):
        recording.note(finished(str(number), 1_000 * number))
    assert [each.arrival_s for each in since(recording.trace(), 2.5)] == [0.0, 1.0, 2.0]
    assert since([], 5.0) == []


def _admitted(request_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "router": "r",
        "tenant": "acme",
        "workload": "chat",
        "model": "m",
        "slo_class": "standard",
        "prompt_tokens": 100,
        "max_tokens": 0,
        "worker": "w1",
        "pool": "p",
        "plan": "",
        "at_unix_ms": 0,
        "price_book": "",
        **changes,
    }
