"""Whether somebody records spans: gives the core its tracer, and takes it away again.

A provider that was injected has its tracer at once. Without one, it is the global provider's, as soon as there is one:
that is looked at by each acquire that is no idle hit. As long as nobody records, the core has no tracer, and nothing
of OpenTelemetry is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gcp.observe.names import SCHEMA_URL, SCOPE
from gcp.observe.telemetry import version
from gcp.options import DEFAULT

if TYPE_CHECKING:
    from gcp._core import Core
    from gcp.observe.spans import PoolTracer
    from gcp.options import Options

__all__ = ['Tracing', 'make']


class Tracing:
    """Nobody records, and nobody ever will.

    :cvar follows: whether that can change: then `recheck` is to be called by acquires that are no idle hits
    """

    __slots__ = ()
    follows = False

    def recheck(self) -> None:
        """See whether somebody records by now."""


OFF: Final = Tracing()


class Injected(Tracing):
    """The tracer of one provider, for good.

    :param telemetry: the pool's part in what is exported
    :param core: the pool's core
    :param everything: whether `on_acquire` and `on_release` have spans, too
    """

    __slots__ = ('_core', '_everything', '_provider', '_telemetry')

    def __init__(self, telemetry: Any, core: Core, everything: bool) -> None:
        self._telemetry = telemetry
        self._core = core
        self._everything = everything
        self._provider: Any = None

    def use(self, provider: Any) -> None:
        """Have another provider record, or nobody."""
        self._provider = provider
        tracer = None if provider is None else self._tracer_of(provider)
        self._core.tracer = tracer
        self._core.traces_hits = tracer is not None and self._everything

    def _tracer_of(self, provider: Any) -> PoolTracer | None:
        from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, ProxyTracerProvider

        from gcp.observe.spans import PoolTracer

        if isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
            return None
        tracer = provider.get_tracer(SCOPE, version(), SCHEMA_URL)
        return None if isinstance(tracer, NoOpTracer) else PoolTracer(tracer, self._telemetry, self._everything)


class Global(Injected):
    """The tracer of the global provider, whichever that is."""

    __slots__ = ('_current',)
    follows = True

    def __init__(self, telemetry: Any, core: Core, everything: bool) -> None:
        super().__init__(telemetry, core, everything)
        self._current = way_to_look()

    def recheck(self) -> None:
        """See whether somebody else records by now."""
        try:
            provider = self._current()
            if provider is not self._provider:
                self.use(provider)
        except Exception as error:
            self._current = lambda: self._provider      # one that cannot be loaded never will: ask no more
            self._telemetry.errors.note('tracer_provider', error)


def way_to_look() -> Callable[[], Any]:
    """Return a function that returns the global provider: None, or the API's stand-in, while there is none.

    The API's own looks the environment up each time, which takes longer than all the rest of an acquire that has to
    call a hook. Without a provider named there, a look at the variable in which it will be found is enough; and before
    somebody else has imported the API, there is nothing to look at."""
    if 'OTEL_PYTHON_TRACER_PROVIDER' in os.environ:
        from opentelemetry.trace import get_tracer_provider

        return get_tracer_provider
    return peek


def peek() -> Any:
    api = getattr(sys.modules.get('opentelemetry.trace'), '__dict__', {})
    try:
        return api['_TRACER_PROVIDER']
    except KeyError:        # not there, not yet, or not any more
        return api.get('get_tracer_provider', nobody)()


def nobody() -> None:
    """Return nobody."""


def make(telemetry: Any, core: Core, options: Options) -> Tracing:
    """Have a pool's spans recorded by whoever its options say.

    :param telemetry: the pool's part in what is exported: its name, its errors and its exemplars
    :param core: the pool's core
    :param options: its options, checked
    :return: to be asked to look again, if it follows
    """
    if options.tracing == 'off' or options.tracer_provider is None:
        return OFF
    try:
        return begin(telemetry, core, options.tracer_provider, options.tracing == 'all')
    except Exception as error:
        telemetry.errors.note('tracer_provider', error)
        return OFF


def begin(telemetry: Any, core: Core, provider: Any, everything: bool) -> Tracing:
    """The same. The API's own stand-in for a provider that is not there yet counts as the global one."""
    if provider is DEFAULT or is_stand_in(provider):
        follower = Global(telemetry, core, everything)
        follower.recheck()
        return follower
    injected = Injected(telemetry, core, everything)
    injected.use(provider)
    return injected


def is_stand_in(provider: Any) -> bool:
    """Tell whether a provider is what the API gives while there is none."""
    from opentelemetry.trace import ProxyTracerProvider

    return isinstance(provider, ProxyTracerProvider)
