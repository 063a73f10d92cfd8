# Resizing: one transition that puts other limits in force. Afterwards the state is as if they had always held, except
# for connections that are in use, or being created or disposed of, beyond a cap that was lowered: see `screen`.

from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from gcp.core.connects cimport review_failures
from gcp.core.heap cimport heap_push
from gcp.core.jobs cimport set_refill
from gcp.core.permits cimport note_short
from gcp.core.platform cimport GCP_STRIPES
from gcp.core.reserve cimport recount_preferred
from gcp.core.ring cimport ring_empty, ring_insert, ring_move, ring_remove, ring_t
from gcp.core.scheduling cimport (
    cancel_reservation, dies_before, expires_before, longer_idle, longest_idle, make_victim, note_if_empty, remove_idle,
    serve_blocked, serve_idle, update_blocked,
)
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    EVICTED, MAX_USES, OPEN, base_size, cap, endpoint_link, endpoint_t, held, idle_limit, lifetime, limits_t, pool_t,
    slot_in_endpoint, slot_in_pool, slot_reservation, slot_t, stripe_t, suspension, taken,
)
from gcp.core.steering cimport hide, show
from gcp.core.stripes cimport count_idle, stripe_of
from gcp.core.transitions cimport collect_expired, set_check


cdef inline void copy_limits(pool_t* pool, pool_t* new) noexcept nogil:
    """Copy the limits of a pool."""
    pool.max_size = new.max_size
    pool.total_max_size = new.total_max_size
    pool.min_idle = new.min_idle
    pool.idle_timeout = new.idle_timeout
    pool.max_lifetime = new.max_lifetime
    pool.jitter = new.jitter
    pool.leak_after = new.leak_after
    pool.leaks_at = -INFINITY
    pool.max_uses = new.max_uses
    pool.max_connecting = new.max_connecting
    pool.max_connecting_total = new.max_connecting_total
    pool.max_waiting = new.max_waiting
    pool.breaker_threshold = new.breaker_threshold
    pool.connect_workers = new.connect_workers
    pool.keepalive_interval = new.keepalive_interval
    pool.check_interval = new.check_interval
    pool.connect_timeout = new.connect_timeout
    pool.retry_initial = new.retry_initial
    pool.retry_maximum = new.retry_maximum
    pool.retry_factor = new.retry_factor
    pool.retry_jitter = new.retry_jitter
    pool.retries = new.retries
    pool.admits_by_deadline = new.admits_by_deadline
    pool.refills = new.refills
    pool.skips_checks = new.skips_checks
    pool.reserve = new.reserve
    pool.reserve_timeout = new.reserve_timeout


