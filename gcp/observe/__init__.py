"""Telemetry of pools: Prometheus metrics, OpenTelemetry metrics and spans.

Counts are read from the pools when an exporter asks for them; nothing is pushed. An error of telemetry never reaches a
pool's caller: it is counted, and logged once. No telemetry package is imported before the first pool is created, nor
are the modules of this package that read and format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from gcp.observe.telemetry import Errors, Telemetry
from gcp.options import DEFAULT

__all__ = ['Attachment', 'Errors', 'Telemetry', 'attach']


class Attachment:
    """A pool's reference to its telemetry.

    :ivar telemetry: the pool's part in what is exported
    """

    __slots__ = ('_rechecks', 'telemetry')

    def __init__(self, telemetry: Telemetry, rechecks: Iterable[Callable[[], None]]) -> None:
        self.telemetry: Final = telemetry
        self._rechecks: Final = tuple(rechecks)

    def recheck(self) -> None:
        """Adopt global providers that were set since the last call. Each acquire that is not an idle hit calls this."""
        for recheck in self._rechecks:
            recheck()


def attach(pool: Any, core: Any, options: Any, frontend: str) -> Attachment:
    """Export a pool's metrics and spans as its options say. An exporter that fails is left out, counted and logged.

    :param pool: the pool; only a weak reference is kept
    :param core: its core
    :param options: its validated options
    :param frontend: ``'threading'`` or ``'asyncio'``
    """
    telemetry = Telemetry(pool, core, options, frontend)
    rechecks: list[Callable[[], None]] = []
    parts = (
        ('registry', attach_registry),
        ('multiprocess', attach_processes),
        ('meter_provider', attach_meter_provider),
        ('tracer_provider', attach_tracer_provider),
    )
    for part, attach_part in parts:
        try:
            rechecks += attach_part(telemetry, core, options)
        except Exception as error:
            telemetry.errors.record(part, error)
    return Attachment(telemetry, rechecks)


def attach_registry(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Export to a Prometheus registry."""
    if options.registry is not None:
        from gcp.observe import prometheus

        prometheus.attach(telemetry, options.registry)
    return []


def attach_processes(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Export to the files of Prometheus' multiprocess mode."""
    if options.registry is not None:
        from gcp.observe import multiprocess

        multiprocess.attach(telemetry)
    return []


def attach_meter_provider(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Export to an OpenTelemetry meter provider."""
    if options.meter_provider is not None:
        from gcp.observe import opentelemetry

        opentelemetry.attach(telemetry, options.meter_provider)
        if options.meter_provider is DEFAULT:
            return [partial(opentelemetry.recheck, telemetry)]
    return []


def attach_tracer_provider(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Record spans, as soon as there is a tracer provider."""
    if options.tracer_provider is not None and options.tracing != 'off':
        from gcp.observe import tracing

        made = tracing.attach(telemetry, core, options)
        return [made.recheck] if made.follows else []
    return []
