# Connects: what follows from one that has ended, for its endpoint and for those that wait. An endpoint whose connects
# fail is delayed (one attempt at a time, the next one at `retry_at`), or broken (acquires without an idle connection
# fail at once, but for one that probes at `retry_at`), until a connect succeeds.

from libc.math cimport INFINITY, pow

from gcp.core.heap cimport heap_remove
from gcp.core.permits cimport count_stale, end_stale_connect
from gcp.core.platform cimport random_fraction
from gcp.core.reserve cimport count_permit, may_borrow
from gcp.core.ring cimport ring_empty, ring_insert, ring_remove, ring_t
from gcp.core.scheduling cimport (
    dequeue, dies_before, enqueue, longest_idle, make_victim, note_if_empty, remove_idle, serve_blocked, update_blocked,
    wake,
)
from gcp.core.sharing cimport connect_price
from gcp.core.state cimport (
    BREAKER_CHANGED, DONE, EXPIRED, FAILED, TURNED_AWAY, UNAVAILABLE, WAIT, endpoint_failing, endpoint_t, first_waiter,
    neediest, pool_t, slot_in_endpoint, slot_t, taken, waiter_t,
)

cdef enum:
    REMEMBERED = 60     # seconds for which the failures of an endpoint are remembered, at least


cdef inline bint is_probe(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an acquire that asks now is to find out whether an unavailable endpoint is back."""
    return pool.now >= ep.retry_at and ep.waiting == 0 and ep.creating + ep.reserved == 0


cdef inline void tell_breaker(pool_t* pool, endpoint_t* ep, bint opened) noexcept nogil:
    """Have listeners told that acquires of an endpoint which find no idle connection fail at once, or no longer do."""
    if pool.note != NULL:
        pool.note(pool, BREAKER_CHANGED, ep.key, opened)


cdef inline void forget_failures(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Let an endpoint connect as one whose connects have never failed."""
    if ep.broken:
        tell_breaker(pool, ep, False)
    ep.failures = 0
    ep.delayed = False
    ep.broken = False
    ep.retry_at = 0.0
    ep.retry_steps = 0
    ep.permanent = False
    ep.timekeeper = NULL
    ring_remove(&ep.in_failing)


cdef inline void forget_old_failures(pool_t* pool) noexcept nogil:
    """Forget the failures of endpoints that have not been asked for since: their records can be dropped."""
    cdef endpoint_t* ep
    while not ring_empty(&pool.failing):
        ep = endpoint_failing(pool.failing.next)
        if pool.now < ep.failed_at + max(<double>REMEMBERED, pool.retry_maximum):
            break
        if ep.waiting or taken(ep):
            ring_remove(&ep.in_failing)         # ask again later
            ring_insert(&pool.failing, &ep.in_failing)
            break
        forget_failures(pool, ep)
        ep.virtual = 0
        note_if_empty(pool, ep)


cdef inline void connect_succeeded(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """A connect has ended well. Its permit is given back already: the next waiters may connect."""
    if ep.failures:
        forget_failures(pool, ep)
    if pool.waiting:
        update_blocked(pool, ep)
        serve_blocked(pool)


cdef inline double delay_after(pool_t* pool, int steps) noexcept nogil:
    """Return a delay before jitter, seconds.

    :param steps: how many delays there were, with this one
    """
    return min(pool.retry_initial * pow(pool.retry_factor, steps - 1), pool.retry_maximum)


cdef inline void set_retry(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Compute when a failing endpoint connects next."""
    ep.retry_at = ep.retry_since + delay_after(pool, ep.retry_steps) * (1.0 - pool.retry_jitter * ep.retry_luck)


cdef inline void schedule_retry(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Say when a failing endpoint connects next. Connects that began before the first one failed change nothing."""
    ep.delayed = True
    if ep.retry_steps and pool.now < ep.retry_at:
        return
    ep.retry_steps += 1
    ep.retry_since = pool.now
    ep.retry_luck = random_fraction(&pool.random)
    set_retry(pool, ep)


cdef inline void return_job(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Give back the permit of a connect in the background."""
    ep.jobs -= 1
    pool.jobs -= 1
    ep.creating -= 1
    pool.creating -= 1
    pool.size -= 1


cdef inline void drop_unbegun(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Drop the connects of an endpoint that no worker has begun."""
    while ep.unbegun:
        ep.unbegun -= 1
        return_job(pool, ep)
    ring_remove(&ep.in_unbegun)


cdef inline void turn_away_waiters(pool_t* pool, endpoint_t* ep, int verdict) noexcept nogil:
    cdef waiter_t* w
    while ep.waiting:
        w = first_waiter(ep)
        dequeue(pool, w)
        wake(pool, w, verdict)


cdef inline bint exceeds_threshold(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether so many connects have failed in a row that an endpoint is unavailable."""
    return pool.breaker_threshold > 0 and ep.failures >= pool.breaker_threshold


cdef inline void review_failures(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Apply other limits to an endpoint whose connects have failed, as if they had always held. Failures that were not
    remembered, because there was neither a breaker nor a retry, count from the next one on."""
    cdef bint was_broken = ep.broken
    if ring_empty(&ep.in_failing):
        return
    ep.broken = ep.permanent or exceeds_threshold(pool, ep)
    ep.delayed = ep.broken or pool.retries
    ep.timekeeper = NULL                    # who that is looks again, or another one
    if ep.delayed and ep.retry_steps == 0:
        ep.retry_steps = 1
        ep.retry_since = ep.failed_at
        ep.retry_luck = random_fraction(&pool.random)
    if ep.delayed:
        set_retry(pool, ep)
    elif not pool.breaker_threshold:
        ring_remove(&ep.in_failing)
    if ep.broken != was_broken:
        tell_breaker(pool, ep, ep.broken)
    if ep.broken and not was_broken:
        turn_away_waiters(pool, ep, UNAVAILABLE)


cdef inline void connect_failed(pool_t* pool, endpoint_t* ep, bint permanent) noexcept nogil:
    """A connect has failed, whose permit is given back already: schedule the next, or make the endpoint unavailable.

    :param permanent: it is not worth another try: all waiters get its error
    """
    cdef bint was_broken = ep.broken
    ep.failures += 1
    ep.failed_at = pool.now
    ep.counters.connect_failures[permanent] += 1
    ep.permanent = ep.permanent or permanent
    ep.broken = ep.permanent or exceeds_threshold(pool, ep)
    if ep.broken or pool.retries:
        schedule_retry(pool, ep)
    if (ep.broken or pool.retries or pool.breaker_threshold) and ep.listed:
        ring_remove(&ep.in_failing)
        ring_insert(&pool.failing, &ep.in_failing)
    if ep.broken and not was_broken:
        tell_breaker(pool, ep, True)
    if ep.broken:
        turn_away_waiters(pool, ep, FAILED if permanent else UNAVAILABLE)
    forget_old_failures(pool)


cdef inline int end_failed_connect(pool_t* pool, waiter_t* w, bint permanent, bint again) noexcept nogil:
    """End the connect of an acquire that has failed. Return what becomes of the acquire.

    :param again: whether it may try again: it goes back to the wait queue then, at its own age
    :return: DONE: its error is that of the connect; else a verdict
    """
    cdef endpoint_t* ep = w.ep
    count_permit(w, -1)
    ep.creating -= 1
    pool.creating -= 1
    pool.size -= 1
    end_stale_connect(pool, ep, w.expiries)
    w.state = DONE
    if again and not permanent:
        if pool.closed:
            w.state = TURNED_AWAY
        else:
            enqueue(pool, w)
    connect_failed(pool, ep, permanent)
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_if_empty(pool, ep)
    return w.state


cdef inline void serve_due(pool_t* pool, endpoint_t* ep, double now) noexcept nogil:
    """Let the first waiter of a failing endpoint connect, if that is due."""
    pool.now = now
    if ep.delayed and now >= ep.retry_at:
        ep.timekeeper = NULL
        update_blocked(pool, ep)
        serve_blocked(pool)


cdef inline double keep_time(pool_t* pool, waiter_t* w) noexcept nogil:
    """Return when a waiter that is about to wait is to look again: `retry_at` if it does that for its endpoint."""
    cdef endpoint_t* ep = w.ep
    if w.state != WAIT or not ep.delayed or ep.creating + ep.reserved > 0 or pool.now >= ep.retry_at:
        if ep.timekeeper == w:
            ep.timekeeper = NULL
        return INFINITY
    if ep.timekeeper == NULL:
        ep.timekeeper = w
    return ep.retry_at if ep.timekeeper == w else INFINITY


cdef inline double watch_reserve(pool_t* pool, waiter_t* w) noexcept nogil:
    """Let a waiter borrow a place of the reserve, if it has waited for long enough. Return when it is to look again."""
    if w.ep.reserve == 0 or w.priority > 0:
        return INFINITY
    if not may_borrow(pool, w):
        return w.began + pool.reserve_timeout
    w.borrows = True        # for transitions, too, whose clock was read before
    update_blocked(pool, w.ep)
    serve_blocked(pool)
    return INFINITY


cdef inline double watch_lingering(pool_t* pool, waiter_t* w) noexcept nogil:
    """Evict idle connections that linger no more. Return when the waiter that sees to it is to look again."""
    cdef slot_t* s
    serve_blocked(pool)
    if pool.lingerer != w:
        return INFINITY
    s = longest_idle(pool)
    if s == NULL or not pool.blocked.n:
        pool.lingerer = NULL
        return INFINITY
    return max(pool.now, s.since + connect_price(pool, neediest(pool)))


cdef inline void mark_stale(pool_t* pool, slot_t* s) noexcept nogil:
    """Count a connection among those that were opened before they were expired, until it is gone."""
    if not s.stale:
        s.stale = True
        count_stale(pool, s.ep, 1)


cdef inline void end_lives(pool_t* pool, endpoint_t* ep, int reason) noexcept nogil:
    """End the lives of an endpoint's connections: idle ones become victims, used ones will when they are released.

    :param reason: EXPIRED or RETIRED
    """
    cdef ring_t* node = ep.used.next
    cdef slot_t* s
    while node != &ep.used:
        s = slot_in_endpoint(node)
        node = node.next
        heap_remove(&pool.due, &s.due, dies_before)
        s.expires = -INFINITY
        if reason == EXPIRED:
            mark_stale(pool, s)
        else:
            s.retired = True
    while ep.n_base or ep.n_extra:
        s = slot_in_endpoint(ep.base.next if ep.n_base else ep.extras.next)
        remove_idle(pool, s)
        make_victim(pool, s, reason)
    node = ep.disposals.next
    while reason == EXPIRED and node != &ep.disposals:
        mark_stale(pool, slot_in_endpoint(node))
        node = node.next


cdef inline void expire_endpoint(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Expire all connections of an endpoint whose connect began before now: idle ones become victims, used ones will
    when they are released."""
    cdef Py_ssize_t begun = ep.creating - ep.unbegun
    ep.expiries += 1
    count_stale(pool, ep, begun - ep.stale_connects)
    ep.stale_connects = begun
    end_lives(pool, ep, EXPIRED)
    update_blocked(pool, ep)
