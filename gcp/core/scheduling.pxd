# Scheduling: who is served next, and with what. Transitions are made of these parts; no part is a transition by itself.
#
# A slot is always in one state and in the rings that belong to it. The functions that remove it (end_use, remove_idle)
# leave it in no ring; those that insert it (begin_use, add_idle, make_victim) expect it so.

from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from gcp.core.heap cimport heap_push, heap_remove, heap_sift, place_t
from gcp.core.histogram cimport N_AGE_BOUNDS, gcp_ages, observe
from gcp.core.permits cimport (
    call_timekeeper, can_use_reservation, endpoint_may_connect, note_drained, note_short,
    pool_may_connect,
)
from gcp.core.platform cimport GCP_STRIPES, gcp_prefetch
from gcp.core.reserve cimport begin_preferred, count_permit, end_preferred, may_ask, may_serve
from gcp.core.ring cimport ring_empty, ring_insert, ring_remove, ring_t
from gcp.core.sharing cimport (
    advance, call_lingerer, connect_price, join_contest, lingers, may_linger, owes_place, remember_ahead, settle,
    virtual_time,
)
from gcp.core.state cimport (
    CONNECTION_CLOSED, CREATE, DISCARDED, DISPOSING, EVICTED, EXPIRED, HANDOFF, IDLE, IDLE_TIMEOUT, MAX_LIFETIME,
    N_REASONS, OPEN, RETIRED, TO_DISPOSAL, TO_IDLE, USE, USED, WAIT, base_size, cap, endpoint_expiring, endpoint_link,
    endpoint_rank, endpoint_t, first_waiter, held, idle_limit, neediest, pool_t, slot_check, slot_due, slot_in_endpoint,
    slot_in_pool, slot_reservation, slot_t, stripe_t, suspension, taken, waiter_node, waiter_t,
)
from gcp.core.stripes cimport new_lease_number, stripe_of
from gcp.core.table cimport home_of, table_add, table_has_room, table_remove

cdef enum:
    # A connection whose own endpoint has waiters is evicted for another endpoint only after it has lived for this many
    # times the create time of the other. So evictions cost about a tenth of the capacity at most.
    LIVES = 8
    # The records of this many endpoints and of their connections stay in the processor's cache without prefetching.
    IN_CACHE = 1000


# --- orders of the heaps ---

cdef inline bint dies_before(place_t* a, place_t* b) noexcept nogil:
    return slot_due(a).expires < slot_due(b).expires


cdef inline bint checked_before(place_t* a, place_t* b) noexcept nogil:
    return slot_check(a).check_at < slot_check(b).check_at


cdef inline bint needier(place_t* a, place_t* b) noexcept nogil:
    """Whether an endpoint holds less than another one; or as much, and its first waiter is older. Where there are
    weights or floors, the endpoint below its floor, or else the one with the lesser virtual time."""
    cdef endpoint_t* p = endpoint_rank(a)
    cdef endpoint_t* q = endpoint_rank(b)
    cdef Py_ssize_t x = held(p) + p.reserved
    cdef Py_ssize_t y = held(q) + q.reserved
    if (x < p.floor) != (y < q.floor):
        return x < p.floor
    if p.virtual != q.virtual:
        return p.virtual < q.virtual
    return x < y or (x == y and first_waiter(p).seq < first_waiter(q).seq)


cdef inline bint expires_before(place_t* a, place_t* b) noexcept nogil:
    return endpoint_expiring(a).extras_due < endpoint_expiring(b).extras_due


# --- the wait queue ---

cdef inline void wake(pool_t* pool, waiter_t* w, int state) noexcept nogil:
    """Give a waiter its verdict. The reference that the wait queue owned passes to the ring of the woken."""
    w.state = state
    ring_insert(&pool.woken, &w.node)


cdef inline bint waits_behind(waiter_t* w, waiter_t* other) noexcept nogil:
    """Whether a waiter comes after another one of its endpoint: by priority, then by age."""
    return w.priority < other.priority or (w.priority == other.priority and w.seq > other.seq)


