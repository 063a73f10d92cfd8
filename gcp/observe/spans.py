"""Spans of acquires that wait and of the manager's hook calls: names, parents, links, attributes and status.

No method raises an `Exception`: an error of a tracer is counted, and logged once. This module imports OpenTelemetry's
API, so it is imported only when there is a tracer provider."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from functools import partial
from time import time, time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, get_current_span, set_span_in_context

from gcp._core import HOOKS, WAIT_BOUNDS, describe
from gcp.exceptions import ConnectionPoolClosedError, EndpointUnavailableError, PoolSuspendedError, TooManyWaitersError
from gcp.observe.addresses import address_of, location
from gcp.observe.labels import clean, default_label
from gcp.observe.names import ATTRIBUTES, OTHER

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ['PoolTracer', 'address_of', 'error_type']

logger = logging.getLogger('gcp')

WAIT: Final = 'wait_for_connection'
PER_USE: Final = frozenset({'on_acquire', 'on_release'})
LOGGED_ELSEWHERE: Final = frozenset({'dispose', 'on_connection_dead'})

POOL: Final = ATTRIBUTES['pool']
ENDPOINT: Final = ATTRIBUTES['pool_endpoint']
RESULT: Final = ATTRIBUTES['result']
OUTCOME: Final = ATTRIBUTES['outcome']
AHEAD: Final = 'gcpool.waiters_ahead'
BLOCKED_BY: Final = 'gcpool.blocked_by'
LINK: Final = 'gcpool.link'
ERROR_TYPE: Final = 'error.type'

#: results of acquires that got no connection
FAILED: Final = frozenset({'timeout', 'cancelled', 'error', 'rejected'})

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
                span = self._begin(hook, endpoint, otel.get_current(), start=time_ns() - int(seconds * 1e9))
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
            # The clocks are read in this order: after an interruption in between, the span begins early, not late.
            start = time_ns() - int(acquire.age * 1e9)
            span = self._begin(
                WAIT,
                acquire.endpoint,
                parent,
                start=start,
                links={'released_by': acquire.released_by, 'created_by': acquire.created_by},
                attributes={RESULT: result, AHEAD: acquire.ahead, **blocked(acquire, error)},
            )
            try:
                if result in FAILED:
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
        start: int | None = None,
        links: Mapping[str, object] = MappingProxyType({}),
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> Span:
        """Start a span.

        :param start: when it began, nanoseconds since the epoch; None: now
        """
        return self._tracer.start_span(
            self._names[hook],
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes={POOL: self._telemetry.name, **self._location(endpoint), **attributes},
            links=[Link(to, {LINK: why}) for why, to in links.items() if isinstance(to, SpanContext)],
            start_time=start,
            record_exception=False,
            set_status_on_exception=False,
        )

    def _location(self, endpoint: object) -> dict[str, Any]:
        """Return an endpoint's label and address as attributes. The label function and properties of the endpoint are
        user code, and may raise."""
        found: dict[str, Any] = {}
        for find in (partial(labelled, self._telemetry), location):
            try:
                found.update(find(endpoint))
            except Exception as error:
                self._telemetry.errors.record('endpoint_label', error)
        return found

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
            self._exemplify('hook' if outcome in ('ok', 'dead') else 'failed_hook', hook, seconds, span)
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


# --- endpoints, contexts and errors ---


def labelled(telemetry: Any, endpoint: object) -> Iterator[tuple[str, str]]:
    """Yield an endpoint's label as an attribute. It is that of the metrics, but the number of labels is not limited."""
    if not telemetry.endpoint_labels:
        yield ENDPOINT, OTHER
        return
    pool = telemetry.pool()
    function = None if pool is None else pool._options.endpoint_label
    yield ENDPOINT, clean((function or default_label)(endpoint))


def blocked(acquire: Any, error: BaseException | None) -> dict[str, str]:
    """Return what an acquire has waited for, or why it was refused, as an attribute. Without either there is none."""
    if isinstance(error, EndpointUnavailableError):
        return {BLOCKED_BY: 'breaker'}
    if isinstance(error, TooManyWaitersError):
        return {BLOCKED_BY: 'queue limit'}
    if isinstance(error, PoolSuspendedError):
        return {BLOCKED_BY: 'suspended'}
    block = getattr(error, 'blocked_by', None) or acquire.blocked_by
    return {BLOCKED_BY: block} if isinstance(block, str) else {}


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
