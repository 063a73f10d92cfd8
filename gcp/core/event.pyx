# Events: what a thread waits on until another thread sets it. Waiting and setting enter no Python frame: at a hand-off
# the waiter's time is the connection's idle time.

from gcp.core.clock cimport gcp_monotonic
from gcp.core.platform cimport gcp_read, gcp_swap, gcp_write


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
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef enum:
    LONGEST_WAIT = 1_000_000    # seconds: every platform can count so many in microseconds
    # seconds: the same for the main thread. A signal that comes just before it begins to wait, or to another thread,
    # does not interrupt it: its handler runs when the main thread looks again
    SIGNAL_WAIT = 1


cdef unsigned long main_thread = 0


def set_main_thread(unsigned long ident):
    """Say which thread runs signal handlers. A forked child sets it itself.

    :param ident: its `threading.get_ident`
    """
    global main_thread
    main_thread = ident


cdef inline double longest_wait() noexcept:
    return SIGNAL_WAIT if PyThread_get_thread_ident() == main_thread else LONGEST_WAIT


@cython.final
cdef class Event:
    """An event for one waiter. A wait that succeeds clears it; setting it twice is the same as once.

    It is a lock that is held while the event is not set, so that it needs neither a condition nor a Python frame."""
    cdef PyThread_type_lock lock
    cdef bint is_set
    cdef bint has_waiter    # between the first and the last line of `wait`

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

    cpdef void set(self) noexcept:
        """Wake the waiter, or the next one."""
        if not gcp_swap(&self.is_set, True):
            PyThread_release_lock(self.lock)

    def __call__(self):
        self.set()

    cpdef bint wait(self, double seconds=INFINITY) except -1:
        """Wait until the event is set, and clear it. Signal handlers run meanwhile, and may raise.

        :param seconds: how long to wait at most; ``inf``: without a limit
        :return: whether it was set
        """
        cdef double deadline = gcp_monotonic() + seconds
        cdef double longest = longest_wait()
        cdef long long microseconds
        cdef PyLockStatus status
        gcp_write(&self.has_waiter, True)
        try:
            while True:
                microseconds = <long long>(min(seconds, longest) * 1e6) + 1 if seconds > 0 else 0
                with nogil:
                    status = PyThread_acquire_lock_timed(self.lock, microseconds, 1)
                if status == PY_LOCK_ACQUIRED:
                    gcp_write(&self.has_waiter, False)  # before: `awaited` is never true of one that was woken
                    gcp_swap(&self.is_set, False)       # who sets it after this wakes the next wait
                    return True
                if status == PY_LOCK_INTR or seconds > longest:
                    PyErr_CheckSignals()
                seconds = deadline - gcp_monotonic()
                if seconds <= 0:
                    return False
        finally:
            gcp_write(&self.has_waiter, False)

    @property
    def awaited(self):
        """Whether a thread waits for it at this moment, and has not been woken. (A bool.)"""
        return gcp_read(&self.has_waiter) and not gcp_read(&self.is_set)

    cdef bint wait_after_setting(self, Event other, double seconds) except -1:
        """Set another event, and wait for this one. The other is set after the GIL was released: a thread that wakes
        before that would only block on the GIL."""
        cdef double deadline = gcp_monotonic() + seconds
        cdef double longest = longest_wait()
        cdef long long microseconds = <long long>(min(seconds, longest) * 1e6) + 1
        cdef PyLockStatus status
        if gcp_swap(&other.is_set, True):
            return self.wait(seconds)
        with nogil:
            PyThread_release_lock(other.lock)
            status = PyThread_acquire_lock_timed(self.lock, microseconds, 1)
        if status == PY_LOCK_ACQUIRED:
            gcp_swap(&self.is_set, False)
            return True
        if status == PY_LOCK_INTR or seconds > longest:
            PyErr_CheckSignals()
        return self.wait(deadline - gcp_monotonic())


# --- events of any kind: the core's, an event loop's, or a test's ---

cdef int set_event(event) except -1:
    if type(event) is Event:
        (<Event>event).set()
    elif event is not None:
        event()
    return 0


cdef bint wait_for_event(event, double seconds) except -1:
    if type(event) is Event:
        return (<Event>event).wait(seconds)
    return event.wait(seconds)


cdef bint set_and_wait(other, event, double seconds) except -1:
    """Set one event and wait for another: see `Event.wait_after_setting`."""
    if type(other) is Event and type(event) is Event and seconds > 0:
        return (<Event>event).wait_after_setting(<Event>other, seconds)
    set_event(other)
    return seconds > 0 and wait_for_event(event, seconds)
