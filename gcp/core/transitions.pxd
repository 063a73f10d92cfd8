# Transitions: all that changes the state of a pool. Each is short and atomic: it is `noexcept nogil`, so that no Python
# code runs while it is under way, and its caller holds the core's mutex.
#
# A transition returns a verdict, and leaves in the pool what its caller has to do then: wake waiters, dispose of
# victims, drop the records of empty endpoints, wake the collector. It does not wait, it calls no hook, and it cannot
# fail: the memory that it needs was allocated by `make_room`, or else it disposes of the connection.

from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from gcp.core.connects cimport connect_succeeded, forget_old_failures, is_probe, mark_stale
from gcp.core.heap cimport heap_has_room, heap_push, heap_remove, heap_sift
from gcp.core.histogram cimport N_USE_BOUNDS, gcp_seconds, observe
from gcp.core.leaks cimport count_leak
from gcp.core.permits cimport (
    count_stale, end_stale_connect, limit_stale_connects, may_connect, note_drained, note_room, note_short,
)
from gcp.core.platform cimport GCP_STRIPES, random_fraction
from gcp.core.reserve cimport begin_preferred, count_permit, for_all, may_ask, may_take
from gcp.core.ring cimport ring_empty, ring_remove, ring_t
from gcp.core.scheduling cimport (
    IN_CACHE, add_idle, becomes_extra, begin_use, cancel_reservation, checked_before, dequeue, dies_before, end_use,
    enqueue, expires_before, find_use, grant_permit, has_expired, make_victim, note_expiry,
    note_if_empty, prefetch_next, remove_idle, serve_blocked, update_blocked, waits_behind,
)
from gcp.core.screening cimport smooth
from gcp.core.state cimport (
    ACQUIRES_FAIL, CALL_OK, CONNECTION_CREATED, CONNECTION_RELEASED, CREATE, CROWDED_OUT, DONE, FREE, HOOK_CREATE,
    HOPELESS, IDLE, IDLE_TIMEOUT, MAX_LIFETIME, OPEN, POOL_CLOSED, REFUSED, RETIRED, RETURNING, SUSPENDED, TO_DISPOSAL,
    TO_IDLE, TURNED_AWAY, UNAVAILABLE, USE, USED, WAIT, cap, count_hook_call, endpoint_expiring, endpoint_link,
    endpoint_t, first_check, first_due, first_waiter, idle_limit, lifetime, pool_t, queue_limit, slot_in_endpoint,
    slot_in_pool, slot_t, stripe_t, suspension, taken, waiter_t,
)
from gcp.core.stripes cimport stripe_of
from gcp.core.table cimport table_add, table_has_room, table_remove, table_reserve

cdef enum:
    # Percent of the interval between checks. At most CHECK_JITTER are taken off at random. At least twice CHECK_SLACK
    # are: so much later a worker looks, which makes several checks at a time then; and if that is busy, the collector.
    CHECK_JITTER = 10
    CHECK_SLACK = 2


# --- acquire ---

cdef inline slot_t* take_idle(pool_t* pool, endpoint_t* ep, double now) noexcept nogil:
    """Acquire an idle connection: the fast path. Return NULL if the next one has expired, or if there is no memory."""
    cdef stripe_t* stripe = stripe_of(pool, ep)
    cdef slot_t* s
    if not table_has_room(&stripe.held):
        return NULL
    if ep.n_base:
        s = slot_in_endpoint(ep.base.next)
        if now >= s.expires:
            return NULL
        if pool.n_endpoints > IN_CACHE:
            prefetch_next(pool, s)
        ep.n_base -= 1
    elif ep.n_extra:
        s = slot_in_endpoint(ep.extras.prev)
        if now >= s.expires or now >= s.since + idle_limit(ep):
            return NULL
        ep.n_extra -= 1
    else:
        return NULL
    stripe.idle -= 1
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    begin_use(pool, s, now)
    return s