cdef inline void enqueue(pool_t* pool, waiter_t* w) noexcept nogil:
    """Insert a waiter into the wait queue by its priority and age: an acquire that was given a dead connection keeps
    its turn."""
    cdef endpoint_t* ep = w.ep
    cdef ring_t* before = &ep.queue
    w.ahead = ep.waiting
    if ep.waiting and waits_behind(first_waiter(ep), w):
        before = ep.queue.next
        w.ahead = 0
    else:
        while before.prev != &ep.queue and waits_behind(waiter_node(before.prev), w):
            before = before.prev
            w.ahead -= 1
    ring_insert(before, &w.node)
    w.state = WAIT
    w.queued = True
    ep.waiting += 1
    ep.preferring += w.priority > 0
    pool.waiting += 1


cdef inline void dequeue(pool_t* pool, waiter_t* w) noexcept nogil:
    ring_remove(&w.node)
    if w.ep.timekeeper == w:
        w.ep.timekeeper = NULL
    if pool.lingerer == w:
        pool.lingerer = NULL
    w.ep.waiting -= 1
    w.ep.preferring -= w.priority > 0
    pool.waiting -= 1


# --- what has changed of an endpoint ---

cdef inline void update_blocked(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Update the heap of blocked endpoints after an endpoint's wait queue, holdings or reservations have changed."""
    if ep.reserve and ep.waiting:
        serve_idle(pool, ep)
    if pool.sharing:
        settle(pool, ep)
    if (
        ep.waiting > ep.reserved + ep.jobs and taken(ep) < cap(ep) and endpoint_may_connect(pool, ep)
        and may_ask(pool, ep, ep.reserved + ep.jobs, 0)
    ):
        if ep.rank < 0:
            join_contest(pool, ep)
            heap_push(&pool.blocked, &ep.rank, needier)
        else:
            heap_sift(&pool.blocked, ep.rank, needier)
    elif ep.rank >= 0:
        heap_remove(&pool.blocked, &ep.rank, needier)
    if ep.delayed:
        call_timekeeper(pool, ep)


cdef inline bint is_remembered(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether the failures of an endpoint say something about its next connect."""
    return not ring_empty(&ep.in_failing)


cdef inline void note_if_empty(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Note an endpoint without connections and waiters: its record can be dropped, or is remembered for a while."""
    if (
        ep.waiting == 0 and taken(ep) == 0 and not ep.in_empties and ep.listed and not ep.kept
        and not is_remembered(pool, ep) and not ep.suspended and not remember_ahead(pool, ep)
    ):
        ep.in_empties = True
        ep.next_empty = pool.empties
        pool.empties = ep
    if ep.retiring:
        pool.wake_background = True
    note_drained(pool, ep)


# --- used slots ---

cdef inline void begin_use(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Make a slot used, with a new lease. The table of used slots must have room."""
    cdef endpoint_t* ep = s.ep
    cdef stripe_t* stripe = stripe_of(pool, ep)
    s.state = USED
    s.since = now
    s.leaked = False
    s.lease = new_lease_number(stripe)
    ring_insert(&ep.used, &s.in_endpoint)
    ep.n_used += 1
    stripe.used += 1
    table_add(&stripe.held, s)


cdef inline void end_use(pool_t* pool, slot_t* s) noexcept nogil:
    """Remove a used or returning slot from where it is."""
    cdef stripe_t* stripe = stripe_of(pool, s.ep)
    if s.state == USED:
        table_remove(&stripe.held, s)
    ring_remove(&s.in_endpoint)
    s.acquired = False
    s.ep.n_used -= 1
    stripe.used -= 1


# --- idle slots ---

cdef inline void note_expiry(pool_t* pool, double when) noexcept nogil:
    """Note when a connection expires, and whether the collector must wake earlier for it."""
    if when < pool.next_expiry:
        pool.next_expiry = when
    if when < pool.collector_wakes_at:
        pool.wake_collector = True


cdef inline bint becomes_extra(endpoint_t* ep, Py_ssize_t used) noexcept nogil:
    """Whether a connection that becomes idle is an extra. It is of the base if base and used connections, this one
    included, are at most `min_idle`.

    :param used: how many others are used
    """
    return used >= base_size(ep) - ep.n_base


cdef inline void add_idle(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Make a slot idle, of the base or an extra. It is in no ring, and does not count as used any more."""
    cdef endpoint_t* ep = s.ep
    cdef stripe_t* stripe = stripe_of(pool, ep)
    s.state = IDLE
    s.since = now
    s.extra = becomes_extra(ep, ep.n_used)
    if s.extra:
        if ep.expiring < 0:
            ep.extras_due = now + idle_limit(ep)
            heap_push(&pool.expiring, &ep.expiring, expires_before)
            note_expiry(pool, ep.extras_due)
        ring_insert(&ep.extras, &s.in_endpoint)
        ring_insert(&stripe.idle_extras, &s.in_pool)
        ep.n_extra += 1
    else:
        ring_insert(&ep.base, &s.in_endpoint)
        ring_insert(&stripe.idle_bases, &s.in_pool)
        ep.n_base += 1
    stripe.idle += 1


cdef inline void remove_idle(pool_t* pool, slot_t* s) noexcept nogil:
    """Remove an idle slot from where it is."""
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    if s.extra:
        s.ep.n_extra -= 1
    else:
        s.ep.n_base -= 1
    stripe_of(pool, s.ep).idle -= 1


cdef inline bint has_expired(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Whether an idle slot has expired. Sets its reason if it has."""
    if now >= s.expires:
        s.reason = MAX_LIFETIME
        return True
    if s.extra and now >= s.since + idle_limit(s.ep):
        s.reason = IDLE_TIMEOUT
        return True
    return False


cdef inline slot_t* longer_idle(slot_t* s, ring_t* ring) noexcept nogil:
    """Return a slot, or the first of a ring that is in the order of idleness, if that has been idle for longer."""
    if ring_empty(ring) or (s != NULL and s.since <= slot_in_pool(ring.next).since):
        return s
    return slot_in_pool(ring.next)


cdef inline slot_t* longest_idle(pool_t* pool) noexcept nogil:
    """Return the idle slot to evict first, or NULL: of the extras if there are any, the longest idle."""
    cdef slot_t* extra = NULL
    cdef slot_t* base = NULL
    cdef int i
    for i in range(GCP_STRIPES):
        extra = longer_idle(extra, &pool.stripes[i].idle_extras)
        base = longer_idle(base, &pool.stripes[i].idle_bases)
    return extra if extra != NULL else base


cdef inline void prefetch_next(pool_t* pool, slot_t* s) noexcept nogil:
    """Load what the next hits will read, in a pool with more endpoints than the cache has room for.

    A program that visits its endpoints in turn acquires next what has been idle for longest after this slot. Each hit
    loads the records of one slot that will be acquired soon, and of the slots before it what these records point at.
    """
    cdef ring_t* node = s.in_pool.next
    cdef int ahead
    for ahead in range(1, 5):
        if node == &stripe_of(pool, s.ep).idle_bases:
            return
        s = slot_in_pool(node)
        if ahead == 2:
            gcp_prefetch(s.ep.key)
            gcp_prefetch(&pool.known.items[home_of(s.ep.key, pool.known.mask)])
        elif ahead == 3:
            gcp_prefetch(s.conn)
            gcp_prefetch(s.ep)
            gcp_prefetch(&s.ep.counters)
        elif ahead == 4:
            gcp_prefetch(s)
            gcp_prefetch(&s.since)
            return
        node = node.next


# --- victims and reservations ---

cdef inline void make_victim(pool_t* pool, slot_t* s, int reason) noexcept nogil:
    """Make a slot a victim: it is to be disposed of. Its place stays taken until its disposal has ended."""
    cdef endpoint_t* ep = s.ep
    s.state = DISPOSING
    s.reason = reason
    s.reserved_for = NULL
    end_preferred(s)
    s.lease = new_lease_number(stripe_of(pool, ep))
    heap_remove(&pool.due, &s.due, dies_before)
    heap_remove(&pool.checks, &s.check, checked_before)
    table_remove(&pool.members, s)
    observe(&pool.metrics.age, gcp_ages, N_AGE_BOUNDS, pool.now - s.born)
    ring_insert(&ep.disposals, &s.in_endpoint)
    ring_insert(&pool.victims, &s.in_pool)
    ep.disposing += 1
    pool.disposing += 1
    ep.counters.closed[reason] += 1
    if pool.note != NULL:
        pool.note(pool, CONNECTION_CLOSED, ep.key, reason)
    note_short(pool, ep)


cdef inline void evict_for(pool_t* pool, slot_t* s, endpoint_t* needy) noexcept nogil:
    """Make a slot a victim, and reserve its place for a blocked endpoint."""
    make_victim(pool, s, EVICTED)
    s.reserved_for = needy
    ring_insert(&pool.reserving, &s.reservation)
    needy.reserved += 1
    pool.reserved += 1
    update_blocked(pool, needy)
    update_blocked(pool, s.ep)


cdef inline endpoint_t* cancel_reservation(pool_t* pool, slot_t* s) noexcept nogil:
    """Cancel the reservation of a victim's place. Return the endpoint that had it, or NULL."""
    cdef endpoint_t* needy = s.reserved_for
    if needy != NULL:
        s.reserved_for = NULL
        ring_remove(&s.reservation)
        needy.reserved -= 1
        pool.reserved -= 1
    return needy


# --- serving waiters ---

cdef inline void grant_permit(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Let the first waiter create a connection, or have one created for it. The caller has checked both caps, and
    `may_connect`."""
    cdef waiter_t* w = first_waiter(ep)
    ep.creating += 1
    pool.creating += 1
    pool.size += 1
    if w.creates:
        w.expiries = ep.expiries
        count_permit(w, 1)
        dequeue(pool, w)
        wake(pool, w, CREATE)
    else:
        ep.jobs += 1
        pool.jobs += 1
        ep.unbegun += 1
        if ring_empty(&ep.in_unbegun):
            ring_insert(&pool.unbegun, &ep.in_unbegun)
        pool.wake_background = True
    update_blocked(pool, ep)


cdef inline void hand_off(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Give a slot to the first waiter of its endpoint."""
    cdef endpoint_t* ep = s.ep
    cdef waiter_t* w = first_waiter(ep)
    dequeue(pool, w)
    begin_use(pool, s, now)
    begin_preferred(s, w)
    w.slot = s
    w.lease = s.lease
    w.fresh = pool.skips_checks
    wake(pool, w, USE)
    update_blocked(pool, ep)


cdef inline void serve_idle(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Give idle connections of an endpoint to its waiters, after a suspension, or where it has a reserve."""
    cdef slot_t* s
    cdef waiter_t* w
    while (
        ep.waiting and ep.n_base + ep.n_extra and table_has_room(&stripe_of(pool, ep).held) and may_serve(pool, ep)
        and suspension(pool, ep) == OPEN
    ):
        s = slot_in_endpoint(ep.base.next if ep.n_base else ep.extras.prev)
        remove_idle(pool, s)
        if has_expired(pool, s, pool.now):
            make_victim(pool, s, s.reason)
            continue
        w = first_waiter(ep)
        hand_off(pool, s, pool.now)
        w.fresh = False     # nothing is known of what has become of its server meanwhile


cdef inline void serve_reserved(pool_t* pool) noexcept nogil:
    """Grant free places to endpoints with reservations: their waiters need not wait for those victims then."""
    cdef ring_t* node = pool.reserving.next
    cdef slot_t* s
    while pool.size < pool.total_max_size and node != &pool.reserving:
        s = slot_reservation(node)
        node = node.next
        if (
            s.reserved_for.waiting and taken(s.reserved_for) <= cap(s.reserved_for)
            and can_use_reservation(pool, s.reserved_for) and may_ask(pool, s.reserved_for, s.reserved_for.jobs, 1)
        ):
            grant_permit(pool, cancel_reservation(pool, s))


cdef inline void serve_blocked(pool_t* pool) noexcept nogil:
    """Serve waiters that only the total cap holds back, as far as free places and idle connections go, and as far as
    the limit of all connects allows.

    Holds after each transition: no such waiter is left while there is a free place or an idle connection.
    """
    cdef endpoint_t* needy
    cdef slot_t* s
    while pool.blocked.n and pool_may_connect(pool):
        needy = neediest(pool)
        if pool.size < pool.total_max_size:
            grant_permit(pool, needy)
            continue
        s = longest_idle(pool)
        if s == NULL:
            break
        if lingers(pool, s, needy):
            call_lingerer(pool, needy)
            break
        remove_idle(pool, s)
        evict_for(pool, s, needy)
    serve_reserved(pool)


cdef inline bint yields_to(pool_t* pool, slot_t* s, endpoint_t* needy, double now) noexcept nogil:
    """Whether a slot in no ring, whose own endpoint has waiters, is to be evicted for a blocked endpoint.

    It is when its endpoint holds at least two more than the other, or when the other holds none and has the older
    waiter; but not before it has lived for LIVES times the create time of the other.
    """
    cdef Py_ssize_t mine = held(s.ep) + 1           # with this slot, which is counted nowhere now
    cdef Py_ssize_t theirs = held(needy) + needy.reserved
    cdef double price = connect_price(pool, needy)
    if pool.sharing:
        return owes_place(pool, s.ep, needy, now, mine) and (
            theirs < needy.floor or now - s.born >= LIVES * price)
    if mine - theirs <= 1 and not (theirs == 0 and first_waiter(needy).seq < first_waiter(s.ep).seq):
        return False
    return now - s.born >= LIVES * price


cdef inline int find_use(pool_t* pool, slot_t* s, double now, bint acquired) noexcept nogil:
    """Find the next use of a healthy slot that was released and is in no ring. Return the outcome of the release.

    Called in one place only, by `end_release`: so compilers make it a part of that, which saves 30 instructions a hit.

    :param acquired: whether it was in use, not only given to an acquire that has ended badly
    """
    cdef endpoint_t* ep = s.ep
    cdef endpoint_t* needy
    cdef int reason = N_REASONS
    if pool.screen != NULL:
        reason = pool.screen(pool, s, now, acquired)
        if reason < N_REASONS:
            make_victim(pool, s, reason)
            update_blocked(pool, ep)
            return TO_DISPOSAL
    if now >= s.expires:
        make_victim(pool, s, RETIRED if s.retired else EXPIRED if s.stale else MAX_LIFETIME)
        update_blocked(pool, ep)
        return TO_DISPOSAL
    needy = neediest(pool)
    if needy != NULL and not pool_may_connect(pool):
        needy = NULL
    if ep.waiting and reason == N_REASONS and suspension(pool, ep) == OPEN:
        if pool.sharing and needy != NULL:
            advance(pool, min(virtual_time(ep, now), virtual_time(needy, now)))
        if needy != NULL and needy != ep and yields_to(pool, s, needy, now):
            evict_for(pool, s, needy)
            return TO_DISPOSAL
        if not table_has_room(&stripe_of(pool, ep).held):
            make_victim(pool, s, DISCARDED)
            update_blocked(pool, ep)
            return TO_DISPOSAL
        hand_off(pool, s, now)
        return HANDOFF
    if needy != NULL and not (pool.sharing and may_linger(pool, s, needy, now)):
        evict_for(pool, s, needy)
        return TO_DISPOSAL
    add_idle(pool, s, now)
    return TO_IDLE
