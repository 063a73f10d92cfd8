# Closing: the transitions that end a pool.

from gcp.core.connects cimport drop_unbegun, turn_away_waiters
from gcp.core.histogram cimport N_AGE_BOUNDS, N_USE_BOUNDS, gcp_ages, gcp_seconds, observe
from gcp.core.ring cimport ring_t
from gcp.core.scheduling cimport longest_idle, make_victim, note_if_empty, remove_idle, update_blocked
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    DISCARDED, POOL_CLOSED, TO_DISPOSAL, TURNED_AWAY, endpoint_link, endpoint_t, pool_t, slot_in_endpoint, slot_t,
)
from gcp.core.stripes cimport stripe_of
from gcp.core.transitions cimport take_from_holders


cdef inline void close_pool(pool_t* pool) noexcept nogil:
    """Turn every waiter away, and make every idle connection a victim."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    cdef slot_t* s
    pool.closed = True
    update_screening(pool)
    pool.wake_background = True
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        turn_away_waiters(pool, ep, TURNED_AWAY)
        drop_unbegun(pool, ep)
        update_blocked(pool, ep)
        note_if_empty(pool, ep)
    while True:
        s = longest_idle(pool)
        if s == NULL:
            break
        remove_idle(pool, s)
        make_victim(pool, s, POOL_CLOSED)


cdef inline void force_close(pool_t* pool) noexcept nogil:
    """Take every acquired connection from its holder."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        take_from_holders(pool, ep, POOL_CLOSED)


cdef inline void write_off(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Count an endpoint's connections as closed, after their pool has become garbage.

    Their ages and uses end with the last transition.
    """
    cdef int i
    cdef ring_t* ring
    cdef ring_t* node
    cdef slot_t* s
    for i in range(3):
        ring = &ep.base if i == 0 else &ep.extras if i == 1 else &ep.used
        node = ring.next
        while node != ring:
            s = slot_in_endpoint(node)
            node = node.next
            ep.counters.closed[<int>DISCARDED] += 1
            observe(&pool.metrics.age, gcp_ages, N_AGE_BOUNDS, pool.now - s.born)
            if s.acquired:
                ep.counters.releases[<int>TO_DISPOSAL] += 1
                observe(&stripe_of(pool, ep).use, gcp_seconds, N_USE_BOUNDS, pool.now - s.since)
