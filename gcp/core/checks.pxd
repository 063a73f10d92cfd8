# Checks: which idle connections are checked in the background, and when. A connection that has been neither used nor
# checked for `keepalive_interval`, less some percent at random, is due. Several are checked at a time, so that workers
# wake less often; where many are due at about the same time, the first are checked earlier, so that the last is not
# checked too late.

from libc.math cimport INFINITY

from gcp.core.heap cimport heap_sift
from gcp.core.ring cimport ring_insert, ring_remove, ring_t
from gcp.core.scheduling cimport begin_use, checked_before, expires_before, note_expiry, remove_idle
from gcp.core.screening cimport smooth
from gcp.core.state cimport (
    IDLE, OPEN, RETURNING, TO_IDLE, endpoint_t, first_check, idle_limit, pool_t, slot_check, slot_in_endpoint,
    slot_in_pool, slot_t, suspension,
)
from gcp.core.stripes cimport stripe_of
from gcp.core.table cimport table_has_room, table_remove
from gcp.core.transitions cimport CHECK_SLACK, end_release, set_check

cdef enum:
    MOST_CHECKS = 8     # checks in the background at a time, where `max_connecting` does not say less
    QUICK = 1000        # microseconds: below, waking another worker costs more than it saves
    PERIODS = 64        # see `plan_checks`


cdef inline Py_ssize_t most_checks(pool_t* pool) noexcept nogil:
    """Return how many connections may be checked at a time."""
    return min(pool.max_connecting, pool.max_connecting_total, <Py_ssize_t>MOST_CHECKS)


cdef inline double slack(pool_t* pool) noexcept nogil:
    """Return how long a check may be put off, seconds: those that come due meanwhile are made together with it."""
    return pool.keepalive_interval * CHECK_SLACK / 100.0


cdef inline bint is_quick(pool_t* pool) noexcept nogil:
    """Whether a check takes so little time that one worker makes all of them, one after the other."""
    return 0 < pool.check_time < QUICK / 1e6 and pool.checks.n * pool.check_time < pool.keepalive_interval / 4


cdef inline double time_for_each(pool_t* pool) noexcept nogil:
    """Return how much time is to be allowed for each of many checks, seconds, with a fifth as much again to be
    sure. A check that has not been made yet is taken to last as long as a connect, but not for long."""
    cdef double seconds = 1.2 * (pool.check_time if pool.check_time > 0 else min(pool.create_time, 0.01))
    return seconds if is_quick(pool) else seconds / most_checks(pool)


cdef inline bint may_be_late(pool_t* pool) noexcept nogil:
    """Whether there are so many connections that their checks take longer than one may be put off."""
    return pool.checks.n * time_for_each(pool) > slack(pool)


cdef inline void plan_checks(pool_t* pool) noexcept nogil:
    """Find when checks are to begin so that the last of many that are due at about the same time is not made too late.

    Counts the connections by the time at which their checks are to begin, in PERIODS parts of the interval: n checks
    until then have to begin so much earlier as n of them take."""
    cdef int counts[<int>PERIODS]
    cdef double period = pool.keepalive_interval / PERIODS
    cdef double each = time_for_each(pool)
    cdef double when
    cdef Py_ssize_t n = 0
    cdef Py_ssize_t i
    cdef slot_t* s
    pool.checks_ahead = 0
    pool.checks_early = INFINITY
    pool.checks_planned = pool.now
    if not may_be_late(pool):
        return
    for i in range(PERIODS):
        counts[i] = 0
    for i in range(pool.checks.n):
        s = slot_check(pool.checks.items[i])
        if s.state == IDLE:
            when = max(s.since, s.checked) + s.patience + slack(pool) - pool.now
            counts[max(0, min(<int>PERIODS - 1, <int>(when / period)))] += 1
    for i in range(PERIODS):
        n += counts[i]
        when = pool.now + i * period - n * each
        if counts[i] and when < pool.checks_early:
            pool.checks_early = when
            pool.checks_ahead = n


cdef inline double checks_due(pool_t* pool) noexcept nogil:
    """Return when the next checks begin, inf if there are none: a little later than the first is due, and then all that
    are due by then are made. So workers wake less often."""
    cdef double when
    if pool.checks.n == 0:
        return INFINITY
    when = first_check(pool).check_at + slack(pool)
    if may_be_late(pool):
        # what is planned does not know of connections that were released since
        when = min(when, pool.checks_planned + pool.keepalive_interval / 4)
        if pool.checks_ahead > 0:
            when = min(when, pool.checks_early)
    return when


cdef inline double next_check_at(pool_t* pool) noexcept nogil:
    """Return when checks are due that no worker will come to by itself; inf: there are none."""
    cdef double when
    if pool.checking >= most_checks(pool):
        return INFINITY
    when = checks_due(pool)
    if pool.checking and is_quick(pool):
        return max(when, pool.check_began + slack(pool))    # it has not ended as soon as others did
    if pool.worker_wakes_at <= when:
        return when + slack(pool)                           # a worker keeps the time; it may be busy by then
    return when


