# One call of a manager's hook: counted and timed when it ends, in whatever way.

cdef int outcome_of(error):
    """How a step ended. Time-outs are known by name: on Python 3.10, asyncio's is no child of the built-in one."""
    if error is None:
        return STEP_OK
    if not isinstance(error, Exception):
        return STEP_CANCELLED
    for ancestor in type(error).__mro__:
        if ancestor.__name__ == 'TimeoutError':
            return STEP_TIMEOUT
    return STEP_ERROR


@cython.final
cdef class Step:
    """One step of a connection's life that its manager takes, as a context manager. Ends once: what it is told first."""
    cdef Core core
    cdef int kind
    cdef double began
    cdef bint ended

    def __enter__(self):
        self.began = self.core.now()
        return self

    def __exit__(self, kind, error, traceback):
        self.close(outcome_of(error))
        return False

    def end(self, str outcome):
        """End before the hook does, or otherwise than it does."""
        self.close(STEP_OUTCOMES.index(outcome))

    cdef int close(self, int outcome) except -1:
        cdef Core core = self.core
        if not self.ended:
            self.ended = True
            core.count_step(self.kind, outcome, core.now() - self.began)
        return 0
