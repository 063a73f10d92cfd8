# Bells: what a thread sleeps on until another one rings. Sleeping and waking enter no Python frame: at a hand-over,
# whoever waits for the connection waits for them, too.

cdef extern from 'pythread.h':
    ctypedef void* PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock() noexcept nogil
    void PyThread_free_lock(PyThread_type_lock) noexcept nogil
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long, int) noexcept nogil
    void PyThread_release_lock(PyThread_type_lock) noexcept nogil


cdef enum:
    LONGEST_NAP = 1_000_000     # seconds: what every platform can count in microseconds


@cython.final
cdef class Event:
    """A lock that is held from the beginning, and that whoever waits takes again. To ring twice is the same as once."""
    cdef PyThread_type_lock lock
    cdef bint is_set

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        PyThread_acquire_lock_timed(self.lock, 0, 0)

    def __dealloc__(self):
        if self.lock != NULL:
            if not self.is_set:
                PyThread_release_lock(self.lock)
            PyThread_free_lock(self.lock)

    cdef inline void set(self) noexcept:
        if not self.is_set:
            self.is_set = True
            PyThread_release_lock(self.lock)

    cdef bint wait(self, double seconds) except -1:
        """Sleep until it rings. Signal handlers run meanwhile, and may raise.

        :param seconds: at most; ``inf``: for ever
        :return: whether it has is_set
        """
        cdef double deadline = gcp_monotonic() + seconds
        cdef long long microseconds
        cdef PyLockStatus status
        while True:
            microseconds = <long long>(min(seconds, <double>LONGEST_NAP) * 1e6) + 1 if seconds > 0 else 0
            with nogil:
                status = PyThread_acquire_lock_timed(self.lock, microseconds, 1)
            if status == PY_LOCK_ACQUIRED:
                self.is_set = False
                return True
            if status == PY_LOCK_INTR:
                PyErr_CheckSignals()
            seconds = deadline - gcp_monotonic()
            if seconds <= 0:
                return False

    cdef bint wait_after(self, Event other, double seconds) except -1:
        """Ring another event, and sleep until this one rings. The other one is is_set when the interpreter is free
        already: whoever wakes up would only wait for that, and go to sleep again."""
        cdef double deadline = gcp_monotonic() + seconds
        cdef long long microseconds = <long long>(min(seconds, <double>LONGEST_NAP) * 1e6) + 1
        cdef PyLockStatus status
        if other.is_set:
            return self.wait(seconds)
        other.is_set = True
        with nogil:
            PyThread_release_lock(other.lock)
            status = PyThread_acquire_lock_timed(self.lock, microseconds, 1)
        if status == PY_LOCK_ACQUIRED:
            self.is_set = False
            return True
        if status == PY_LOCK_INTR:
            PyErr_CheckSignals()
        return self.wait(deadline - gcp_monotonic())

    def __call__(self):
        """Ring."""
        self.set()

    def acquire(self, *, double timeout=-1):
        """Sleep until it rings; tell whether it has.

        :param timeout: seconds; -1: for ever
        """
        return self.wait(INFINITY if timeout < 0 else timeout)

    def release(self):
        """Ring."""
        self.set()


# --- event, of the core's own kind or of a test's ---

cdef int set_event(event) except -1:
    if type(event) is Event:
        (<Event>event).set()
    elif event is not None:
        event()
    return 0


cdef bint wait_for_event(event, double seconds) except -1:
    if type(event) is Event:
        return (<Event>event).wait(seconds)
    return event.acquire(timeout=-1 if seconds == INFINITY else seconds)


cdef bint set_and_wait(other, event, double seconds) except -1:
    """Wake somebody, and sleep: see `Event.wait_after`."""
    if type(other) is Event and type(event) is Event and seconds > 0:
        return (<Event>event).wait_after(<Event>other, seconds)
    set_event(other)
    return seconds > 0 and wait_for_event(event, seconds)