cdef inline bint expire_idle(pool_t* pool, endpoint_t* ep, double now) noexcept nogil:
    """Make the idle connection that would be acquired next a victim, if it has expired. Return whether it had."""
    cdef slot_t* s
    if ep.n_base:
        s = slot_in_endpoint(ep.base.next)
    elif ep.n_extra:
        s = slot_in_endpoint(ep.extras.prev)
    else:
        return False
    if not has_expired(pool, s, now):
        return False
    remove_idle(pool, s)
    make_victim(pool, s, s.reason)
    return True


cdef inline bint needs_no_check(pool_t* pool, endpoint_t* ep, double now) noexcept nogil:
    """Whether the idle connection that would be acquired next was used, or found alive, so lately that it needs no
    check. Those that are no longer idle are never asked about: so they need not remember when they were."""
    cdef slot_t* s
    if not pool.skips_checks:
        return False
    if ep.n_base:
        s = slot_in_endpoint(ep.base.next)
    elif ep.n_extra:
        s = slot_in_endpoint(ep.extras.prev)
    else:
        return False
    return now - max(s.since, s.checked) < pool.check_interval


cdef inline void refuse(pool_t* pool, waiter_t* w, double now) noexcept nogil:
    """Refuse a waiter that has just come, if too many wait, or its wait is expected to outlast its deadline. One that
    waits for a disposal, not for others, is not refused."""
    cdef endpoint_t* ep = w.ep
    cdef Py_ssize_t size = ep.n_base + ep.n_extra + ep.n_used
    if ep.reserved + ep.disposing + ep.jobs >= ep.waiting:
        return
    if ep.waiting - ep.jobs > queue_limit(ep):
        w.state = CROWDED_OUT
    elif pool.admits_by_deadline and ep.use_time > 0 and size > 0:
        if ep.reserve and not w.priority > 0 and w.deadline < w.began + pool.reserve_timeout:
            size = min(size, for_all(ep))
        w.expected = (w.ahead + 1) * ep.use_time / size
        if w.expected > w.deadline - now:
            w.state = HOPELESS
    if w.state != WAIT:
        dequeue(pool, w)
        w.queued = False
        update_blocked(pool, ep)


cdef inline int turn_away(pool_t* pool, waiter_t* w, double now) noexcept nogil:
    """Refuse an acquire of an endpoint that hands out nothing; if it is suspended, enqueue it where it is to wait."""
    if pool.closed or w.ep.retiring:
        w.state = TURNED_AWAY if pool.closed else REFUSED
        return w.state
    if suspension(pool, w.ep) == ACQUIRES_FAIL:
        w.state = SUSPENDED
        return w.state
    enqueue(pool, w)
    if not w.admitted:
        refuse(pool, w, now)
    return w.state


cdef inline int request_slot(pool_t* pool, waiter_t* w, double now) noexcept nogil:
    """Serve an acquire at once, or enqueue it. Idle connections found expired become victims."""
    cdef endpoint_t* ep = w.ep
    cdef slot_t* s
    pool.now = now
    if pool.closed or ep.retiring or suspension(pool, ep) != OPEN:
        return turn_away(pool, w, now)
    if (ep.waiting == 0 or waits_behind(first_waiter(ep), w)) and may_take(pool, w):
        while True:
            w.fresh = needs_no_check(pool, ep, now)
            s = take_idle(pool, ep, now)
            if s != NULL:
                begin_preferred(s, w)
                w.slot = s
                w.lease = s.lease
                w.state = USE
                return w.state
            if not expire_idle(pool, ep, now):
                break
        if ep.broken and not is_probe(pool, ep):
            w.state = UNAVAILABLE
            return w.state
        if w.creates and taken(ep) < cap(ep) and pool.size < pool.total_max_size and may_connect(pool, ep):
            ep.creating += 1
            pool.creating += 1
            pool.size += 1
            w.state = CREATE
            w.expiries = ep.expiries
            count_permit(w, 1)
            update_blocked(pool, ep)
            return w.state
    elif ep.broken:
        w.state = UNAVAILABLE
        return w.state
    enqueue(pool, w)
    update_blocked(pool, ep)
    serve_blocked(pool)
    if w.state == WAIT and not w.admitted:
        refuse(pool, w, now)
    return w.state


