# One call of a manager's hook: counted and timed when it ends, in whatever way.

cdef int outcome_of(error):
    """How a step ended. Time-outs are known by name: on Python 3.10, asyncio's is no child of the built-in one."""
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
    """One step of a connection's life that its manager takes, as a context manager. Ends once: as it is told first.

    A creation is not counted here, but where it is booked, in one step with its connection."""
    cdef Core core
    cdef int kind
    cdef object endpoint
    cdef object origin
    cdef object tracer      # whoever began the span ends it, though somebody else may record by then
    cdef object span
    cdef double began
    cdef bint quiet
    cdef bint ended

    def __enter__(self):
        cdef Core core = self.core
        if self.began == 0:
            self.began = core.now()
        self.tracer = core.tracer
        if self.tracer is not None and not self.quiet:
            self.span = self.tracer.start(HOOKS[self.kind], self.endpoint, self.origin)
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.close(outcome_of(error), error)
        finally:
            self.leave()
        return False

    cdef int leave(self) except -1:
        """The hook has ended; a watchdog, in a thread of its own, may have ended the step before."""
        if self.span is not None:
            self.tracer.detach(self.span)
        return 0

    def end(self, str outcome):
        """End before the hook does, or otherwise than it does."""
        self.close(HOOK_OUTCOMES.index(outcome), None)

    cdef int close(self, int outcome, error) except -1:
        cdef Core core = self.core
        cdef double seconds
        if self.ended:
            return 0
        self.ended = True
        seconds = core.now() - self.began
        if self.kind != HOOK_CREATE:
            core.count_hook(self.kind, outcome, seconds)
        if self.span is not None:
            self.tracer.end(self.span, HOOK_OUTCOMES[outcome], seconds, error)
        elif outcome != CALL_OK and self.origin is None and self.tracer is not None:
            self.tracer.record_failed(HOOKS[self.kind], self.endpoint, HOOK_OUTCOMES[outcome], seconds, error)
        return 0


cdef HookCall begun_step(Core core, endpoint, glance_t* glance):
    """The step of a hook that was called at an idle hit, or at a release, and has something to wait for."""
    cdef HookCall step = core.hook_call(HOOKS[glance.hook], endpoint, quiet=True)
    step.began = glance.hook_began
    return step


cpdef dispose_of(Victim victim, hook, timeout=None, origin=None):
    """Dispose of a victim: call the manager's blocking `dispose`, count, time and trace it, report the victim gone.

    :param hook: the manager's `dispose`
    :param timeout: seconds that it may take, by its own care; ``None``: no limit
    :param origin: as for `Core.hook_call`
    :return: what went wrong, or None
    """
    error = None
    victim.begin(origin)
    try:
        hook(victim.slot.endpoint, victim.slot.conn, timeout=timeout)
    except BaseException as e:
        error = e
    victim.end(error)
    return error
