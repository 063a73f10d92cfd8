"""What the page on observability shows is what there is: names, panels, alerts, and each example, run as it stands."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gcp._core import HOOKS
from gcp.observe import grafana
from gcp.observe.names import METRICS
from gcp.options import DEFAULT, NAMES, TRACING

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'observability.md'
TEXT = PAGE.read_text() if PAGE.exists() else ''
ALERTS = [
    rule
    for group in yaml.safe_load(grafana.read(grafana.RULES))['groups']
    for rule in group['rules']
    if 'alert' in rule
]

pytestmark = pytest.mark.skipif(not TEXT, reason='no docs beside the tests: this is not a checkout')

#: how each example is run: on a free port, and without threads that write to the page
STAGE = """
import prometheus_client

serve = prometheus_client.start_http_server
prometheus_client.start_http_server = lambda port: serve(0, '127.0.0.1')
"""


def examples() -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return what is below a heading, up to the next one of its level."""
    level = re.escape(title.partition(' ')[0])
    found = re.search(rf'^{re.escape(title)}\n(.*?)(?=^{level} |\Z)', TEXT, flags=re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def test_the_tables_are_made_of_the_names_that_there_are() -> None:
    maker = runpy.run_path(str(ROOT / 'tools' / 'observability_tables.py'))
    assert list(maker['READ']) == [metric.name for metric in METRICS]
    assert maker['filled'](TEXT) == TEXT, 'run python -m tools.observability_tables'


def test_each_span_is_in_the_table() -> None:
    assert set(re.findall(r'`(\w+) \{pool\}`', section('## Spans'))) == {'wait_for_connection', *HOOKS}


def test_each_question_has_panels_that_there_are() -> None:
    questions = re.findall(r'^### (.*\?)\n\nPanels: (.*)\.$', TEXT, flags=re.MULTILINE)
    assert len(questions) == 5
    titles = {panel['title'] for panel in json.loads(grafana.read(grafana.DASHBOARD))['panels']}
    for _, panels in questions:
        assert set(re.findall(r'\*(.+?)\*', panels)) <= titles
    words = section('## Five questions') + section('## The alerts')
    named = {' '.join(name.split()) for name in re.findall(r'(?<!\*)\*([A-Z][^*]+)\*(?!\*)', words)}
    assert named <= titles | {'Waiting', 'Creating'}


@pytest.mark.parametrize('alert', ALERTS, ids=lambda alert: alert['alert'])
def test_each_alert_leads_to_its_section(alert: dict[str, Any]) -> None:
    name = alert['alert']
    page, _, anchor = alert['annotations']['runbook_url'].rpartition('#')
    assert page.startswith('https://') and page.endswith('/observability.html') and anchor == name.lower()
    assert re.findall(rf'^### {name}$', TEXT, flags=re.MULTILINE) == [f'### {name}']
    assert len(section(f'### {name}').split()) > 40


def test_each_link_within_the_page_leads_somewhere() -> None:
    anchors = {
        re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        for title in re.findall(r'^#+ (.*)$', TEXT, flags=re.MULTILINE)
    }
    assert set(re.findall(r'\]\(#([\w-]+)\)', TEXT)) <= anchors


def test_the_switches_are_those_of_the_pool() -> None:
    rows = re.findall(r'^\| `(\w+)=(.*?)` \|', section('## Turn it off'), flags=re.MULTILINE)
    assert {name for name, _ in rows} <= set(NAMES)
    assert ('tracing', "'off'") in rows and 'off' in TRACING
    assert repr(DEFAULT) not in TEXT


@pytest.mark.parametrize('code', examples(), ids=range(len(examples())))
def test_each_example_runs(code: str, script: Callable[..., Any], tmp_path: Path) -> None:
    if 'opentelemetry.sdk' in code:
        pytest.importorskip('opentelemetry.sdk')
    env = {'PROMETHEUS_MULTIPROC_DIR': str(tmp_path)} if 'MultiProcessCollector' in code else {}
    ended = script(STAGE + code, '-W', 'error', env=env)
    assert (ended.status, ended.err) == (0, ''), ended


def test_what_is_shown_of_gunicorn_is_what_the_example_does() -> None:
    [shown] = re.findall(r'^def child_exit\(.*?^```', TEXT, flags=re.MULTILINE | re.DOTALL)
    used = (ROOT / 'examples' / 'gunicorn.conf.py').read_text()
    for line in shown.splitlines()[1:-1]:
        assert line in used


def test_the_picture_of_top_is_one() -> None:
    """Of a frame, each line is there, under the name that it has."""
    from importlib import util

    if util.find_spec('rich') is None:
        pytest.skip('needs rich')
    from gcp.top import view

    [shown] = re.findall(r'^\$ python -m gcp top localhost:8000\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)
    source = Path(view.__file__).read_text()
    for line in shown.splitlines()[1:]:
        if not line.startswith('  '):
            name = re.split('  +', line)[0]
            assert re.search(rf"yield \(?\s*'{re.escape(name)}'", source), line
