# Permits: which connects may begin, as far as limits of connects and earlier failures are concerned, and which
# endpoints are to be refilled.

from libc.stdint cimport uint64_t

from gcp.core.ring cimport ring_empty, ring_insert
from gcp.core.state cimport OPEN, base_size, endpoint_t, first_waiter, held, pool_t, suspension


cdef inline bint has_to_delay(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether a failing endpoint may not connect now: it is too early for the next attempt, or one is in progress."""
    return ep.delayed and (ep.creating + ep.reserved > 0 or pool.now < ep.retry_at)


cdef inline bint endpoint_may_connect(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint may begin one more connect, as far as it is concerned. A reservation counts as a connect."""
    return (
        ep.creating + ep.reserved < pool.max_connecting and not has_to_delay(pool, ep)
        and suspension(pool, ep) == OPEN
    )


cdef inline bint pool_may_connect(pool_t* pool) noexcept nogil:
    """Whether the limits of all connects leave room for one more."""
    return pool.creating + pool.reserved < pool.max_connecting_total and (
        not pool.connect_workers or pool.jobs + pool.reserved < pool.connect_workers)


cdef inline bint may_connect(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint may begin one more connect now. The caps on places are another matter."""
    return endpoint_may_connect(pool, ep) and pool_may_connect(pool)


cdef inline bint can_use_reservation(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint may begin the connect for which it has a reservation: its connects may have failed since."""
    if suspension(pool, ep) != OPEN:
        return False
    return not ep.delayed or (ep.creating == 0 and pool.now >= ep.retry_at)


cdef inline void call_timekeeper(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """See to it that one waiter of a failing endpoint looks again when its next connect is due."""
    if not ep.waiting or ep.timekeeper != NULL or ep.creating + ep.reserved > 0:
        return
    ep.timekeeper = first_waiter(ep)
    if not ep.in_called:
        ep.in_called = True
        ep.next_called = pool.called
        pool.called = ep


cdef inline bint is_short(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint has fewer connections than a warm-up or a refill is to bring it to."""
    return held(ep) < ep.wanted or (ep.kept and pool.refills and held(ep) < base_size(ep))


cdef inline void note_short(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Note that an endpoint may have too few connections."""
    if (ep.kept or ep.wanted) and not pool.closed:
        if ring_empty(&ep.in_short) and is_short(pool, ep):
            ring_insert(&pool.short, &ep.in_short)
        pool.wake_background = True


cdef inline void note_room(pool_t* pool) noexcept nogil:
    """Note that a place has become free: an endpoint that has too few connections may use it."""
    if not ring_empty(&pool.short):
        pool.wake_background = True


# --- what was opened before it was expired ---

cdef inline void count_stale(pool_t* pool, endpoint_t* ep, Py_ssize_t more) noexcept nogil:
    """Count what was opened before it was expired and is not gone, and tell those who wait for the last one."""
    ep.stale += more
    pool.stale += more
    if ep.stale == 0:
        pool.wake_background = True


cdef inline void end_stale_connect(pool_t* pool, endpoint_t* ep, uint64_t expiries) noexcept nogil:
    """A connect has ended without a connection.

    :param expiries: those of its endpoint when it was permitted
    """
    if ep.stale_connects and expiries < ep.expiries:
        ep.stale_connects -= 1
        count_stale(pool, ep, -1)


cdef inline void limit_stale_connects(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Connects were dropped, and it is not known which: no more can have begun before than are in progress."""
    while ep.stale_connects > ep.creating - ep.unbegun:
        ep.stale_connects -= 1
        count_stale(pool, ep, -1)


# --- suspended endpoints that hold no connection any more ---

cdef inline void note_drained(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Tell those who wait until suspended endpoints hold no connection, if that may be so now."""
    if pool.drains and ep.n_used + ep.creating == 0 and suspension(pool, ep) != OPEN:
        pool.wake_background = True
        pool.wake_collector = True      # so that a release looks what it has left to do
