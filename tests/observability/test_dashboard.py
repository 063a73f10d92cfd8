"""The dashboard: what Grafana's own linter asks for, its seventeen rules by their names, and what we ask for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import boards
import pytest
import yaml

from gcp.__main__ import main
from gcp.observe import grafana, names

ROOT = Path(__file__).resolve().parents[2]

#: what the linter takes for a unit, of what Grafana knows; ours are among those that it would take
UNITS = {'none', 'string', 'short', 'percent', 'percentunit', 's', 'ms', 'ops', 'reqps', 'bytes'}
SOURCE = {'type': 'prometheus', 'uid': '${datasource}'}

PANELS = [pytest.param(panel, id=panel['title']) for panel in boards.panels()]
TARGETS = [pytest.param(panel, target, id=f'{panel["title"]}-{target["refId"]}') for panel, target in boards.targets()]
VARIABLES = [pytest.param(variable, id=name) for name, variable in boards.variables().items()]

every_panel = pytest.mark.parametrize('panel', PANELS)
every_target = pytest.mark.parametrize('panel, target', TARGETS)


# --- the linter's rules ---


def test_template_datasource_rule() -> None:
    (source,) = boards.variables('datasource').values()
    assert (source['name'], source['label'], source['query']) == ('datasource', 'Data source', 'prometheus')


@pytest.mark.parametrize('name', ['job', 'instance'], ids=['template-job-rule', 'template-instance-rule'])
def test_template_job_and_instance_rules(name: str) -> None:
    variable = boards.variables()[name]
    assert variable['datasource'] == SOURCE
    assert variable['label'] == name.title()
    assert variable['multi'] and variable['includeAll'] and variable['allValue'] == '.+'


def test_template_label_promql_rule(tmp_path: Path) -> None:
    queries = []
    for name, variable in boards.variables().items():
        asked = re.fullmatch(r'label_values\((.+), (\w+)\)', variable['query'])
        assert asked and asked[2] == name
        queries.append(boards.substitute(asked[1]))
    check_promql(tmp_path, *queries)


@pytest.mark.parametrize('variable', VARIABLES)
def test_template_on_time_change_reload_rule(variable: dict[str, Any]) -> None:
    assert variable['refresh'] == 2


@every_panel
def test_panel_datasource_rule(panel: dict[str, Any]) -> None:
    assert panel['datasource'] == SOURCE


@every_panel
def test_panel_title_description_rule(panel: dict[str, Any]) -> None:
    assert panel['title']
    assert panel['description'].endswith('.')


@every_panel
def test_panel_units_rule(panel: dict[str, Any]) -> None:
    assert panel['fieldConfig']['defaults']['unit'] in UNITS
    assert 'unit' not in [each['id'] for rule in panel['fieldConfig']['overrides'] for each in rule['properties']]


@every_panel
def test_panel_no_targets_rule(panel: dict[str, Any]) -> None:
    assert panel['targets']


def test_target_logql_rule() -> None:
    assert_nothing_asks_loki()


def test_target_logql_auto_rule() -> None:
    assert_nothing_asks_loki()


def test_target_promql_rule(tmp_path: Path) -> None:
    check_promql(tmp_path, *(boards.substitute(target['expr']) for _, target in boards.targets()))


@every_target
def test_target_rate_interval_rule(panel: dict[str, Any], target: dict[str, Any]) -> None:
    for selector in boards.selectors(target['expr']):
        assert selector.window in ('', '$__rate_interval')
        assert bool(selector.window) == (selector.function in ('rate', 'increase', 'avg_over_time')), selector


@every_target
@pytest.mark.parametrize('label', ['job', 'instance'], ids=['target-job-rule', 'target-instance-rule'])
def test_target_job_and_instance_rules(panel: dict[str, Any], target: dict[str, Any], label: str) -> None:
    assert boards.selectors(target['expr'])
    for selector in boards.selectors(target['expr']):
        assert (label, '=~', f'${label}') in selector.matchers


@every_target
def test_target_counter_agg_rule(panel: dict[str, Any], target: dict[str, Any]) -> None:
    for selector in boards.selectors(target['expr']):
        counts = selector.metric.endswith(('_total', '_bucket', '_sum', '_count'))
        assert counts == (selector.function in ('rate', 'increase')), selector
    assert target['expr'].count('_total') == sum('_total' in each.metric for each in boards.selectors(target['expr']))


def test_uneditable_dashboard_rule() -> None:
    assert boards.DASHBOARD['editable'] is False


def assert_nothing_asks_loki() -> None:
    """Its two rules are about queries to Loki: there are none."""
    assert 'loki' not in grafana.read(grafana.DASHBOARD).lower()


def check_promql(directory: Path, *queries: str) -> None:
    """Have Prometheus's own parser read queries."""
    rules = [{'record': f'query:number:{i}', 'expr': query} for i, query in enumerate(queries)]
    file = directory / 'queries.yml'
    file.write_text(yaml.safe_dump({'groups': [{'name': 'queries', 'rules': rules}]}))
    assert f'{len(queries)} rules found' in boards.promtool('check', 'rules', file)


