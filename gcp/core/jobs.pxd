# Jobs: the transitions of what is done in the background. A worker asks what is to be done; that follows from the state
# of the pool: an endpoint has more waiters than connects in progress, a kept endpoint has too few connections, an idle
# connection is due to be checked. There is no queue of requests, so what is no longer needed is not begun.

from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from gcp.core.checks cimport next_check_at
from gcp.core.connects cimport (
    connect_failed, connect_succeeded, delay_after, drop_unbegun, end_lives, return_job, turn_away_waiters,
)
from gcp.core.permits cimport end_stale_connect, is_short, note_drained, note_room, note_short, pool_may_connect
from gcp.core.platform cimport random_fraction
from gcp.core.reserve cimport may_serve
from gcp.core.ring cimport ring_empty, ring_insert, ring_remove, ring_t
from gcp.core.scheduling cimport (
    add_idle, dequeue, evict_for, hand_off, make_victim, note_if_empty, serve_blocked, update_blocked, wake,
)
from gcp.core.state cimport (
    EXPIRED, FAILED, OPEN, POOL_CLOSED, REFUSED, RETIRED, cap, endpoint_short, endpoint_t, endpoint_unbegun,
    first_waiter, neediest, pool_t, slot_t, suspension, taken, waiter_node, waiter_t,
)
from gcp.core.transitions cimport enter_connection


cdef enum:
    MOST_JOBS = 32      # connects in the background at a time, where `connect_workers` does not say


# --- connects ---

