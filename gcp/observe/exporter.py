"""Exact histograms for OpenTelemetry: a wrapper around a metric exporter that appends them to each export.

This module imports the SDK. No other module of gcp does, and none imports this one.

    reader = PeriodicExportingMetricReader(HistogramExporter(OTLPMetricExporter()))
    set_meter_provider(MeterProvider([reader]))

OpenTelemetry has no observable histogram, and recording a value takes several times as long as an acquire. The pools
keep histograms anyway; they are exported unchanged, with the other figures of the same collection. The reader must
export in the thread that collected, as the SDK's own does. Views do not apply to these histograms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import time_ns
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ScopeMetrics,
)

from gcp.observe.names import ATTRIBUTES, SCOPE, Instrument
from gcp.observe.opentelemetry import HISTOGRAMS, ProviderBinding, histograms, latest, since

if TYPE_CHECKING:
    from gcp.observe.aggregation import Reading

__all__ = ['HistogramExporter']

POOL = ATTRIBUTES['pool']

Seen = dict[tuple[str, str], tuple[tuple[int, ...], float, int, int]]
"""By pool and instrument: counts, sum, start time, and time of the last export."""


class HistogramExporter(MetricExporter):
    """Adds ``db.client.connection.create_time``, ``.wait_time`` and ``.use_time`` to what another exporter exports.

    Covers the pools of the same meter provider. The temporality is the one that the wrapped exporter prefers for
    histograms; a delta whose export failed is part of the next one. If the wrapped exporter raises, the export has
    failed, and the error is counted and logged once.

    :param exporter: the exporter to wrap
    """

    def __init__(self, exporter: MetricExporter) -> None:
        # private attributes, but the SDK's reader reads them, too
        temporality = getattr(exporter, '_preferred_temporality', None)
        super().__init__(
            preferred_temporality=temporality,
            preferred_aggregation=getattr(exporter, '_preferred_aggregation', None),
        )
        self._exporter = exporter
        self._temporality = (temporality or {}).get(HistogramInstrument, AggregationTemporality.CUMULATIVE)
        self._seen: Seen = {}

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export, including the histograms."""
        binding = latest()
        if binding is None:  # this collection has read no pool
            return self._exporter.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        seen = self._seen
        try:
            metrics_data, seen = self._complete(metrics_data, binding)
        except Exception as error:
            binding.aggregation.errors.record('histograms', error)
        try:
            result = self._exporter.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        except Exception as error:
            binding.aggregation.errors.record('exporter', error)
            return MetricExportResult.FAILURE
        if result is not MetricExportResult.FAILURE:
            self._seen = seen
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the wrapped exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    # --- data points ---

    def _complete(self, data: MetricsData, binding: ProviderBinding) -> tuple[MetricsData, Seen]:
        """Append the histograms to the metrics of the scope ``gcpool``."""
        seen: Seen = {}
        resources = [
            replace(
                resource,
                scope_metrics=[
                    self._extend(scope, binding, seen) if scope.scope.name == SCOPE else scope
                    for scope in resource.scope_metrics
                ],
            )
            for resource in data.resource_metrics
        ]
        return replace(data, resource_metrics=resources), seen

    def _extend(self, scope: ScopeMetrics, binding: ProviderBinding, seen: Seen) -> ScopeMetrics:
        there = {metric.name for metric in scope.metrics}  # those that `record_histograms` records
        points: dict[str, list[HistogramDataPoint]] = {instrument.name: [] for instrument in HISTOGRAMS}
        for instrument, point in self._points(binding, seen):
            points[instrument.name].append(point)
        return replace(
            scope,
            metrics=[
                *scope.metrics,
                *(
                    Metric(
                        instrument.name,
                        instrument.help,
                        instrument.unit,
                        Histogram(points[instrument.name], self._temporality),
                    )
                    for instrument in HISTOGRAMS
                    if points[instrument.name] and instrument.name not in there
                ),
            ],
        )

    def _points(self, binding: ProviderBinding, seen: Seen) -> Iterator[tuple[Instrument, HistogramDataPoint]]:
        now = time_ns()
        for reading in binding.readings:
            for instrument, key, counts, total in histograms(reading):
                last, last_total, born, exported = self._seen.get(
                    (reading.pool, instrument.name), ((0,) * len(counts), 0.0, binding.born, binding.born)
                )
                more, rest = since((last, last_total), counts, total)
                if more is counts and any(last):  # a forked child has reset its counts
                    born = exported
                seen[reading.pool, instrument.name] = counts, total, born, now
                if self._temporality is AggregationTemporality.CUMULATIVE:
                    yield instrument, point(instrument, reading, key, counts, total, born, now, exported)
                elif any(more):
                    yield instrument, point(instrument, reading, key, more, rest, exported, now, exported)


def point(
    instrument: Instrument,
    reading: Reading,
    key: tuple[str, str | None],
    counts: tuple[int, ...],
    total: float,
    start: int,
    now: int,
    exported: int,
) -> HistogramDataPoint:
    """Return a data point. The minimum and the maximum are not known."""
    unknown = cast('float', None)
    return HistogramDataPoint(
        attributes={POOL: reading.pool},
        start_time_unix_nano=start,
        time_unix_nano=now,
        count=sum(counts),
        sum=total,
        bucket_counts=counts,
        explicit_bounds=instrument.buckets,
        min=unknown,
        max=unknown,
        exemplars=list(exemplars(reading, key, len(counts), exported)),
    )


def exemplars(reading: Reading, key: tuple[str, str | None], buckets: int, since: int) -> Iterator[Exemplar]:
    """Yield the exemplars that were observed since the last export."""
    for bucket in range(buckets):
        found = reading.exemplars.get((*key, bucket))
        if found is not None and (when := int(found[2] * 1e9)) >= since:
            labels, value, _ = found
            yield Exemplar(
                filtered_attributes={},
                value=value,
                time_unix_nano=when,
                span_id=int(labels['span_id'], 16),
                trace_id=int(labels['trace_id'], 16),
            )
