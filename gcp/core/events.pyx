# Events: what listeners are told of. Transitions queue them (see events.pxd), the pool's listener thread takes them
# from there. Without listeners nothing is queued.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from gcp.core.events cimport MAX_EVENTS, WAKE_LISTENERS, queue_event, tells_acquires
from gcp.core.platform cimport (
    gcp_is_finalizing, gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer, gcp_write,
)
from gcp.core.screening cimport update_screening
from gcp.core.state cimport BREAKER_CHANGED, CONNECTION_CLOSED, CONNECTION_LEAKED, event_t, pool_t
from gcp.core.stripes cimport count_idle, count_used

# The methods of `gcp.PoolListener`, in the order of `event_kind`.
EVENTS = ('on_created', 'on_closed', 'on_acquired', 'on_released', 'on_timeout', 'on_breaker', 'on_leak')


cdef extern from "Python.h":
    int PyErr_ResourceWarning(object source, Py_ssize_t stack_level, const char* format, ...) except -1


cdef int wake_threads(Core core) except -1:
    """Wake the collector, the listener thread, or both."""
    cdef bint collector, listeners
    gcp_lock(&core.mutex)
    collector = core.pool.wake_collector != 0 and core.pool.wake_collector != WAKE_LISTENERS
    listeners = core.pool.n_events > 0
    core.pool.wake_collector = False
    gcp_unlock(&core.mutex)
    if listeners and core.listener_thread is not None:
        core.listener_thread.wake()
    return wake_collector(core) if collector else 0


cdef int wake_collector(Core core) except -1:
    """A caller leaves victims behind, because a signal came or an error: the collector, if there is one, looks."""
    waker = collector_waker(core)
    if waker is not None:
        waker()
    return 0


cdef bint begin_hit(Core core) except -1:
    """Before an idle hit of a pool that needs a look first. Returns whether it has to go the long way."""
    cdef bint tells
    core.prepare('acquire')
    gcp_lock_outer(&core.mutex)
    tells = tells_acquires(&core.pool)
    gcp_unlock_outer(&core.mutex)
    return tells


cdef void forget_events(pool_t* pool):
    """Free the queue of events."""
    cdef event_t* events = pool.events
    cdef int n = pool.n_events
    cdef int i
    pool.note = NULL
    pool.events = NULL
    pool.n_events = 0
    for i in range(n):
        Py_DECREF(<object>events[i].about)
    PyMem_RawFree(events)


def listen(Core core, kinds):
    """Have events of these kinds queued from now on, and no others.

    :param kinds: some of `EVENTS`
    """
    cdef pool_t* pool = &core.pool
    cdef unsigned int wanted = 0
    cdef event_t* events = <event_t*>PyMem_RawMalloc(MAX_EVENTS * sizeof(event_t))
    if events == NULL:
        raise MemoryError
    for kind in kinds:
        wanted |= 1 << <int>EVENTS.index(kind)
    gcp_lock(&core.mutex)
    if pool.events == NULL:
        pool.events, events = events, NULL
    pool.wanted = wanted
    pool.note = NULL
    if wanted:
        pool.note = queue_event
    gcp_write(&pool.pending, True)      # looked at before the next transition
    update_screening(pool)
    gcp_unlock(&core.mutex)
    PyMem_RawFree(events)


def has_events(Core core):
    """Return whether events are queued."""
    cdef bint queued
    gcp_lock_outer(&core.mutex)
    queued = core.pool.n_events > 0
    gcp_unlock_outer(&core.mutex)
    return queued


def take_events(Core core):
    """Take the events that are queued: a list of ``(method's name, arguments)``, in the order of the events."""
    cdef pool_t* pool = &core.pool
    cdef list taken = []
    cdef event_t* events
    cdef int n, i
    if not has_events(core):
        return taken
    events = <event_t*>PyMem_RawMalloc(MAX_EVENTS * sizeof(event_t))
    if events == NULL:
        raise MemoryError
    gcp_lock(&core.mutex)
    n = pool.n_events
    pool.n_events = 0
    pool.events, events = events, pool.events
    gcp_unlock(&core.mutex)
    try:
        for i in range(n):
            taken.append((EVENTS[events[i].kind], arguments_of(&events[i])))
    finally:
        for i in range(n):
            Py_DECREF(<object>events[i].about)
        PyMem_RawFree(events)
    return taken


cdef tuple arguments_of(event_t* event):
    about = <object>event.about
    if event.kind == CONNECTION_CLOSED:
        return about, REASONS[event.detail]
    if event.kind == BREAKER_CHANGED:
        return about, bool(event.detail)
    return about,


def tell_leak(Core core, holder):
    """Queue the event of a leak."""
    gcp_lock(&core.mutex)
    if core.pool.note != NULL:
        core.pool.note(&core.pool, CONNECTION_LEAKED, <PyObject*>holder, 0)
    gcp_unlock(&core.mutex)
    core.after()


def count_listener_error(Core core):
    """Count a call of a listener that has raised."""
    gcp_lock_outer(&core.mutex)
    core.pool.metrics.listener_errors += 1
    gcp_unlock_outer(&core.mutex)


cdef class ListenedPool(PoolView):
    """The part of a pool that tells others: listeners of what happens, and its owner that it was not closed."""
    cdef public object _make_listener_thread    # makes a `gcp.listener_thread.ListenerThread`

    def add_listener(self, listener):
        """Have a listener told of what happens in the pool from now on, in the pool's listener thread. One that was
        added before is not added again.

        :param listener: a ``gcp.PoolListener``
        :raises TypeError: if it is none, or if one of its methods is a coroutine function
        """
        if self._core.listener_thread is None:
            made = self._make_listener_thread(self)
            gcp_lock_outer(&self._core.mutex)
            if self._core.listener_thread is None:
                self._core.listener_thread = made
            gcp_unlock_outer(&self._core.mutex)
        self._core.listener_thread.add(listener)

    def remove_listener(self, listener):
        """Have a listener told no more; a call in progress may still end. Does nothing for one that was not added.

        :param listener: what `add_listener` was given
        """
        if self._core.listener_thread is not None:
            self._core.listener_thread.remove(listener)

    def __del__(self):
        cdef pool_t* pool = &self._core.pool
        cdef Py_ssize_t left
        gcp_lock(&self._core.mutex)
        left = 0 if pool.closed else count_idle(pool) + count_used(pool) + pool.creating
        gcp_unlock(&self._core.mutex)
        if left > 0 and not gcp_is_finalizing():
            PyErr_ResourceWarning(
                self, 1, b'pool %U was dropped without close(): %zd connections are left', <PyObject*>self.name, left)
