"""Spans: what recorders of traces are told of waits and of the steps of a connection's life.

Owns names, parents, links, attributes and status. Never raises an `Exception`: whatever goes wrong in a tracer is
counted, and logged once. Imports OpenTelemetry's API, so it is itself imported only where spans are wanted."""

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
"""Stands for a caller who wants no spans: an exporter, that may be using this very pool."""

SUPPRESS_KEY: Final[str | None] = getattr(otel, '_SUPPRESS_INSTRUMENTATION_KEY', None)

made_current: ContextVar[None] = ContextVar('gcpool.made_current')
"""Set with each span that is made current. Its token tells whether it is still the same context when the span ends:
OpenTelemetry's own `detach` would log an error where it is not."""


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
        """Restore the context, if this is still the one. A generator may be closed from another: that has its own."""
        if self.left:
            return
        self.left = True
        try:
            made_current.reset(self.mark)
        except (ValueError, RuntimeError):
            return
        otel.detach(self.attached)


class PoolTracer:
    """Makes one pool's spans. The core calls it (`Core.tracer`), while somebody records.

    :param tracer: OpenTelemetry's
    :param telemetry: the pool's part in what is exported: its name, its errors and its exemplars
    :param everything: whether `on_acquire` and `on_release` have spans also when they go well
    """

    def __init__(self, tracer: Tracer, telemetry: Any, everything: bool) -> None:
        self._tracer = tracer
        self._telemetry = telemetry
        self._everything = everything
        self._names = {hook: f'{hook} {telemetry.name}' for hook in (*HOOKS, WAIT)}

    # --- places ---

    def current(self) -> object:
        """Return what stands for the current recording span, or None."""
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
        """Begin a hook call's span and make it current.

        :param origin: None: the caller's context is its parent; else it is in the background: the root of a new trace,
            with a link to this
        :return: to be given to `end` and `detach`; None where the call has no span
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
        """End a hook call's span. It stays current until `leave`.

        :param outcome: one of `HOOK_OUTCOMES`
        :param seconds: how long the call took
        :param error: what it raised
        """
        try:
            self._conclude(handle.span, handle.hook, handle.endpoint, outcome, seconds, error)
        except Exception as trouble:
            self._failed(trouble)

    def detach(self, handle: Handle) -> None:
        """Make current again what was so before."""
        try:
            handle.leave()
        except Exception as error:
            self._failed(error)

    def record_failed(
            self, hook: str, endpoint: object, outcome: str, seconds: float, error: BaseException | None,
    ) -> None:
        """Make the span of a step that had none, after it went wrong: at an idle hit, or of a hook that has one only
        where everything has."""
        try:
            if self._is_wanted(hook, None, wrong=True):
                span = self._begin(hook, endpoint, otel.get_current(), ago=seconds)
                self._conclude(span, hook, endpoint, outcome, seconds, error)
        except Exception as trouble:
            self._failed(trouble)

    # --- waits ---

    def waited(self, ticket: Any, result: str, seconds: float, error: BaseException | None) -> None:
        """Make the span of an acquire that was no idle hit and has ended.

        :param result: one of `RESULTS`
        :param seconds: how long it took
        """
        try:
            parent = ticket.caller if ticket.caller is not None else otel.get_current()
            if is_suppressed(parent):
                return
            span = self._begin(
                WAIT, ticket.endpoint, parent, ago=seconds,
                links={'released_by': ticket.released_by, 'created_by': ticket.created_by},
                attributes={RESULT: result, AHEAD: ticket.ahead},
            )
            try:
                if result in ('timeout', 'cancelled', 'error'):
                    fail(span, result, error)
                self._exemplify('wait', None, seconds, span)
            finally:
                span.end()
        except Exception as trouble:
            self._failed(trouble)

    # --- parts ---

    def _is_wanted(self, hook: str, origin: object, *, wrong: bool = False) -> bool:
        if origin is not None:
            return origin is not SUPPRESSED
        if is_suppressed(otel.get_current()):
            return False
        return hook not in PER_USE or ((self._everything or wrong) and get_current_span().is_recording())

    def _begin(
            self, hook: str, endpoint: object, parent: Context, *, ago: float | None = None,
            links: Mapping[str, object] = MappingProxyType({}), attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> Span:
        """Start a span.

        :param ago: when it began, seconds before now
        """
        return self._tracer.start_span(
            self._names[hook],
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes={POOL: self._telemetry.name, **self._where(endpoint), **attributes},
            links=[Link(to, {LINK: why}) for why, to in links.items() if isinstance(to, SpanContext)],
            start_time=None if ago is None else time_ns() - int(ago * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )

    def _where(self, endpoint: object) -> dict[str, Any]:
        """Say where an endpoint is. What it says of itself is its user's code."""
        try:
            return dict(where(endpoint))
        except Exception as error:
            self._telemetry.errors.note('endpoint_label', error)
            return {}

    def _conclude(
            self, span: Span, hook: str, endpoint: object, outcome: str, seconds: float, error: BaseException | None,
    ) -> None:
        """End a hook call's span, with all that is known of its end."""
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
        """Tell the event, within its span, so that log records can be found from there."""
        if not logger.isEnabledFor(logging.INFO):
            return
        token = otel.attach(set_span_in_context(span))
        try:
            what = outcome if error is None else repr(error)
            logger.info('%s: %s of a connection to %s: %s', self._telemetry.name, hook, describe(endpoint), what)
        finally:
            otel.detach(token)

    def _exemplify(self, histogram: str, hook: str | None, seconds: float, span: Span) -> None:
        """Leave an exemplar, if the span can be found where the exemplar leads."""
        context = span.get_span_context()
        if context.trace_flags.sampled and span.is_recording():
            found = {'trace_id': format(context.trace_id, '032x'), 'span_id': format(context.span_id, '016x')}
            bucket = bisect_left(WAIT_BOUNDS, seconds)
            self._telemetry.exemplars[histogram, hook, bucket] = found, seconds, time()

    def _failed(self, error: Exception) -> None:
        self._telemetry.errors.note('spans', error)


