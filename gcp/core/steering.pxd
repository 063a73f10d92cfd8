# Steering: the transitions of what an operator does with endpoints in use, apart from retiring them: no connection that
# was opened before is handed out again, or no connection at all for a while.
#
# Idle hits do not see a suspended endpoint: it is not in the table in which they look. So suspending costs them
# nothing. Nor do they see one with a reserve: `take_slot_of` looks whether they may have its connections.

from gcp.core.connects cimport drop_unbegun, expire_endpoint, turn_away_waiters
from gcp.core.permits cimport note_room, note_short
from gcp.core.ring cimport ring_t
from gcp.core.scheduling cimport cancel_reservation, note_if_empty, serve_blocked, serve_idle, update_blocked
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    ACQUIRES_FAIL, OPEN, SUSPENDED, endpoint_link, endpoint_t, pool_t, slot_in_endpoint, slot_reservation, slot_t,
    suspension,
)
from gcp.core.table cimport table_add, table_remove


# --- expire ---

cdef inline void expire_every_endpoint(pool_t* pool) noexcept nogil:
    """Expire all connections whose connect began before now."""
    cdef ring_t* node = pool.endpoints.next
    while node != &pool.endpoints:
        expire_endpoint(pool, endpoint_link(node))
        node = node.next


# --- what idle hits see ---

cdef inline void show(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Let idle hits see an endpoint, unless they have to look who may take its places. The table has room for all
    endpoints."""
    if not ep.shown and not ep.reserve:
        ep.shown = True
        pool.hidden -= 1
        table_add(&pool.known, ep)


cdef inline void hide(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Let idle hits not see an endpoint."""
    if ep.shown:
        ep.shown = False
        pool.hidden += 1
        table_remove(&pool.known, ep)


# --- suspend ---

cdef inline void cancel_reservations(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Cancel the reservations of an endpoint: others may use the places."""
    cdef ring_t* node = pool.reserving.next
    cdef slot_t* s
    while node != &pool.reserving:
        s = slot_reservation(node)
        node = node.next
        if s.reserved_for == ep:
            cancel_reservation(pool, s)


cdef inline void close_door(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Hand out no connection of an endpoint that is suspended, and begin no connect."""
    hide(pool, ep)
    drop_unbegun(pool, ep)
    cancel_reservations(pool, ep)
    if suspension(pool, ep) == ACQUIRES_FAIL:
        turn_away_waiters(pool, ep, SUSPENDED)
    update_blocked(pool, ep)


cdef inline void suspend_endpoint(pool_t* pool, endpoint_t* ep, int mode) noexcept nogil:
    """Suspend an endpoint."""
    ep.suspended = mode
    close_door(pool, ep)
    serve_blocked(pool)
    note_room(pool)


cdef inline void suspend_all(pool_t* pool, int mode) noexcept nogil:
    """Suspend all endpoints, also those that are not known yet."""
    cdef ring_t* node = pool.endpoints.next
    pool.suspended = mode
    while node != &pool.endpoints:
        close_door(pool, endpoint_link(node))
        node = node.next


# --- resume ---

cdef inline void forget_checks(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Have each idle connection of an endpoint checked at its next acquire, however lately it was used."""
    cdef ring_t* ring
    cdef ring_t* node
    cdef slot_t* s
    cdef int i
    for i in range(2):
        ring = &ep.base if i == 0 else &ep.extras
        node = ring.next
        while node != ring:
            s = slot_in_endpoint(node)
            node = node.next
            s.since = min(s.since, pool.now - pool.check_interval)
            s.checked = min(s.checked, s.since)


cdef inline void open_door(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Hand out connections of an endpoint again, unless it is still suspended."""
    if ep.shown or suspension(pool, ep) != OPEN:
        return
    show(pool, ep)
    if pool.skips_checks:
        forget_checks(pool, ep)
    serve_idle(pool, ep)
    update_blocked(pool, ep)
    note_short(pool, ep)
    note_if_empty(pool, ep)


cdef inline void go_on(pool_t* pool) noexcept nogil:
    """After a suspension: serve waiters, and have refills and checks go on. No drain is waited for any more."""
    serve_blocked(pool)
    note_room(pool)
    pool.wake_background = True


cdef inline void resume_endpoint(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """End the suspension of an endpoint."""
    ep.suspended = OPEN
    open_door(pool, ep)
    go_on(pool)


cdef inline void resume_all(pool_t* pool) noexcept nogil:
    """End all suspensions."""
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* ep
    pool.suspended = OPEN
    while node != &pool.endpoints:
        ep = endpoint_link(node)
        node = node.next
        ep.suspended = OPEN
        open_door(pool, ep)
    go_on(pool)


# --- waiting until nothing is held ---

cdef inline void count_drain(pool_t* pool, int more) noexcept nogil:
    """Count a caller that waits until nothing is held; -1: it does not any more."""
    pool.drains += more
    update_screening(pool)
