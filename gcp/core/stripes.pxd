# Stripes: the parts of the endpoints that idle hits change without the other locks (see platform, and `stripe_t`). With
# the GIL there is one.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from gcp.core.histogram cimport add_histogram, histogram_t
from gcp.core.platform cimport GCP_STRIPES, gcp_stripe
from gcp.core.state cimport endpoint_t, pool_t, slot_t, stripe_t
from gcp.core.table cimport table_find


cdef inline stripe_t* stripe_of(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Return the stripe of an endpoint."""
    return &pool.stripes[gcp_stripe(ep.key)]


cdef inline uint64_t new_lease_number(stripe_t* stripe) noexcept nogil:
    """Return a number that no other use of the pool's connections has, had or will have; not 0."""
    stripe.leases += GCP_STRIPES
    return stripe.leases


cdef inline Py_ssize_t count_idle(pool_t* pool) noexcept nogil:
    """Return how many connections are idle."""
    cdef Py_ssize_t n = 0
    cdef int i
    for i in range(GCP_STRIPES):
        n += pool.stripes[i].idle
    return n


cdef inline Py_ssize_t count_used(pool_t* pool) noexcept nogil:
    """Return how many connections are used."""
    cdef Py_ssize_t n = 0
    cdef int i
    for i in range(GCP_STRIPES):
        n += pool.stripes[i].used
    return n


cdef inline void add_use_times(pool_t* pool, histogram_t* to) noexcept nogil:
    """Add how long connections were used."""
    cdef int i
    for i in range(GCP_STRIPES):
        add_histogram(to, &pool.stripes[i].use)


cdef inline slot_t* find_held_slot(pool_t* pool, PyObject* conn) noexcept nogil:
    """Return the first used slot that has a connection, of whatever endpoint, or NULL."""
    cdef slot_t* s = NULL
    cdef int i
    for i in range(GCP_STRIPES):
        if s == NULL:
            s = <slot_t*>table_find(&pool.stripes[i].held, conn)
    return s
