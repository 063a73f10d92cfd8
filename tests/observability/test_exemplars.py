"""Exemplars: only spans that were sampled leave them, in the bucket in which what they took was counted."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from traces import Traces, id_of, trace_of

from gcp.testing import slow


class RecordOnly(Sampler):
    """Records, but does not sample: such spans are exported nowhere."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return 'record only'


async def use(pool: Any) -> None:
    async with pool.connection('db'):
        pass


def exemplars_of(pool: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = pool._telemetry.telemetry.exemplars
    return found


async def test_sampled_spans_leave_exemplars(front: Front) -> None:
    traces = Traces(ALWAYS_ON)
    manager = front.manager(bare=True)
    manager.create.does(slow(0.03))
    pool = front.pool(manager, name='orders', tracer_provider=traces.provider, registry=None)
    await use(pool)

    stats = pool.stats()
    create, wait = traces.one('create orders'), traces.one('wait_for_connection orders')
    found = {(key[0], key[1]): (key[2], value) for key, value in exemplars_of(pool).items()}
    assert set(found) == {('hook', 'create'), ('wait', None)}
    for key, span, histogram in (
        (('hook', 'create'), create, stats.hook_time['create']),
        (('wait', None), wait, stats.wait_time),
    ):
        bucket, (labels, value, when) = found[key]
        assert labels == {'trace_id': format(trace_of(span), '032x'), 'span_id': format(id_of(span), '016x')}
        assert histogram.counts[bucket] == 1
        assert value == pytest.approx(histogram.sum) and value >= 0.03
        assert when == pytest.approx(span.end_time / 1e9, abs=1)  # type: ignore[operator]


@pytest.mark.parametrize('sampler', [ALWAYS_OFF, RecordOnly()])
async def test_others_leave_none(front: Front, sampler: Sampler) -> None:
    pool = front.pool(front.manager(), name='orders', tracer_provider=Traces(sampler).provider, registry=None)
    await use(pool)
    assert exemplars_of(pool) == {}


async def test_without_a_provider_there_are_none(front: Front) -> None:
    pool = front.pool(front.manager(), name='orders', tracer_provider=None, registry=None)
    await use(pool)
    assert exemplars_of(pool) == {}


async def test_one_for_each_bucket(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), name='orders', tracer_provider=Traces().provider, registry=None)
    for number in range(200):
        async with pool.connection(number):
            pass
    assert len(exemplars_of(pool)) <= 2 * 17 + 17
