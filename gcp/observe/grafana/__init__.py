"""The Grafana dashboard and the Prometheus rules, as package data.

`tools.dashboard.generate` in the repository writes the files. Reading them needs the standard library only."""

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
