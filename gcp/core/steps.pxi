# The steps: everything the pool decides, one short atomic transition each.
#
# A step is `noexcept nogil`: the compiler proves that it runs no Python code, so nothing can happen in its middle. It
# returns a verdict and leaves what remains to be done in the pool: waiters to wake, victims to dispose of, endpoints
# that became empty. No step waits, allocates (room is made before), or calls anybody.

# How many times its target's create time a connection lives before it may be taken from a line of its own for an
# endpoint in greater need: time-sharing then costs about a tenth of the capacity.
cdef enum:
    LIVES = 8

# So many endpoints and their connections are in the processor's cache anyway.
cdef enum:
    IN_CACHE = 1000


# --- waking and lines ---

cdef inline void wake(pool_t* pool, waiter_t* w, int state) noexcept nogil:
    """Give a waiter its verdict. The line's reference to the ticket goes along."""
    w.state = state
    w.next_woken = NULL
    if pool.woken == NULL:
        pool.woken = w
    else:
        pool.last_woken.next_woken = w
    pool.last_woken = w


cdef inline void update_blocked(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Keep the heap of the blocked true after an endpoint's line, holdings or promises changed."""
    cdef blocked_heap_t* heap = &pool.blocked
    if ep.waiting > ep.reserved and taken(ep) < pool.max_size:
        if ep.rank < 0:
            ep.rank = heap.n
            heap.items[heap.n] = ep
            heap.n += 1
        blocked_sift(heap, ep.rank)
    elif ep.rank >= 0:
        blocked_remove(heap, ep)


cdef inline void note_if_empty(pool_t* pool, endpoint_t* ep) noexcept nogil:
    if ep.waiting == 0 and taken(ep) == 0 and not ep.in_empties and ep.listed:
        ep.in_empties = True
        ep.next_empty = pool.empties
        pool.empties = ep


cdef void enqueue(pool_t* pool, waiter_t* w) noexcept nogil:
    """Stand in line: by age, so that one who comes back after a dead connection keeps its place."""
    cdef endpoint_t* ep = w.ep
    cdef ring_t* before = &ep.queue
    w.ahead = ep.waiting
    if ep.waiting and first_waiter(ep).seq > w.seq:
        before = ep.queue.next
        w.ahead = 0
    else:
        while before.prev != &ep.queue and waiter_node(before.prev).seq > w.seq:
            before = before.prev
    ring_insert(before, &w.node)
    w.state = WAIT
    w.queued = True
    ep.waiting += 1
    pool.waiting += 1


cdef inline void dequeue(pool_t* pool, waiter_t* w) noexcept nogil:
    ring_remove(&w.node)
    w.ep.waiting -= 1
    pool.waiting -= 1


# --- transitions of a slot; each takes it out of where it was and puts it where it belongs ---

cdef inline void begin_use(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """A slot that is in no list becomes used."""
    cdef endpoint_t* ep = s.ep
    s.state = USED
    s.since = now
    s.leaked = False
    pool.leases += 1
    s.lease = pool.leases
    ring_insert(&ep.used, &s.in_endpoint)
    ep.n_used += 1
    pool.used += 1
    table_add(&pool.held, s)


cdef inline void count_leak(slot_t* s) noexcept nogil:
    """Count a connection that somebody has held for too long, once."""
    if not s.leaked:
        s.leaked = True
        s.ep.counters.leaks += 1


cdef inline void end_use(pool_t* pool, slot_t* s) noexcept nogil:
    """A used slot leaves its holder; it is in no list then."""
    if s.state == USED:
        table_remove(&pool.held, s)
    ring_remove(&s.in_endpoint)
    s.acquired = False
    s.ep.n_used -= 1
    pool.used -= 1


cdef inline void remove_idle(pool_t* pool, slot_t* s) noexcept nogil:
    """An idle slot leaves its places; it is in no list then."""
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    if s.extra:
        s.ep.n_extra -= 1
    else:
        s.ep.n_base -= 1
    pool.idle -= 1


cdef inline void note_expiry(pool_t* pool, double when) noexcept nogil:
    """Note when something expires: somebody may have to look sooner."""
    if when < pool.next_expiry:
        pool.next_expiry = when
    if when < pool.collector_wakes_at:
        pool.wake_collector = True


cdef inline void add_idle(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """A slot that is in no list becomes idle: base while there are places that nobody still out may claim, else
    extra."""
    cdef endpoint_t* ep = s.ep
    s.state = IDLE
    s.since = now
    s.extra = ep.n_used >= pool.min_idle - ep.n_base
    if s.extra:
        if ring_empty(&pool.idle_extras):
            note_expiry(pool, now + pool.idle_timeout)
        ring_insert(&ep.extras, &s.in_endpoint)
        ring_insert(&pool.idle_extras, &s.in_pool)
        ep.n_extra += 1
    else:
        ring_insert(&ep.base, &s.in_endpoint)
        ring_insert(&pool.idle_bases, &s.in_pool)
        ep.n_base += 1
    pool.idle += 1


cdef void make_victim(pool_t* pool, slot_t* s, int reason) noexcept nogil:
    """A slot that is in no list becomes a victim. Its place is taken until it is gone."""
    cdef endpoint_t* ep = s.ep
    s.state = DISPOSING
    s.reason = reason
    s.reserved_for = NULL
    pool.leases += 1
    s.lease = pool.leases
    due_remove(&pool.due, s)
    observe(&pool.metrics.age, gcp_ages, N_AGE_BOUNDS, pool.now - s.born)
    ring_insert(&ep.disposals, &s.in_endpoint)
    ring_insert(&pool.victims, &s.in_pool)
    ep.disposing += 1
    pool.disposing += 1
    ep.counters.closed[reason] += 1


cdef inline bint has_expired(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Whether an idle slot is expired, and set why."""
    if now >= s.expires:
        s.reason = MAX_LIFETIME
        return True
    if s.extra and now >= s.since + pool.idle_timeout:
        s.reason = IDLE_TIMEOUT
        return True
    return False


# --- serving waiters ---

cdef inline void grant_permit(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Let the first in line create. Size and caps have been checked."""
    cdef waiter_t* w = first_waiter(ep)
    dequeue(pool, w)
    ep.creating += 1
    pool.creating += 1
    pool.size += 1
    wake(pool, w, CREATE)
    update_blocked(pool, ep)


cdef inline void hand_off(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Give a slot that is in no list to the first in its endpoint's line."""
    cdef endpoint_t* ep = s.ep
    cdef waiter_t* w = first_waiter(ep)
    dequeue(pool, w)
    begin_use(pool, s, now)
    w.slot = s
    w.lease = s.lease
    wake(pool, w, USE)
    update_blocked(pool, ep)


cdef inline void evict_for(pool_t* pool, slot_t* s, endpoint_t* needy) noexcept nogil:
    """Make a slot that is in no list a victim, and promise its place."""
    make_victim(pool, s, EVICTED)
    s.reserved_for = needy
    ring_insert(&pool.reserving, &s.reservation)
    needy.reserved += 1
    update_blocked(pool, needy)
    update_blocked(pool, s.ep)


cdef inline endpoint_t* cancel_reservation(slot_t* s) noexcept nogil:
    """Take a victim's promise back. Returns to whom it was given, or NULL."""
    cdef endpoint_t* needy = s.reserved_for
    if needy != NULL:
        s.reserved_for = NULL
        ring_remove(&s.reservation)
        needy.reserved -= 1
    return needy


cdef inline slot_t* longest_idle(pool_t* pool) noexcept nogil:
    if not ring_empty(&pool.idle_extras):
        return slot_in_pool(pool.idle_extras.next)
    if not ring_empty(&pool.idle_bases):
        return slot_in_pool(pool.idle_bases.next)
    return NULL


cdef void serve_blocked(pool_t* pool) noexcept nogil:
    """Serve those who only the total cap holds back, as far as places and idle connections go. After each step:
    nobody waits while something could serve them."""
    cdef endpoint_t* needy
    cdef slot_t* s
    cdef ring_t* node
    while pool.blocked.n:
        needy = pool.blocked.items[0]
        if pool.size < pool.total_max_size:
            grant_permit(pool, needy)
            continue
        s = longest_idle(pool)
        if s == NULL:
            break
        remove_idle(pool, s)
        evict_for(pool, s, needy)
    # A place may be free before the one that was reserved: nobody needs to wait for that one then.
    node = pool.reserving.next
    while pool.size < pool.total_max_size and node != &pool.reserving:
        s = slot_reservation(node)
        node = node.next
        if s.reserved_for.waiting:
            needy = cancel_reservation(s)
            grant_permit(pool, needy)


cdef inline bint yields_to(pool_t* pool, slot_t* s, endpoint_t* needy, double now) noexcept nogil:
    """Whether a slot whose own line waits should serve a blocked endpoint instead: where that evens out holdings by
    more than one, or ends the other's having none while its waiter is the older; and only once the slot has lived for
    LIVES times what a connection of the other costs to create."""
    cdef Py_ssize_t mine = held(s.ep) + 1           # it is in no list now, but still of its endpoint
    cdef Py_ssize_t theirs = held(needy) + needy.reserved
    cdef double price = needy.create_time if needy.create_time > 0 else pool.create_time
    if mine - theirs <= 1 and not (theirs == 0 and first_waiter(needy).seq < first_waiter(s.ep).seq):
        return False
    return now - s.born >= LIVES * price


cdef int find_use(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """Find the next use of a healthy slot that has come back and is in no list."""
    cdef endpoint_t* ep = s.ep
    cdef endpoint_t* needy = NULL
    if pool.closed:
        make_victim(pool, s, POOL_CLOSED)
        return TO_DISPOSAL
    if now >= s.expires:
        make_victim(pool, s, MAX_LIFETIME)
        update_blocked(pool, ep)
        return TO_DISPOSAL
    if pool.blocked.n:
        needy = pool.blocked.items[0]
    if ep.waiting:
        if needy != NULL and needy != ep and yields_to(pool, s, needy, now):
            evict_for(pool, s, needy)
            return TO_DISPOSAL
        if not table_has_room(&pool.held):
            make_victim(pool, s, DISCARDED)
            update_blocked(pool, ep)
            return TO_DISPOSAL
        hand_off(pool, s, now)
        return HANDOFF
    if needy != NULL:
        evict_for(pool, s, needy)
        return TO_DISPOSAL
    add_idle(pool, s, now)
    return TO_IDLE


# --- acquire ---

cdef void prefetch_next(pool_t* pool, slot_t* s) noexcept nogil:
    """With very many endpoints a hit waits for memory, not for the processor. Those who visit them in turn want next
    what has been idle for longest after this one: have it brought along meanwhile, of the farther ones what leads to
    the rest."""
    cdef ring_t* node = s.in_pool.next
    cdef int ahead
    for ahead in range(1, 5):
        if node == &pool.idle_bases:
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


cdef inline slot_t* take_idle(pool_t* pool, endpoint_t* ep, double now) noexcept nogil:
    """The fast path: check an idle connection out, or return NULL when that takes more than this."""
    cdef slot_t* s
    if not table_has_room(&pool.held):
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
        if now >= s.expires or now >= s.since + pool.idle_timeout:
            return NULL
        ep.n_extra -= 1
    else:
        return NULL
    pool.idle -= 1
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    begin_use(pool, s, now)
    return s


cdef int request_slot(pool_t* pool, waiter_t* w, double now) noexcept nogil:
    """Serve an acquire at once, or put it in line. Idle connections found expired become victims."""
    cdef endpoint_t* ep = w.ep
    cdef slot_t* s
    pool.now = now
    if pool.closed:
        w.state = TURNED_AWAY
        return w.state
    if ep.waiting == 0 or w.seq < first_waiter(ep).seq:
        while True:
            s = take_idle(pool, ep, now)
            if s != NULL:
                w.slot = s
                w.lease = s.lease
                w.state = USE
                return w.state
            if ep.n_base:
                s = slot_in_endpoint(ep.base.next)
            elif ep.n_extra:
                s = slot_in_endpoint(ep.extras.prev)
            else:
                break
            if not has_expired(pool, s, now):
                break           # no memory to check it out
            remove_idle(pool, s)
            make_victim(pool, s, s.reason)
        if taken(ep) < pool.max_size and pool.size < pool.total_max_size:
            ep.creating += 1
            pool.creating += 1
            pool.size += 1
            w.state = CREATE
            update_blocked(pool, ep)
            return w.state
    enqueue(pool, w)
    update_blocked(pool, ep)
    serve_blocked(pool)
    return w.state


cdef int withdraw(pool_t* pool, waiter_t* w) noexcept nogil:
    """Leave the line, or return an unused permit. Returns the state found: USE leaves a slot to give back."""
    cdef int found = w.state
    cdef endpoint_t* ep = w.ep
    if found == WAIT:
        dequeue(pool, w)
        update_blocked(pool, ep)
    elif found == CREATE:
        ep.creating -= 1
        pool.creating -= 1
        pool.size -= 1
        update_blocked(pool, ep)
        serve_blocked(pool)
    else:
        return found
    w.state = DONE
    note_if_empty(pool, ep)
    return found


cdef bint make_room(pool_t* pool) noexcept nogil:
    """Make room for one connection more, so that no later step needs memory."""
    cdef void* items
    if not table_has_room(&pool.held):
        return False
    items = grown(pool.due.items, &pool.due.capacity, pool.due.n + 1, sizeof(slot_t*))
    if items == NULL:
        return False
    pool.due.items = <slot_t**>items
    return True


cdef void book_connection(pool_t* pool, waiter_t* w, slot_t* s, double now, double took) noexcept nogil:
    """Turn a permit into a checked-out connection."""
    cdef endpoint_t* ep = w.ep
    cdef double life = pool.max_lifetime
    pool.now = now
    ep.creating -= 1
    pool.creating -= 1
    ep.create_time += (took - ep.create_time) * (0.2 if ep.create_time > 0 else 1.0)
    pool.create_time += (took - pool.create_time) * (0.2 if pool.create_time > 0 else 1.0)
    ep.counters.created += 1
    count_hook_call(&pool.metrics, HOOK_CREATE, CALL_OK, took)
    if pool.jitter > 0:
        life *= 1.0 - pool.jitter * random_fraction(&pool.random)
    s.ep = ep
    s.born = now
    s.expires = now + life
    begin_use(pool, s, now)
    if s.expires < INFINITY:
        due_push(&pool.due, s)
        note_expiry(pool, s.expires)
    w.slot = s
    w.lease = s.lease
    w.state = USE
    if pool.closed:
        end_use(pool, s)
        make_victim(pool, s, POOL_CLOSED)
        w.slot = NULL
        w.state = TURNED_AWAY


cdef void reclaim_permits(pool_t* pool) noexcept nogil:
    """Take back the permits of tickets that were dropped."""
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
            update_blocked(pool, ep)
            note_if_empty(pool, ep)
    serve_blocked(pool)


# --- release ---

cdef bint begin_release(pool_t* pool, slot_t* s, uint64_t lease) noexcept nogil:
    """Begin a release: from here on the connection is nobody's, and a second release finds nothing."""
    if s.lease != lease or s.state != USED:
        return False
    table_remove(&pool.held, s)
    s.state = RETURNING
    return True


cdef int end_release(pool_t* pool, slot_t* s, double now) noexcept nogil:
    """End a release, or undo an acquire. A released connection that the line did not take may still serve others."""
    cdef endpoint_t* ep = s.ep
    cdef bint acquired = s.acquired
    cdef double used = now - s.since
    cdef int outcome
    pool.now = now
    if used > pool.leak_after and acquired:
        count_leak(s)
    end_use(pool, s)
    outcome = find_use(pool, s, now)
    if acquired:
        ep.counters.releases[outcome] += 1
        observe(&pool.metrics.use, gcp_seconds, N_USE_BOUNDS, used)
    if outcome != TO_IDLE and pool.blocked.n:
        serve_blocked(pool)
    return outcome


cdef void discard_slot(pool_t* pool, slot_t* s, int reason) noexcept nogil:
    """Take a used connection away for disposal."""
    cdef double used = pool.now - s.since
    if s.acquired:
        s.ep.counters.releases[<int>TO_DISPOSAL] += 1
        observe(&pool.metrics.use, gcp_seconds, N_USE_BOUNDS, used)
        if used > pool.leak_after:
            count_leak(s)
    end_use(pool, s)
    make_victim(pool, s, POOL_CLOSED if pool.closed else reason)
    update_blocked(pool, s.ep)
    if pool.blocked.n:
        serve_blocked(pool)


cdef void find_leaks(pool_t* pool) noexcept nogil:
    """Count the connections that are being held for too long. The longest held of an endpoint are first in its ring."""
    cdef ring_t* node = pool.endpoints.next
    cdef ring_t* used
    cdef endpoint_t* ep
    if pool.leak_after == INFINITY:
        return
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        used = ep.used.next
        while used != &ep.used and pool.now - slot_in_endpoint(used).since > pool.leak_after:
            if slot_in_endpoint(used).acquired:
                count_leak(slot_in_endpoint(used))
            used = used.next


# --- disposal and expiry ---

cdef slot_t* take_victim(pool_t* pool) noexcept nogil:
    """Take the first victim away for disposal."""
    cdef slot_t* s
    if ring_empty(&pool.victims):
        return NULL
    s = slot_in_pool(pool.victims.next)
    ring_remove(&s.in_pool)
    return s


cdef void end_disposal(pool_t* pool, slot_t* s) noexcept nogil:
    """A victim is gone: its place serves whom it was reserved to, or the neediest."""
    cdef endpoint_t* ep = s.ep
    cdef endpoint_t* needy = cancel_reservation(s)
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    s.state = FREE
    ep.disposing -= 1
    pool.disposing -= 1
    pool.size -= 1
    if needy != NULL:
        if needy.waiting and taken(needy) < pool.max_size and pool.size < pool.total_max_size:
            grant_permit(pool, needy)
        update_blocked(pool, needy)
        note_if_empty(pool, needy)
    update_blocked(pool, ep)
    serve_blocked(pool)
    note_if_empty(pool, ep)


cdef void mark_overdue(pool_t* pool, slot_t* s) noexcept nogil:
    """A disposal takes too long: whoever counts on its place is free to get another."""
    cdef endpoint_t* needy = cancel_reservation(s)
    if needy == NULL:
        return
    update_blocked(pool, needy)
    serve_blocked(pool)
    note_if_empty(pool, needy)


cdef slot_t* next_due(pool_t* pool, double* when) noexcept nogil:
    """Find the idle connection that expires first. Used ones leave the heap: their release will look at the clock."""
    cdef slot_t* s = NULL
    while pool.due.n and pool.due.items[0].state != IDLE:
        # Only one that is past its life may go: later ones must still be found when idle.
        if pool.due.items[0].expires > when[0]:
            break
        due_remove(&pool.due, pool.due.items[0])
    when[0] = INFINITY
    if pool.due.n:
        when[0] = pool.due.items[0].expires
        if pool.due.items[0].state == IDLE:
            s = pool.due.items[0]
    if not ring_empty(&pool.idle_extras) and slot_in_pool(pool.idle_extras.next).since + pool.idle_timeout < when[0]:
        s = slot_in_pool(pool.idle_extras.next)
        when[0] = s.since + pool.idle_timeout
    return s


cdef Py_ssize_t collect_expired(pool_t* pool, double now, Py_ssize_t limit) noexcept nogil:
    """Make up to `limit` expired idle connections victims, in the order in which they expired."""
    cdef Py_ssize_t n = 0
    cdef double when
    cdef slot_t* s
    pool.now = now
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


# --- closing ---

cdef void close_pool(pool_t* pool) noexcept nogil:
    """Turn every waiter away and make every idle connection a victim."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    cdef waiter_t* w
    cdef slot_t* s
    pool.closed = True
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        while ep.waiting:
            w = first_waiter(ep)
            dequeue(pool, w)
            wake(pool, w, TURNED_AWAY)
        update_blocked(pool, ep)
        note_if_empty(pool, ep)
    while True:
        s = longest_idle(pool)
        if s == NULL:
            break
        remove_idle(pool, s)
        make_victim(pool, s, POOL_CLOSED)


cdef void force_close(pool_t* pool) noexcept nogil:
    """Take every acquired connection from its holder. Its release, later, finds nothing and does nothing. (One with a hook
    running is not acquired: it becomes a victim when the hook is done.)"""
    cdef ring_t* node = pool.endpoints.next
    cdef ring_t* used
    cdef endpoint_t* ep
    cdef slot_t* s
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        used = ep.used.next
        while used != &ep.used:
            s = slot_in_endpoint(used)
            used = used.next
            if s.acquired and s.state == USED:
                discard_slot(pool, s, POOL_CLOSED)


cdef void write_off(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Count what an endpoint still has as closed: its pool is garbage. Ages and uses end with the last step."""
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
                observe(&pool.metrics.use, gcp_seconds, N_USE_BOUNDS, pool.now - s.since)
