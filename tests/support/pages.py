"""What Prometheus sees, read back: pages of metrics, and what must hold on each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """One page of metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.series: dict[Series, float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.series, f'{key} is there twice'
                self.series[key] = sample.value

    def find(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Find the series of this name that have these labels, among others."""
        for (found, pairs), value in self.series.items():
            if found == name and labels.items() <= pairs:
                yield dict(pairs), value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.find(name, **labels))

    def value(self, name: str, **labels: str) -> float:
        """The value of the only such series."""
        (found,) = self.find(name, **labels)
        return found[1]

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums by a label; zeros are left out."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.find(name, **labels):
            sums[found.get(label, '')] += value
        return {key: value for key, value in sums.items() if value}

    def labels(self, label: str, **labels: str) -> set[str]:
        """All values that a label has."""
        return {value for _, pairs in self.series if labels.items() <= pairs for key, value in pairs if key == label}


def scrape(registry: Any) -> Page:
    return Page(generate_latest(registry).decode())


def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


def check(page: Page) -> None:
    """See that the counts of quiet pools agree with each other, to the last one."""
    for pool in page.labels('pool'):
        acquires = page.by('result', 'gcpool_acquires_total', pool=pool)
        got = sum(acquires.get(result, 0) for result in ('hit', 'created', 'waited'))
        releases = page.sum('gcpool_releases_total', pool=pool)
        closed = page.sum('gcpool_connections_closed_total', pool=pool)
        states = page.by('state', 'gcpool_connections', pool=pool)
        created = page.sum('gcpool_hook_calls_total', pool=pool, hook='create', outcome='ok')
        assert got - releases == states.get('used', 0), pool
        assert created - closed == states.get('idle', 0) + states.get('used', 0), pool
        assert page.value('gcpool_acquire_wait_seconds_count', pool=pool) == sum(acquires.values()), pool
        assert page.value('gcpool_use_seconds_count', pool=pool) == releases, pool
        assert page.value('gcpool_connection_age_seconds_count', pool=pool) == closed, pool
        for labels, count in page.find('gcpool_hook_seconds_count', pool=pool):
            outcomes = ('ok', 'dead') if labels['result'] == 'ok' else ('error', 'timeout', 'cancelled')
            calls = page.by('outcome', 'gcpool_hook_calls_total', pool=pool, hook=labels['hook'])
            assert count == sum(calls.get(outcome, 0) for outcome in outcomes), (pool, labels)
    check_histograms(page)


def check_histograms(page: Page) -> None:
    """See that buckets are cumulative, and the last one the count."""
    buckets: dict[tuple[str, Any], list[tuple[float, float]]] = defaultdict(list)
    for (name, pairs), value in page.series.items():
        if name.endswith('_bucket'):
            bound = float(dict(pairs)['le'])
            buckets[name, frozenset(pair for pair in pairs if pair[0] != 'le')].append((bound, value))
    for (name, pairs), found in buckets.items():
        values = [value for _, value in sorted(found)]
        assert values == sorted(values), (name, pairs)
        assert max(found)[0] == float('inf')
        assert values[-1] == page.series[name.replace('_bucket', '_count'), pairs], (name, pairs)


def check_no_step_back(before: Page, after: Page) -> None:
    """See that no counter or histogram has become less, or has gone."""
    for name, family in before.families.items():
        if family.type in ('counter', 'histogram'):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert after.series.get(key, -1) >= sample.value, (name, key, sample.value)
