# One call of a manager's hook: timed, counted when it ends, and traced where a span is wanted.

from gcp.core.platform cimport gcp_is_awaitable, gcp_is_coroutine, gcp_swap
from gcp.core.state cimport CALL_CANCELLED, CALL_ERROR, CALL_OK, CALL_TIMEOUT, HOOK_CHECK, HOOK_CREATE, HOOK_KEEPALIVE

HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead', 'keepalive')
cdef object OUR_MODULES = frozenset({'gcp._core', 'gcp.threading', 'gcp.asyncio', 'gcp.connection', 'gcp.waiting'})

# What each hook is to return.
cdef tuple EXPECTED = ('a connection', 'None', 'True or False', 'None', 'None', 'None', 'True or False')
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


# --- what a hook returns ---

cdef inline bint makes_sense(int hook, result) noexcept:
    """Whether a hook may have returned this. A creation is judged without allocating anything: a connection that was
    created must not be lost."""
    if hook == HOOK_CHECK or hook == HOOK_KEEPALIVE:
        return result is True or result is False
    if hook == HOOK_CREATE and result is None:
        return False
    return result is None or not (gcp_is_coroutine(result) or type(result) is AsyncGeneratorType)


cdef str hook_name(manager, int hook):
    return HOOKS[hook] if manager is None else f'{type(manager).__name__}.{HOOKS[hook]}'


cdef object nonsense(manager, int hook, result, bint blocking):
    """Return the error about a result that makes no sense. A coroutine is closed: it will never be awaited."""
    cdef str name = hook_name(manager, hook)
    cdef str wanted = EXPECTED[hook]
    if gcp_is_coroutine(result):
        dismiss(result)
        if blocking:
            return TypeError(
                f'{name} returned an awaitable ({type(result).__name__}); it must return {wanted}: is this a manager '
                f'for gcp.asyncio.ConnectionPool?')
        return TypeError(f'{name} returned an awaitable ({type(result).__name__}) that it did not await; it must '
                         f'return {wanted}')
    if result is None or result is NotImplemented:
        return TypeError(f'{name} returned {result}; it must return {wanted}')
    return TypeError(f'{name} returned an object of type {type(result).__name__}; it must return {wanted}')


cdef int check_result(manager, int hook, result, bint blocking) except -1:
    """Raise the error about a result that makes no sense."""
    if not makes_sense(hook, result):
        raise nonsense(manager, hook, result, blocking)
    return 0


cdef inline int expect_none(BaseConnectionPool pool, int hook, result, bint blocking) except -1:
    """Check what a hook returned that is to return None. Other results are ignored if they make sense."""
    return 0 if result is None else check_result(pool._manager, hook, result, blocking)


cdef inline int is_alive(BaseConnectionPool pool, result, bint blocking) except -1:
    """Return what `check_aliveness` has found, a bool."""
    if result is True:
        return 1
    check_result(pool._manager, HOOK_CHECK, result, blocking)
    return 0


cdef int check_awaitable(manager, int hook, awaitable) except -1:
    """Check that an asynchronous hook returned something that can be awaited."""
    if gcp_is_awaitable(awaitable):
        return 0
    raise TypeError(
        f'{hook_name(manager, hook)} returned {type(awaitable).__name__}, not an awaitable; it must be '
        f'async def: is this a manager for gcp.threading.ConnectionPool?')


cdef object repeated(manager, conn):
    """Return the error about a connection that the pool has already."""
    return RuntimeError(
        f'{hook_name(manager, HOOK_CREATE)} returned an object of type {type(conn).__name__} that is in the pool '
        f'already, held or idle; it must return a new connection each time')


cdef int dismiss(awaitable) except -1:
    """Close an awaitable that will never be awaited."""
    try:
        awaitable.close()
    except Exception:
        pass        # a future or a task has no close; what a coroutine raises is of no use here
    return 0


# --- the errors of hooks ---

cdef int explain(BaseConnectionPool pool, int hook, endpoint, error) except -1:
    """Prepare an error of a hook for the caller: a note says of which pool and endpoint it is (Python 3.11), and its
    traceback begins with the hook, without the frames that called it."""
    trim(error)
    if not isinstance(error, Exception) or not hasattr(error, 'add_note'):
        return 0
    try:
        note = f'gcp: {HOOKS[hook]} failed in pool {pool.name!r}, endpoint {describe(endpoint)}'
        if note not in (getattr(error, '__notes__', None) or ()):
            error.add_note(note)
    except Exception:
        pass        # an error that accepts no attributes, or a key whose type cannot be shown
    return 0


cdef int trim(error) except -1:
    """Remove from a traceback the frames of gcp that tell nothing: those of the pools, and those of a manager of
    gcp.contrib but the innermost."""
    cdef list kept = []
    cdef Py_ssize_t i, last = -1
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get('__name__'))
        if module.startswith('gcp.contrib.'):
            if last >= 0:
                del kept[last]
            last = len(kept)
            kept.append(traceback)
        elif module not in OUR_MODULES and not module.startswith('gcp.disposal.'):
            kept.append(traceback)
        traceback = traceback.tb_next
    for i in range(len(kept)):
        kept[i].tb_next = kept[i + 1] if i + 1 < len(kept) else None
    error.__traceback__ = kept[0] if kept else None
    return 0


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
    cdef double took        # of a creation: how long, as it was counted
    cdef bint quiet         # no span unless it fails, or finds a connection dead
    cdef bint ended

    cdef int begin(self) except -1:
        cdef Core core = self.core
        if self.began == 0:
            self.began = core.now()
        self.tracer = tracer_of(core)
        if self.tracer is not None and not self.quiet:
            self.span = self.tracer.start(HOOKS[self.hook], self.endpoint, self.origin)
        return 0

    cdef int end(self, int outcome, error) except -1:
        """Count and time it, and end its span. A quiet call that failed gets a span afterwards."""
        cdef Core core = self.core
        cdef double seconds
        if gcp_swap(&self.ended, True):
            return 0
        seconds = self.took if self.took > 0 else core.now() - self.began
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


cdef inline double counted(HookCall call, double seconds) noexcept:
    """Note how long a creation took, as it is counted now: its span and its exemplar say the same."""
    if call is not None:
        call.took = seconds
    return seconds


cdef HookCall new_hook_call(Core core, int hook, endpoint, origin, bint quiet):
    """Make a hook call that has not begun.

    :param origin: for a call in the background: what `Tracer.current` returned on whose behalf it is made
    :param quiet: whether it gets a span only if it fails: at an idle hit and at a release, unless those are traced. A
        check is always quiet: under contention, each acquire would have a span of a healthy check
    """
    cdef HookCall call = HookCall.__new__(HookCall)
    call.core = core
    call.hook = hook
    call.endpoint = endpoint
    call.origin = origin
    call.quiet = (quiet or hook == HOOK_CHECK or hook == HOOK_KEEPALIVE) and not traces_hits(core)
    return call


cdef HookCall begun_hook_call(Core core, int hook, endpoint, double began):
    """Make the hook call of a hook that was called at an idle hit, or at a release, and has suspended."""
    cdef HookCall call = new_hook_call(core, hook, endpoint, None, True)
    call.began = began
    call.begin()
    return call
