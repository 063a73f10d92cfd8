"""The Grafana dashboard and the Prometheus rules, as texts. Both files are made by `gcp.observe.grafana.generate` and
checked in; what reads them here needs nothing but Python."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

__all__ = ['DASHBOARD', 'RULES', 'RULES_TEST', 'read']

DASHBOARD: Final = 'dashboard.json'
RULES: Final = 'rules.yml'
RULES_TEST: Final = 'rules_test.yml'


def read(name: str) -> str:
    """Return one of the files.

    :param name: `DASHBOARD`, `RULES` or `RULES_TEST`
    """
    return files(__name__).joinpath(name).read_text(encoding='utf-8')