cdef inline bint are_early(pool_t* pool) noexcept nogil:
    """Whether checks are to begin now that are not due yet, so that others are not made too late."""
    return pool.checks_ahead > 0 and pool.now >= pool.checks_early


cdef inline bint needs_another_worker(pool_t* pool) noexcept nogil:
    """Whether a check that has just begun takes so long that others are to be made at the same time."""
    return not is_quick(pool) and pool.checking < most_checks(pool) and (
        first_check(pool).check_at <= pool.now or are_early(pool))


cdef inline bint is_later(pool_t* pool, slot_t* s) noexcept nogil:
    """Move a connection to its place in the heap if its check is due later than was noted when it was used, or checked.
    Return whether it is."""
    cdef double when = pool.now + s.patience    # of one that is used or suspended: when it can be due at the earliest
    if s.state == IDLE and suspension(pool, s.ep) == OPEN:
        when = max(s.since, s.checked) + s.patience
    if when <= s.check_at:
        return False
    s.check_at = when
    heap_sift(&pool.checks, s.check, checked_before)
    return True


cdef inline slot_t* due_check(pool_t* pool, double until) noexcept nogil:
    """Return the idle connection whose check comes first, if it is due until then, or NULL."""
    cdef slot_t* s = first_check(pool)
    while s != NULL and s.check_at <= until:
        if not is_later(pool, s):
            return s if s.state == IDLE else NULL
        s = first_check(pool)
    return NULL


cdef inline slot_t* begin_check(pool_t* pool) noexcept nogil:
    """Reserve an idle connection that is due to be checked: until then it counts as used. Return NULL if none is."""
    cdef slot_t* s
    cdef bint ahead = are_early(pool)
    if pool.closed or pool.checking >= most_checks(pool):
        return NULL
    if not pool.checks_go_on and pool.now < checks_due(pool):
        return NULL
    # half an interval: what cannot be checked in time at all is not checked without a pause
    s = due_check(pool, pool.now + (pool.keepalive_interval / 2 if ahead else 0.0))
    if s == NULL:
        pool.checks_ahead = 0
        pool.checks_go_on = False
        return NULL
    if not table_has_room(&stripe_of(pool, s.ep).held):
        return NULL
    pool.checks_ahead -= ahead
    pool.checks_go_on = True
    remove_idle(pool, s)
    s.idle_since = s.since
    begin_use(pool, s, pool.now)
    table_remove(&stripe_of(pool, s.ep).held, s)
    s.state = RETURNING
    s.check_at = pool.now + s.patience
    heap_sift(&pool.checks, s.check, checked_before)
    pool.checking += 1
    s.ep.checking += 1
    pool.check_began = pool.now
    return s


cdef inline void stop_checking(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """A check has ended."""
    pool.checking -= 1
    ep.checking -= 1


cdef inline void return_among_extras(pool_t* pool, slot_t* s) noexcept nogil:
    """Return an extra to its place by the time of its last use: a check does not prolong its life."""
    cdef ring_t* idle = &stripe_of(pool, s.ep).idle_extras
    cdef ring_t* node
    s.since = s.idle_since
    ring_remove(&s.in_pool)
    node = idle.next
    while node != idle and slot_in_pool(node).since <= s.since:
        node = node.next
    ring_insert(node, &s.in_pool)
    ring_remove(&s.in_endpoint)
    node = s.ep.extras.next
    while node != &s.ep.extras and slot_in_endpoint(node).since <= s.since:
        node = node.next
    ring_insert(node, &s.in_endpoint)
    if s.since + idle_limit(s.ep) < s.ep.extras_due:
        s.ep.extras_due = s.since + idle_limit(s.ep)
        heap_sift(&pool.expiring, s.ep.expiring, expires_before)
        note_expiry(pool, s.ep.extras_due)


cdef inline void end_check(pool_t* pool, slot_t* s, double now, double took) noexcept nogil:
    """End a check that found a connection alive: it serves the oldest waiter, or is idle again."""
    cdef bint was_extra = s.extra
    pool.now = now
    smooth(&pool.check_time, max(took, 1e-9))
    stop_checking(pool, s.ep)
    s.checked = now
    set_check(pool, s, now)
    if end_release(pool, s, now) == TO_IDLE and was_extra and s.extra:
        return_among_extras(pool, s)


cdef inline void put_off_check(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """End a check that was not begun, because the endpoint was suspended: the connection is idle again."""
    cdef bint was_extra = s.extra
    stop_checking(pool, s.ep)
    set_check(pool, s, now)
    if end_release(pool, s, now) == TO_IDLE and was_extra and s.extra:
        return_among_extras(pool, s)