cdef inline int withdraw(pool_t* pool, waiter_t* w) noexcept nogil:
    """End an acquire that waits, or that has an unused permit. Return the state in which it was.

    After USE the caller has a slot to release.
    """
    cdef int found = w.state
    cdef endpoint_t* ep = w.ep
    if found == WAIT:
        dequeue(pool, w)
        update_blocked(pool, ep)
        if pool.sharing:
            serve_blocked(pool)     # it may have been the one that watches what lingers
    elif found == CREATE:
        count_permit(w, -1)
        ep.creating -= 1
        pool.creating -= 1
        pool.size -= 1
        end_stale_connect(pool, ep, w.expiries)
        update_blocked(pool, ep)
        serve_blocked(pool)
        note_short(pool, ep)
        note_room(pool)
    else:
        return found
    w.state = DONE
    note_if_empty(pool, ep)
    return found


cdef inline bint make_room(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Allocate what all connections need that have a place, those that are being created included, so that no later
    transition needs memory; return False on failure.

    :param ep: the endpoint that gets one more
    """
    cdef size_t size = <size_t>pool.size
    if not table_reserve(&stripe_of(pool, ep).held, size) or not table_reserve(&pool.members, size):
        return False
    return heap_has_room(&pool.due, pool.size) and heap_has_room(&pool.checks, pool.size)


cdef inline void set_check(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Set when a connection that is neither used nor checked from now on is to be checked in the background."""
    cdef double off = 2 * CHECK_SLACK + (CHECK_JITTER - 2 * CHECK_SLACK) * random_fraction(&pool.random)
    s.patience = pool.keepalive_interval * (1.0 - off / 100.0)
    s.check_at = now + s.patience
    if s.check >= 0:
        heap_sift(&pool.checks, s.check, checked_before)
    else:
        heap_push(&pool.checks, &s.check, checked_before)
    if s.check_at < pool.collector_wakes_at and pool.checking == 0 and first_check(pool) == s:
        pool.wake_collector = True


cdef inline void enter_connection(
    pool_t* pool, endpoint_t* ep, slot_t* s, double now, double took, uint64_t expiries
) noexcept nogil:
    """Turn a permit into a connection that is in no ring yet. `make_room` has succeeded before its creation.

    :param expiries: those of its endpoint when it was permitted
    """
    cdef double life = lifetime(ep)
    pool.now = now
    ep.creating -= 1
    pool.creating -= 1
    smooth(&ep.create_time, took)
    smooth(&pool.create_time, took)
    ep.counters.created += 1
    if pool.note != NULL:
        pool.note(pool, CONNECTION_CREATED, ep.key, 0)
    count_hook_call(&pool.metrics, HOOK_CREATE, CALL_OK, took)
    s.ep = ep
    s.born = now
    s.luck = random_fraction(&pool.random)
    s.expires = now + life * (1.0 - pool.jitter * s.luck)
    table_add(&pool.members, s)
    if expiries < ep.expiries:
        s.expires = -INFINITY
        mark_stale(pool, s)
        end_stale_connect(pool, ep, expiries)
    elif s.expires < INFINITY:
        heap_push(&pool.due, &s.due, dies_before)
        note_expiry(pool, s.expires)
    if pool.keepalive_interval < INFINITY and not pool.unchecked:
        set_check(pool, s, now)
    if ep.kept or ep.wanted:
        pool.wake_background = True


cdef inline void book_connection(pool_t* pool, waiter_t* w, slot_t* s, double now, double took) noexcept nogil:
    """Turn a permit into a used connection."""
    cdef endpoint_t* ep = w.ep
    enter_connection(pool, ep, s, now, took, w.expiries)
    begin_use(pool, s, now)
    count_permit(w, -1)
    begin_preferred(s, w)
    connect_succeeded(pool, ep)
    w.slot = s
    w.lease = s.lease
    w.state = USE
    if pool.closed or ep.retiring:
        end_use(pool, s)
        make_victim(pool, s, POOL_CLOSED if pool.closed else RETIRED)
        w.slot = NULL
        w.state = TURNED_AWAY if pool.closed else REFUSED


cdef inline void reclaim_permits(pool_t* pool) noexcept nogil:
    """Reclaim the permits of acquires that were dropped."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    pool.abandoned_permits = False
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        if ep.abandoned_permits:
            ep.creating -= ep.abandoned_permits
            pool.creating -= ep.abandoned_permits
            pool.size -= ep.abandoned_permits
            ep.abandoned_permits = 0
            ep.preferred_permits -= ep.abandoned_preferred
            ep.abandoned_preferred = 0
            ep.jobs -= ep.abandoned_jobs
            pool.jobs -= ep.abandoned_jobs
            ep.abandoned_jobs = 0
            limit_stale_connects(pool, ep)
            update_blocked(pool, ep)
            note_short(pool, ep)
            note_if_empty(pool, ep)
    serve_blocked(pool)
    note_room(pool)


# --- release ---

cdef inline bint begin_release(pool_t* pool, slot_t* s, uint64_t lease) noexcept nogil:
    """Begin a release. Return False if the lease has ended: the connection was released, or taken from its holder."""
    if s.lease != lease or s.state != USED:
        return False
    table_remove(&stripe_of(pool, s.ep).held, s)
    s.state = RETURNING
    return True


cdef inline bint is_simple(pool_t* pool, slot_t* s, double now, Py_ssize_t used) noexcept nogil:
    """Whether a release only makes a connection idle: there is nothing to decide, and nothing changes that the lock of
    a stripe does not protect.

    :param used: how many other connections of the endpoint are used
    """
    return pool.waiting == 0 and now < s.expires and pool.screen == NULL and (
        GCP_STRIPES == 1 or s.ep.expiring >= 0 or not becomes_extra(s.ep, used))


cdef inline int end_release(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """End a release, or undo an acquire. Return the outcome. The connection may serve another endpoint's waiter.
    `pool.now` is the same time, but in a simple release."""
    cdef endpoint_t* ep = s.ep
    cdef bint acquired = s.acquired
    cdef double used = now - s.since
    cdef int outcome
    if used > pool.leak_after and acquired:
        count_leak(s)
    end_use(pool, s)
    if is_simple(pool, s, now, ep.n_used):
        add_idle(pool, s, now)
        outcome = TO_IDLE
    else:
        outcome = find_use(pool, s, now, acquired)
    if acquired:
        s.uses += 1
        ep.counters.releases[outcome] += 1
        observe(&stripe_of(pool, ep).use, gcp_seconds, N_USE_BOUNDS, used)
    if outcome != TO_IDLE and pool.blocked.n:
        serve_blocked(pool)
    return outcome


cdef inline void discard_slot(pool_t* pool, slot_t* s, int reason) noexcept nogil:
    """Make a used or returning slot a victim."""
    cdef double used = pool.now - s.since
    if s.acquired:
        s.ep.counters.releases[<int>TO_DISPOSAL] += 1
        if pool.note != NULL:
            pool.note(pool, CONNECTION_RELEASED, s.ep.key, 0)
        observe(&stripe_of(pool, s.ep).use, gcp_seconds, N_USE_BOUNDS, used)
        if used > pool.leak_after:
            count_leak(s)
    end_use(pool, s)
    make_victim(pool, s, POOL_CLOSED if pool.closed else reason)
    update_blocked(pool, s.ep)
    note_drained(pool, s.ep)
    if pool.blocked.n:
        serve_blocked(pool)


cdef inline void take_from_holders(pool_t* pool, endpoint_t* ep, int reason) noexcept nogil:
    """Make victims of an endpoint's acquired connections. Their holders' release does nothing then.

    A connection on which a hook is running has not been acquired yet. It becomes a victim when the hook returns.
    """
    cdef ring_t* node = ep.used.next
    cdef slot_t* s
    while node != &ep.used:
        s = slot_in_endpoint(node)
        node = node.next
        if s.acquired and s.state == USED:
            discard_slot(pool, s, reason)


# --- disposal ---

cdef inline slot_t* take_victim(pool_t* pool) noexcept nogil:
    """Take the oldest victim for disposal; return NULL if there is none."""
    cdef slot_t* s
    if ring_empty(&pool.victims):
        return NULL
    s = slot_in_pool(pool.victims.next)
    ring_remove(&s.in_pool)
    return s


cdef inline void end_disposal(pool_t* pool, slot_t* s) noexcept nogil:
    """Free the place of a victim. It serves the endpoint for which it was reserved, or else the neediest."""
    cdef endpoint_t* ep = s.ep
    cdef endpoint_t* needy = cancel_reservation(pool, s)
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    s.state = FREE
    ep.disposing -= 1
    pool.disposing -= 1
    pool.size -= 1
    if s.stale:
        s.stale = False
        count_stale(pool, ep, -1)
    if needy != NULL:
        if (
            needy.waiting > needy.jobs and taken(needy) < cap(needy) and pool.size < pool.total_max_size
            and may_connect(pool, needy) and may_ask(pool, needy, needy.jobs, 0)
        ):
            grant_permit(pool, needy)
        update_blocked(pool, needy)
        note_if_empty(pool, needy)
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_room(pool)
    note_if_empty(pool, ep)


cdef inline void mark_overdue(pool_t* pool, slot_t* s) noexcept nogil:
    """Cancel the reservation of a victim whose disposal takes too long: its endpoint may be served another way."""
    cdef endpoint_t* needy = cancel_reservation(pool, s)
    if needy == NULL:
        return
    update_blocked(pool, needy)
    serve_blocked(pool)
    note_if_empty(pool, needy)


# --- expiry ---

cdef inline slot_t* first_extra_due(pool_t* pool) noexcept nogil:
    """Return the extra whose idle time ends first, or NULL. The heap has times that may be too early: the extras that
    they were noted for may have been acquired since."""
    cdef endpoint_t* ep
    cdef slot_t* s
    while pool.expiring.n:
        ep = endpoint_expiring(pool.expiring.items[0])
        if ring_empty(&ep.extras):
            heap_remove(&pool.expiring, &ep.expiring, expires_before)
            continue
        s = slot_in_endpoint(ep.extras.next)
        if s.since + idle_limit(ep) <= ep.extras_due:
            return s
        ep.extras_due = s.since + idle_limit(ep)
        heap_sift(&pool.expiring, 0, expires_before)
    return NULL


cdef inline slot_t* next_due(pool_t* pool, double* when) noexcept nogil:
    """Return the idle connection that expires first, or NULL, and when the next connection expires.

    Used ones that expire by `when` leave the heap. They have expired for their release, too, which may have read the
    clock earlier. Those that expire later stay in it, since they may be idle by then."""
    cdef slot_t* s = NULL
    cdef slot_t* first = first_due(pool)
    while first != NULL and first.state != IDLE and first.expires <= when[0]:
        heap_remove(&pool.due, &first.due, dies_before)
        first.expires = -INFINITY
        first = first_due(pool)
    when[0] = INFINITY
    if first != NULL:
        when[0] = first.expires
        if first.state == IDLE:
            s = first
    first = first_extra_due(pool)
    if first != NULL and first.since + idle_limit(first.ep) < when[0]:
        s = first
        when[0] = s.since + idle_limit(s.ep)
    return s


cdef inline Py_ssize_t collect_expired(pool_t* pool, double now, Py_ssize_t limit) noexcept nogil:
    """Make up to `limit` expired idle connections victims, in the order in which they expired. Return how many."""
    cdef Py_ssize_t n = 0
    cdef double when
    cdef slot_t* s
    pool.now = now
    forget_old_failures(pool)
    while n < limit:
        when = now
        s = next_due(pool, &when)
        if s == NULL or when > now:
            break
        s.reason = MAX_LIFETIME if when >= s.expires else IDLE_TIMEOUT
        remove_idle(pool, s)
        make_victim(pool, s, s.reason)
        update_blocked(pool, s.ep)
        n += 1
    return n
