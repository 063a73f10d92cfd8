"""The Grafana dashboard and the Prometheus rules, as package data.

`tools.dashboard.generate` in the repository writes the files. Reading them needs the standard library only."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

__all__ = ['DASHBOARD', 'RULES', 'RULES_TEST', 'RUNBOOK_BASE', 'read', 'rules']

DASHBOARD: Final = 'dashboard.json'
RULES: Final = 'rules.yml'
RULES_TEST: Final = 'rules_test.yml'
#: the page with a section for each alert
RUNBOOK_BASE: Final = 'https://gcpool.readthedocs.io/en/stable/observability.html'


def read(name: str) -> str:
    """Return one of the files.

    :param name: `DASHBOARD`, `RULES` or `RULES_TEST`
    """
    return files(__name__).joinpath(name).read_text(encoding='utf-8')


def rules(runbook_base: str = RUNBOOK_BASE) -> str:
    """Return the rules, with runbooks below another URL.

    :param runbook_base: an absolute URL. The lower-case name of each alert is appended to it, after a ``#`` unless it
        ends with ``/``, ``#`` or ``=``
    :raises ValueError: it is not an absolute ``http`` or ``https`` URL
    """
    if not re.fullmatch(r'https?://[^\s\'"`{}|\\^<>/?#]+([/?#][^\s\'"`{}|\\^<>]*)?', runbook_base):
        raise ValueError(f'an absolute URL such as https://example.org/runbooks was expected, not {runbook_base}')
    base = runbook_base if runbook_base.endswith(('/', '#', '=')) else f'{runbook_base}#'
    return read(RULES).replace(f'runbook_url: {RUNBOOK_BASE}#', f'runbook_url: {base}')