def test_a_broken_query_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match='could not parse expression'):
        check_promql(tmp_path, 'sum by (pool (gcpool_waiters)')


# --- what the specification asks for ---


def test_what_it_is() -> None:
    assert boards.DASHBOARD['schemaVersion'] >= 41
    assert boards.DASHBOARD['uid'] == 'gcpool'
    assert [each['name'] for each in boards.DASHBOARD['templating']['list']] == [
        'datasource',
        'job',
        'instance',
        'pool',
        'pool_endpoint',
    ]
    assert [title for title, _ in boards.rows()] == [
        'Overview',
        'Saturation',
        'Acquire latency',
        'Who holds',
        'Hook calls',
        'Connecting',
        'Churn',
        'Endpoints',
        'Sharing',
        'Self-telemetry',
    ]


def test_everything_is_found_once() -> None:
    ids = Counter(each['id'] for each in boards.DASHBOARD['panels'])
    titles = Counter(each['title'] for each in boards.DASHBOARD['panels'])
    assert max(ids.values()) == max(titles.values()) == 1


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for each in boards.DASHBOARD['panels']:
        at = each['gridPos']
        cells = {(at['x'] + i, at['y'] + j) for i in range(at['w']) for j in range(at['h'])}
        assert not cells & taken, each['title']
        assert max(x for x, _ in cells) < 24
        taken |= cells
    depth = max(y for _, y in taken) + 1
    assert len(taken) == 24 * depth


@every_target
def test_queries_use_names_of_the_table(panel: dict[str, Any], target: dict[str, Any]) -> None:
    by_sample = {sample: metric for metric in names.METRICS for sample in metric.samples}
    known: set[str] = {'job', 'instance'}
    for selector in boards.selectors(target['expr']):
        metric = by_sample[selector.metric]
        labels = {*metric.labels, 'job', 'instance', *(['le'] if metric.kind == 'histogram' else [])}
        known |= labels
        assert selector.labels <= labels, selector
        for label, how, value in selector.matchers:
            if label in metric.values:
                assert how in ('=', '=~', '!=')
                assert set(value.split('|')) <= set(metric.values[label]), selector
    assert boards.grouping_labels(target['expr']) <= known
    assert set(re.findall(r'{{(\w+)}}', target['legendFormat'])) <= boards.grouping_labels(target['expr'])


@every_target
def test_queries_are_filtered_by_all_that_can_be_chosen(panel: dict[str, Any], target: dict[str, Any]) -> None:
    by_sample = {sample: metric for metric in names.METRICS for sample in metric.samples}
    seen = [by_sample[selector.metric] for each in panel['targets'] for selector in boards.selectors(each['expr'])]
    # what is compared with figures of the whole pool does not depend on which of its endpoints one looks at
    spared = set() if all('pool_endpoint' in metric.labels for metric in seen) else {'pool_endpoint'}
    for selector in boards.selectors(target['expr']):
        choosable = {'job', 'instance', *({'pool', 'pool_endpoint'} & set(by_sample[selector.metric].labels))}
        chosen = {label for label, how, value in selector.matchers if (how, value) == ('=~', f'${label}')}
        assert choosable - spared <= chosen, selector


def test_every_metric_is_seen() -> None:
    seen = {selector.metric for _, target in boards.targets() for selector in boards.selectors(target['expr'])}
    for metric in names.METRICS:
        assert seen & set(metric.samples), metric.name


@every_panel
def test_units_are_those_of_what_is_asked(panel: dict[str, Any]) -> None:
    unit = panel['fieldConfig']['defaults']['unit']
    for target in panel['targets']:
        expr = target['expr']
        is_share = ' / ' in expr and unit == 'percentunit'
        for selector in boards.selectors(expr):
            metric = next(metric for metric in names.METRICS if selector.metric in metric.samples)
            if selector.metric.endswith('_bucket') or (metric.kind == 'gauge' and metric.unit == 's'):
                assert unit == 's', metric
            elif metric.kind == 'gauge':
                assert unit in ('short', 'percentunit')
            elif metric.kind == 'counter':
                per_second = selector.function == 'rate' and ' / ' not in expr
                assert unit == ('ops' if per_second else 'percentunit' if is_share else 'short'), metric


