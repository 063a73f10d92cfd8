# What is looked at outside a transition: one thing each, under the lock. It may be different by the time that the
# caller acts on it, so a transition looks again.

from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_empty
from gcp.core.state cimport OPEN, USED, base_size, cap, pool_t, suspension, taken
from gcp.core.stripes cimport find_held_slot


# --- a pool ---

cdef inline bint was_closed(Core core) noexcept nogil:
    cdef bint closed
    gcp_lock_outer(&core.mutex)
    closed = core.pool.closed
    gcp_unlock_outer(&core.mutex)
    return closed


cdef inline bint has_victims(Core core) noexcept nogil:
    cdef bint found
    gcp_lock_outer(&core.mutex)
    found = not ring_empty(&core.pool.victims)
    gcp_unlock_outer(&core.mutex)
    return found


cdef inline Py_ssize_t count_disposing(Core core) noexcept nogil:
    cdef Py_ssize_t n
    gcp_lock_outer(&core.mutex)
    n = core.pool.disposing
    gcp_unlock_outer(&core.mutex)
    return n


cdef inline bint has_abandoned(Core core) noexcept nogil:
    """Whether finalizers have left something."""
    cdef pool_t* pool = &core.pool
    cdef bint found
    gcp_lock_outer(&core.mutex)
    found = pool.abandoned_slots != NULL or pool.abandoned_waiters != NULL or pool.abandoned_permits
    gcp_unlock_outer(&core.mutex)
    return found


cdef double connect_limit(Core core) noexcept:
    """Return how long a connect may take, seconds."""
    cdef double limit
    gcp_lock_outer(&core.mutex)
    limit = core.pool.connect_timeout
    gcp_unlock_outer(&core.mutex)
    return limit


cdef bint has_connect_workers(Core core) noexcept:
    """Whether connections are created in the background."""
    cdef bint found
    gcp_lock_outer(&core.mutex)
    found = core.pool.connect_workers != 0
    gcp_unlock_outer(&core.mutex)
    return found


cdef bint counts_leaks(Core core) noexcept:
    cdef bint counts
    gcp_lock_outer(&core.mutex)
    counts = core.pool.leak_after < INFINITY
    gcp_unlock_outer(&core.mutex)
    return counts


cdef bint retries(Core core) noexcept:
    """Whether failed connects are tried again."""
    cdef bint again
    gcp_lock_outer(&core.mutex)
    again = core.pool.retries
    gcp_unlock_outer(&core.mutex)
    return again


cdef Py_ssize_t count_endpoints(Core core) noexcept nogil:
    """Return how many endpoints a pool knows. There may be more at any time."""
    cdef Py_ssize_t n
    gcp_lock_outer(&core.mutex)
    n = core.pool.n_endpoints
    gcp_unlock_outer(&core.mutex)
    return n


# --- an endpoint ---

cdef inline bint is_listed(Core core, Endpoint ep) noexcept nogil:
    """Whether a record is that of an endpoint which the pool knows. It may be dropped at any time."""
    cdef bint listed
    gcp_lock_outer(&core.mutex)
    listed = ep.e.listed
    gcp_unlock_outer(&core.mutex)
    return listed


cdef bint is_retiring(Core core, Endpoint ep) noexcept:
    cdef bint retiring
    gcp_lock_outer(&core.mutex)
    retiring = ep.e.retiring
    gcp_unlock_outer(&core.mutex)
    return retiring


cdef bint is_suspended_now(Core core, Endpoint ep) noexcept:
    cdef bint suspended
    gcp_lock_outer(&core.mutex)
    suspended = suspension(&core.pool, &ep.e) != OPEN
    gcp_unlock_outer(&core.mutex)
    return suspended


cdef bint frees_places(Core core, Endpoint ep) noexcept:
    """Whether places of an endpoint become free soon, by disposals."""
    cdef bint soon
    gcp_lock_outer(&core.mutex)
    soon = ep.e.reserved + ep.e.disposing > 0
    gcp_unlock_outer(&core.mutex)
    return soon


cdef tuple limits_now(Core core, Endpoint ep):
    """Return the limits of an endpoint: ``(max_size, min_idle)``."""
    gcp_lock_outer(&core.mutex)
    found = cap(&ep.e), base_size(&ep.e)
    gcp_unlock_outer(&core.mutex)
    return found


# --- an acquire, a slot ---

cdef int state_of(Acquire acquire) noexcept:
    """Return the state of an acquire that may be served at any time."""
    cdef int state
    gcp_lock_outer(&acquire.core.mutex)
    state = acquire.w.state
    gcp_unlock_outer(&acquire.core.mutex)
    return state


cdef bint has_taken_all(Acquire acquire) noexcept:
    """Whether all places of an acquire's endpoint are taken."""
    cdef bint all_taken
    gcp_lock(&acquire.core.mutex)
    all_taken = taken(&acquire.ep.e) >= cap(&acquire.ep.e)
    gcp_unlock(&acquire.core.mutex)
    return all_taken


cdef object conn_in(Core core, Slot slot):
    """Return the connection of a slot, or None: it was disposed of."""
    gcp_lock_outer(&core.mutex)
    conn = slot.conn
    gcp_unlock_outer(&core.mutex)
    return conn


cdef object created_by(Core core, Slot slot):
    """Return the span in which a connection was created, or None."""
    gcp_lock_outer(&core.mutex)
    span = slot.created_by
    gcp_unlock_outer(&core.mutex)
    return span


cdef bint was_forced(Core core, Slot slot) noexcept:
    """Whether a retirement took a slot from its holder."""
    cdef bint forced
    gcp_lock(&core.mutex)
    forced = slot.s.forced
    gcp_unlock(&core.mutex)
    return forced


cdef bint is_use(Core core, Slot slot, uint64_t lease) noexcept:
    """Whether a use has not ended, and its release has not begun."""
    cdef bint lasts
    gcp_lock(&core.mutex)
    lasts = slot.s.lease == lease and slot.s.state == USED
    gcp_unlock(&core.mutex)
    return lasts


cdef bint is_held_anywhere(Core core, conn) noexcept:
    """Whether a connection is held, of whatever endpoint."""
    cdef bint found
    gcp_lock(&core.mutex)
    found = find_held_slot(&core.pool, <PyObject*>conn) != NULL
    gcp_unlock(&core.mutex)
    return found
