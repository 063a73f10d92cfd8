"""The rules: read and tried by promtool, and checked against the table of names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import boards
import pytest
import yaml

from gcp.observe import grafana, names

ROOT = Path(__file__).resolve().parents[2]

ALERTS = {
    'GcpoolSaturated',
    'GcpoolAcquireTimeouts',
    'GcpoolSlowAcquire',
    'GcpoolConnectionLeakSuspected',
    'GcpoolChurn',
    'GcpoolCreateErrors',
    'GcpoolBreakerOpen',
    'GcpoolBelowMinIdle',
    'GcpoolDeadConnections',
}

QUERIES = [
    *(pytest.param(expr, id=name) for name, expr in boards.records().items()),
    *(pytest.param(rule['expr'], id=name) for name, rule in boards.alerts().items()),
]
every_query = pytest.mark.parametrize('expr', QUERIES)
every_alert = pytest.mark.parametrize('name', sorted(ALERTS))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The rules and their cases, as files."""
    for name in (grafana.RULES, grafana.RULES_TEST):
        (tmp_path / name).write_text(grafana.read(name))
    return tmp_path


def test_promtool_finds_no_fault(files: Path) -> None:
    said = boards.promtool('check', 'rules', '--lint=all', '--lint-fatal', grafana.RULES, cwd=files)
    assert f'{len(boards.records()) + len(ALERTS)} rules found' in said


def test_promtool_finds_every_case_as_told(files: Path) -> None:
    assert 'SUCCESS' in boards.promtool('test', 'rules', grafana.RULES_TEST, cwd=files)


def test_cases_would_notice_alerts_that_never_fire(files: Path) -> None:
    assert complaints(files, 'vector(0) > 1') == ALERTS


def test_cases_would_notice_alerts_that_always_fire(files: Path) -> None:
    counters = 'acquires_total|acquire_wait_seconds_bucket|hook_calls_total|leaks_detected_total'
    metrics = f'gcpool_(waiters|breaker_open|missing_connections|{counters})'
    always = f'group without (pool_endpoint, result, reason, le, hook, outcome) ({{__name__=~"{metrics}"}})'
    assert complaints(files, always) == ALERTS


def complaints(files: Path, expr: str) -> set[str]:
    """The alerts whose cases fail when that is what all of them ask."""
    rules = yaml.safe_load(grafana.read(grafana.RULES))
    for group in rules['groups']:
        for rule in group['rules']:
            if 'alert' in rule:
                rule['expr'] = expr
                rule.pop('for', None)
    (files / grafana.RULES).write_text(yaml.safe_dump(rules))
    with pytest.raises(AssertionError) as caught:
        boards.promtool('test', 'rules', grafana.RULES_TEST, cwd=files)
    return set(re.findall(r'alertname: ?(\w+)', str(caught.value)))


@every_alert
def test_alert_has_a_firing_and_a_silent_case(name: str) -> None:
    expected = [
        bool(case['exp_alerts'])
        for test in boards.RULES_TEST['tests']
        for case in test['alert_rule_test']
        if case['alertname'] == name
    ]
    assert set(expected) == {True, False}


@every_alert
def test_alert_tells_what_to_do(name: str) -> None:
    rule = boards.alerts()[name]
    assert rule['labels']['severity'] in ('critical', 'warning')
    assert set(rule['annotations']) == {'summary', 'description', 'runbook_url'}
    assert rule['annotations']['runbook_url'] == f'{grafana.RUNBOOK_BASE}#{name.lower()}'
    for text in (rule['annotations']['summary'], rule['annotations']['description']):
        assert '{{ $labels.pool }}' in text and '{{ $labels.instance }}' in text
    assert len(rule['annotations']['description']) > 300


@every_alert
def test_alert_names_panels_that_there_are(name: str) -> None:
    titles = {panel['title'] for panel in boards.panels()} | {title for title, _ in boards.rows()}
    quoted = set(re.findall(r'"([A-Z][^"]+)"', boards.alerts()[name]['annotations']['description']))
    assert quoted <= titles
    others = set(re.findall(r'see ([A-Z]\w+)', boards.alerts()[name]['annotations']['description']))
    assert others <= ALERTS


def test_alerts_are_those_of_the_specification() -> None:
    assert all(name.startswith('Gcpool') for name in ALERTS)
    assert set(boards.alerts()) == ALERTS


@every_alert
def test_runbook_is_written(name: str) -> None:
    page = ROOT / 'docs' / 'observability.md'
    if not page.exists():
        pytest.skip('installed, or not written yet')
    headings = re.findall(r'^#+ (.+)$', page.read_text(), flags=re.MULTILINE)
    assert name.lower() in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings]


@every_query
def test_queries_use_names_of_the_table(expr: str) -> None:
    by_sample = {sample: metric for metric in names.METRICS for sample in metric.samples}
    known: set[str] = set()
    for selector in boards.selectors(expr):
        metric = by_sample[selector.metric]
        known |= set(metric.labels)
        assert selector.labels <= set(metric.labels)
        for label, _, value in selector.matchers:
            if label in metric.values:
                assert set(value.split('|')) <= set(metric.values[label])
        counts = selector.metric.endswith(('_total', '_bucket', '_sum', '_count'))
        assert counts == bool(selector.window) == (selector.function in ('rate', 'increase')), selector
    assert boards.grouping_labels(expr) <= known | {''}
    recorded = set(re.findall(r'\b\w+:gcpool\w*:\w+', expr))
    assert recorded <= set(boards.records())
    assert boards.selectors(expr) or recorded


@every_query
def test_queries_keep_the_labels_of_their_target(expr: str) -> None:
    # notifications have to show the cluster, the namespace and other labels of the target
    assert ' by (' not in expr and 'sum (' not in expr


@pytest.mark.parametrize('name', sorted(boards.records()))
def test_records_say_what_they_are(name: str) -> None:
    level, metric, operation = name.split(':')
    assert level in ('pool', 'pool_hook')
    assert re.fullmatch(r'(sum|ratio|max_ratio|p\d\d_5m|rate5m|ratio_rate5m)', operation)
    if operation.endswith('5m'):
        assert '[5m]' in boards.records()[name]
    by_sample = {sample: each for each in names.METRICS for sample in each.samples}
    for selector in boards.selectors(boards.records()[name]):
        left: dict[str, Any] = dict.fromkeys(by_sample[selector.metric].labels)
        for label in boards.grouping_labels(boards.records()[name]):
            left.pop(label, None)
        assert tuple(left) == (('pool', 'hook') if level == 'pool_hook' else ('pool',)), selector
