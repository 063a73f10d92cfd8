# Events: what listeners are told of. A transition queues them; the pool's listener thread takes them (see events.pyx).
# The function that queues is asked for by its address (`pool_t.note`), which is NULL without listeners.

from cpython.object cimport PyObject

from gcp.core.state cimport CONNECTION_ACQUIRED, CONNECTION_RELEASED, event_t, pool_t

cdef extern from "Python.h":
    void gcp_own "Py_INCREF" (PyObject*) noexcept nogil

cdef enum:
    MAX_EVENTS = 1024
    WAKE_LISTENERS = 2


cdef inline bint tells_acquires(pool_t* pool) noexcept nogil:
    """Whether a listener is told of each acquire, those of idle connections included."""
    return pool.wanted >> <int>CONNECTION_ACQUIRED & 1


cdef inline bint tells_releases(pool_t* pool) noexcept nogil:
    """Whether a listener is told of each release."""
    return pool.wanted >> <int>CONNECTION_RELEASED & 1


cdef inline void queue_event(pool_t* pool, int kind, PyObject* about, int detail) noexcept nogil:
    """Queue an event if a listener wants to be told of it. If too many are queued it is dropped, and counted."""
    cdef event_t* event
    if not pool.wanted >> kind & 1:
        return
    if not pool.wake_collector:
        pool.wake_collector = WAKE_LISTENERS
    if pool.n_events == MAX_EVENTS:
        pool.metrics.listener_events_dropped += 1
        return
    event = &pool.events[pool.n_events]
    pool.n_events += 1
    event.kind = kind
    event.detail = detail
    event.about = about
    gcp_own(about)
