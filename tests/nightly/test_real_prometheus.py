"""A real Prometheus scrapes real pools on a real PostgreSQL, in peace and in trouble: every panel and every rule has
something to show, and each alert fires in its trouble, and in no other pool's.

One run serves all tests; see stage.py for what is played."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import boards
import pytest
import stage

from gcp.demo.server import ServerError, serve

ALERTS = {alert: {pool for pool in stage.EXPECTED if alert in stage.EXPECTED[pool]} for alert in boards.alerts()}

#: panels in which nothing is to be seen here
CALM = {'Telemetry errors', 'Endpoints without a label'}


def unavailable(reason: str) -> None:
    (pytest.fail if boards.REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope='module')
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Play]:
    boards.program('prometheus')
    try:
        import psycopg2  # noqa: F401
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError as error:
        unavailable(str(error))
        return
    try:
        with (
            serve(max_connections=50) as server,
            stage.play(
                server, tmp_path_factory.mktemp('prometheus'), (10, 17, 3), tracer_provider=TracerProvider()
            ) as play,
        ):
            yield play
    except ServerError as error:
        unavailable(str(error))


@pytest.mark.parametrize(
    'panel, target',
    [pytest.param(panel, target, id=f'{panel["title"]}-{target["refId"]}') for panel, target in boards.targets()],
)
def test_every_query_of_every_panel_has_data(panel: dict[str, Any], target: dict[str, Any], played: stage.Play) -> None:
    found = played.series(boards.substitute(target['expr'], stage.WINDOW))
    samples = [value for series in found for _, value in series.finite]
    tell('panel', f'{panel["title"]} {target["refId"]}', len(found), len(samples))
    assert samples
    assert max(samples) > 0 or panel['title'] in CALM
    for series in found:
        assert set(re.findall(r'{{(\w+)}}', target['legendFormat'])) <= set(series.labels)


@pytest.mark.parametrize('variable', boards.variables())
def test_every_variable_has_values(variable: str, played: stage.Play) -> None:
    query, label = re.fullmatch(r'label_values\((\w+).*, (\w+)\)', boards.variables()[variable]['query']).groups()
    values = played.prometheus.ask(f'/api/v1/label/{label}/values', **{'match[]': query})
    assert values
    if variable == 'pool':
        assert set(values) == set(stage.EXPECTED)


@pytest.mark.parametrize('name', boards.records())
def test_every_recording_rule_has_data(name: str, played: stage.Play) -> None:
    found = played.series(name)
    samples = [value for series in found for _, value in series.finite]
    tell('record', name, len(found), len(samples))
    assert samples
    assert {series.labels['pool'] for series in found} == set(stage.EXPECTED)
    for series in found:
        assert {**stage.TARGET, 'job': 'shop'}.items() <= series.labels.items()


def test_no_label_is_renamed_by_the_scrape(played: stage.Play) -> None:
    for series in played.prometheus.ask('/api/v1/series', **{'match[]': '{__name__=~"gcpool_.*"}'}):
        assert [label for label in series if label.startswith('exported_')] == [], series


@pytest.mark.parametrize('alert', ALERTS)
def test_alert_fires_in_its_trouble_and_not_without(alert: str, played: stage.Play) -> None:
    fired = [{pool for pool, alerts in played.firing(act).items() if alert in alerts} for act in range(3)]
    tell('alert', alert, ', '.join(sorted(fired[0])) or '-', ', '.join(sorted(fired[1])) or '-')
    assert fired[0] == set()
    assert fired[1] == ALERTS[alert]
    assert fired[2] <= ALERTS[alert]  # until it is over


@pytest.mark.parametrize('alert', ALERTS)
def test_alert_asks_for_nothing_in_peace(alert: str, played: stage.Play) -> None:
    # two of them wait longer than that peace lasted: so what they ask, and the end of the play
    query = stage.shorten(boards.alerts()[alert]['expr'])
    peace = played.prometheus.series(query, played.began[1] - 2, played.began[1])
    assert [series.labels for series in peace] == []
    assert {series.labels['pool'] for series in played.series(query, 1)} >= ALERTS[alert]
    assert played.prometheus.series('ALERTS{alertstate="firing"}', played.began[-1], played.began[-1]) == []


def test_a_leak_is_also_seen_without_a_threshold(played: stage.Play) -> None:
    held = boards.alerts()['GcpoolConnectionLeakSuspected']['expr'].splitlines()[-1]
    assert held == 'gcpool_oldest_checkout_seconds > 3600'
    found = played.series(held.replace('3600', '10'), 1)
    assert [series.labels['pool'] for series in found] == ['mail']


def test_alerts_tell_what_is_the_matter(played: stage.Play) -> None:
    told = {(each['labels']['alertname'], each['labels']['pool']): each['annotations'] for each in played.alerts}
    for alert, pools in ALERTS.items():
        for pool in pools - {'mail'}:  # what leaks is counted once, early
            texts = told[alert, pool]
            assert texts['summary'].startswith(f'Pool {pool} on 127.0.0.1:')
            assert not re.search(r'[{}<>]|no value|NaN', ' '.join(texts.values()))


def test_slow_acquires_lead_to_traces(played: stage.Play) -> None:
    for panel, target in boards.targets():
        if target['exemplar'] and 'gcpool_acquire_wait_seconds' in target['expr']:
            found = played.prometheus.ask(
                '/api/v1/query_exemplars',
                query=boards.substitute(target['expr'], stage.WINDOW),
                start=played.began[0],
                end=played.began[-1],
            )
            exemplars = [exemplar for series in found for exemplar in series['exemplars']]
            assert exemplars, panel['title']
            assert all(re.fullmatch('[0-9a-f]{32}', each['labels']['trace_id']) for each in exemplars)
            assert max(float(each['value']) for each in exemplars) > 0.1


def test_every_scrape_was_taken(played: stage.Play) -> None:
    (up,) = played.series('up')
    taken = [value for _, value in up.samples]
    # on a busy machine a scrape may run out of its time
    assert sum(taken) >= 0.9 * len(taken), taken


def tell(kind: str, name: str, *seen: object) -> None:
    """Put a line into the table that is shown at the end."""
    if not stage.TABLE:
        stage.TABLE.append(f'{"":8}{"":52}{"series":>12} {"samples":>24}')
    if kind == 'alert' and not any(line.startswith('alert') for line in stage.TABLE):
        stage.TABLE.append(f'{"":8}{"":52}{"in peace":>12} {"in trouble":>24}')
    stage.TABLE.append(f'{kind:8}{name:52}{seen[0]!s:>12} {seen[1]!s:>24}')
