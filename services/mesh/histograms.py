"""Histograms for what happens many thousand times a second: a record is an addition, not a walk through the SDK.

In: values, under a few labels whose names are fixed. Out: OpenTelemetry's own data points, which the readers here put
beside the SDK's each time they collect, so that `/metrics` and OTLP show them as any other instrument. They collect
where the SDK has something to hand over, as in every service: the bus counts.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from services.mesh import conventions as names

_SCOPE: Final = InstrumentationScope("tokenworks")


class _Series:
    """What was recorded under one set of labels."""

    __slots__ = ("counts", "greatest", "least", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0
        self.least = float("inf")
        self.greatest = float("-inf")


class Histogram:
    """One instrument; made by `Histograms.create`.

    Args:
        bounds: ascending; a value counts in the first bucket whose bound it does not exceed.
        labels: names of the attributes, in the order in which `record` takes their values.
    """

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        self.name = name
        self._unit = unit
        self._description = description
        self._bounds = tuple(bounds)
        self._labels = tuple(labels)
        self._series: dict[tuple[str, ...], _Series] = {}
        self._overflow: _Series | None = None
        self._started_ns = time.time_ns()

    def record(self, value: float, *labels: str) -> None:
        """Adds a value. An empty label is left out."""
        series = self._series.get(labels)
        if series is None:
            assert len(labels) == len(self._labels), f"{self.name} has the labels {self._labels}"
            series = self._begin(labels)
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value
        series.least = min(series.least, value)
        series.greatest = max(series.greatest, value)

    def _begin(self, labels: tuple[str, ...]) -> "_Series":
        """A new series; of more than there may be the one that all others are counted in: labels may be names that
        strangers choose."""
        if len(self._series) < names.MOST_SERIES:
            created = self._series[labels] = _Series(len(self._bounds) + 1)
            return created
        if self._overflow is None:
            self._overflow = _Series(len(self._bounds) + 1)
        return self._overflow

    @property
    def used(self) -> bool:
        """Whether anything was recorded."""
        return bool(self._series)

    def metric(self, now_ns: int) -> Metric:
        """What was recorded so far, as the SDK says it."""
        points = []
        found: list[tuple[Mapping[str, str | bool], _Series]] = [
            ({name: value for name, value in zip(self._labels, labels, strict=True) if value}, series)
            for labels, series in list(self._series.items())
        ]
        if self._overflow is not None:
            found.append(({names.OVERFLOW: True}, self._overflow))
        for attributes, series in found:
            counts = tuple(series.counts)
            points.append(
                HistogramDataPoint(
                    attributes=attributes,
                    start_time_unix_nano=self._started_ns,
                    time_unix_nano=now_ns,
                    count=sum(counts),
                    sum=series.total,
                    bucket_counts=counts,
                    explicit_bounds=self._bounds,
                    min=series.least,
                    max=series.greatest,
                )
            )
        data = HistogramData(data_points=points, aggregation_temporality=AggregationTemporality.CUMULATIVE)
        return Metric(name=self.name, description=self._description, unit=self._unit, data=data)


class Histograms:
    """The histograms of one service."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._all: list[Histogram] = []

    def create(
        self, name: str, unit: str, description: str, bounds: Sequence[float], labels: Sequence[str]
    ) -> Histogram:
        created = Histogram(name, unit, description, bounds, labels)
        self._all.append(created)
        return created

    def beside(self, collected: MetricsData | None) -> MetricsData:
        """What the SDK collected, and these histograms."""
        now_ns = time.time_ns()
        metrics = [each.metric(now_ns) for each in self._all if each.used]
        ours = ResourceMetrics(
            resource=self._resource,
            scope_metrics=[ScopeMetrics(scope=_SCOPE, metrics=metrics, schema_url="")],
            schema_url="",
        )
        return MetricsData(resource_metrics=[*(collected.resource_metrics if collected else ()), ours])


class RecordingPrometheusReader(PrometheusMetricReader):
    """For `/metrics`; collects the histograms as well."""

    histograms: Histograms

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self.histograms.beside(metrics_data), timeout_millis, **kwargs)


class RecordingExportingReader(PeriodicExportingMetricReader):
    """For OTLP; collects the histograms as well."""

    histograms: Histograms

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(self.histograms.beside(metrics_data), timeout_millis, **kwargs)
