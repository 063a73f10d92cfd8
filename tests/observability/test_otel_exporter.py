"""Guarantee 15 (docs/guarantees.md): exact histograms, by a wrapper around the exporter."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from fronts import Front
from opentelemetry import metrics
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from traces import Traces, globals_of_our_own, id_of, trace_of

import gcp
from gcp.observe import opentelemetry as ours
from gcp.observe.exporter import HistogramExporter
from gcp.observe.names import SCHEMA_URL
from gcp.observe.opentelemetry import record_histograms

POOL = 'db.client.connection.pool.name'
HISTOGRAMS = ('create_time', 'wait_time', 'use_time')
DELTA = {HistogramInstrument: AggregationTemporality.DELTA}


@pytest.fixture(autouse=True)
def own_globals() -> Iterator[None]:
    gc.collect()  # pools of other tests would follow the global provider, too
    with globals_of_our_own():
        yield


class Memory(MetricExporter):
    """Keeps what it is to export; fails when told to."""

    def __init__(self, **preferred: Any) -> None:
        super().__init__(**preferred)
        self.exported: list[MetricsData] = []
        self.result: Any = MetricExportResult.SUCCESS
        self.ended = False

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        if isinstance(self.result, Exception):
            raise self.result
        self.exported.append(metrics_data)
        return self.result  # type: ignore[no-any-return]

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.ended = True


class Pipeline:
    """A provider with a periodic reader whose exporter is wrapped; it exports when it is flushed."""

    def __init__(self, **preferred: Any) -> None:
        self.memory = Memory(**preferred)
        self.wrapper = HistogramExporter(self.memory)
        self.reader = PeriodicExportingMetricReader(self.wrapper, export_interval_millis=float('inf'))
        self.provider = MeterProvider(
            [self.reader], resource=Resource({'service.name': 'shop'}), shutdown_on_exit=False
        )

    def flush(self) -> dict[str, Any]:
        """Export once; return the histograms by the last part of their names."""
        before = len(self.memory.exported)
        self.reader.collect()
        assert len(self.memory.exported) <= before + 1
        if len(self.memory.exported) == before:
            return {}
        (resource,) = self.memory.exported[-1].resource_metrics
        assert resource.resource.attributes['service.name'] == 'shop'
        found = {}
        for scope in resource.scope_metrics:
            if scope.scope.name == 'gcpool':
                assert (scope.scope.version, scope.schema_url) == (gcp.__version__, SCHEMA_URL)
                names = [metric.name for metric in scope.metrics]
                assert len(set(names)) == len(names)
                found.update(
                    {metric.name.rsplit('.', 1)[1]: metric for metric in scope.metrics if metric.name.endswith('_time')}
                )
        return found


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline()
    yield made
    made.provider.shutdown()


@pytest.fixture
def deltas() -> Iterator[Pipeline]:
    made = Pipeline(preferred_temporality=DELTA)
    yield made
    made.provider.shutdown()


def pool_of(front: Front, pipeline: Pipeline | None, name: str = 'orders', **arguments: Any) -> Any:
    given: dict[str, Any] = {'meter_provider': pipeline.provider} if pipeline is not None else {}
    return front.pool(front.manager(), name=name, registry=None, **given | arguments)


async def use(pool: Any, times: int = 1, endpoint: str = 'db') -> None:
    for _ in range(times):
        async with pool.connection(endpoint):
            pass


def figures(stats: Any) -> dict[str, Any]:
    return {'create_time': stats.hook_time['create'], 'wait_time': stats.wait_time, 'use_time': stats.use_time}


def counts_of(metric: Any, pool: str = 'orders') -> tuple[int, ...]:
    (point,) = (point for point in metric.data.data_points if point.attributes[POOL] == pool)
    return tuple(point.bucket_counts)


async def test_cumulative(front: Front, pipeline: Pipeline) -> None:
    pool = pool_of(front, pipeline)
    times = []
    for _ in range(3):
        await use(pool, 5)
        shown, stats = pipeline.flush(), pool.stats()
        assert set(shown) == set(HISTOGRAMS)
        for name, histogram in figures(stats).items():
            metric = shown[name]
            assert (metric.name, metric.unit) == (f'db.client.connection.{name}', 's') and metric.description
            assert metric.data.aggregation_temporality is AggregationTemporality.CUMULATIVE
            (point,) = metric.data.data_points
            assert point.attributes == {POOL: 'orders'}
            assert point.explicit_bounds == histogram.bounds
            assert (point.bucket_counts, point.sum, point.count) == (histogram.counts, histogram.sum, histogram.count)
            assert point.min is None and point.max is None
        times.append((point.start_time_unix_nano, point.time_unix_nano))
    assert len({start for start, _ in times}) == 1
    assert [end for _, end in times] == sorted({end for _, end in times})
    assert all(start < end for start, end in times)


async def test_delta(front: Front, deltas: Pipeline) -> None:
    pool = pool_of(front, deltas)
    sums = dict.fromkeys(HISTOGRAMS, 0.0)
    ends = None
    for times in (1, 5, 0, 2):
        await use(pool, times)
        shown = deltas.flush()
        assert ('use_time' in shown) == bool(times)
        assert ('create_time' in shown) == (times == 1)
        for name, metric in shown.items():
            assert metric.data.aggregation_temporality is AggregationTemporality.DELTA
            (point,) = metric.data.data_points
            assert point.count == times == sum(point.bucket_counts)
            assert ends is None or point.start_time_unix_nano == ends
            sums[name] += point.sum
            end = point.time_unix_nano
        ends = end
        if not times:
            ends = None  # nothing was shown, but time went on
    for name, histogram in figures(pool.stats()).items():
        assert sums[name] == pytest.approx(histogram.sum)


@pytest.mark.parametrize('failure', [MetricExportResult.FAILURE, RuntimeError('no network today')])
async def test_difference_that_was_not_exported_is_part_of_the_next(
    front: Front,
    deltas: Pipeline,
    failure: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = pool_of(front, deltas)
    await use(pool, 2)
    deltas.memory.result = failure
    deltas.flush()
    deltas.flush()
    deltas.memory.result = MetricExportResult.SUCCESS
    await use(pool, 3)
    assert sum(counts_of(deltas.flush()['use_time'])) == 5
    errors = ours.binding_of(deltas.provider).aggregation.errors
    raised = isinstance(failure, Exception)
    assert errors.count == (2 if raised else 0)
    assert [record.name for record in caplog.records] == ['gcp.observe'] * raised


async def test_same_figures_as_the_counters_of_the_same_collection(front: Front, pipeline: Pipeline) -> None:
    pool = pool_of(front, pipeline)
    await use(pool, 4)
    read = ours.binding_of(pipeline.provider).aggregation.read
    shown = pipeline.flush()
    (resource,) = pipeline.memory.exported[-1].resource_metrics
    acquires = sum(
        point.value
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == 'gcpool.connection.acquires'
        for point in metric.data.data_points
    )
    assert sum(counts_of(shown['wait_time'])) == acquires == 4
    assert read()[0].total['wait'] == (counts_of(shown['wait_time']), shown['wait_time'].data.data_points[0].sum)


async def test_two_pools_and_two_providers(front: Front, pipeline: Pipeline, deltas: Pipeline) -> None:
    await use(pool_of(front, pipeline, 'one'), 2)
    await use(pool_of(front, pipeline, 'two'), 3)
    await use(pool_of(front, deltas, 'three'), 4)
    shown, other = pipeline.flush(), deltas.flush()
    assert {point.attributes[POOL]: point.count for point in shown['use_time'].data.data_points} == {'one': 2, 'two': 3}
    assert {point.attributes[POOL]: point.count for point in other['use_time'].data.data_points} == {'three': 4}


async def test_global_provider_that_is_set_later(front: Front, pipeline: Pipeline) -> None:
    await use(pool_of(front, None), 3)
    metrics.set_meter_provider(pipeline.provider)
    assert sum(counts_of(pipeline.flush()['wait_time'])) == 3


async def test_without_pools_nothing_changes(front: Front, pipeline: Pipeline) -> None:
    pipeline.provider.get_meter('another').create_counter('another').add(1)
    assert pipeline.flush() == {}
    assert len(pipeline.memory.exported) == 1


async def test_recorded_histograms_are_not_shown_twice(front: Front, pipeline: Pipeline) -> None:
    record_histograms(pipeline.provider)
    await use(pool_of(front, pipeline), 2)
    assert sum(counts_of(pipeline.flush()['use_time'])) == 2  # the names are unique: see `flush`


async def test_exemplars_lead_to_spans(front: Front, pipeline: Pipeline) -> None:
    traces = Traces()
    pool = pool_of(front, pipeline, tracer_provider=traces.provider)
    await use(pool)
    shown = pipeline.flush()
    for name, span in (
        ('create_time', traces.one('create orders')),
        ('wait_time', traces.one('wait_for_connection orders')),
    ):
        (exemplar,) = shown[name].data.data_points[0].exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (trace_of(span), id_of(span))
        assert exemplar.value > 0
    await use(pool)
    assert pipeline.flush()['wait_time'].data.data_points[0].exemplars == []  # told already


async def test_reading_that_raises_does_not_stop_the_rest(
    front: Front,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await use(pool_of(front, pipeline))

    def fail(*args: Any) -> Any:
        raise RuntimeError('no figures today')

    monkeypatch.setattr('gcp.observe.exporter.histograms', fail)
    assert pipeline.flush() == {} and len(pipeline.memory.exported) == 1
    assert pipeline.flush() == {} and len(pipeline.memory.exported) == 2
    assert ours.binding_of(pipeline.provider).aggregation.errors.count == 2
    assert len(caplog.records) == 1


async def test_counts_that_begin_anew(front: Front, pipeline: Pipeline) -> None:
    """In a forked child they begin at 0: that is a new start, not a step back."""
    pool = pool_of(front, pipeline)
    await use(pool, 3)
    before = pipeline.flush()['use_time'].data.data_points[0]
    seen = pipeline.wrapper._seen
    for key, (counts, total, born, exported) in list(seen.items()):
        seen[key] = tuple(count + 10 for count in counts), total, born, exported
    after = pipeline.flush()['use_time'].data.data_points[0]
    assert after.count == 3 and after.start_time_unix_nano == before.time_unix_nano


def test_wrapper_passes_the_rest_on() -> None:
    memory = Memory(preferred_temporality=DELTA)
    wrapper = HistogramExporter(memory)
    assert wrapper._preferred_temporality == DELTA
    assert wrapper.force_flush() is True
    wrapper.shutdown()
    assert memory.ended