cdef inline void set_limits(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Set the limits of an endpoint: what it was given, else the pool's. The pool's adapt to what it was given."""
    cdef limits_t* own = &ep.own
    ep.max_size = own.max_size if own.max_size >= 0 else max(pool.max_size, own.min_idle)
    ep.min_idle = own.min_idle if own.min_idle >= 0 else min(pool.min_idle, ep.max_size)
    ep.max_lifetime = own.max_lifetime if own.max_lifetime >= 0 else pool.max_lifetime
    if own.max_lifetime < 0 and own.idle_timeout < INFINITY:
        ep.max_lifetime = max(ep.max_lifetime, own.idle_timeout)
    ep.idle_timeout = own.idle_timeout if own.idle_timeout >= 0 else min(pool.idle_timeout, ep.max_lifetime)
    ep.max_waiting = own.max_waiting if own.max_waiting >= 0 else pool.max_waiting
    ep.weight = own.weight if own.weight > 0 else 1.0
    ep.floor = max(own.floor, 0)
    ep.reserve = min(own.reserve if own.reserve >= 0 else pool.reserve, ep.max_size - 1)
    pool.reserves = pool.reserves or ep.reserve > 0
    if ep.weight != 1.0 or ep.floor:
        pool.sharing = True


cdef inline bint all_asked(pool_t* pool, uint64_t asked) noexcept nogil:
    """Whether the new limits of all endpoints are known. 0: they were not asked for."""
    cdef ring_t* node = pool.endpoints.next
    while asked and node != &pool.endpoints:
        if endpoint_link(node).asked != asked:
            return False
        node = node.next
    return True


# --- the times at which connections expire ---

cdef inline void renew_lifetimes(pool_t* pool) noexcept nogil:
    """Compute the end of each connection's life anew. The heap has room for all connections: see `make_room`."""
    cdef ring_t* node = pool.endpoints.next
    cdef ring_t* ring
    cdef ring_t* each
    cdef endpoint_t* ep
    cdef slot_t* s
    cdef int i
    pool.due.n = 0
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        for i in range(3):
            ring = &ep.base if i == 0 else &ep.extras if i == 1 else &ep.used
            each = ring.next
            while each != ring:
                s = slot_in_endpoint(each)
                each = each.next
                s.due = -1
                if s.stale or s.retired:
                    continue        # it has expired
                s.expires = s.born + lifetime(ep) * (1.0 - pool.jitter * s.luck)
                if s.expires < INFINITY:
                    heap_push(&pool.due, &s.due, dies_before)


cdef inline void renew_idle_times(pool_t* pool) noexcept nogil:
    """Compute anew when the first extra of each endpoint expires."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    pool.expiring.n = 0
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        ep.expiring = -1
        if not ring_empty(&ep.extras):
            ep.extras_due = slot_in_endpoint(ep.extras.next).since + idle_limit(ep)
            heap_push(&pool.expiring, &ep.expiring, expires_before)


# --- base and extras ---

cdef inline Py_ssize_t plan_base(endpoint_t* ep) noexcept nogil:
    """Return how many idle connections of an endpoint are to change between base and extras; negative: to extras."""
    cdef Py_ssize_t wanted = max(0, base_size(ep) - ep.n_used)
    return wanted - ep.n_base if wanted < ep.n_base else min(wanted - ep.n_base, <Py_ssize_t>ep.n_extra)


cdef inline void sort_idle(pool_t* pool) noexcept nogil:
    """Make idle connections base or extras by the new limits: the longest idle ones change first. Each ring stays in
    the order in which its connections became idle: all are taken from the front of a ring, and inserted at its end."""
    cdef ring_t* node = pool.endpoints.next
    cdef int i
    while node != &pool.endpoints:
        endpoint_link(node).changing = plan_base(endpoint_link(node))
        node = node.next
    for i in range(GCP_STRIPES):
        sort_stripe(pool, &pool.stripes[i])


cdef inline void sort_stripe(pool_t* pool, stripe_t* stripe) noexcept nogil:
    cdef ring_t bases, extras
    cdef slot_t* s
    ring_move(&bases, &stripe.idle_bases)
    ring_move(&extras, &stripe.idle_extras)
    while True:
        s = longer_idle(longer_idle(NULL, &extras), &bases)
        if s == NULL:
            break
        requeue_idle(pool, s)


cdef inline void requeue_idle(pool_t* pool, slot_t* s) noexcept nogil:
    """Move an idle connection to the end of its rings, or of the others if it is to change."""
    cdef endpoint_t* ep = s.ep
    if ep.changing > 0 and s.extra:
        ep.changing -= 1
        s.extra = False
        ep.n_extra -= 1
        ep.n_base += 1
    elif ep.changing < 0 and not s.extra:
        ep.changing += 1
        s.extra = True
        ep.n_extra += 1
        ep.n_base -= 1
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    ring_insert(&ep.extras if s.extra else &ep.base, &s.in_endpoint)
    ring_insert(
        &stripe_of(pool, ep).idle_extras if s.extra else &stripe_of(pool, ep).idle_bases, &s.in_pool)


# --- checks in the background ---

cdef inline void renew_checks(pool_t* pool) noexcept nogil:
    """Compute anew when connections are checked. The heap has room for all connections: see `make_room`."""
    cdef ring_t* node = pool.endpoints.next
    cdef ring_t* ring
    cdef ring_t* each
    cdef endpoint_t* ep
    cdef slot_t* s
    cdef int i
    pool.checks.n = 0
    pool.checks_ahead = 0
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        for i in range(3):
            ring = &ep.base if i == 0 else &ep.extras if i == 1 else &ep.used
            each = ring.next
            while each != ring:
                s = slot_in_endpoint(each)
                each = each.next
                s.check = -1
                if pool.keepalive_interval < INFINITY and not pool.unchecked:
                    set_check(pool, s, max(s.since, s.checked))


# --- places for acquires with a priority ---

cdef inline void renew_reserve(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Count anew what is held of the reserve of an endpoint, and let idle hits see one that has none."""
    recount_preferred(ep)
    if ep.reserve:
        hide(pool, ep)
    elif suspension(pool, ep) == OPEN:
        show(pool, ep)


# --- what is too much ---

cdef inline void dispose_idle(pool_t* pool, slot_t* s, int reason) noexcept nogil:
    remove_idle(pool, s)
    make_victim(pool, s, reason)


cdef inline void dispose_used_up(pool_t* pool) noexcept nogil:
    """Dispose of idle connections that were used often enough."""
    cdef ring_t* ring
    cdef ring_t* node
    cdef slot_t* s
    cdef int i
    if not pool.max_uses:
        return
    for i in range(2 * GCP_STRIPES):
        ring = &pool.stripes[i // 2].idle_bases if i % 2 == 0 else &pool.stripes[i // 2].idle_extras
        node = ring.next
        while node != ring:
            s = slot_in_pool(node)
            node = node.next
            if s.uses >= <uint64_t>pool.max_uses:
                dispose_idle(pool, s, MAX_USES)


cdef inline void shrink_endpoint(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Dispose of the idle connections of an endpoint that exceed its cap, the longest idle first, extras before those
    of the base."""
    cdef bint over
    while held(ep) > cap(ep) and ep.n_base + ep.n_extra:
        dispose_idle(pool, slot_in_endpoint(ep.extras.next if ep.n_extra else ep.base.next), EVICTED)
    over = held(ep) > cap(ep)
    pool.n_over += over - <int>ep.over
    ep.over = over


cdef inline void shrink(pool_t* pool) noexcept nogil:
    """Dispose of idle connections that exceed the caps. Used ones beyond them go when they are released."""
    cdef ring_t* node = pool.endpoints.next
    cdef slot_t* s
    while node != &pool.endpoints:
        shrink_endpoint(pool, endpoint_link(node))
        node = node.next
    while pool.size - pool.disposing > pool.total_max_size:
        s = longest_idle(pool)
        if s == NULL:
            break
        dispose_idle(pool, s, EVICTED)
    pool.over = pool.size - pool.disposing > pool.total_max_size


cdef inline void cancel_surplus(pool_t* pool) noexcept nogil:
    """Cancel reservations of places that their endpoints may not take any more."""
    cdef ring_t* node = pool.reserving.prev
    cdef slot_t* s
    while node != &pool.reserving:
        s = slot_reservation(node)
        node = node.prev
        if taken(s.reserved_for) > cap(s.reserved_for):
            cancel_reservation(pool, s)


# --- the transition ---

cdef inline void put_in_force(pool_t* pool, pool_t* new, uint64_t asked, double now) noexcept nogil:
    """Put new limits in force.

    :param asked: 0, or the number under which each endpoint was asked for limits of its own (see `all_asked`)
    """
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    copy_limits(pool, new)
    pool.now = now
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        ep.own = ep.next_own if asked else ep.own
        set_limits(pool, ep)
        renew_reserve(pool, ep)
        ep.wanted = min(ep.wanted, cap(ep))     # a warm-up in progress
        review_failures(pool, ep)
        if ep.refill_steps:
            set_refill(pool, ep)
    renew_lifetimes(pool)
    renew_checks(pool)
    sort_idle(pool)
    renew_idle_times(pool)
    collect_expired(pool, now, count_idle(pool))
    dispose_used_up(pool)
    shrink(pool)
    cancel_surplus(pool)
    update_screening(pool)
    node = pool.endpoints.next
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        serve_idle(pool, ep)
        update_blocked(pool, ep)
        note_if_empty(pool, ep)
        note_short(pool, ep)
    serve_blocked(pool)
    pool.wake_background = True
    pool.next_expiry = now
    pool.wake_collector = True
