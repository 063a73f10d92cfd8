"""Spans of acquires that wait and of the manager's hook calls: names, parents, links, attributes and status.

No method raises an `Exception`: an error of a tracer is counted, and logged once. This module imports OpenTelemetry's
API, so it is imported only when there is a tracer provider."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from time import time, time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, get_current_span, set_span_in_context

from gcp._core import HOOKS, WAIT_BOUNDS, describe
from gcp.exceptions import ConnectionPoolClosedError
from gcp.observe.names import ATTRIBUTES

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ['PoolTracer', 'address_of', 'error_type']

logger = logging.getLogger('gcp')

WAIT: Final = 'wait_for_connection'
PER_USE: Final = frozenset({'on_acquire', 'on_release'})
LOGGED_ELSEWHERE: Final = frozenset({'dispose', 'on_connection_dead'})

POOL: Final = ATTRIBUTES['pool']
RESULT: Final = ATTRIBUTES['result']
OUTCOME: Final = ATTRIBUTES['outcome']
AHEAD: Final = 'gcpool.waiters_ahead'
LINK: Final = 'gcpool.link'
ERROR_TYPE: Final = 'error.type'

SUPPRESSED: Final = object()
"""Stands for a caller in whose context instrumentation is suppressed, such as an exporter that uses this pool."""

SUPPRESS_KEY: Final[str | None] = getattr(otel, '_SUPPRESS_INSTRUMENTATION_KEY', None)

made_current: ContextVar[None] = ContextVar('gcpool.made_current')
"""Set with each span that is made current. Resetting its token raises in another context, where the `detach`
of OpenTelemetry would log an error."""


class Handle:
    """A span that was made current."""

    __slots__ = ('attached', 'endpoint', 'hook', 'left', 'mark', 'span')

    def __init__(self, span: Span, hook: str, endpoint: object, context: Context) -> None:
        self.span = span
        self.hook = hook
        self.endpoint = endpoint
        self.left = False
        self.mark: Token[None] = made_current.set(None)
        self.attached: Token[Context] = otel.attach(context)

    def leave(self) -> None:
        """Restore the previous context. In another context, as when a generator is closed elsewhere, do nothing."""
        if self.left:
            return
        self.left = True
        try:
            made_current.reset(self.mark)
        except (ValueError, RuntimeError):
            return
        otel.detach(self.attached)


class PoolTracer:
    """Creates the spans of one pool. It is the `Core.tracer` while a tracer provider is set.

    :param tracer: OpenTelemetry's
    :param telemetry: the pool's part in what is exported: its name, its errors and its exemplars
    :param everything: whether successful calls of `on_acquire` and `on_release` have spans, too
    """

    def __init__(self, tracer: Tracer, telemetry: Any, everything: bool) -> None:
        self._tracer = tracer
        self._telemetry = telemetry
        self._everything = everything
        self._names = {hook: f'{hook} {telemetry.name}' for hook in (*HOOKS, WAIT)}

    # --- contexts of callers ---

    def current(self) -> object:
        """Return the current span's context if the span records, else None."""
        try:
            if is_suppressed(otel.get_current()):
                return SUPPRESSED
            span = get_current_span()
            return span.get_span_context() if span.is_recording() else None
        except Exception as error:
            self._failed(error)
            return None

    def caller(self) -> object:
        """Return the context of an acquire, for `waited`."""
        try:
            return otel.get_current()
        except Exception as error:
            self._failed(error)
            return None

    # --- hook calls ---

    def start(self, hook: str, endpoint: object, origin: object) -> Handle | None:
        """Start the span of a hook call and make it current.

        :param origin: None if the caller's context is the parent; otherwise the call is in the background, and its span
            is the root of a new trace with a link to this
        :return: the argument for `end` and `detach`; None if the call has no span
        """
        try:
            if not self._is_wanted(hook, origin):
                return None
            parent = otel.get_current() if origin is None else Context()
            span = self._begin(hook, endpoint, parent, links={'caller': origin})
            try:
                return Handle(span, hook, endpoint, set_span_in_context(span, parent))
            except BaseException:
                span.end()
                raise
        except Exception as error:
            self._failed(error)
            return None

    def end(self, handle: Handle, outcome: str, seconds: float, error: BaseException | None) -> None:
        """End the span of a hook call. It stays current until `detach`.

        :param outcome: one of `HOOK_OUTCOMES`
        :param seconds: its duration
        :param error: the exception that it raised
        """
        try:
            self._conclude(handle.span, handle.hook, handle.endpoint, outcome, seconds, error)
        except Exception as trouble:
            self._failed(trouble)

    def detach(self, handle: Handle) -> None:
        """Make the previous span current again."""
        try:
            handle.leave()
        except Exception as error:
            self._failed(error)

    def record_failed(
        self,
        hook: str,
        endpoint: object,
        outcome: str,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        """Create the span of a failed hook call that was started without one: at an idle hit, or because its hook has
        spans with ``tracing='all'`` only."""
        try:
            if self._is_wanted(hook, None, wrong=True):
                span = self._begin(hook, endpoint, otel.get_current(), ago=seconds)
                self._conclude(span, hook, endpoint, outcome, seconds, error)
        except Exception as trouble:
            self._failed(trouble)

    # --- waits ---

    def waited(self, acquire: Any, result: str, seconds: float, error: BaseException | None) -> None:
        """Create the span of an ended acquire that was not an idle hit.

        :param result: one of `RESULTS`
        :param seconds: its duration
        """
        try:
            parent = acquire.caller if acquire.caller is not None else otel.get_current()
            if is_suppressed(parent):
                return
            span = self._begin(
                WAIT,
                acquire.endpoint,
                parent,
                ago=seconds,
                links={'released_by': acquire.released_by, 'created_by': acquire.created_by},
                attributes={RESULT: result, AHEAD: acquire.ahead},
            )
            try:
                if result in ('timeout', 'cancelled', 'error'):
                    fail(span, result, error)
                self._exemplify('wait', None, seconds, span)
            finally:
                span.end()
        except Exception as trouble:
            self._failed(trouble)

    # --- helpers ---

    def _is_wanted(self, hook: str, origin: object, *, wrong: bool = False) -> bool:
        if origin is not None:
            return origin is not SUPPRESSED
        if is_suppressed(otel.get_current()):
            return False
        return hook not in PER_USE or ((self._everything or wrong) and get_current_span().is_recording())

    def _begin(
        self,
        hook: str,
        endpoint: object,
        parent: Context,
        *,
        ago: float | None = None,
        links: Mapping[str, object] = MappingProxyType({}),
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> Span:
        """Start a span.

        :param ago: for how long it has lasted already, seconds
        """
        return self._tracer.start_span(
            self._names[hook],
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes={POOL: self._telemetry.name, **self._location(endpoint), **attributes},
            links=[Link(to, {LINK: why}) for why, to in links.items() if isinstance(to, SpanContext)],
            start_time=None if ago is None else time_ns() - int(ago * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )

    def _location(self, endpoint: object) -> dict[str, Any]:
        """Return an endpoint's address as attributes. Properties of the endpoint are user code, and may raise."""
        try:
            return dict(location(endpoint))
        except Exception as error:
            self._telemetry.errors.record('endpoint_label', error)
            return {}

    def _conclude(
        self,
        span: Span,
        hook: str,
        endpoint: object,
        outcome: str,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        """Set outcome, exemplar and log record of a hook call, and end its span."""
        try:
            if outcome == 'dead':
                span.set_attribute(OUTCOME, outcome)
            elif outcome != 'ok':
                fail(span, outcome, error)
            self._exemplify('hook', hook, seconds, span)
            if outcome != 'ok' and hook not in LOGGED_ELSEWHERE:
                self._log(span, hook, endpoint, outcome, error)
        finally:
            span.end()

    def _log(self, span: Span, hook: str, endpoint: object, outcome: str, error: BaseException | None) -> None:
        """Log a failed hook call within its span, so that the log record carries the trace's id."""
        if not logger.isEnabledFor(logging.INFO):
            return
        token = otel.attach(set_span_in_context(span))
        try:
            what = outcome if error is None else repr(error)
            logger.info('%s: %s of a connection to %s: %s', self._telemetry.name, hook, describe(endpoint), what)
        finally:
            otel.detach(token)

    def _exemplify(self, histogram: str, hook: str | None, seconds: float, span: Span) -> None:
        """Keep an exemplar of the observation if the span is sampled."""
        context = span.get_span_context()
        if context.trace_flags.sampled and span.is_recording():
            found = {'trace_id': format(context.trace_id, '032x'), 'span_id': format(context.span_id, '016x')}
            bucket = bisect_left(WAIT_BOUNDS, seconds)
            self._telemetry.exemplars[histogram, hook, bucket] = found, seconds, time()

    def _failed(self, error: Exception) -> None:
        self._telemetry.errors.record('spans', error)


# --- contexts and errors ---


def is_suppressed(context: Any) -> bool:
    """Tell whether instrumentation is suppressed in a context."""
    return SUPPRESS_KEY is not None and bool(context.get(SUPPRESS_KEY))


def fail(span: Span, outcome: str, error: BaseException | None) -> None:
    """Set a span's status to Error, without a description: the message of an exception may quote credentials."""
    span.set_status(StatusCode.ERROR)
    span.set_attribute(ERROR_TYPE, error_type(outcome, error))


def error_type(outcome: str, error: BaseException | None) -> str:
    """Return the ``error.type`` of a failure, of low cardinality.

    :param outcome: a hook call's outcome, or an acquire's result
    :param error: the exception
    """
    if outcome in ('timeout', 'cancelled'):
        return outcome
    if isinstance(error, ConnectionPoolClosedError):
        return 'pool_closed'
    if error is None:
        return '_OTHER'  # the conventions' fallback
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'


# --- addresses ---

NAME = r'(?P<host>[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252}))'
ADDRESS = r'\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?)\]'
PORT = r'(?P<port>[0-9]{1,5})'
HOST_RE = re.compile(rf'(?:{NAME}|(?P<v6>[0-9A-Fa-f:.]{{2,45}}(?:%[A-Za-z0-9_.-]{{1,32}})?))')
ORIGIN_RE = re.compile(rf'(?:(?P<scheme>https?)://)?(?:{NAME}|{ADDRESS})(?::{PORT})?/?')
PATH_RE = re.compile(r'/[^@=?&]{0,107}')  # as long as a socket's path can be
DEFAULT_PORTS = {'http': 80, 'https': 443}


def location(endpoint: object) -> Iterator[tuple[str, Any]]:
    """Yield an endpoint's address as attributes."""
    address, port = address_of(endpoint)
    if address is not None:
        yield 'server.address', address
        if port is not None:
            yield 'server.port', port


def address_of(endpoint: object) -> tuple[str | None, int | None]:
    """Return an endpoint's address and port, or None for each that is not known.

    Recognised are ``(host, port)``, ``'host:port'``, an origin such as ``'https://host'``, the path of a socket, an IP
    address, a host name with a dot, and an object with `host` and `port`. Anything that may contain credentials is
    rejected, and so is a name without a dot, which need not be a host."""
    if isinstance(endpoint, str):
        return address_of_text(endpoint)
    if isinstance(endpoint, PurePath):
        return address_of_text(str(endpoint))
    if isinstance(endpoint, (IPv4Address, IPv6Address)):
        return str(endpoint), None
    if isinstance(endpoint, (tuple, list)):
        return pair(*endpoint[:2]) if len(endpoint) >= 2 else (None, None)
    return pair(getattr(endpoint, 'host', None), getattr(endpoint, 'port', None))


def pair(host: object, port: object) -> tuple[str | None, int | None]:
    """Return a host and a port if they are valid."""
    if isinstance(host, (IPv4Address, IPv6Address)):
        host = str(host)
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        return None, None
    return (str(host), int(port)) if HOST_RE.fullmatch(host) else (None, None)


def address_of_text(text: str) -> tuple[str | None, int | None]:
    """Return the address and port in a string."""
    if PATH_RE.fullmatch(text):
        return text, None
    found = ORIGIN_RE.fullmatch(text)
    if found is None:
        return (text, None) if ':' in text and is_ip(text) else (None, None)
    host = found['host'] or re.sub('%25(?=.)', '%', found['v6'])  # a URL may write %25 before a scope
    port = int(found['port']) if found['port'] else DEFAULT_PORTS.get(found['scheme'])
    if port is None and not ('.' in host or found['v6'] or host == 'localhost'):
        return None, None
    return (host, port) if port is None or 0 < port < 65536 else (None, None)


def is_ip(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
