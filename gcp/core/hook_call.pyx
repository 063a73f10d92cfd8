# One call of a manager's hook: timed, counted when it ends, and traced where a span is wanted.

from gcp.core.state cimport CALL_CANCELLED, CALL_ERROR, CALL_OK, CALL_TIMEOUT, HOOK_CREATE

HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')
HOOK_OUTCOMES = ('ok', 'error', 'timeout', 'cancelled', 'dead')


cdef int outcome_of(error):
    """Return how a hook call ended. Time-outs are known by name: on Python 3.10, asyncio's is not the built-in one."""
    if error is None:
        return CALL_OK
    if not isinstance(error, Exception):
        return CALL_CANCELLED
    for ancestor in type(error).__mro__:
        if ancestor.__name__ == 'TimeoutError':
            return CALL_TIMEOUT
    return CALL_ERROR


@cython.final
cdef class HookCall:
    """A hook call in progress. It ends once: the first outcome counts.

    A creation is not counted here but by `book_connection`, in one transition with its connection."""
    cdef Core core
    cdef int hook
    cdef object endpoint
    cdef object origin      # in the background: the span on whose behalf the hook is called
    cdef object tracer      # the one that began the span: the pool's may have been replaced since
    cdef object span
    cdef double began
    cdef bint quiet         # no span unless it fails
    cdef bint ended

    cdef int begin(self) except -1:
        cdef Core core = self.core
        if self.began == 0:
            self.began = core.now()
        self.tracer = core.tracer
        if self.tracer is not None and not self.quiet:
            self.span = self.tracer.start(HOOKS[self.hook], self.endpoint, self.origin)
        return 0

    cdef int end(self, int outcome, error) except -1:
        """Count and time it, and end its span. A quiet call that failed gets a span afterwards."""
        cdef Core core = self.core
        cdef double seconds
        if self.ended:
            return 0
        self.ended = True
        seconds = core.now() - self.began
        if self.hook != HOOK_CREATE:
            core.count_hook(self.hook, outcome, seconds)
        if self.span is not None:
            self.tracer.end(self.span, HOOK_OUTCOMES[outcome], seconds, error)
        elif outcome != CALL_OK and self.origin is None and self.tracer is not None:
            self.tracer.record_failed(HOOKS[self.hook], self.endpoint, HOOK_OUTCOMES[outcome], seconds, error)
        return 0

    cdef int detach(self) except -1:
        """The hook has returned: its span is no longer the current one. (The watchdog may have ended the call before,
        in another thread.)"""
        if self.span is not None:
            self.tracer.detach(self.span)
        return 0

    cdef int finish(self, int outcome, error) except -1:
        try:
            self.end(outcome, error)
        finally:
            self.detach()
        return 0


cdef HookCall new_hook_call(Core core, int hook, endpoint, origin, bint quiet):
    """Make a hook call that has not begun.

    :param origin: for a call in the background: what `Tracer.current` returned on whose behalf it is made
    :param quiet: whether it gets a span only if it fails: at an idle hit and at a release, unless those are traced
    """
    cdef HookCall call = HookCall.__new__(HookCall)
    call.core = core
    call.hook = hook
    call.endpoint = endpoint
    call.origin = origin
    call.quiet = quiet and not core.traces_hits
    return call


cdef HookCall begun_hook_call(Core core, int hook, endpoint, double began):
    """Make the hook call of a hook that was called at an idle hit, or at a release, and has suspended."""
    cdef HookCall call = new_hook_call(core, hook, endpoint, None, True)
    call.began = began
    call.begin()
    return call
