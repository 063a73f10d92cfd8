# Looking for leaks: at all endpoints, but not before there can be a new one, and a few at a time, so that no other
# thread waits for long.

from gcp.core.leaks cimport find_leaks_of
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_t
from gcp.core.state cimport endpoint_link, endpoint_object, endpoint_t, pool_t, slot_in_endpoint, slot_object

cdef enum:
    LOOKED_AT = 1000        # endpoints at a time: about 0.1 ms


cdef ring_t* after_endpoint(pool_t* pool, Endpoint last) noexcept:
    """Return the node of the endpoint that was listed next after one, which may be gone by now. None: the first."""
    cdef ring_t* node = pool.endpoints.next
    if last is None:
        return node
    if last.e.listed:
        return last.e.link.next
    while node != &pool.endpoints and endpoint_link(node).listing <= last.e.listing:
        node = node.next
    return node


cdef void add_leaks(pool_t* pool, endpoint_t* e, list found):
    """Collect the connections of an endpoint that are held for longer than the threshold."""
    cdef ring_t* node = e.used.next
    while node != &e.used and pool.now - slot_in_endpoint(node).since > pool.leak_after:
        if slot_in_endpoint(node).acquired:
            found.append(<Slot>slot_object(slot_in_endpoint(node)))
        node = node.next


cdef int find_leaks(Core core, list found=None) except -1:
    """Count the uses that take longer than the threshold.

    :param found: what to collect them in; None: they are only counted, and it is known when the next may come
    """
    cdef pool_t* pool = &core.pool
    cdef Endpoint last = None
    cdef Endpoint ep = None         # the next one: what is last may die, but not within the lock
    cdef ring_t* node
    cdef Py_ssize_t _i
    cdef double now = core.now()
    cdef double again
    cdef bint due
    gcp_lock_outer(&core.mutex)
    due = pool.leak_after < INFINITY and (found is not None or now >= pool.leaks_at)
    again = now + pool.leak_after
    gcp_unlock_outer(&core.mutex)
    while due:
        gcp_lock(&core.mutex)
        pool.now = now
        node = after_endpoint(pool, last)
        for _i in range(LOOKED_AT):
            if node == &pool.endpoints:
                break
            again = min(again, find_leaks_of(pool, endpoint_link(node)))
            if found is not None:
                add_leaks(pool, endpoint_link(node), found)
            node = node.next
        if node == &pool.endpoints:
            pool.leaks_at = again
            due = False
        else:
            ep = <Endpoint>endpoint_object(endpoint_link(node.prev))
        gcp_unlock(&core.mutex)
        last = ep
        with nogil:
            pass            # let other threads run
    return 0
