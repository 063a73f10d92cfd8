# Permits: which connects may begin. The caps on places are another matter.

from gcp.core.state cimport endpoint_t, first_waiter, pool_t


cdef inline bint has_to_delay(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether a failing endpoint may not connect now: it is not yet time for the next attempt, or one is in progress."""
    return ep.delayed and (ep.creating + ep.reserved > 0 or pool.now < ep.retry_at)


cdef inline bint endpoint_may_connect(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint may begin one more connect, as far as it is concerned. A reservation counts as a connect."""
    return ep.creating + ep.reserved < pool.max_connecting and not has_to_delay(pool, ep)


cdef inline bint pool_may_connect(pool_t* pool) noexcept nogil:
    """Whether the limits of all connects leave room for one more."""
    return pool.creating + pool.reserved < pool.max_connecting_total and (
        not pool.connect_workers or pool.jobs + pool.reserved < pool.connect_workers)


cdef inline bint may_connect(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint may begin one more connect now."""
    return endpoint_may_connect(pool, ep) and pool_may_connect(pool)


cdef inline void call_timekeeper(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """See to it that one waiter of a failing endpoint looks again when its next connect is due."""
    if not ep.waiting or ep.timekeeper != NULL or ep.creating + ep.reserved > 0:
        return
    ep.timekeeper = first_waiter(ep)
    if not ep.in_called:
        ep.in_called = True
        ep.next_called = pool.called
        pool.called = ep
