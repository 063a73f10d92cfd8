"""Attaches tracers to the cores of pools, and detaches them.

An injected provider's tracer is attached at once. Otherwise the pool follows the global provider: each acquire that is
not an idle hit checks whether one was set. While there is none, the core has no tracer, and no OpenTelemetry code is
called."""

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

__all__ = ['Tracing', 'attach']

API: Final = 'opentelemetry.trace'


class Tracing:
    """Tracing that is off, for good.

    :cvar follows: whether the provider can change: if so, acquires that are not idle hits have to call `recheck`
    """

    __slots__ = ()
    follows = False

    def recheck(self) -> None:
        """Adopt the current provider."""


OFF: Final = Tracing()


class Injected(Tracing):
    """The tracer of one provider, for good.

    :param telemetry: the pool's part in what is exported
    :param core: the pool's core
    :param everything: whether successful calls of `on_acquire` and `on_release` have spans, too
    """

    __slots__ = ('_core', '_everything', '_provider', '_telemetry')

    def __init__(self, telemetry: Any, core: Core, everything: bool) -> None:
        self._telemetry = telemetry
        self._core = core
        self._everything = everything
        self._provider: Any = None

    def use(self, provider: Any) -> None:
        """Switch to another provider; None turns tracing off."""
        self._provider = provider
        while True:
            tracer = None if provider is None else self._tracer_of(provider)
            self._core.tracer = tracer
            self._core.traces_hits = tracer is not None and self._everything
            if self._provider is provider:
                return
            provider = self._provider  # another thread has switched to it meanwhile, and may have set its tracer before

    def _tracer_of(self, provider: Any) -> PoolTracer | None:
        from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, ProxyTracerProvider

        from gcp.observe.spans import PoolTracer

        if isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
            return None
        tracer = provider.get_tracer(SCOPE, version(), SCHEMA_URL)
        return None if isinstance(tracer, NoOpTracer) else PoolTracer(tracer, self._telemetry, self._everything)


class Global(Injected):
    """The tracer of the global provider, which may be set or replaced later."""

    __slots__ = ('_current',)
    follows = True

    def __init__(self, telemetry: Any, core: Core, everything: bool) -> None:
        super().__init__(telemetry, core, everything)
        self._current = provider_getter()

    def recheck(self) -> None:
        """Adopt the current provider."""
        try:
            provider = self._current()
            if provider is not self._provider:
                self.use(provider)
        except Exception as error:
            self._current = lambda: self._provider  # a provider that fails to load is not tried again
            self._telemetry.errors.record('tracer_provider', error)


def provider_getter() -> Callable[[], Any]:
    """Return a function that returns the global provider: None or the API's proxy while there is none.

    The API's own function reads the environment on each call, which takes longer than the rest of an acquire that calls
    a hook. Unless the environment names a provider, reading the API's variable is enough; and before the API was
    imported, there is nothing to read."""
    if 'OTEL_PYTHON_TRACER_PROVIDER' in os.environ:
        from opentelemetry.trace import get_tracer_provider

        return get_tracer_provider
    return peek


def peek() -> Any:
    """Return the global provider without calling the API, where its variable is known.

    Without the GIL, `get` of a dict takes the dict's lock, and ``in`` does not. All threads use `sys.modules`: they
    would wait for each other. And the interpreter's exit, which changes that dict, would wait forever for a thread that
    it has stopped with the lock."""
    if API not in sys.modules:
        return None
    api = getattr(sys.modules[API], '__dict__', {})
    try:
        return api['_TRACER_PROVIDER']
    except KeyError:  # this version has no such variable
        return api.get('get_tracer_provider', no_provider)()


def no_provider() -> None:
    """Return None."""


def attach(telemetry: Any, core: Core, options: Options) -> Tracing:
    """Record a pool's spans with the provider that its options name.

    :param telemetry: the pool's part in what is exported: its name, its errors and its exemplars
    :param core: the pool's core
    :param options: its validated options
    :return: call its `recheck` from time to time if it `follows`
    """
    if options.tracing == 'off' or options.tracer_provider is None:
        return OFF
    try:
        return begin(telemetry, core, options.tracer_provider, options.tracing == 'all')
    except Exception as error:
        telemetry.errors.record('tracer_provider', error)
        return OFF


def begin(telemetry: Any, core: Core, provider: Any, everything: bool) -> Tracing:
    """Attach a tracer of a provider. The API's proxy provider stands for the global one."""
    if provider is DEFAULT or is_proxy(provider):
        follower = Global(telemetry, core, everything)
        follower.recheck()
        return follower
    injected = Injected(telemetry, core, everything)
    injected.use(provider)
    return injected


def is_proxy(provider: Any) -> bool:
    """Tell whether a provider is the API's proxy for one that is not set yet."""
    from opentelemetry.trace import ProxyTracerProvider

    return isinstance(provider, ProxyTracerProvider)