def test_limits_are_dashed_lines() -> None:
    dashed = 0
    for panel in boards.panels():
        overrides = {
            rule['matcher']['options']: {each['id']: each['value'] for each in rule['properties']}
            for rule in panel['fieldConfig']['overrides']
            if rule['matcher']['id'] == 'byFrameRefID'
        }
        for target in panel['targets']:
            is_limit = re.match(r'sum[^/]*gcpool_(max_|min_|capacity|endpoint_max_)', target['expr'])
            if is_limit and not target['legendFormat'].startswith('{{pool}}'):
                assert overrides[target['refId']]['custom.lineStyle']['fill'] == 'dash'
                assert overrides[target['refId']]['custom.stacking']['mode'] == 'none'
                dashed += 1
            is_share = re.search('/.*gcpool_(endpoint_max_|capacity)', target['expr'])
            if is_share and panel['type'] == 'timeseries':
                assert panel['fieldConfig']['defaults']['custom']['thresholdsStyle'] == {'mode': 'dashed'}
                assert panel['fieldConfig']['defaults']['thresholds']['steps'][-1]['value'] == 1
                dashed += 1
    assert dashed == 8


def test_latency_has_exemplars() -> None:
    for panel, target in boards.targets():
        seconds = target['expr'].startswith(('histogram_quantile', 'sum by (le)'))
        if seconds and panel['type'] != 'stat' and 'gcpool_connection_age' not in target['expr']:
            assert target['exemplar'] is True, panel['title']


def test_all_endpoints_are_also_those_without_a_label() -> None:
    # several processes that share their metrics have no endpoint labels: '.+' would show nothing
    assert boards.variables()['pool_endpoint']['allValue'] == '.*'


# --- how it is made and shipped ---


@pytest.mark.parametrize('name', [grafana.DASHBOARD, grafana.RULES, grafana.RULES_TEST])
def test_what_is_checked_in_is_what_the_generator_makes(name: str) -> None:
    if sys.version_info < (3, 11):
        pytest.skip('grafana-foundation-sdk needs Python 3.11')
    if not boards.REQUIRED:
        pytest.importorskip('grafana_foundation_sdk')
    if not (ROOT / 'tools').exists():
        pytest.skip('only a clone has the generator')
    from tools.dashboard import generate

    assert generate.FILES[name]() == grafana.read(name), 'run python -m tools.dashboard.generate'


@pytest.mark.parametrize('command, name', [('grafana', grafana.DASHBOARD), ('rules', grafana.RULES)])
def test_command_prints_or_writes(
    command: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([command]) == 0
    assert capsys.readouterr() == (grafana.read(name), '')
    assert main([command, '--output', str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text() == grafana.read(name)
    assert main([command, '--output', str(tmp_path / 'no' / name)]) == 1
    out, err = capsys.readouterr()
    assert out == '' and 'No such file' in err


@pytest.mark.parametrize(
    'base, first',
    [
        ('https://wiki.example.org/gcp', 'https://wiki.example.org/gcp#gcpoolsaturated'),
        ('https://wiki.example.org/runbooks/', 'https://wiki.example.org/runbooks/gcpoolsaturated'),
        ('http://wiki:8080/?page=', 'http://wiki:8080/?page=gcpoolsaturated'),
    ],
)
def test_runbooks_may_be_elsewhere(base: str, first: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(['rules', '--runbook-base', base]) == 0
    text = capsys.readouterr().out
    urls = [
        rule['annotations']['runbook_url']
        for group in yaml.safe_load(text)['groups']
        for rule in group['rules']
        if 'alert' in rule
    ]
    assert urls[0] == first
    assert len(urls) == 9 and all(url.startswith(base) for url in urls)
    assert text.count(grafana.RUNBOOK_BASE) == 0
    assert len(text.splitlines()) == len(grafana.read(grafana.RULES).splitlines())
    (tmp_path / 'rules.yml').write_text(text)
    boards.promtool('check', 'rules', 'rules.yml', cwd=tmp_path)


@pytest.mark.parametrize(
    'base', ['docs/runbooks', '', '/runbooks', 'https://', 'https://a b', 'ftp://a', "https://a'b"]
)
def test_runbooks_need_an_absolute_url(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(['rules', '--runbook-base', base])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and not out
    assert 'argument --runbook-base: an absolute URL such as https://example.org/runbooks was expected' in err


def test_command_needs_no_generator() -> None:
    code = (
        'import sys; sys.modules["grafana_foundation_sdk"] = None; '
        'from gcp.__main__ import main; sys.exit(main(["grafana"]))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert json.loads(result.stdout) == boards.DASHBOARD


def test_documentation_names_panels_that_there_are() -> None:
    page = ROOT / 'docs' / 'observability.md'
    if not page.exists():
        pytest.skip('installed: there is no documentation')
    named = [
        name
        for line in re.findall(r'^Panels: (.+)$', page.read_text(), re.MULTILINE)
        for name in re.findall(r'\*(.+?)\*', line)
    ]
    assert named
    assert set(named) <= {panel['title'] for panel in boards.panels()}
