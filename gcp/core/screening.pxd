# Screening: what a release has to look at only now and then. It is asked for by its address (`pool_t.screen`), which is
# NULL where no released connection can be of no use any more, so that it costs other releases one comparison.

from libc.stdint cimport uint64_t

from gcp.core.events cimport tells_releases
from gcp.core.permits cimport note_drained
from gcp.core.reserve cimport end_preferred, may_serve
from gcp.core.state cimport (
    CONNECTION_RELEASED, EVICTED, MAX_USES, N_REASONS, POOL_CLOSED, cap, endpoint_t, held, pool_t, slot_t,
)


cdef enum:
    HELD_BACK = N_REASONS + 1       # a released connection may be used again, but not by the first waiter


cdef inline void smooth(double* mean, double value) noexcept nogil:
    """Update an exponential moving average; the first value is taken as it is."""
    mean[0] += (value - mean[0]) * (0.2 if mean[0] > 0 else 1.0)


cdef inline bint exceeds_a_cap(pool_t* pool, slot_t* s) noexcept nogil:
    """Whether more connections than allowed live, with this slot, which is in no ring: a cap was lowered. Places of
    connections that are being disposed of become free anyway."""
    if s.ep.over:
        if held(s.ep) + 1 > cap(s.ep):
            return True
        s.ep.over = False
        pool.n_over -= 1
    if pool.over:
        if pool.size - pool.disposing > pool.total_max_size:
            return True
        pool.over = False
    return False


cdef inline int screen(pool_t* pool, slot_t* s, double now, bint acquired) noexcept nogil:
    """Return why a slot that was released and is in no ring is not used again, or N_REASONS, or HELD_BACK. Measure its
    use, and queue the event for those who listen to releases."""
    if acquired and pool.note != NULL:
        pool.note(pool, CONNECTION_RELEASED, s.ep.key, 0)
    end_preferred(s)
    note_drained(pool, s.ep)
    if pool.closed:
        return POOL_CLOSED
    if acquired and (pool.admits_by_deadline or pool.sharing):
        smooth(&s.ep.use_time, now - s.since)
    if pool.max_uses and s.uses + acquired >= <uint64_t>pool.max_uses:
        return MAX_USES
    if exceeds_a_cap(pool, s):
        return EVICTED
    update_screening(pool)
    return HELD_BACK if s.ep.waiting and not may_serve(pool, s.ep) else N_REASONS


cdef inline void update_screening(pool_t* pool) noexcept nogil:
    """Have released connections screened where one may be of no use any more, where its use is measured, where a caller
    waits until none is held, where there are places for acquires with a priority, or where a listener is told."""
    cdef bint asked = (
        pool.closed or pool.over or pool.n_over or pool.max_uses or pool.admits_by_deadline or pool.drains
        or pool.sharing or pool.reserves or (pool.note != NULL and tells_releases(pool))
    )
    if asked:
        pool.screen = screen
    else:
        pool.screen = NULL


cdef inline void forget_over(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Note that an endpoint holds no more than its cap."""
    if ep.over:
        ep.over = False
        pool.n_over -= 1
