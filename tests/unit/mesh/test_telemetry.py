"""Trace context passes through, exported or not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import use_span

from services.mesh.clock import FakeClock
from services.mesh.telemetry import (
    context_of,
    current_traceparent,
    fresh_traceparent,
    links_to,
    span_context_of,
    start_telemetry,
    trace_id_of,
    traceparent_of,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_exporter_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 1))
def test_a_traceparent_reads_back(trace_id: int, span_id: int, flags: int) -> None:
    text = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
    context = span_context_of(text)
    assert (context.trace_id, context.span_id, int(context.trace_flags)) == (trace_id, span_id, flags)
    assert trace_id_of(text) == f"{trace_id:032x}"


@given(st.text(max_size=70))
def test_what_is_no_traceparent_is_no_context(text: str) -> None:
    assert span_context_of(text).is_valid is False or re.match(r"\s*[0-9a-f]{2}-", text)
    assert not links_to(["", "nonsense"])


def test_without_an_exporter_a_callers_context_is_passed_on_and_no_span_made() -> None:
    telemetry = start_telemetry("router", "router-0")
    assert not telemetry.exporting
    span = telemetry.tracer.start_span("x", context_of(TRACEPARENT))
    assert not span.is_recording()
    assert traceparent_of(span) == TRACEPARENT
    telemetry.shutdown()


def test_with_an_exporter_a_span_is_the_callers_child() -> None:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry("router", "router-0", exporter=exporter)
    assert telemetry.exporting
    with use_span(telemetry.tracer.start_span("x", context_of(TRACEPARENT)), end_on_exit=True) as span:
        assert current_traceparent() == traceparent_of(span) != TRACEPARENT
    telemetry.shutdown()
    [sent] = exporter.get_finished_spans()
    assert sent.parent == span_context_of(TRACEPARENT)
    assert sent.resource.attributes["service.name"] == "router"


def test_links_are_one_per_context_in_order() -> None:
    other = fresh_traceparent()
    linked = [f"{link.context.trace_id:032x}" for link in links_to([TRACEPARENT, "", other, TRACEPARENT])]
    assert linked == [trace_id_of(TRACEPARENT), trace_id_of(other)]


def test_a_fresh_context_is_valid_and_not_sampled() -> None:
    assert span_context_of(fresh_traceparent()).is_valid
    assert fresh_traceparent().endswith("-00")
    assert fresh_traceparent() != fresh_traceparent()


def test_a_fake_clock_moves_when_told_only() -> None:
    clock = FakeClock(unix_ms=1000)
    clock.advance(1.5)
    assert (clock.monotonic_s(), clock.unix_ms()) == (1.5, 2500)
    with pytest.raises(AssertionError, match="does not go back"):
        clock.advance(-1)
