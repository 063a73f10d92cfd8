"""What others see of the pools: Prometheus metrics, OpenTelemetry metrics and spans.

Reads the pools' own counts when it is asked; pushes nothing, and never breaks a pool: whatever goes wrong in here is
counted and logged once. No telemetry package is imported before the first pool is made, nor what of this one reads
and formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from gcp.observe.telemetry import Errors, Telemetry
from gcp.options import DEFAULT

__all__ = ['Attachment', 'Errors', 'Telemetry', 'attach']


class Attachment:
    """What a pool holds of its telemetry.

    :ivar telemetry: the pool's part in what is exported
    """

    __slots__ = ('_looks', 'telemetry')

    def __init__(self, telemetry: Telemetry, looks: Iterable[Callable[[], None]]) -> None:
        self.telemetry: Final = telemetry
        self._looks: Final = tuple(looks)

    def recheck(self) -> None:
        """See whether there are other providers by now: called by each acquire that is no idle hit."""
        for look in self._looks:
            look()


def attach(pool: Any, core: Any, options: Any, frontend: str) -> Attachment:
    """Make a pool visible. Whatever cannot be is left out, counted and logged once.

    :param pool: the pool; it is not kept alive
    :param core: its core
    :param options: its options, checked
    :param frontend: ``'threading'`` or ``'asyncio'``
    """
    telemetry = Telemetry(pool, core, options, frontend)
    looks: list[Callable[[], None]] = []
    parts = (
        ('registry', join_registry), ('multiprocess', join_processes),
        ('meter_provider', join_meter_provider), ('tracer_provider', trace),
    )
    for part, join in parts:
        try:
            looks += join(telemetry, core, options)
        except Exception as error:
            telemetry.errors.note(part, error)
    return Attachment(telemetry, looks)


def join_registry(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Let a pool be seen by Prometheus."""
    if options.registry is not None:
        from gcp.observe import prometheus

        prometheus.join(telemetry, options.registry)
    return []


def join_processes(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Let a pool be seen beside those of other processes."""
    if options.registry is not None:
        from gcp.observe import multiprocess

        multiprocess.join(telemetry)
    return []


def join_meter_provider(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Let a pool be seen by OpenTelemetry."""
    if options.meter_provider is not None:
        from gcp.observe import opentelemetry

        opentelemetry.join(telemetry, options.meter_provider)
        if options.meter_provider is DEFAULT:
            return [partial(opentelemetry.recheck, telemetry)]
    return []


def trace(telemetry: Telemetry, core: Any, options: Any) -> list[Callable[[], None]]:
    """Have a pool's spans recorded, once there is somebody who does."""
    if options.tracer_provider is not None and options.tracing != 'off':
        from gcp.observe import tracing

        made = tracing.make(telemetry, core, options)
        return [made.recheck] if made.follows else []
    return []
