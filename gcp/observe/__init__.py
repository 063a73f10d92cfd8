"""What others see of the pools: Prometheus metrics, OpenTelemetry metrics and spans.

Reads the pools' own counts when it is asked; pushes nothing, and never breaks a pool: whatever goes wrong in here is
counted and logged once. No telemetry package is imported before the first pool is made."""

from __future__ import annotations

from typing import Any

__all__ = ['Telemetry', 'attach']


class Telemetry:
    """One pool's part in what is exported."""

    def recheck(self) -> None:
        """See whether somebody records spans by now."""


def attach(pool: Any, core: Any, options: Any, frontend: str) -> Telemetry:
    """Make a pool visible.

    :param pool: the pool; it is not kept alive
    :param core: its core
    :param options: its options, checked
    :param frontend: ``'threading'`` or ``'asyncio'``
    """
    return Telemetry()
