"""A fast histogram looks from outside as the SDK's own does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh import conventions as names
from services.mesh.telemetry import Telemetry, start_telemetry

BOUNDS = (0.01, 0.1, 1.0)


def lines(telemetry: Telemetry) -> list[str]:
    text = telemetry.exposition().decode()
    return sorted(line for line in text.splitlines() if "ttft" in line and "_created" not in line)


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["a", "b"]), st.sampled_from(["", "WorkerLost"]))))
def test_it_shows_what_the_sdks_would(recorded: list[tuple[float, str, str]]) -> None:
    ours, theirs = start_telemetry("router", "router-0"), start_telemetry("router", "router-0")
    fast = ours.histograms.create("gen_ai.ttft", "s", "Seconds", BOUNDS, ("model", "error.type"))
    slow = theirs.meter.create_histogram("gen_ai.ttft", "s", "Seconds", explicit_bucket_boundaries_advisory=BOUNDS)
    for telemetry in (ours, theirs):  # a reader is handed something only where the SDK has something
        telemetry.meter.create_counter("requests").add(1)
    for value, model, error in recorded:
        fast.record(value, model, error)
        slow.record(value, {"model": model, **({"error.type": error} if error else {})})
    assert lines(ours) == lines(theirs)
    assert bool(recorded) == bool(lines(ours))
    for telemetry in (ours, theirs):
        telemetry.shutdown()


def test_a_record_with_other_labels_than_agreed_is_a_bug() -> None:
    telemetry = start_telemetry("router", "router-0")
    histogram = telemetry.histograms.create("x", "s", "Seconds", BOUNDS, ("model",))
    with pytest.raises(AssertionError):
        histogram.record(1.0)
    telemetry.shutdown()


def test_series_beyond_the_most_are_summed_up_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MOST_SERIES", 2)
    telemetry = start_telemetry("router", "router-0")
    histogram = telemetry.histograms.create("gen_ai.ttft", "s", "Seconds", BOUNDS, ("model",))
    telemetry.meter.create_counter("requests").add(1)
    for stranger in range(100):
        histogram.record(0.5, f"model-{stranger}")
    histogram.record(0.5, "model-0")  # what is known goes on by itself
    counts = {line for line in lines(telemetry) if "_count" in line}
    telemetry.shutdown()
    assert len(counts) == 3
    assert any('model="model-0"' in line and line.endswith(" 2.0") for line in counts)
    assert any('otel_metric_overflow="true"' in line.lower() and line.endswith(" 98.0") for line in counts)