cdef inline void give_back_job(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """End a connect without a connection, or before it has begun."""
    return_job(pool, ep)
    give_back(pool, ep)


cdef inline void give_back(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Use the place that a connect has left."""
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_short(pool, ep)
    note_room(pool)
    note_if_empty(pool, ep)


cdef inline bint may_refill(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an endpoint that has too few connections has room for one more, time aside. Nothing is evicted for it and
    waiters come first. After a connect that failed, one is tried at a time."""
    return (
        suspension(pool, ep) == OPEN
        and taken(ep) < cap(ep) and pool.size < pool.total_max_size and pool.blocked.n == 0 and pool_may_connect(pool)
        and (pool.connect_workers or pool.jobs < MOST_JOBS) and ep.creating + ep.reserved < pool.max_connecting
        and (ep.creating + ep.reserved == 0 or (ep.refill_steps == 0 and not ep.delayed))
    )


cdef inline double refill_due(endpoint_t* ep) noexcept nogil:
    """Return before when no refill of an endpoint begins: one schedule holds for all its connects, if it has one."""
    return ep.retry_at if ep.delayed else ep.refill_at


cdef inline endpoint_t* begin_refill(pool_t* pool) noexcept nogil:
    """Take the permit for a connection that an endpoint lacks. Return the endpoint, or NULL."""
    cdef ring_t* node = pool.short.next
    cdef endpoint_t* ep
    while node != &pool.short:
        ep = endpoint_short(node)
        node = node.next
        if not is_short(pool, ep):
            ring_remove(&ep.in_short)
        elif may_refill(pool, ep) and pool.now >= refill_due(ep):
            ep.jobs += 1
            pool.jobs += 1
            ep.creating += 1
            pool.creating += 1
            pool.size += 1
            if not is_short(pool, ep):
                ring_remove(&ep.in_short)
            update_blocked(pool, ep)
            return ep
    return NULL


cdef inline endpoint_t* begin_connect(pool_t* pool) noexcept nogil:
    """Begin a connect in the background. Return its endpoint, or NULL: none is needed. Those granted to waiters that
    are gone meanwhile are dropped."""
    cdef endpoint_t* ep
    while not ring_empty(&pool.unbegun):
        ep = endpoint_unbegun(pool.unbegun.next)
        ep.unbegun -= 1
        if ep.unbegun == 0:
            ring_remove(&ep.in_unbegun)
        if ep.jobs <= ep.waiting:
            return ep
        give_back_job(pool, ep)
    return begin_refill(pool)


cdef inline waiter_t* waiter_of_job(endpoint_t* ep) noexcept nogil:
    """Return the waiter on whose behalf the connect that begins now is made, or NULL: the oldest that no other is."""
    cdef ring_t* node = ep.queue.next
    cdef int before = ep.jobs - ep.unbegun - 1
    while before > 0 and node != &ep.queue:
        node = node.next
        before -= 1
    return NULL if node == &ep.queue else waiter_node(node)


cdef inline void put_off_job(pool_t* pool, endpoint_t* ep, uint64_t expiries) noexcept nogil:
    """End a connect that was not begun, because its endpoint was suspended."""
    end_stale_connect(pool, ep, expiries)
    give_back_job(pool, ep)


cdef inline void book_job(
    pool_t* pool, endpoint_t* ep, slot_t* s, double now, double took, uint64_t expiries
) noexcept nogil:
    """Turn the permit of a connect in the background into a connection: for the oldest waiter, or idle."""
    cdef waiter_t* w
    enter_connection(pool, ep, s, now, took, expiries)
    ep.jobs -= 1
    pool.jobs -= 1
    ep.refill_steps = 0
    ep.refill_at = 0
    if pool.closed or ep.retiring:
        make_victim(pool, s, POOL_CLOSED if pool.closed else RETIRED)
    elif s.stale:
        make_victim(pool, s, EXPIRED)
    elif ep.waiting and suspension(pool, ep) == OPEN and may_serve(pool, ep):
        w = first_waiter(ep)
        s.fresh = True
        hand_off(pool, s, now)
        w.fresh = True
    elif pool.blocked.n and pool.size >= pool.total_max_size and pool_may_connect(pool):
        evict_for(pool, s, neediest(pool))
    else:
        add_idle(pool, s, now)
    note_drained(pool, ep)
    connect_succeeded(pool, ep)
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_room(pool)


cdef inline void set_refill(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Compute when the next refill of an endpoint begins, after one that failed."""
    cdef double luck = random_fraction(&pool.random)
    ep.refill_at = ep.refilled_at + delay_after(pool, ep.refill_steps) * (1.0 - pool.retry_jitter * luck)


cdef inline void delay_refill(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Have the next refill of an endpoint wait, after one that failed."""
    ep.refill_steps += 1
    ep.refilled_at = pool.now
    set_refill(pool, ep)
    if refill_due(ep) < pool.collector_wakes_at:
        pool.wake_collector = True


cdef inline void fail_job(pool_t* pool, endpoint_t* ep, bint counts, bint permanent) noexcept nogil:
    """End a connect in the background that has failed.

    :param counts: whether that says something about the endpoint
    :param permanent: as for `connect_failed`
    """
    return_job(pool, ep)
    if counts:
        connect_failed(pool, ep, permanent)
    delay_refill(pool, ep)
    give_back(pool, ep)


cdef inline waiter_t* fail_waiter(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """End the wait of an endpoint's oldest waiter: the connect that was to serve it has failed."""
    cdef waiter_t* w = first_waiter(ep)
    dequeue(pool, w)
    wake(pool, w, FAILED)
    return w


# --- when there is something to do ---

cdef inline double next_job_at(pool_t* pool) noexcept nogil:
    """Return when there is something to do in the background that no other event tells of; inf: there is nothing."""
    cdef double when
    cdef ring_t* node = pool.short.next
    cdef endpoint_t* ep
    if pool.closed:
        return INFINITY
    when = next_check_at(pool)
    while node != &pool.short:
        ep = endpoint_short(node)
        node = node.next
        if refill_due(ep) < when and is_short(pool, ep) and may_refill(pool, ep):
            when = refill_due(ep)
    return when


cdef inline void note_time(pool_t* pool) noexcept nogil:
    """Have the collector wake when there is something to do again, if nothing else wakes then."""
    if next_job_at(pool) < pool.collector_wakes_at:
        pool.wake_collector = True


# --- kept and retired endpoints ---

cdef inline void keep(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Have an endpoint keep its `min_idle` connections."""
    ep.kept = True
    note_short(pool, ep)


cdef inline void retire_endpoint(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Take no more acquires of an endpoint: its waiters are turned away, its idle connections become victims, the used
    ones will when they are released."""
    ep.retiring = True
    ep.kept = False
    ep.wanted = 0
    ring_remove(&ep.in_short)
    drop_unbegun(pool, ep)
    turn_away_waiters(pool, ep, REFUSED)
    end_lives(pool, ep, RETIRED)
    pool.wake_background = True
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_room(pool)
    note_if_empty(pool, ep)


cdef inline void end_retirement(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Forget that an endpoint was retired: it may be used again."""
    ep.retiring = False
    note_if_empty(pool, ep)
