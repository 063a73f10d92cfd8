"""Reads the dashboard and the rules as Grafana, Prometheus and their linters do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gcp.observe import grafana

REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'

DASHBOARD: dict[str, Any] = json.loads(grafana.read(grafana.DASHBOARD))
RULES: dict[str, Any] = yaml.safe_load(grafana.read(grafana.RULES))
RULES_TEST: dict[str, Any] = yaml.safe_load(grafana.read(grafana.RULES_TEST))


def program(name: str) -> str:
    """Find a program of Prometheus; skip without, but fail where the environment promises that all are there."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if REQUIRED else pytest.skip)(f'no {name} here: install the package prometheus')
    return found


def promtool(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run promtool; what it finds fault with is an error."""
    command = [program('promtool'), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


# --- the dashboard ---


def panels(kind: str = '') -> list[dict[str, Any]]:
    """The panels, rows excepted, in the order in which they are seen."""
    return [each for each in DASHBOARD['panels'] if each['type'] != 'row' and kind in ('', each['type'])]


def rows() -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows' titles with their panels."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for each in DASHBOARD['panels']:
        if each['type'] == 'row':
            found.append((each['title'], []))
        else:
            found[-1][1].append(each)
    return found


def targets() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each query with its panel."""
    for panel in panels():
        for target in panel['targets']:
            yield panel, target


def variables(kind: str = 'query') -> dict[str, dict[str, Any]]:
    return {each['name']: each for each in DASHBOARD['templating']['list'] if each['type'] == kind}


def substitute(expr: str, interval: str = '1m') -> str:
    """Put values in the place of variables, as Grafana does where everything is chosen."""
    values = {'__rate_interval': interval, **{name: each['allValue'] for name, each in variables().items()}}
    return re.sub(r'\$(\w+)', lambda found: values[found[1]], expr)


# --- PromQL, as far as it is used ---


@dataclass(frozen=True)
class Selector:
    """One series selector of a query.

    :ivar function: what it stands in, directly
    """

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    window: str
    function: str

    @property
    def labels(self) -> set[str]:
        return {label for label, _, _ in self.matchers}


SELECTOR = re.compile(
    r'(?:(?P<function>\w+) ?\()?(?<![\w:])(?P<metric>gcpool_\w+)(?![\w:])'
    r'(?:\{(?P<matchers>[^}]*)\})?(?:\[(?P<window>[^\]]+)\])?'
)
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r'\b(?:by|without|on|ignoring|group_left) \(([^)]*)\)')


def selectors(expr: str) -> list[Selector]:
    """The selectors of our own metrics in a query."""
    return [
        Selector(
            each['metric'], tuple(MATCHER.findall(each['matchers'] or '')), each['window'] or '', each['function'] or ''
        )
        for each in SELECTOR.finditer(expr)
    ]


def grouping_labels(expr: str) -> set[str]:
    return {label.strip() for group in GROUPING.findall(expr) for label in group.split(',')} - {''}


# --- the rules ---


def records() -> dict[str, str]:
    """The recording rules' queries by name."""
    return {rule['record']: rule['expr'] for group in RULES['groups'] for rule in group['rules'] if 'record' in rule}


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule['alert']: rule for group in RULES['groups'] for rule in group['rules'] if 'alert' in rule}
