"""What docs/operations.md shows runs, and describes what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peers import driver

from gcp import options
from gcp.demo.server import Server
from gcp.observe.names import METRICS

GUIDE = Path(__file__).parents[2] / 'docs' / 'operations.md'
TEXT = GUIDE.read_text() if GUIDE.exists() else ''

pytestmark = pytest.mark.skipif(not TEXT, reason='no docs beside the tests: this is not a checkout')

EXAMPLES = re.findall(r'^```python\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize('code', EXAMPLES, ids=range(len(EXAMPLES)))
def test_each_example_runs(code: str, postgres: Server, script: Any) -> None:
    for name in ('psycopg', 'asyncpg'):
        driver(name)
    script(code, env={'PGHOST': str(postgres.directory), 'PGUSER': 'postgres'}).quietly()


def sections() -> dict[str, str]:
    parts = re.split(r'^### (.*)\n', TEXT.partition("## A connection's life")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_feature_has_a_section_that_answers_the_same_questions() -> None:
    for name, section in sections().items():
        assert '**When to set it.**' in section or '**When to call it.**' in section, name
        for words in ('**What it does.**', '```python', '**What to watch.**'):
            assert words in section, f'{name}: {words}'


def test_each_feature_of_the_table_has_a_section() -> None:
    targets = re.findall(r'^\| \[`\w+`(?:, `\w+`)*\]\(#([\w-]+)\)', TEXT, flags=re.MULTILINE)
    slugs = {re.sub(r'[^\w -]', '', name.lower()).replace(' ', '-') for name in sections()}
    assert set(targets) == slugs


def test_what_is_named_exists() -> None:
    features = re.findall(r'^\| \[`(\w+)`\]', TEXT, flags=re.MULTILINE)
    methods = {
        'add_listener',
        'expire',
        'holders',
        'suspend',
        'warm_up',
        'wait_ready',
        'retire',
        'reconfigure',
        'classify',
    }
    methods |= {'priority'}  # of an acquire
    assert set(features) - methods <= set(options.NAMES)
    series = {metric.name for metric in METRICS}
    assert set(re.findall(r'\bgcpool_\w+', TEXT)) <= series