# --- contexts and errors ---

def is_suppressed(context: Any) -> bool:
    """Whether who acts there wants no spans of its own making."""
    return SUPPRESS_KEY is not None and bool(context.get(SUPPRESS_KEY))


def fail(span: Span, outcome: str, error: BaseException | None) -> None:
    """Give a span the status of a failure: without a description, for an error's message may quote credentials."""
    span.set_status(StatusCode.ERROR)
    span.set_attribute(ERROR_TYPE, error_type(outcome, error))


def error_type(outcome: str, error: BaseException | None) -> str:
    """Return what kind of failure something was: one of few.

    :param outcome: a hook call's outcome, or an acquire's result
    :param error: what was raised
    """
    if outcome in ('timeout', 'cancelled'):
        return outcome
    if isinstance(error, ConnectionPoolClosedError):
        return 'pool_closed'
    if error is None:
        return '_OTHER'     # as the conventions have it
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'


# --- addresses ---

NAME = r'(?P<host>[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252}))'
ADDRESS = r'\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?)\]'
PORT = r'(?P<port>[0-9]{1,5})'
HOST_RE = re.compile(rf'(?:{NAME}|(?P<v6>[0-9A-Fa-f:.]{{2,45}}(?:%[A-Za-z0-9_.-]{{1,32}})?))')
PLACE_RE = re.compile(rf'(?:(?P<scheme>https?)://)?(?:{NAME}|{ADDRESS})(?::{PORT})?/?')
PATH_RE = re.compile(r'/[^@=?&]{0,107}')        # as long as a socket's path can be
DEFAULT_PORTS = {'http': 80, 'https': 443}


def where(endpoint: object) -> Iterator[tuple[str, Any]]:
    """Say where an endpoint is, as attributes."""
    address, port = address_of(endpoint)
    if address is not None:
        yield 'server.address', address
        if port is not None:
            yield 'server.port', port


def address_of(endpoint: object) -> tuple[str | None, int | None]:
    """Return the address and the port that an endpoint tells, or None for what it does not.

    Only what cannot be anything else is taken for an address: ``(host, port)``, ``'host:port'``, an origin as in
    ``'https://host'``, the path of a socket, an IP address, a host's name with a dot, an object with `host` and `port`.
    Whatever may carry credentials is none, and neither is a mere name: that may be anything's."""
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
    """Check a host and a port."""
    if isinstance(host, (IPv4Address, IPv6Address)):
        host = str(host)
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        return None, None
    return (str(host), int(port)) if HOST_RE.fullmatch(host) else (None, None)


def address_of_text(text: str) -> tuple[str | None, int | None]:
    """Take apart what is written as one."""
    if PATH_RE.fullmatch(text):
        return text, None
    found = PLACE_RE.fullmatch(text)
    if found is None:
        return (text, None) if ':' in text and is_ip(text) else (None, None)
    host = found['host'] or found['v6']
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
