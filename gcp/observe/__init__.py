"""What others see of the pools: Prometheus metrics, OpenTelemetry metrics and spans.

Reads the pools' own counts when it is asked; pushes nothing, and never breaks a pool: whatever goes wrong in here is
counted and logged once. No telemetry package is imported before the first pool is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gcp.observe.accounts import Books, Reading
from gcp.observe.telemetry import Errors, Telemetry

__all__ = ['Attachment', 'Books', 'Errors', 'Reading', 'Telemetry', 'attach']


class Attachment:
    """What a pool holds of its telemetry.

    :ivar telemetry: the pool's part in what is exported
    :ivar recheck: sees whether somebody records spans by now
    """

    __slots__ = ('recheck', 'telemetry')

    def __init__(self, telemetry: Telemetry, recheck: Callable[[], None]) -> None:
        self.telemetry: Final = telemetry
        self.recheck: Final = recheck


def attach(pool: Any, core: Any, options: Any, frontend: str) -> Attachment:
    """Make a pool visible. Whatever cannot be is left out, counted and logged once.

    :param pool: the pool; it is not kept alive
    :param core: its core
    :param options: its options, checked
    :param frontend: ``'threading'`` or ``'asyncio'``
    """
    telemetry = Telemetry(pool, core, options, frontend)
    for part, join in (('registry', join_registry), ('meter_provider', join_meter_provider)):
        try:
            join(telemetry, options)
        except Exception as error:
            telemetry.errors.note(part, error)
    try:
        from gcp.observe import tracing

        return Attachment(telemetry, tracing.make(telemetry, core, options).recheck)
    except Exception as error:
        telemetry.errors.note('tracer_provider', error)
        return Attachment(telemetry, idle)


def join_registry(telemetry: Telemetry, options: Any) -> None:
    """Let a pool be seen by Prometheus."""
    if options.registry is not None:
        from gcp.observe import multiprocess, prometheus

        prometheus.join(telemetry, options.registry)
        multiprocess.join(telemetry)


def join_meter_provider(telemetry: Telemetry, options: Any) -> None:
    """Let a pool be seen by OpenTelemetry."""
    if options.meter_provider is not None:
        try:
            from gcp.observe import opentelemetry  # type: ignore[attr-defined]
        except ImportError:
            return
        opentelemetry.join(telemetry, options.meter_provider)


def idle() -> None:
    """Nobody records spans, and nobody will."""
